# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What is held under a budget is what a memory of so many slots would hold, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanformers.modeling.selective_attn.context_pruning import Held, check_budget, least_voted, most_voted
from leanformers.modeling.selective_attn.selective_attention import naive_selective_attention, selective_attention
from leanformers.modeling.selective_attn.visible_keys import describe_keys
from numerics import assert_close

EXACT = {"relative": 1e-12, "absolute": 1e-12}
forms = pytest.mark.parametrize("form", [naive_selective_attention, selective_attention])
INF = float("inf")


def build(batch=1, length=40, heads=4, shared=2, head_dim=8) -> list[torch.Tensor]:
    """Query, key and value."""
    shapes = (batch, length, heads, head_dim), (batch, length, shared, head_dim), (batch, length, shared, head_dim)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def in_slots(query, key, value, budget: int, window: int | None = None, protect_start: bool = True):
    """One text, token by token, in a memory that really has `budget` slots: outputs `[length, heads, dim]`, and the
    tokens held after each one."""
    length, num_heads, head_dim = query.shape
    group, slots, votes, outputs, held = num_heads // key.shape[1], [], {}, [], []
    for token in range(length):
        slots = [each for each in slots if window is None or token - each < window]
        if len(slots) >= budget:
            leaving = [each for each in slots if each > 0 or not protect_start]
            slots.remove(min(leaving, key=lambda each: (-votes[each], each)))
        slots.append(token)
        votes[token] = 0.0
        logits = torch.stack([key[slots, head // group] @ query[token, head] for head in range(num_heads)])
        logits = logits / math.sqrt(head_dim)
        weights = (logits - torch.tensor([votes[each] for each in slots], dtype=torch.float64)).softmax(-1)
        outputs.append(torch.stack([weights[head] @ value[slots, head // group] for head in range(num_heads)]))
        for slot, logit in zip(slots, logits[0].tolist(), strict=True):
            if slot != token and (slot > 0 or not protect_start):
                votes[slot] += max(logit, 0.0)
        held.append(sorted(slots))
    return torch.stack(outputs), held


# Which token leaves


@pytest.mark.parametrize(
    ("votes", "evictable", "positions", "expected"),
    [
        ([0.0, 3.0, 1.0, 2.0], [0, 1, 1, 1], [0, 1, 2, 3], 1),
        ([0.0, 3.0, 1.0, 2.0], [0, 0, 1, 1], [0, 1, 2, 3], 3),
        ([9.0, 3.0, 3.0, 3.0], [0, 1, 1, 1], [0, 3, 1, 2], 2),  # of several the oldest, whatever its slot
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 1, 1], [0, 1, 2, 3], 1),  # the first token has no votes, and stays
        ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1], [3, 2, 0, 1], 2),
        ([5.0, INF, 7.0, 3.0], [1, 1, 1, 1], [0, -1, 2, 1], 1),  # a slot with nothing leaves first
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 1], [0, 1, 2, 3], 3),
    ],
)
def test_the_most_voted_leaves(votes, evictable, positions, expected):
    given = torch.tensor([votes]), torch.tensor([evictable]).bool(), torch.tensor([positions])
    assert most_voted(*given).tolist() == [expected]
    given = (torch.cat([tensor, tensor.flip(-1)]) for tensor in given)  # rows do not mix
    assert most_voted(*given).tolist() == [expected, len(votes) - 1 - expected]


@pytest.mark.parametrize(
    ("votes", "is_start", "is_real", "budget", "expected"),
    [
        ([9.0, 3.0, 1.0, 2.0, 5.0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], 3, [0, 2, 3]),  # the first token stays
        ([0.0, 1.0, 1.0, 1.0, 1.0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], 3, [0, 3, 4]),  # of several the latest
        ([0.0, 0.0, 0.0, 0.0, 0.0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], 2, [0, 4]),
        ([0.0, 0.0, 4.0, 1.0, 2.0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], 2, [2, 3]),  # padding is not held
        ([0.0, 0.0, 4.0, 1.0, 2.0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], 4, [2, 3, 4]),
        ([0.0, 2.0, 1.0, 0.0, 0.0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], 2, [0, 2]),
        ([0.0, 2.0, 1.0, 3.0, 4.0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], 9, [0, 1, 2, 3, 4]),
        ([2.0, 0.0, 1.0, 3.0, 4.0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], 2, [1, 2]),  # an unprotected first token
    ],
)
def test_the_least_voted_of_a_prompt_stay(votes, is_start, is_real, budget, expected):
    held = least_voted(torch.tensor([votes]), torch.tensor([is_start]).bool(), torch.tensor([is_real]).bool(), budget)
    assert held[0].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("budget", [1, 0, -3])
def test_budgets_below_two_are_refused(budget):
    with pytest.raises(ValueError, match=f"at least 2, the first token and the current one, got {budget}"):
        check_budget(budget)
    keys = describe_keys((1, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match=f"got {budget}"):
        Held(keys, 0, budget)


# A whole text at once


@forms
@pytest.mark.parametrize("budget", [2, 3, 7, 39, 40, 60])
@pytest.mark.parametrize("window", [None, 5, 12])
@pytest.mark.parametrize("protect_start", [True, False], ids=["start_stays", "start_may_leave"])
@torch.no_grad()
def test_masks_are_a_memory_with_slots(form, budget, window, protect_start):
    inputs = build()
    options = {"memory_budget": budget, "sliding_window": window, "protect_start": protect_start}
    output, _, details = form(*inputs, **options, output_details=True)
    expected, held = in_slots(*(tensor[0] for tensor in inputs), budget, window, protect_start)
    assert_close("output", output[0], expected, **EXACT)
    assert details.held[0].nonzero()[:, 0].tolist() == held[-1]
    assert len(held[-1]) == min(budget, window or 40, 40)
    for length in (1, 2, budget, budget + 1, 33):
        part = (tensor[:, :length] for tensor in inputs)
        found = form(*part, **options, output_details=True)[2].held
        assert found[0].nonzero()[:, 0].tolist() == held[min(length, 40) - 1]


@settings(max_examples=40, deadline=None)
@given(
    *(st.integers(1, 30), st.integers(2, 12), st.none() | st.integers(2, 12), st.sampled_from([1, 2])),
    *(st.integers(1, 9), st.booleans(), st.integers(0, 999)),
)
def test_any_budget(length, budget, window, shared, block_size, all_agree, seed):
    torch.manual_seed(seed)
    query, key, value = build(length=length, heads=2, shared=shared, head_dim=4)
    if all_agree:  # nobody votes, and everybody ties
        query[:, :, 0], key = query[:, :, 0].abs(), -key.abs()
    with torch.no_grad():
        options = {"memory_budget": budget, "sliding_window": window, "output_details": True}
        output, _, details = selective_attention(query, key, value, block_size=block_size, **options)
    expected, held = in_slots(query[0], key[0], value[0], budget, window)
    assert_close("output", output[0], expected, **EXACT)
    assert details.held[0].nonzero()[:, 0].tolist() == held[-1]


@forms
@torch.no_grad()
def test_without_votes_the_first_token_and_the_latest_are_held(form):
    inputs = build()
    details = form(*inputs, strength=0.0, memory_budget=6, output_details=True)[2]
    assert details.held[0].nonzero()[:, 0].tolist() == [0, 35, 36, 37, 38, 39]


@forms
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@torch.no_grad()
def test_ragged_rows_prune_as_they_would_alone(form, window, side):
    inputs, places = build(batch=4), torch.arange(40)
    starts = {"left": places >= torch.tensor([[0], [7], [30], [39]])}
    starts["right"] = starts["left"].flip(-1)
    is_real = torch.rand(4, 40) < 0.6 if side == "holes" else starts[side]
    options = {"memory_budget": 6, "sliding_window": window, "memory_tau": 1.0, "output_details": True}
    output, votes, details = form(*inputs, attention_mask=is_real, **options)
    for row in range(4):
        real = is_real[row]
        alone = form(*(tensor[row, real][None] for tensor in inputs), **options)
        assert_close("output", output[row, real], alone[0][0], **EXACT)
        assert_close("votes", votes[row, real], alone[1][0], **EXACT)
        assert_close("memory", details.memory[row, real], alone[2].memory[0], **EXACT)
        assert torch.equal(details.held[row, real], alone[2].held[0])
    assert not details.held[~is_real].any()


@forms
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("share", [0.05, 0.3])
@torch.no_grad()
def test_documents_prune_as_separate_texts(form, window, share):
    inputs, document_ids = build(length=80), (torch.rand(1, 80) < share).long().cumsum(-1)
    options = {"memory_budget": 5, "sliding_window": window, "output_details": True}
    output, _, details = form(*inputs, document_ids=document_ids, **options)
    starts = [0, *(document_ids[0].diff().nonzero()[:, 0] + 1).tolist(), 80]
    for begin, end in zip(starts, starts[1:], strict=False):
        alone, _, last = form(*(tensor[:, begin:end] for tensor in inputs), **options)
        assert_close("document", output[:, begin:end], alone, **EXACT)
    # Only the last document is held: another one's tokens are not seen any more.
    assert torch.equal(details.held[:, starts[-2] :], last.held)
    assert not details.held[:, : starts[-2]].any()


@forms
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("pieces", [(7, 33), (1, 1, 38), (20, 20), (39, 1)], ids=str)
@torch.no_grad()
def test_pieces_that_pass_on_what_is_held_are_the_whole(form, window, pieces):
    """As a cache does: dropped keys are not handed on."""
    query, key, value = build(batch=2)
    options = {"memory_budget": 6, "sliding_window": window, "output_details": True}
    expected, _, whole = form(query, key, value, **options)
    for row in range(2):
        outputs, places, votes, end = [], torch.arange(0), torch.zeros(1, 0, dtype=torch.float64), 0
        for piece in query[row, None].split(pieces, dim=1):
            places = torch.cat([places, torch.arange(end, end + piece.shape[1])])
            end += piece.shape[1]
            known = {"initial_selection": votes, "positions": places[None], "is_start": (places == 0)[None]}
            inputs = piece, key[row, None, places], value[row, None, places]
            output, votes, details = form(*inputs, **known, **options)
            places, votes = places[details.held[0]], votes[:, details.held[0]]
            outputs.append(output)
        assert_close("output", torch.cat(outputs, dim=1)[0], expected[row], **EXACT)
        assert places.tolist() == whole.held[row].nonzero()[:, 0].tolist()


@forms
@torch.no_grad()
def test_what_is_gone_never_returns(form):
    """Though many others have more votes later."""
    inputs, gone = build(length=60), set()
    for length in range(1, 61):
        part = (tensor[:, :length] for tensor in inputs)
        held = set(form(*part, memory_budget=8, output_details=True)[2].held[0].nonzero()[:, 0].tolist())
        assert {0, length - 1} <= held and not held & gone
        gone = set(range(length)) - held
    assert len(gone) == 52
