# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
GPU kernels in Triton, the third form of the operators in `modeling/`, with the same signatures.

The operators take them by themselves on GPUs of NVIDIA from Ampere on (compute capability 8.0), with Triton 3.3 or
later. An operator's argument `backend`, and for all of them the environment
variable `LEANFORMERS_KERNELS`, say otherwise:

    auto     the kernel where it applies, else torch (the default)
    triton   the kernel, or an error that says why it does not apply
    torch    never a kernel

With `TRITON_INTERPRET=1`, set before triton is first imported, kernels run on the CPU as well, slowly, when `triton`
is asked for.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "triton", "torch")
ENVIRONMENT_VARIABLE = "LEANFORMERS_KERNELS"
OLDEST_TRITON = (3, 3)  # the compiler of 3.2 ends the process
OLDEST_GPU = (8, 0)  # for older ones Triton has no compiler


def chosen_backend(backend: str | None = None) -> str:
    """
    One of `BACKENDS`: the argument, else what the environment says.

    Raises:
        `ValueError`: if that is none of them.
    """
    wanted = backend or os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if wanted not in BACKENDS:
        where = "backend" if backend else ENVIRONMENT_VARIABLE
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {wanted!r}.")
    return wanted


def use_kernel(name: str, tensor: Tensor, backend: str | None = None, obstacle: str | None = None) -> bool:
    """
    Whether the kernel `name` runs; which path does is logged once.

    Args:
        name (`str`): of the operator, for the log and for errors.
        tensor (`torch.Tensor`): one of the inputs, which tells the device.
        backend (`str`, *optional*): one of `BACKENDS`; by default what the environment says.
        obstacle (`str`, *optional*): why the kernel cannot take these inputs, if it cannot.

    Raises:
        `ValueError`: if the backend is unknown, or is "triton" and the kernel does not apply.
    """
    wanted = chosen_backend(backend)
    if wanted == "torch" or (wanted == "auto" and not tensor.is_cuda):
        return False
    obstacle = obstacle or _missing(tensor.device)
    if obstacle is not None and wanted == "triton":
        raise ValueError(f"{name} has no kernel for this: {obstacle}.")
    if not torch.compiler.is_compiling():  # which traces no logging
        _log_once(name, "its Triton kernel" if obstacle is None else f"torch, as {obstacle}")
    return obstacle is None


def _missing(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        return _unfit(device)
    if os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors are on the device {device.type!r} and TRITON_INTERPRET is not 1"
    return None


@torch.compiler.assume_constant_result
def _unfit(device: torch.device) -> str | None:
    """What keeps a GPU from running kernels. Trying would end in an error of Triton's compiler, or end the process."""
    return _unfit_once(device)


@cache
def _unfit_once(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "they are for GPUs of NVIDIA"
    import triton

    if tuple(int(number) for number in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        names = (".".join(map(str, numbers)) for numbers in (capability, OLDEST_GPU))
        return "the GPU has compute capability {}, and they need {}".format(*names)
    return None


def _mend_interpreter() -> None:
    """
    What Triton's interpreter does not do: take bounds of loops from arrays of one number, which NumPy 2.4 refuses;
    round to the nearest bfloat16, as GPUs do, instead of cutting off, and multiply matrices of it; call the functions
    of our kernels without patching all of the language again, which takes a third of the time; and keep masks boolean,
    on which 3.9 insists, where a part of them is a single number.
    """
    import numpy
    from triton import language
    from triton.runtime import interpreter

    patch, convert = interpreter._patch_lang_tensor, interpreter._convert_float
    call = interpreter.InterpretedFunction.__call__

    def patched(tensor, *scope):
        patch(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: self.handle.data.item())

    def rounded(values, from_type, to_type, rounding_mode):
        if (from_type, to_type) != (language.float32, language.bfloat16):
            return convert(values, from_type, to_type, rounding_mode)
        bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the even one of two
        return numpy.where(numpy.isnan(values), bits >> 16 | 0x40, nearest).astype(numpy.uint16).reshape(values.shape)

    def in_float32(handle):
        if handle.dtype.scalar != language.bfloat16:
            return handle
        numbers = (handle.data.astype(numpy.uint32) << 16).view(numpy.float32)
        return interpreter.TensorHandle(numbers, language.float32)

    def multiplied(builder, left, right, *others):
        return multiply(builder, in_float32(left), in_float32(right), *others)

    def called(function, *args, **kwargs):
        is_ours = function.fn.__module__.startswith(f"{__name__}.")
        return function.rewrite()(*args, **kwargs) if is_ours else call(function, *args, **kwargs)

    def with_boolean_mask(access, place):
        def accessed(builder, *handles, **options):
            handles[place].data = handles[place].data.astype(bool)
            return access(builder, *handles, **options)

        return accessed

    builder = interpreter.InterpreterBuilder
    multiply, builder.create_dot = builder.create_dot, multiplied
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(builder, name, with_boolean_mask(getattr(builder, name), place))
    interpreter._patch_lang_tensor, interpreter._convert_float = patched, rounded
    interpreter.InterpretedFunction.__call__ = called


if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
    _mend_interpreter()


@cache
def _log_once(name: str, path: str) -> None:
    logger.info("%s runs as %s.", name, path)
