# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Operators with their GPU kernels, beside the same in torch and beside their peers.

Selective attention stands beside PyTorch's causal flash attention, which is what it does without selection; the delta
rule beside flash-linear-attention's kernel. A kernel is a contender where it can run: on a GPU, or, to see that a
benchmark works, on the CPU with TRITON_INTERPRET=1. Each case also has the errors of the contenders that compute the
same, against the naive form in float64 on a shorter text: of the output and of the worst gradient, over the largest
value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from delta_rule import forward, forward_and_backward
from registry import Case, Settings
from selective_attn import sdpa
from torch import Tensor

from leanformers.modeling.selective_attn import selective_attention as forms

PARTS = (16, 4, 1)  # of the longest length
HEADS, HEAD_DIMS = (8, 16, 32), (64, 128)
CHECKED_LENGTH, FEW_REPEATS = 300, 5
Operator = Callable[..., Tensor]


def has_kernels(settings: Settings) -> bool:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return find_spec("triton") is not None and (settings.device.startswith("cuda") or is_interpreted)


def backends(settings: Settings) -> tuple[str, ...]:
    return ("triton", "torch") if has_kernels(settings) else ("torch",)


def draw(settings: Settings, *shapes: Sequence[int]) -> list[Tensor]:
    """Normal numbers, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator) for shape in shapes]
    return [tensor.to(settings.device, getattr(torch, settings.dtype)).requires_grad_() for tensor in tensors]


def errors(operators: dict[str, Operator], naive: Operator, inputs: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Of outputs and of gradients, against the naive form in float64."""

    def results(operator: Operator, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach()[:, :CHECKED_LENGTH].to(dtype).requires_grad_() for tensor in inputs]
        output = operator(*leaves)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    expected = results(naive, torch.float64)
    found = {}
    for name, operator in operators.items():
        output, *gradients = (
            ((actual.double() - right).abs().max() / right.abs().max()).item()
            for actual, right in zip(results(operator, inputs[0].dtype), expected, strict=True)
        )
        found[name] = {"output": output, "gradients": max(gradients)}
    return found


def cases(
    kind: str,
    shapes: dict[str, int],
    ours: dict[str, Operator],
    peers: dict[str, Operator],
    naive: Operator,
    inputs: list[Tensor],
) -> Iterator[Case]:
    length = shapes["length"]
    for name, measure in (("forward", forward), ("forward and backward", forward_and_backward)):
        described = ", ".join(f"{key} {size}" for key, size in shapes.items())
        yield Case(
            name=f"{kind}, {name}, {described}",
            unit="tokens/s",
            shapes=shapes,
            contenders={name: measure(operator, inputs) for name, operator in (ours | peers).items()},
            tokens=length * shapes["batch_size"],
            most_repeats=FEW_REPEATS,
            errors=partial(errors, ours, naive, inputs) if measure is forward else None,
        )


def selective_attention(settings: Settings) -> Iterator[Case]:
    """Tokens per second through one layer's attention."""

    def operator(backend: str) -> Operator:
        return lambda *inputs: forms.selective_attention(*inputs, backend=backend)[0]

    ours = {backend: operator(backend) for backend in backends(settings)}
    for length in (settings.longest // part for part in PARTS):
        for num_heads, head_dim in ((heads, dim) for heads in HEADS for dim in HEAD_DIMS):
            inputs = draw(settings, *[(1, length, num_heads, head_dim)] * 3)
            shapes = {"batch_size": 1, "length": length, "heads": num_heads, "head_dim": head_dim}
            naive = lambda *tensors: forms.naive_selective_attention(*tensors)[0]  # noqa: E731
            yield from cases("selective attention", shapes, ours, {"sdpa": sdpa}, naive, inputs)
