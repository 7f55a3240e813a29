# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Every golden tensor of selective attention, reproduced by both forms of the operator and by the real layer."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache

from leanformers.modeling.selective_attn.attention_layer import (
    SelectiveAttnAttention,
    SelectiveAttnRotaryEmbedding,
    rotate,
)
from leanformers.modeling.selective_attn.configuration_selective_attn import SelectiveAttnConfig
from leanformers.modeling.selective_attn.modeling_selective_attn import memory_loss_of
from leanformers.modeling.selective_attn.selective_attention import naive_selective_attention, selective_attention
from leanformers.modeling.selective_attn.visible_keys import count_tokens, describe_keys
from numerics import assert_close

BUDGETS = {"mha_plain": (4, 7), "gqa_ragged_padding": (6,), "mqa_rope_packed": (), "mha_long_budget": (3, 8, 16)}
TOLERANCES = {
    torch.float64: dict.fromkeys(("output", "votes", "gradient"), {"absolute": 1e-9, "relative": 0.0}),
    # As its README suggests: outputs to 2e-5, F to 1e-4 of the largest, gradients to 1e-4.
    torch.float32: {
        "output": {"absolute": 2e-5, "relative": 0.0},
        "votes": {"absolute": 0.0, "relative": 1e-4},
        "gradient": {"absolute": 1e-4, "relative": 0.0},
    },
}
forms = pytest.mark.parametrize("form", [naive_selective_attention, selective_attention])
precisions = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float64", "float32"])
implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
chunked = pytest.mark.parametrize("name", [name for name in BUDGETS if name != "mqa_rope_packed"])
names = pytest.mark.parametrize("name", BUDGETS)
budgets = pytest.mark.parametrize(("name", "budget"), [(name, each) for name in BUDGETS for each in BUDGETS[name]])


class Case:
    """One file in a precision; what has heads as `[batch, tokens, heads, dim]`."""

    def __init__(self, folder, name: str, dtype: torch.dtype):
        self.facts = json.loads((folder / f"{name}.json").read_text())
        self.file = load_file(folder / f"{name}.safetensors")
        for key, tensor in self.file.items():
            by_tokens = tensor.transpose(1, 2) if tensor.dim() == 4 and key != "P" else tensor
            self.file[key] = by_tokens.to(dtype) if tensor.is_floating_point() else by_tokens
        self.dtype, self.length = dtype, self.file["F"].shape[1]
        self.is_real, self.visible = self["valid"].bool(), self["visible"].bool()
        self.mask = None if self.is_real.all() else self.is_real

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.file[key]

    def run(self, form, *leaves: torch.Tensor, queries: slice = slice(None), **options):
        """A form on `queries` and all keys up to them, of the file or of `leaves`."""
        query, key, value = leaves or (self["q"], self["k"], self["v"])
        told = {"attention_mask": self.mask, "document_ids": self.file.get("segment_ids")}
        told = {name: None if known is None else known[:, : queries.stop] for name, known in told.items()}
        inputs = query[:, queries], key[:, : queries.stop], value[:, : queries.stop]
        return form(*inputs, scale=self.facts["scale"], **told, **options)

    def leaves(self) -> list[torch.Tensor]:
        return [self[name].clone().requires_grad_() for name in ("q", "k", "v")]

    def check(self, kind: str, key: str, actual: torch.Tensor) -> None:
        assert_close(key, actual, self[key], **TOLERANCES[self.dtype][kind])


@pytest.fixture
def golden(shared):
    """A function from the name of a golden file and a precision to its `Case`."""
    return lambda name, dtype=torch.float64: Case(shared / "reference" / "selective_attn", name, dtype)


def test_golden_files_are_those_known_here(shared, golden):
    """Keys beyond those of this file's tests would go unread."""
    files = sorted((shared / "reference" / "selective_attn").glob("*.safetensors"))
    assert {file.stem for file in files} == set(BUDGETS)
    described = {"valid", "position_ids", "segment_ids", "visible", "protected", "q_before_rope", "k_before_rope"}
    compared = {"S", "F", "F_next", "P", "O", "dq", "dk", "dv", "dF", "dS", "mem_rows", "mem_dq", "mem_dk"}
    for name, of_budgets in BUDGETS.items():
        case = golden(name)
        assert tuple(case.facts["budgets"]) == of_budgets and case.facts["window"] is None
        chunks = {f"chunk{index}_F_next" for index in range(len(case.facts["chunks"]))}
        pruned = {f"prune{budget}_{what}" for budget in of_budgets for what in ("kept", "evicted", "O")}
        assert not set(case.file) - described - compared - chunks - pruned - {"q", "k", "v", "dO"}


@names
def test_visible_keys_and_first_tokens(golden, name):
    case = golden(name)
    is_real, document_ids = case.mask, case.file.get("segment_ids")
    keys = describe_keys(case.is_real.shape, case.is_real.device, is_real, document_ids)
    assert torch.equal(keys.is_start, case["protected"].bool())
    hidden = keys.hidden_from(slice(0, case.length), case.length)
    visible = torch.ones_like(case.visible).tril() & case.is_real[:, None] & case.is_real[:, :, None]
    assert torch.equal(visible if hidden is None else visible & ~hidden, case.visible)
    if is_real is not None:
        counted = count_tokens(is_real, case.is_real.shape, case.is_real.device)
        assert torch.equal(counted[is_real], case["position_ids"][is_real])


def test_rotated_queries_and_keys(golden):
    case = golden("mqa_rope_packed", torch.float32)
    head_dim, rope = case["q"].shape[-1], {"rope_type": "default", "rope_theta": case.facts["rope"]["theta"]}
    rotary = SelectiveAttnRotaryEmbedding(SelectiveAttnConfig(head_dim=head_dim, rope_parameters=rope))
    cos, sin = rotary(case["q"], case["position_ids"])
    for name in ("q", "k"):
        assert_close(name, rotate(case[f"{name}_before_rope"], cos, sin), case[name], absolute=1e-6, relative=1e-6)


@names
@precisions
@forms
def test_outputs_votes_and_gradients(golden, name, dtype, form):
    case = golden(name, dtype)
    leaves, is_naive = case.leaves(), form is naive_selective_attention
    options = {} if is_naive else {"num_votes": case.length}
    output, accumulated, details = case.run(form, *leaves, output_details=True, **options)
    case.check("output", "O", output)
    case.check("votes", "F_next", accumulated)
    case.check("votes", "S", details.votes)
    if is_naive:
        assert not details.selection[~case.visible].any()
        case.check("votes", "F", details.selection.where(case.visible, case["F"]))
        case.check("output", "P", details.probabilities)
    gradients = torch.autograd.grad((output * case["dO"]).sum(), leaves)
    for key, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        case.check("gradient", key, gradient)


@names
@precisions
@forms
def test_gradients_of_votes(golden, name, dtype, form):
    """dF of a query, when it is the only one, is the gradient of the votes before it; and that of all queries after
    token k is dS of its votes, where it cast any."""
    case = golden(name, dtype)

    def gradient(start: int, stop: int) -> torch.Tensor:
        before = case["F"][:, start, :start].clone().requires_grad_()
        output, _ = case.run(form, queries=slice(start, stop), initial_selection=before)
        return torch.autograd.grad((output * case["dO"][:, start:stop]).sum(), before)[0]

    d_selection, d_votes = torch.zeros_like(case["dF"]), torch.zeros_like(case["dS"])
    for token in range(1, case.length):
        d_selection[:, token, :token] = gradient(token, token + 1)
        d_votes[:, token - 1, :token] = gradient(token, case.length)
    # There are no votes against the query itself before it; rows of dF sum to 0.
    case.check("gradient", "dF", d_selection - torch.diag_embed(d_selection.sum(-1)))
    case.check("gradient", "dS", d_votes.masked_fill(case["S"] == 0, 0.0))


@names
@precisions
@forms
def test_memory_rows_and_their_gradients(golden, name, dtype, form):
    case = golden(name, dtype)
    query, key, value = case.leaves()
    _, _, details = case.run(form, query, key, value, memory_tau=case.facts["tau"], output_details=True)
    case.check("votes", "mem_rows", details.memory)
    term = memory_loss_of((details.memory,), case.mask)
    assert term.item() == pytest.approx(case.facts["memory_term_one_layer"], abs=1e-9 if dtype.itemsize == 8 else 1e-5)
    for name, gradient in zip(("mem_dq", "mem_dk"), torch.autograd.grad(term, (query, key)), strict=True):
        case.check("gradient", name, gradient)


@chunked
@precisions
@forms
def test_chunks(golden, name, dtype, form):
    """The votes after each chunk are the votes before the next."""
    case = golden(name, dtype)
    outputs, before, start = [], None, 0
    for index, size in enumerate(case.facts["chunks"]):
        output, before = case.run(form, queries=slice(start, start + size), initial_selection=before)
        outputs.append(output)
        start += size
        case.check("votes", f"chunk{index}_F_next", before)
    case.check("output", "O", torch.cat(outputs, dim=1))


@budgets
@precisions
@forms
def test_pruned(golden, name, budget, dtype, form):
    """Who is held after each token, who leaves for it, and what it reads."""
    case = golden(name, dtype)
    assert_same_held(case, budget, [held_after(case, form, budget, token) for token in range(case.length)])
    output, _ = case.run(form, memory_budget=budget)
    case.check("output", f"prune{budget}_O", output)


def held_after(case: Case, form, budget: int, token: int) -> torch.Tensor:
    _, _, details = case.run(form, queries=slice(0, token + 1), memory_budget=budget, output_details=True)
    return details.held


def assert_same_held(case: Case, budget: int, held: list[torch.Tensor]) -> None:
    """`held[i]` are the keys `[batch, up to i]` after token i. Of padding the file has 0."""
    kept, evicted = case[f"prune{budget}_kept"].bool(), case[f"prune{budget}_evicted"]
    before = torch.zeros_like(kept[:, 0])
    for token, now in enumerate(held):
        now = nn.functional.pad(now, (0, case.length - now.shape[1]))
        is_real = case.is_real[:, token, None]
        assert torch.equal(now & is_real, kept[:, token])
        left = before & ~now
        assert torch.equal(left.sum(-1), (evicted[:, token] >= 0).long())
        assert torch.equal(left.int().argmax(-1).where(left.any(-1), -1), evicted[:, token])
        before = now
    for row, expected in enumerate(case.facts["prune"][str(budget)]["kept_last"]):
        assert before[row].nonzero()[:, 0].tolist() == expected


# The layer


def layer_of(case: Case, budget: int | None, implementation: str) -> tuple[SelectiveAttnAttention, torch.Tensor]:
    """The real layer, whose projections pick q, k and v out of its input; and that input."""
    (_, _, num_heads, head_dim), shared_heads = case["q"].shape, case["k"].shape[2]
    hidden_states = torch.cat([case[name].flatten(2) for name in ("q", "k", "v")], dim=-1)
    config = SelectiveAttnConfig(
        hidden_size=hidden_states.shape[-1],
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        num_key_value_heads=shared_heads,
        head_dim=head_dim,
        memory_budgets=budget,
        attn_implementation=implementation,
    )
    layer = SelectiveAttnAttention(config, 0).to(case.dtype).eval().requires_grad_(False)
    picks = torch.eye(config.hidden_size, dtype=case.dtype).split(
        [num_heads * head_dim, shared_heads * head_dim, shared_heads * head_dim]
    )
    for projection, pick in zip((layer.q_proj, layer.k_proj, layer.v_proj), picks, strict=True):
        projection.weight.copy_(pick)
    nn.init.eye_(layer.o_proj.weight)
    return layer, hidden_states


def run_layer(case: Case, layer, hidden_states: torch.Tensor, chunks: list[int]):
    """Outputs, where there is no padding, and after each chunk the votes against each token and which are held."""
    cache, outputs, states, start = DynamicCache(config=layer.config), [], [], 0
    for size in chunks:
        tokens = slice(start, start + size)
        mask = None if case.mask is None else case.mask[:, tokens]
        with torch.no_grad():
            output, *_ = layer(hidden_states[:, tokens], mask, past_key_values=cache)
        outputs.append(output)
        start += size
        states.append(by_place(cache.layers[0], case.is_real[:, :start]))
    output = torch.cat(outputs, dim=1)[..., : case["q"][0, 0].numel()].reshape(case["O"].shape)
    assert output.isfinite().all()
    return output * case.is_real[..., None, None], states


def by_place(layer, is_real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Votes `[batch, tokens]` and which tokens are held, out of slots in any order."""
    positions = torch.where(is_real, is_real.long().cumsum(-1) - 1, -2)
    found = (positions[:, :, None] == layer.positions[:, None]).to(layer.votes.dtype)
    return (found * layer.votes[:, None]).sum(-1), found.any(-1)


@chunked
@precisions
@implementations
def test_layer_with_a_cache(golden, name, dtype, implementation):
    case = golden(name, dtype)
    layer, hidden_states = layer_of(case, None, implementation)
    output, states = run_layer(case, layer, hidden_states, case.facts["chunks"])
    case.check("output", "O", output)
    for index, (votes, _) in enumerate(states):
        case.check("votes", f"chunk{index}_F_next", votes)
    output, states = run_layer(case, layer, hidden_states, [1] * case.length)
    case.check("output", "O", output)
    for token, (votes, _) in enumerate(states[:-1]):
        expected = case["F"][:, token + 1, : token + 1]
        assert_close(f"F_{token + 1}", votes, expected, **TOLERANCES[dtype]["votes"])
    case.check("votes", "F_next", states[-1][0])


@budgets
@precisions
@implementations
def test_layer_with_a_cache_that_prunes(golden, name, budget, dtype, implementation):
    """Token by token in its slots, and in chunks, which give the same."""
    case = golden(name, dtype)
    layer, hidden_states = layer_of(case, budget, implementation)
    output, states = run_layer(case, layer, hidden_states, [1] * case.length)
    case.check("output", f"prune{budget}_O", output)
    assert_same_held(case, budget, [held for _, held in states])
    for chunks in (case.facts["chunks"], [budget, 1, 1, case.length - budget - 2]):
        output, states = run_layer(case, layer, hidden_states, chunks)
        case.check("output", f"prune{budget}_O", output)
        assert states[-1][1].sum(-1).max() == budget
        for row, expected in enumerate(case.facts["prune"][str(budget)]["kept_last"]):
            assert states[-1][1][row].nonzero()[:, 0].tolist() == expected
