# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the kernels of selective decoding and pruning must equal, on the interpreter's CPU as on a GPU."""

import torch
from torch import Tensor
from transformers import DynamicCache

from leanformers.kernels.selective_decode import Slots
from leanformers.kernels.selective_decode import selective_attention_step as kernel
from leanformers.modeling.selective_attn import SelectiveAttnConfig
from leanformers.modeling.selective_attn.attention_layer import SelectiveAttnAttention
from leanformers.modeling.selective_attn.context_pruning import Held
from leanformers.modeling.selective_attn.selective_attention import selective_attention_step
from leanformers.modeling.selective_attn.visible_keys import describe_keys
from numerics import assert_at_most_twice

STATE = ("keys", "values", "positions", "is_start", "num_real", "votes")


def check_step(
    device: str,
    dtype: torch.dtype,
    slots: int,
    heads: int = 4,
    shared: int = 2,
    head_dim: int = 16,
    value_dim: int | None = None,
    batch: int = 2,
    size: float = 1.0,
    **options,
) -> None:
    """Outputs and votes of a step, from the naive form in float64."""
    query = torch.randn(batch, 1, heads, head_dim, device=device).mul_(size).to(dtype)
    # As a cache gives them.
    key = torch.randn(batch, shared, slots, head_dim, device=device).mul_(size).to(dtype).transpose(1, 2)
    value = torch.randn(batch, shared, slots, value_dim or head_dim, device=device).to(dtype).transpose(1, 2)
    selection = torch.rand(batch, slots, device=device) * 4
    visible = torch.rand(batch, slots, device=device) < 0.7
    visible[:, -1] = True
    votable = visible & (torch.rand(batch, slots, device=device) < 0.7)
    given = {"visible": visible, "votable": votable, "selection_head": heads - 1, "strength": 0.7}
    num_splits = options.pop("num_splits", None)

    def step(precision: torch.dtype, **form) -> tuple[Tensor, Tensor]:
        inputs = (tensor.to(precision) for tensor in (query, key, value))
        return selective_attention_step(*inputs, selection.to(torch.promote_types(precision, torch.float32)), **form)

    exact = step(torch.float64, **given, **options, naive=True)
    usual = step(dtype, **given, **options, backend="torch")
    if num_splits is None:
        found = step(dtype, **given, **options, backend="triton")
    else:
        found = kernel(query, key, value, selection, **given, **options, num_splits=num_splits)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32 and found[2] is None
    for name, actual, torch_s, right in zip(("output", "votes"), found[:2], usual[:2], exact[:2], strict=True):
        assert_at_most_twice(name, actual, torch_s, right)


def whole_numbers(*shape: int, device: str = "cpu") -> Tensor:
    return torch.randint(-1, 2, shape, device=device).float()


def layer_of(device: str = "cpu", **fields) -> SelectiveAttnAttention:
    """A layer whose votes of whole numbers are whole numbers: no rounding tells two of its forms apart; many tie."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    layer = SelectiveAttnAttention(SelectiveAttnConfig(**sizes | fields, num_hidden_layers=1), 0).to(device).eval()
    layer.config._attn_implementation = "sdpa"
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        projection.weight.data = whole_numbers(*projection.weight.shape, device=device)
    return layer


@torch.no_grad()
def read(layer, hidden: Tensor, is_real: Tensor | None, cache: DynamicCache, prompt: int = 0):
    """Outputs and states of the layer's cache after a prompt, if there is one, and after each token."""
    outputs, states = [], []
    for place in [*([slice(0, prompt)] if prompt else []), *(slice(i, i + 1) for i in range(prompt, hidden.shape[1]))]:
        mask = None if is_real is None else is_real[:, place]
        outputs.append(layer(hidden[:, place], mask, past_key_values=cache)[0])
        states.append({name: getattr(cache.layers[0], name).clone() for name in STATE})
    return torch.cat(outputs, dim=1), states


def check_layer(
    monkeypatch, device: str = "cpu", length: int = 12, prompt: int = 0, is_real: Tensor | None = None, **fields
) -> None:
    """A layer's cache is the same after each token, bit by bit, whatever runs it."""
    layer, hidden = layer_of(device, **fields), whole_numbers(2, length, 16, device=device)
    results = {}
    for backend in ("torch", "triton"):
        cache = DynamicCache(config=layer.config)
        if prompt:  # is read by torch, whatever reads the rest
            monkeypatch.setenv("LEANFORMERS_KERNELS", "torch")
            first = None if is_real is None else is_real[:, :prompt]
            read(layer, hidden[:, :prompt], first, cache, prompt)
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        rest = None if is_real is None else is_real[:, prompt:]
        results[backend] = read(layer, hidden[:, prompt:], rest, cache)
    (expected, wanted), (found, got) = results["torch"], results["triton"]
    for token, (right, actual) in enumerate(zip(wanted, got, strict=True)):
        for name in STATE:
            assert torch.equal(actual[name], right[name]), f"{name} after token {prompt + token}"
    if is_real is not None:  # what padding reads is nobody's business
        expected, found = (each[is_real[:, prompt:]] for each in (expected, found))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def slots_of(batch=2, shared=2, num_slots=150, dim=16, dtype=torch.float32) -> Slots:
    """Full slots in any order, of which few may leave, and the best of those are ties."""
    positions = torch.stack([torch.randperm(num_slots) for _ in range(batch)])
    return Slots(
        torch.randn(batch, shared, num_slots, dim).to(dtype),
        torch.randn(batch, shared, num_slots, dim).to(dtype),
        torch.randint(0, 5, (batch, num_slots)).float(),
        positions,
        positions == 0,
        torch.full((batch,), num_slots),
    )


def check_pruning(
    device: str,
    rows: int,
    past: int,
    budget: int,
    ties: bool,
    padded: bool,
    window: int | None,
    documents: bool,
    protect_start: bool = True,
    batch: int = 2,
) -> None:
    """The kernel drops what torch drops."""
    end, total = past + rows, past + rows + 3
    is_real = torch.rand(batch, total, device=device) < 0.8 if padded else None
    document_ids = (torch.rand(batch, total, device=device) < 0.1).long().cumsum(-1) if documents else None
    keys = describe_keys((batch, total), torch.device(device), is_real, document_ids, window)
    shape = batch, rows, end
    selection = torch.randint(0, 4, shape, device=device).float() if ties else torch.rand(shape, device=device) * 9
    visible = torch.ones(shape, dtype=torch.bool, device=device).tril(past)
    hidden = keys.hidden_from(slice(past, end), end)
    visible = visible if hidden is None else visible & ~hidden
    visible = visible if is_real is None else visible & is_real[:, None, :end]
    visible |= torch.eye(total, dtype=torch.bool, device=device)[past:end, :end]
    selection.masked_fill_(~visible, float("inf"))
    results = []
    for backend in ("torch", "triton"):
        held = Held(keys, past, budget, protect_start, backend)
        results.append((held.prune_(selection.clone()), held.held))
    (expected, wanted), (found, got) = results
    assert torch.equal(found, expected)
    assert torch.equal(got, wanted)
