# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Attention under every gate is its equation, in outputs and all gradients, in self- and cross-attention."""

import pytest
import torch

from leanformers.modeling.anthe import AntheConfig
from leanformers.modeling.anthe.configuration_anthe import ATTENTION_GATES, CROSS_ATTENTION_GATES
from leanformers.modeling.anthe.modeling_anthe import AntheAttention, naive_gated_attention
from numerics import assert_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "allow_noncausal_gate": True}


def build(gate: str, backend: str, ratio: float | None = None) -> AntheAttention:
    config = AntheConfig(attention_gate=gate, tc_attn_ratio=ratio, **SIZES)
    config._attn_implementation = backend
    attention = AntheAttention(config, gate, layer_idx=0).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention


def check(attention: AntheAttention, gate: str, query, source, blocked) -> None:
    """The module with an additive mask against the equation, in outputs and the gradients of inputs and weights."""
    inputs = [query] if source is query else [query, source]
    leaves = [*inputs, *attention.parameters()]
    for leaf in inputs:
        leaf.requires_grad_()
    mask = None if blocked is None else torch.zeros(blocked.shape).double().masked_fill(blocked, -torch.inf)[:, None]
    fast, _ = attention(query, mask, None if source is query else source)
    naive = naive_gated_attention(query, source, source, gate, dict(attention.named_children()), 3, blocked)
    assert_close("output", fast, naive, **EXACT)
    weights = torch.randn_like(naive)
    for position, (ours, expected) in enumerate(
        zip(
            torch.autograd.grad((fast * weights).sum(), leaves),
            torch.autograd.grad((naive * weights).sum(), leaves),
            strict=True,
        )
    ):
        assert_close(f"gradient {position}", ours, expected, **EXACT)


@pytest.mark.parametrize("ratio", [None, 0.5], ids=["dense", "tensor_chain"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("gate", ATTENTION_GATES)
@pytest.mark.parametrize("length", [1, 7, 33])
def test_causal_self_attention_with_padding(gate, backend, ratio, length):
    blocked = torch.ones(length, length, dtype=torch.bool).triu(1).repeat(2, 1, 1)
    blocked[1, :, length // 2 + 1 :] = True  # right padding, which every query can look past
    hidden_states = torch.randn(2, length, 24, dtype=torch.float64)
    check(build(gate, backend, ratio), gate, hidden_states, hidden_states, blocked)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("gate", "source_length"), [*((gate, 9) for gate in CROSS_ATTENTION_GATES), ("QgV", 5)])
def test_cross_attention(gate, source_length, backend):
    query = torch.randn(2, 5, 24, dtype=torch.float64)
    source = torch.randn(2, source_length, 24, dtype=torch.float64)
    blocked = torch.zeros(2, 5, source_length, dtype=torch.bool)
    blocked[0, :, :2] = True  # left padding
    check(build(gate, backend), gate, query, source, blocked)
