# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
The delta rule and the sum rule of fast weight memories as Triton kernels (maths in `fast_weight_chunks.py`).

They take float32 and half precision, keys of any width, and DPFP unmapped: its features, `2 * nu` times as wide as
what they are made of, are computed where they are multiplied and never stored. Between forward and backward nothing
is kept but the inputs; the backward pass holds two memories per chunk and head while it runs. Products are in TF32 for
bfloat16 values, whose own rounding is coarser, and as exact as float32 for the others: "tf32x3", which loses a bit of
half of the numbers, or "ieee" for narrow keys, whose short sums do not lose more anyhow. Memory, sums and the
triangular solve are float32 always; where the memory is wanted, products that end there are as exact, and where the
gradient of the initial one is, all of the backward pass.

Shapes as in `leanformers.modeling.fast_weight.delta_rule`.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .fast_weight_chunks import gradients_kernel, normalization_kernel, prepare_kernel, reverse_kernel, scan_kernel

# Widest keys whose memory stays in registers, by how products that end there are computed, and the lines of a tile
# where keys are wider: what compiles without spilling.
RESIDENT_WIDTH = {"tf32": 128, "split": 64, "tf32x3": 32, "ieee": 32}
TILE = {"tf32": 64, "split": 32, "tf32x3": 32}


def chunk_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    document_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    dpfp_nu: int = 0,
    key_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """
    The delta rule. Arguments and results are those of the function of this name in `modeling/fast_weight`, and

    Args:
        query, key (`torch.Tensor`): `[B, T, H, K]`, or with `dpfp_nu` what DPFP maps, `[B, T, H, K / (2 * dpfp_nu)]`.
            A zero key leaves no trace either way.
        chunk_size (`int`, *optional*): 16, 32 or 64; None chooses by the length.
        dpfp_nu (`int`): DPFP-nu is applied to query and key; 0 leaves them as they are.
        key_norm_eps (`float`, *optional*): DPFP's features are divided by their sum plus this; None does not divide.
    """
    return _run(
        query, key, value, beta, initial_state, output_final_state, document_ids, cu_seqlens, chunk_size, dpfp_nu,
        key_norm_eps,
    )  # fmt: skip


def chunk_sum_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    document_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    dpfp_nu: int = 0,
    key_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The sum rule. Arguments and results are those of `chunk_delta_rule`, without `beta`."""
    return _run(
        query, key, value, None, initial_state, output_final_state, document_ids, cu_seqlens, chunk_size, dpfp_nu,
        key_norm_eps,
    )  # fmt: skip


def _run(
    query, key, value, beta, initial_state, output_final_state, document_ids, cu_seqlens, chunk_size, dpfp_nu, eps
):  # fmt: skip
    documents = None
    if document_ids is not None:
        starts = torch.nn.functional.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0))
        documents = starts.cumsum(dim=-1, dtype=torch.int32)
    output, state = torch.ops.leanformers.fast_weight_chunks(
        *(query, key, value, beta, None if initial_state is None else initial_state.float()),
        *(documents, cu_seqlens, chunk_size or 0, dpfp_nu, eps, output_final_state),
    )
    return output, state if output_final_state else None


class Inputs(NamedTuple):
    """What both passes are given, contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor | None
    initial: Tensor | None
    documents: Tensor | None
    cu_seqlens: Tensor | None
    chunk_size: int
    nu: int
    eps: float | None


class Layout(NamedTuple):
    """Sizes, blocks and switches of the kernels for some inputs."""

    num_rows: int
    num_chunks: int
    chunk_rows: Tensor | None
    first_chunks: Tensor | None
    key_dim: int
    chunk: int
    block_v: int
    constants: dict[str, Any]

    def blocks(self, memory: str | None = None, tile: int = 64) -> dict[str, Any]:
        """Of a kernel that goes from chunk to chunk, and where keys are wide in tiles of at most so many lines."""
        memory = memory or self.constants["PRECISION"]
        is_resident = self.key_dim <= RESIDENT_WIDTH[memory]
        block_k = _block(self.key_dim) if is_resident else min(TILE[memory], tile)
        warps = 8 if block_k > 64 else 4
        return {"RESIDENT": is_resident, "BK": block_k, "BV": self.block_v, "num_warps": warps}


def _contiguous(*arguments) -> Inputs:
    return Inputs(*(item.contiguous() if isinstance(item, Tensor) else item for item in arguments))


def _layout(inputs: Inputs, is_exact: bool = False) -> Layout:
    (batch, length, _, width), value_dim = inputs.query.shape, inputs.value.shape[-1]
    key_dim = 2 * inputs.nu * width if inputs.nu else width
    is_exact = is_exact or inputs.value.dtype != torch.bfloat16
    chunk = inputs.chunk_size or min(32 if is_exact else 64, _block(length))
    num_rows, num_chunks, chunk_rows, first_chunks = batch, batch * triton.cdiv(length, chunk), None, None
    if inputs.cu_seqlens is not None:
        num_rows = len(inputs.cu_seqlens) - 1
        num_chunks = length // chunk + num_rows  # as many as there can be: what there are, the device knows
        ends = ((inputs.cu_seqlens.diff() + chunk - 1) // chunk).cumsum(dim=0, dtype=torch.int32)
        first_chunks = torch.nn.functional.pad(ends, (1, 0))
        numbers = torch.arange(num_chunks, dtype=torch.int32, device=ends.device)
        chunk_rows = torch.searchsorted(ends, numbers, right=True, out_int32=True).clamp_(max=num_rows - 1)
    block_v = min(32, _block(value_dim))
    constants = {
        "KEY_DIM": key_dim,
        "WIDTH": width,
        "NU": inputs.nu,
        "NORMALIZED": inputs.eps is not None and inputs.nu > 0,
        "DELTA": inputs.beta is not None,
        "PACKED": inputs.documents is not None,
        "VARLEN": inputs.cu_seqlens is not None,
        "C": chunk,
        "PRECISION": ("ieee" if key_dim <= RESIDENT_WIDTH["ieee"] else "tf32x3") if is_exact else "tf32",
        "num_stages": 1,
    }
    return Layout(num_rows, num_chunks, chunk_rows, first_chunks, key_dim, chunk, block_v, constants)


def _precision_of_memory(inputs: Inputs, layout: Layout, is_wanted: bool) -> str:
    """How products that end in the memory are computed, see `fast_weight_chunks.py`."""
    precision = layout.constants["PRECISION"]
    if not is_wanted or precision != "tf32":
        return precision
    if inputs.nu or inputs.key.dtype != torch.bfloat16:
        return "tf32x3"
    return "tf32" if inputs.beta is None else "split"


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def launch(kernel, grid: tuple[int, ...], *arguments, **constants) -> None:
    """Run a kernel, unless there is nothing to do."""
    if 0 not in grid:
        kernel[grid](*arguments, **constants)


class Squares(NamedTuple):
    """What `prepare_kernel` finds: Y, Z and M `[chunks, H, C, C]`, and 1 / sums of features `[B, T, H]`."""

    inverse: Tensor | None
    transposed: Tensor | None
    within: Tensor
    query_scale: Tensor | None
    key_scale: Tensor | None


def _prepare(inputs: Inputs, layout: Layout, memory: str, backward: bool) -> Squares:
    length, heads = inputs.query.shape[1:3]

    def square(is_there: bool) -> Tensor | None:
        shape = (layout.num_chunks, heads, layout.chunk, layout.chunk)
        return inputs.query.new_empty(shape, dtype=torch.float32) if is_there else None

    def scale() -> Tensor | None:
        is_there = layout.constants["NORMALIZED"]
        return inputs.query.new_empty(inputs.query.shape[:3], dtype=torch.float32) if is_there else None

    is_delta = inputs.beta is not None
    squares = Squares(square(is_delta), square(is_delta and backward), square(True), scale(), scale())
    launch(
        prepare_kernel,
        (layout.num_chunks, heads),
        *(inputs.query, inputs.key, inputs.beta, inputs.documents, inputs.cu_seqlens),
        *(layout.chunk_rows, layout.first_chunks, *squares, length, heads, inputs.eps or 0.0),
        **layout.constants,
        MEMORY=memory,
        BACKWARD=backward,
        BK=min(32, _block(layout.key_dim)),
        num_warps=8,
    )
    return squares


def _scan(inputs: Inputs, layout: Layout, squares: Squares, memory: str, output, corrected, memories) -> None:
    length, heads = inputs.query.shape[1:3]
    value_dim = inputs.value.shape[-1]
    launch(
        scan_kernel,
        (layout.num_rows * heads, triton.cdiv(value_dim, layout.block_v)),
        *(inputs.query, inputs.key, inputs.value, inputs.beta, inputs.documents, inputs.cu_seqlens),
        *(layout.first_chunks, squares.inverse, squares.within, squares.query_scale, squares.key_scale),
        *(inputs.initial, output, corrected, memories, length, heads),
        **layout.constants,
        **layout.blocks(memory),
        MEMORY=memory,
        VALUE_DIM=value_dim,
        CARRIED=inputs.initial is not None,
        KEEP=output is None,
    )


def _reverse(inputs: Inputs, layout: Layout, squares: Squares, d_output, d_final, d_value, d_memories, d_initial):
    length, heads = inputs.query.shape[1:3]
    value_dim = inputs.value.shape[-1]
    launch(
        reverse_kernel,
        (layout.num_rows * heads, triton.cdiv(value_dim, layout.block_v)),
        *(inputs.query, inputs.key, inputs.beta, inputs.documents, inputs.cu_seqlens, layout.first_chunks),
        *(squares.transposed, squares.within, squares.query_scale, squares.key_scale),
        *(d_output, d_final, d_value, d_memories, d_initial, length, heads),
        **layout.constants,
        **layout.blocks(tile=32),  # with 64, Triton 3.6 fails to compile this kernel for Hopper
        VALUE_DIM=value_dim,
    )


def _gradients(inputs: Inputs, layout: Layout, squares: Squares, *tensors, d_query, d_key, d_v, d_beta) -> None:
    (_, length, heads, width), value_dim = inputs.query.shape, inputs.value.shape[-1]
    block_k = min(64 if layout.constants["PRECISION"] == "tf32x3" else 32, _block(width))
    launch(
        gradients_kernel,
        (layout.num_chunks, heads, triton.cdiv(width, block_k)),
        *(inputs.query, inputs.key, inputs.beta, inputs.documents, inputs.cu_seqlens),
        *(layout.chunk_rows, layout.first_chunks, squares.query_scale, squares.key_scale),
        *(*tensors, d_query, d_key, d_v, d_beta, length, heads),
        **layout.constants,
        VALUE_DIM=value_dim,
        BK=block_k,
        BV=min(32, _block(value_dim)),
        num_warps=8,
    )


def _through_normalization(x: Tensor, scale: Tensor, d_features: Tensor, nu: int) -> Tensor:
    d_x, width = torch.empty_like(x), x.shape[-1]
    num_rows = x.numel() // width
    block = _block(width)
    rows = max(1, 2048 // block)
    grid = (triton.cdiv(num_rows, rows),)
    launch(normalization_kernel, grid, x, scale, d_features, d_x, num_rows, WIDTH=width, NU=nu, ROWS=rows, BW=block)
    return d_x


@torch.library.custom_op("leanformers::fast_weight_chunks", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    initial: Tensor | None,
    documents: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    nu: int,
    eps: float | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    inputs = _contiguous(query, key, value, beta, initial, documents, cu_seqlens, chunk_size, nu, eps)
    with torch.cuda.device_of(value):
        layout = _layout(inputs)
        memory = _precision_of_memory(inputs, layout, output_final_state)
        output = torch.empty_like(inputs.value)
        final = _new_memories(inputs, layout, layout.num_rows)
        _scan(inputs, layout, _prepare(inputs, layout, memory, backward=False), memory, output, None, final)
    return output, final


@_forward.register_fake
def _(query, key, value, beta, initial, documents, cu_seqlens, chunk_size, nu, eps, output_final_state):
    num_rows = query.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    key_dim = query.shape[3] * (2 * nu if nu else 1)
    final = value.new_empty(num_rows, query.shape[2], key_dim, value.shape[3], dtype=torch.float32)
    return value.new_empty(value.shape), final


@torch.library.custom_op("leanformers::fast_weight_chunks_backward", mutates_args=())
def _backward(
    d_output: Tensor,
    d_final: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    initial: Tensor | None,
    documents: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    nu: int,
    eps: float | None,
    is_initial_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    Gradients of query, key, value, beta (empty without one) and the initial memory, be there one or not; where that is
    wanted, all are as exact as float32 before they are rounded.
    """
    inputs = _contiguous(query, key, value, beta, initial, documents, cu_seqlens, chunk_size, nu, eps)
    d_output, d_final = d_output.contiguous(), d_final.contiguous()
    with torch.cuda.device_of(value):
        layout = _layout(inputs, is_exact=is_initial_wanted)
        precision = layout.constants["PRECISION"]
        squares = _prepare(inputs, layout, precision, backward=True)
        corrected = inputs.value
        if inputs.beta is not None:
            corrected = torch.empty_like(inputs.value, dtype=torch.float32)
        memories, d_memories = (_new_memories(inputs, layout, layout.num_chunks) for _ in range(2))
        _scan(inputs, layout, squares, precision, None, corrected, memories)
        d_value, d_initial = torch.empty_like(inputs.value, dtype=torch.float32), torch.empty_like(d_final)
        _reverse(inputs, layout, squares, d_output, d_final, d_value, d_memories, d_initial)

        is_normalized = layout.constants["NORMALIZED"]
        d_query, d_key = (
            torch.empty_like(tensor, dtype=torch.float32 if is_normalized else tensor.dtype)
            for tensor in (inputs.query, inputs.key)
        )
        d_v = torch.empty_like(inputs.value)
        d_beta = value.new_empty(0) if inputs.beta is None else torch.empty_like(inputs.beta)
        tensors = (d_output, corrected, d_value, memories, d_memories)
        _gradients(inputs, layout, squares, *tensors, d_query=d_query, d_key=d_key, d_v=d_v, d_beta=d_beta)
        if is_normalized:
            d_query = _through_normalization(inputs.query, squares.query_scale, d_query, nu)
            d_key = _through_normalization(inputs.key, squares.key_scale, d_key, nu)
    return d_query, d_key, d_v, d_beta, d_initial


@_backward.register_fake
def _(d_output, d_final, query, key, value, beta, *options):
    d_beta = value.new_empty(0) if beta is None else beta.new_empty(beta.shape)
    found = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    return *found, d_beta, d_final.new_empty(d_final.shape)


def _new_memories(inputs: Inputs, layout: Layout, number: int) -> Tensor:
    shape = (number, inputs.query.shape[2], layout.key_dim, inputs.value.shape[-1])
    return inputs.value.new_empty(shape, dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.chunk_size, ctx.nu, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def _backpropagate(ctx, d_output, d_final):
    query, key, value, beta, initial, *layout = ctx.saved_tensors
    *found, d_beta, d_initial = torch.ops.leanformers.fast_weight_chunks_backward(
        *(d_output, d_final, query, key, value, beta, initial, *layout),
        *(ctx.chunk_size, ctx.nu, ctx.eps, initial is not None and ctx.needs_input_grad[4]),
    )
    d_beta, d_initial = None if beta is None else d_beta, None if initial is None else d_initial
    return *found, d_beta, d_initial, None, None, None, None, None, None


_forward.register_autograd(_backpropagate, setup_context=_setup)
