# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The delta rule by the length of text: in chunks, token by token, in Qwen3-Next's chunks, and softmax attention.

One sequence, four heads of width 64, keys that sum to one. Qwen3-Next's rule (`torch_chunk_gated_delta_rule` of
transformers) runs with its gate off, in chunks of the same size; attention is PyTorch's causal SDPA. The recurrence is
left out of the longest lengths, where it would take minutes. With flash-linear-attention on a GPU ours is its kernel,
and our form in PyTorch stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from registry import Case, Settings
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from leanformers.modeling.fast_weight import delta_rule

NUM_HEADS, HEAD_DIM = 4, 64
PARTS = (32, 16, 8, 4, 2, 1)  # of the longest length
RECURRENCE_PART = 8
SHORTEST_OF_FEW_REPEATS, FEW_REPEATS = 4096, 4
Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def chunk(query, key, value, beta):
    return delta_rule.chunk_delta_rule(query, key, value, beta)[0]


def torch_chunk(query, key, value, beta):
    return delta_rule.chunk_delta_rule(query, key, value, beta, backend="torch")[0]


def sum_rule(query, key, value, beta):
    return delta_rule.chunk_sum_rule(query, key, value)[0]


def naive(query, key, value, beta):
    return delta_rule.naive_delta_rule(query, key, value, beta)[0]


def qwen3_next(query, key, value, beta):
    """It scales queries by `1 / sqrt(HEAD_DIM)`."""
    return torch_chunk_gated_delta_rule(query, key, value, g=torch.zeros_like(beta), beta=beta, chunk_size=64)[0]


def sdpa(query, key, value, beta):
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)


def contenders(settings: Settings, length: int, value: torch.Tensor) -> dict[str, Rule]:
    found: dict[str, Rule] = {"chunk": chunk}
    if delta_rule.has_kernel(value, HEAD_DIM):
        found["torch_chunk"] = torch_chunk
    if length <= settings.longest // RECURRENCE_PART:
        found["naive"] = naive
    return {**found, "qwen3_next": qwen3_next, "sdpa": sdpa, "sum_rule": sum_rule}


def draw_inputs(settings: Settings, length: int) -> list[torch.Tensor]:
    """Query, key, value and beta."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, length, NUM_HEADS, HEAD_DIM, generator=generator)
    beta = torch.rand(1, length, NUM_HEADS, generator=generator)
    inputs = (query.softmax(dim=-1), key.softmax(dim=-1), value, beta)
    return [tensor.to(settings.device, getattr(torch, settings.dtype)).requires_grad_() for tensor in inputs]


def forward(rule: Rule, inputs: list[torch.Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def call() -> None:
        rule(*inputs)

    return call


def forward_and_backward(rule: Rule, inputs: list[torch.Tensor]) -> Callable[[], None]:
    gradient = torch.ones_like(inputs[2])

    def call() -> None:
        for tensor in inputs:
            tensor.grad = None
        rule(*inputs).backward(gradient)

    return call


def lengths(settings: Settings) -> Iterator[Case]:
    """Tokens per second through one operator, forward, and with the backward pass."""
    if settings.longest < PARTS[0]:
        raise SystemExit(f"--longest must be at least {PARTS[0]}, not {settings.longest}")
    for part in PARTS:
        length = settings.longest // part
        inputs = draw_inputs(settings, length)
        rules = contenders(settings, length, inputs[2])
        for name, measure in (("forward", forward), ("forward and backward", forward_and_backward)):
            yield Case(
                name=f"{name}, {length} tokens",
                unit="tokens/s",
                shapes={"batch_size": 1, "length": length, "heads": NUM_HEADS, "width": HEAD_DIM},
                contenders={contender: measure(rule, inputs) for contender, rule in rules.items()},
                tokens=length,
                most_repeats=FEW_REPEATS if length >= SHORTEST_OF_FEW_REPEATS else None,
            )
