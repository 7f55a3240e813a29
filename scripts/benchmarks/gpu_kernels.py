# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Operators with their GPU kernels, beside the same in torch and beside their peers.

Selective attention stands beside PyTorch's causal flash attention, which is what it does without selection; the delta
rule beside flash-linear-attention's kernel where that applies. A kernel is a contender where it can run: on a GPU, or
on the CPU with TRITON_INTERPRET=1, with short texts and a small shape. Each case also has the errors of the contenders
that compute the same, against the naive form in float64 on a shorter text: of the output and of the worst gradient,
over the largest value.
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

from leanformers.modeling.fast_weight import delta_rule as rules
from leanformers.modeling.fast_weight.feature_maps import naive_dpfp, normalize_features
from leanformers.modeling.fast_weight.normalized_rules import dpfp_rule
from leanformers.modeling.selective_attn import selective_attention as forms

PARTS = (16, 4, 1)  # of the longest length
HEADS, HEAD_DIMS = (8, 16, 32), (64, 128)
DPFP_NU, KEY_NORM_EPS = 2, 1e-6
CHECKED_LENGTH, FEW_REPEATS = 300, 5
SHORT, SMALL = 1024, (2, 16)  # up to which length shapes are small, and how small
Operator = Callable[..., Tensor]


def has_kernels(settings: Settings) -> bool:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return find_spec("triton") is not None and (settings.device.startswith("cuda") or is_interpreted)


def backends(settings: Settings) -> tuple[str, ...]:
    return ("triton", "torch") if has_kernels(settings) else ("torch",)


def shapes_of(settings: Settings) -> Iterator[tuple[int, int, int]]:
    """Lengths, heads and widths of heads."""
    for length in (settings.longest // part for part in PARTS):
        if settings.longest <= SHORT:
            yield length, *SMALL
            continue
        yield from ((length, num_heads, head_dim) for num_heads in HEADS for head_dim in HEAD_DIMS)


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
    for length, num_heads, head_dim in shapes_of(settings):
        inputs = draw(settings, *[(1, length, num_heads, head_dim)] * 3)
        shapes = {"batch_size": 1, "length": length, "heads": num_heads, "head_dim": head_dim}
        naive = lambda *tensors: forms.naive_selective_attention(*tensors)[0]  # noqa: E731
        yield from cases("selective attention", shapes, ours, {"sdpa": sdpa}, naive, inputs)


def delta_rule(settings: Settings) -> Iterator[Case]:
    """Tokens per second through one layer's memories, keys as wide as values and summing to one."""

    def operator(backend: str) -> Operator:
        return lambda *inputs: rules.chunk_delta_rule(*inputs, backend=backend)[0]

    ours = {backend: operator(backend) for backend in backends(settings)}
    for length, num_heads, width in shapes_of(settings):
        query, key, value, beta = draw(settings, *[(1, length, num_heads, width)] * 3, (1, length, num_heads))
        inputs = [query.softmax(-1), key.softmax(-1), value, beta.sigmoid()]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        peers = {"fla": fla} if rules.has_kernel(value, width) else {}
        shapes = {"batch_size": 1, "length": length, "heads": num_heads, "head_dim": width}
        naive = lambda *tensors: rules.naive_delta_rule(*tensors)[0]  # noqa: E731
        yield from cases("delta rule", shapes, ours, peers, naive, inputs)


def fla(*inputs: Tensor) -> Tensor:
    """flash-linear-attention's kernel."""
    return rules._kernel()(*inputs, scale=1.0)[0]


def dpfp(settings: Settings) -> Iterator[Case]:
    """The same with DPFP's features of keys, which are four times as wide as these."""

    def operator(backend: str) -> Operator:
        def call(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
            options = {"nu": DPFP_NU, "key_norm_eps": KEY_NORM_EPS, "backend": backend}
            return dpfp_rule(query, key, value, beta, output_final_state=False, **options)[0].to(value.dtype)

        return call

    def naive(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
        features = (normalize_features(naive_dpfp(tensor, DPFP_NU), KEY_NORM_EPS) for tensor in (query, key))
        return rules.naive_delta_rule(*features, value, beta)[0]

    ours = {backend: operator(backend) for backend in backends(settings)}
    for length, num_heads, width in shapes_of(settings):
        if width <= HEAD_DIMS[0]:
            query, key, value, beta = draw(settings, *[(1, length, num_heads, width)] * 3, (1, length, num_heads))
            inputs = [query, key, value, beta.sigmoid().detach().requires_grad_()]
            shapes = {"batch_size": 1, "length": length, "heads": num_heads, "head_dim": width, "nu": DPFP_NU}
            yield from cases("delta rule of DPFP", shapes, ours, {}, naive, inputs)
