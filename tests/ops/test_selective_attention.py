# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Selective attention in blocks is the paper's equation, in outputs, votes, memory rows and all gradients."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from leanformers.modeling.selective_attn.selective_attention import (
    naive_selective_attention,
    selective_attention,
    selective_attention_step,
)
from numerics import assert_close, assert_low_precision_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
SLOW = pytest.mark.slow
LENGTHS = (1, 2, 63, 64, 65, 100, 193)
FORMS = [naive_selective_attention, selective_attention]
forms = pytest.mark.parametrize("form", FORMS)


def build(batch=2, length=70, heads=4, shared=2, head_dim=8, value_dim=None, past=0, dtype=torch.float64):
    """Query, key and value."""
    query = torch.randn(batch, length, heads, head_dim, dtype=torch.float64)
    key = torch.randn(batch, past + length, shared, head_dim, dtype=torch.float64)
    value = torch.randn(batch, past + length, shared, value_dim or head_dim, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (query, key, value)]


def draw_documents(batch: int, length: int, share: float = 0.1) -> torch.Tensor:
    """Numbers that change where a document begins."""
    return (torch.rand(batch, length) < share).long().cumsum(-1)


def padded(length: int, side: str) -> torch.Tensor:
    """A mask `[2, length]` of a whole row and of one with padding."""
    mask = torch.ones(2, length, dtype=torch.long)
    pads = min(length - 1, 1 + length // 3)
    mask[1, slice(0, pads) if side == "left" else slice(length - pads, length)] = 0
    return mask


def results(form, inputs, before=None, **options) -> dict[str, torch.Tensor]:
    """Output, votes, memory rows and the gradients of a loss that weighs every entry of all three differently."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*inputs, *([] if before is None else [before]))]
    names, known = ["query", "key", "value", "initial_selection"][: len(leaves)], {}
    if before is not None:
        everything = torch.ones(1, inputs[1].shape[1], device=before.device)
        is_real = options.get("attention_mask", everything)[:, : before.shape[1]]
        known["initial_selection"] = leaves[3] * is_real  # nobody votes against padding
    output, votes, details = form(*leaves[:3], **known, **{"memory_tau": 1.5, "output_details": True, **options})
    loss = sum((tensor * weights(tensor)).sum() for tensor in (output, votes, details.memory))
    gradients = torch.autograd.grad(loss, leaves)
    return {"output": output, "votes": votes, "memory": details.memory, **dict(zip(names, gradients, strict=True))}


def weights(tensor: torch.Tensor) -> torch.Tensor:
    """The same in every precision."""
    numbers = torch.linspace(-1, 1, tensor.numel(), device=tensor.device).cos()
    return numbers.view(tensor.shape).bfloat16().to(tensor.dtype)


def assert_same(actual: dict, expected: dict, **tolerances) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(name, actual[name], expected[name], **tolerances)


def assert_blocks_are_naive(inputs, before=None, block_size=64, **options) -> None:
    expected = results(naive_selective_attention, inputs, before, **options)
    assert expected["output"].isfinite().all()
    assert_same(results(selective_attention, inputs, before, block_size=block_size, **options), expected, **EXACT)


# The two forms


HEADS = {"mha": (3, 3), "gqa": (4, 2), "mqa": (4, 1)}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("heads", "shared"), HEADS.values(), ids=HEADS)
def test_blocks_are_the_equation(length, heads, shared):
    assert_blocks_are_naive(build(length=length, heads=heads, shared=shared))


OPTIONS = {
    "left_padding": lambda length: {"attention_mask": padded(length, "left")},
    "right_padding": lambda length: {"attention_mask": padded(length, "right")},
    "documents": lambda length: {"document_ids": draw_documents(2, length)},
    "padded_documents": lambda length: {
        "attention_mask": padded(length, "right"),
        "document_ids": draw_documents(2, length),
    },
    "window": lambda length: {"sliding_window": 5},
    "long_window": lambda length: {"sliding_window": 70},
    "padded_window": lambda length: {"attention_mask": padded(length, "left"), "sliding_window": 7},
    "documents_in_a_window": lambda length: {"document_ids": draw_documents(2, length), "sliding_window": 4},
    "another_head": lambda length: {"selection_head": 3},
    "strength": lambda length: {"strength": 0.3},
    "no_votes": lambda length: {"strength": 0.0},
    "scale": lambda length: {"scale": 0.9},
    "start_unprotected": lambda length: {"protect_start": False},
    "self_unprotected": lambda length: {"protect_self": False},
    "nothing_protected": lambda length: {"protect_start": False, "protect_self": False, "sliding_window": 9},
    "given_starts": lambda length: {"is_start": torch.arange(length).expand(2, -1) % 7 == 3},
    "given_positions": lambda length: {"positions": torch.arange(length).expand(2, -1) * 3, "sliding_window": 13},
    "other_tau": lambda length: {"memory_tau": 0.2},
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("option", OPTIONS)
def test_blocks_are_the_equation_under_every_option(length, option):
    assert_blocks_are_naive(build(length=length), **OPTIONS[option](length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_queries_leave_the_votes_as_they_are_and_gradients_of_zero(dtype):
    inputs = build(length=0, past=5, dtype=dtype)
    naive, blocks = (results(form, inputs, before=torch.rand(2, 5, dtype=dtype)) for form in FORMS)
    for found in (naive, blocks):
        assert found["output"].shape == (2, 0, 4, 8) and not found["key"].any()
        torch.testing.assert_close(found["initial_selection"], weights(found["votes"]))


@pytest.mark.parametrize(("length", "past"), [(1, 1), (1, 90), (3, 64), (70, 10), (65, 130)])
@pytest.mark.parametrize("option", ["plain", *OPTIONS])
def test_blocks_are_the_equation_after_a_past(length, past, option):
    options = OPTIONS[option](past + length) if option != "plain" else {}
    before = torch.rand(2, past, dtype=torch.float64) * 3
    assert_blocks_are_naive(build(length=length, past=past), before, **options)
    assert_blocks_are_naive(build(length=length, past=past), **options)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(8, 3), (3, 8), (1, 1), (64, 80)])
def test_any_widths(head_dim, value_dim):
    inputs = build(length=100, head_dim=head_dim, value_dim=value_dim)
    assert_blocks_are_naive(inputs, attention_mask=padded(100, "left"))


@pytest.mark.parametrize("block_size", [1, 7, 16, 17, 64, 99, 100, 1000, None])
def test_any_size_of_blocks(block_size):
    assert_blocks_are_naive(build(length=100), block_size=block_size)
    before = torch.rand(2, 30, dtype=torch.float64)
    assert_blocks_are_naive(build(length=100, past=30), before, block_size=block_size, sliding_window=40)


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 40), st.integers(0, 20), st.integers(1, 45), st.integers(1, 3), st.sampled_from([1, 2, 3])),
    *(st.sampled_from([1, 2]), st.booleans(), st.booleans(), st.none() | st.integers(2, 9), st.integers(0, 99)),
)
def test_any_shape(length, past, block_size, batch, groups, shared, packed, masked, window, seed):
    torch.manual_seed(seed)
    options = {"sliding_window": window, "selection_head": groups * shared - 1}
    if packed:
        options["document_ids"] = draw_documents(batch, past + length)
    if masked:
        options["attention_mask"] = torch.rand(batch, past + length) < 0.7
    before = torch.rand(batch, past, dtype=torch.float64) if past else None
    inputs = build(batch, length, groups * shared, shared, 4, past=past)
    assert_blocks_are_naive(inputs, before, block_size, **options)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("option", ["left_padding", "documents", "window"])
def test_float32_is_as_good_as_its_precision(length, option):
    """As the golden tensors' README suggests: outputs to 2e-5, votes to 1e-4 of the most, gradients to 1e-4."""
    inputs, options = build(length=length, head_dim=16), OPTIONS[option](length)
    expected = results(naive_selective_attention, inputs, **options)
    for form in FORMS:
        actual = results(form, [tensor.float() for tensor in inputs], **options)
        for name, tensor in actual.items():
            assert tensor.dtype == torch.float32
            relative = {"output": 0.0, "votes": 1e-4, "memory": 1e-5}.get(name, 1e-4)
            assert_close(name, tensor, expected[name], relative=relative, absolute=2e-5)


def test_gradients_by_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in build(length=7, past=3, head_dim=3, value_dim=2)]
    before = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, :2] = 0

    def outputs(query, key, value, before):
        options = {"block_size": 3, "memory_tau": 1.0, "output_details": True, "attention_mask": mask}
        output, votes, details = selective_attention(query, key, value, initial_selection=before, **options)
        return output, votes, details.memory

    assert torch.autograd.gradcheck(outputs, (*inputs, before))


def test_second_derivatives_are_refused():
    """The blocks compute gradients by hand, of which nobody takes gradients."""
    inputs = [tensor.requires_grad_() for tensor in build(length=5)]
    gradients = torch.autograd.grad(selective_attention(*inputs)[0].square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("used", range(3), ids=["output", "votes", "memory"])
def test_any_result_alone_has_its_gradient(used):
    inputs, found = [*build(length=9, past=3), torch.rand(2, 3, dtype=torch.float64)], []
    for form in FORMS:
        *leaves, before = (tensor.clone().requires_grad_() for tensor in inputs)
        output, votes, details = form(*leaves, initial_selection=before, memory_tau=1.0, output_details=True)
        loss = (output, votes, details.memory)[used].square().sum()
        given = torch.autograd.grad(loss, (*leaves, before), allow_unused=True, materialize_grads=True)
        found.append(given)
        assert given[3].any()
    for naive, blocks in zip(*found, strict=True):
        assert_close("gradient", blocks, naive, **EXACT)


@pytest.mark.parametrize("leaf", range(3), ids=["query", "key", "value"])
def test_inputs_without_gradients_are_constants(leaf):
    inputs = build(length=9)
    inputs[leaf].requires_grad_()
    gradients = [torch.autograd.grad(form(*inputs)[0].square().sum(), inputs[leaf])[0] for form in FORMS]
    assert_close("gradient", gradients[1], gradients[0], **EXACT)


@pytest.mark.parametrize("length", [1, 2, 100, 1500])
@pytest.mark.parametrize("option", ["left_padding", "documents", "window"])
def test_without_gradients_the_same(length, option):
    inputs, options = build(length=length, dtype=torch.float32), OPTIONS[option](length)
    options |= {"memory_tau": 1.0, "output_details": True}
    output, votes, details = selective_attention(*(tensor.requires_grad_() for tensor in inputs), **options)
    with torch.no_grad():
        actual, actual_votes, actual_details = selective_attention(*inputs, **options)
    assert not actual.requires_grad and not actual_votes.requires_grad
    assert_close("output", actual, output, relative=1e-6, absolute=1e-6)
    assert_close("votes", actual_votes, votes, relative=1e-6, absolute=1e-6)
    assert_close("memory", actual_details.memory, details.memory, relative=1e-6, absolute=1e-6)


def test_inputs_need_not_be_contiguous_and_stay_as_they_are():
    inputs, before = build(length=100, past=20), torch.rand(2, 20, dtype=torch.float64)
    strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    expected = results(naive_selective_attention, inputs, before, sliding_window=30)
    assert_same(results(selective_attention, strided, before, sliding_window=30), expected, **EXACT)
    copies, mask = [tensor.clone() for tensor in (*strided, before)], padded(120, "left")
    for form in FORMS:
        with torch.no_grad():  # where work may be done in place
            form(*strided, initial_selection=before, attention_mask=mask, memory_budget=9)
        assert all(map(torch.equal, copies, (*strided, before)))
        assert torch.equal(mask, padded(120, "left"))


# What the equation says


def details_of(inputs, **options):
    return naive_selective_attention(*inputs, output_details=True, **options)[2]


@pytest.mark.parametrize("option", ["plain", *OPTIONS])
def test_who_is_never_voted_against(option):
    length = 65
    options = OPTIONS[option](length) if option != "plain" else {}
    details = details_of(build(length=length), **options)
    selection, votes = details.selection, details.votes
    assert not selection.diagonal(dim1=1, dim2=2).any()
    assert votes.min() == 0 and not votes.triu(1).any()
    if options.get("protect_self", True):
        assert not votes.diagonal(dim1=1, dim2=2).any()
        assert not selection.diagonal(offset=-1, dim1=1, dim2=2).any()
    else:
        assert selection.diagonal(offset=-1, dim1=1, dim2=2).any()
    visible = details.probabilities.amax(1) > 0
    is_first = visible.sum(-1) == 1  # a first token sees itself alone
    if "sliding_window" not in options and "is_start" not in options:
        starts = (selection * is_first[:, None]).sum()
        assert not starts if options.get("protect_start", True) else starts > 0
    if "is_start" in options:
        assert not (votes * options["is_start"][:, None]).any()


def test_votes_are_never_taken_back():
    selection = details_of(build(length=65)).selection
    assert (selection[:, 1:] >= selection[:, :-1] - 1e-12).all()
    assert (selection[:, -1, 1:-1] > 0).any(dim=-1).all()


def test_sums_by_hand():
    """Of four tokens, by the definition with loops."""
    query, key, value = build(batch=1, length=4, heads=2, shared=1)
    output, accumulated, details = naive_selective_attention(query, key, value, output_details=True)
    logits = torch.einsum("ihd,jd->hij", query[0], key[0, :, 0]) * 8**-0.5
    for i in range(4):
        against = [sum(max(logits[0, k, j].item(), 0.0) * (0 < j < k) for k in range(i)) for j in range(i + 1)]
        assert_close("F", details.selection[0, i, : i + 1], torch.tensor(against), absolute=1e-6)
        for head in range(2):
            weights = (logits[head, i, : i + 1] - details.selection[0, i, : i + 1]).softmax(-1)
            assert_close("output", output[0, i, head], weights @ value[0, : i + 1, 0], **EXACT)
    expected = logits[0].relu().tril(-1).sum(0) * torch.tensor([0, 1, 1, 1])
    assert_close("votes", accumulated[0], expected, **EXACT)


@forms
@pytest.mark.parametrize("kind", ["no_strength", "negative_logits", "two_tokens"])
def test_without_votes_it_is_attention(form, kind):
    query, key, value = build(length=2 if kind == "two_tokens" else 70, heads=4, shared=2)
    if kind == "negative_logits":
        query[:, :, 0], key[:, :, 0] = query[:, :, 0].abs(), -key[:, :, 0].abs()
    output, votes = form(query, key, value, strength=0.0 if kind == "no_strength" else 1.0)
    assert not votes.any()
    key, value = (tensor.repeat_interleave(2, dim=2).transpose(1, 2) for tensor in (key, value))
    expected = scaled_dot_product_attention(query.transpose(1, 2), key, value, is_causal=True).transpose(1, 2)
    assert_close("output", output, expected, **EXACT)


@forms
@pytest.mark.parametrize("token", [0, 1, 63, 64, 99])
def test_later_tokens_move_nothing_before_them(form, token):
    inputs = build(length=100)
    changed = [tensor.clone() for tensor in inputs]
    for tensor in changed:
        tensor[:, token] = torch.randn_like(tensor[:, token])
    before, after = (form(*each)[0] for each in (inputs, changed))
    assert_close("before", after[:, :token], before[:, :token], **EXACT)
    assert not torch.allclose(after[:, token:], before[:, token:])
    first, second = (details_of(each).selection for each in (inputs, changed))
    # Its votes act after it, as do the votes against it; the first token has neither.
    assert_close("F", second[:, : token + 1], first[:, : token + 1], **EXACT)
    assert torch.allclose(second[:, token + 1 :], first[:, token + 1 :]) == (token in (0, 99))


@forms
def test_votes_that_all_keys_have_change_nothing(form):
    """Attention does not see what is subtracted from all logits of a row: its gradient sums to 0."""
    query, key, value = build(length=1, past=9, heads=1, shared=1)
    key[:, 9] = -1e6 * query[:, 0]  # the token itself, which has no votes against it, is not read
    before = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    output, _ = form(query, key, value, initial_selection=before)
    assert_close("output", form(query, key, value, initial_selection=before + 2.0)[0], output, **EXACT)
    gradient = torch.autograd.grad((output * weights(output)).sum(), before)[0]
    assert gradient.abs().max() > 1e-2
    assert_close("sums", gradient.sum(-1), torch.zeros(2), **EXACT)


@forms
@pytest.mark.parametrize("pieces", [(1, 99), (64, 36), (33, 1, 1, 65), (99, 1)], ids=str)
@pytest.mark.parametrize("option", ["plain", "left_padding", "right_padding", "window", "strength"])
def test_a_sequence_in_pieces_is_the_whole(form, pieces, option):
    options = OPTIONS[option](100) if option != "plain" else {}
    mask = options.pop("attention_mask", torch.ones(2, 100))
    query, key, value = build(length=100)
    expected, all_votes = form(query, key, value, attention_mask=mask, **options)
    outputs, votes, end = [], torch.zeros(2, 0, dtype=torch.float64), 0
    for piece in query.split(pieces, dim=1):
        end += piece.shape[1]
        known = {"attention_mask": mask[:, :end], "initial_selection": votes, **options}
        output, votes = form(piece, key[:, :end], value[:, :end], **known)
        outputs.append(output)
    assert_close("output", torch.cat(outputs, dim=1), expected, **EXACT)
    assert_close("votes", votes, all_votes, **EXACT)


@forms
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("window", [None, 6])
def test_documents_are_separate_calls(form, share, window):
    inputs, document_ids = build(length=130), draw_documents(2, 130, share)
    output, votes = form(*inputs, document_ids=document_ids, sliding_window=window)
    for row in range(2):
        starts = [0, *(document_ids[row].diff().nonzero()[:, 0] + 1).tolist(), 130]
        for begin, end in zip(starts, starts[1:], strict=False):
            alone, cast = form(*(tensor[row : row + 1, begin:end] for tensor in inputs), sliding_window=window)
            assert_close("document", output[row : row + 1, begin:end], alone, **EXACT)
            assert_close("votes", votes[row : row + 1, begin:end], cast, **EXACT)


@forms
@pytest.mark.parametrize("window", [None, 6])
def test_padding_anywhere_leaves_no_trace(form, window):
    inputs, is_real = build(length=100), torch.rand(2, 100) < 0.6
    output, votes, details = form(
        *inputs, attention_mask=is_real, sliding_window=window, memory_tau=1.0, output_details=True
    )
    for row in range(2):
        alone = form(
            *(tensor[row, is_real[row]][None] for tensor in inputs),
            sliding_window=window,
            memory_tau=1.0,
            output_details=True,
        )
        assert_close("output", output[row, is_real[row]], alone[0][0], **EXACT)
        assert_close("votes", votes[row, is_real[row]], alone[1][0], **EXACT)
        assert_close("memory", details.memory[row, is_real[row]], alone[2].memory[0], **EXACT)
    for tensor in (output, votes, details.memory):
        assert not tensor[~is_real].any()


@forms
def test_a_window_as_long_as_the_text_is_none(form):
    inputs = build(length=70)
    assert_close("output", form(*inputs, sliding_window=70)[0], form(*inputs)[0], **EXACT)
    assert not torch.allclose(form(*inputs, sliding_window=69)[0], form(*inputs)[0])


@forms
def test_memory_rows_count_what_is_kept_in_mind(form):
    inputs = build(length=30)
    whole = form(*inputs, strength=0.0, memory_tau=1.0, output_details=True)[2].memory
    assert torch.equal(whole, torch.arange(30.0, dtype=torch.float64).expand(2, -1))
    selection, tau = details_of(inputs).selection, 0.7
    memory = form(*inputs, memory_tau=tau, output_details=True)[2].memory
    for i in range(30):
        expected = i - (selection[:, i, : i + 1].clamp(max=tau) / tau).sum(-1)
        assert_close("M", memory[:, i], expected, **EXACT)


@forms
def test_length_zero_leaves_the_votes_as_they_are(form):
    query, key, value = build(length=5)
    before = torch.rand(2, 5, dtype=torch.float64)
    output, votes = form(query[:, :0], key, value, initial_selection=before)
    assert output.shape == (2, 0, 4, 8) and torch.equal(votes, before)


@pytest.mark.parametrize("option", ["plain", "left_padding", "window", "self_unprotected", "strength"])
@pytest.mark.parametrize("number", [1, 3, 1000])
def test_the_latest_votes(option, number):
    options = OPTIONS[option](70) if option != "plain" else {}
    inputs = build(length=70, past=0)
    votes = selective_attention(*inputs, num_votes=number, output_details=True, **options)[2].votes
    assert_close("S", votes, details_of(inputs, **options).votes[:, -number:], **EXACT)


# One more token


@pytest.mark.parametrize("past", [0, 1, 40])
@pytest.mark.parametrize(("heads", "shared"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("naive", [False, True], ids=["fused", "naive"])
def test_a_step_is_the_last_row(past, heads, shared, naive):
    inputs = query, key, value = build(length=past + 1, heads=heads, shared=shared, value_dim=5)
    options = {"selection_head": heads - 1, "strength": 0.7, "scale": 0.5}
    whole, votes, details = naive_selective_attention(*inputs, output_details=True, **options)
    order = torch.randperm(past + 1)  # slots may be in any
    selection, places = details.selection[:, -1, order], torch.arange(past + 1)[order].expand(2, -1)
    votable = (places > 0) & (places < past)
    step = selective_attention_step(
        query[:, -1:], key[:, order], value[:, order], selection, votable=votable, naive=naive, **options
    )
    assert_close("output", step[0], whole[:, -1:], **EXACT)
    assert_close("votes", step[1], votes[:, order], **EXACT)
    if naive:
        assert_close("probabilities", step[2], details.probabilities[:, :, -1:, order], **EXACT)
    else:
        assert step[2] is None


@pytest.mark.parametrize("naive", [False, True], ids=["fused", "naive"])
def test_a_step_does_not_see_empty_slots(naive):
    query, key, value = build(length=1, past=9)
    selection, visible = torch.rand(2, 10, dtype=torch.float64), torch.rand(2, 10) < 0.5
    visible[:, -1], selection[:, -1] = True, 0.0
    votable = visible & (torch.arange(10) < 9)
    output, votes, _ = selective_attention_step(
        query, key, value, selection, visible=visible, votable=votable, naive=naive
    )
    for row in range(2):
        seen = visible[row]
        alone = selective_attention_step(
            query[row, None],
            key[row, None, seen],
            value[row, None, seen],
            selection[row, None, seen],
            votable=votable[row, None, seen],
        )
        assert_close("output", output[row], alone[0][0], **EXACT)
        assert_close("votes", votes[row, seen], alone[1][0], **EXACT)
    assert torch.equal(votes[~visible], selection[~visible])


# Precision


@pytest.mark.parametrize("length", [1, 2, 100, 193])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_strays_no_further_than_attention_itself(length, dtype):
    inputs = build(length=length, head_dim=16, dtype=dtype)
    exact = results(naive_selective_attention, [tensor.float() for tensor in inputs])
    fast, naive = (results(form, inputs) for form in (selective_attention, naive_selective_attention))
    assert fast["output"].dtype == naive["output"].dtype == dtype
    for name in ("votes", "memory"):  # in float32, whatever the inputs
        assert fast[name].dtype == torch.float32
        assert_close(name, fast.pop(name), exact[name])
    for name, tensor in fast.items():
        one_place = torch.finfo(dtype).eps * exact[name].abs().max().item() + 1e-5
        assert_low_precision_close(name, tensor, naive[name], exact[name], absolute=one_place / 2)


@pytest.mark.parametrize("length", [1, 100])
def test_autocast_lowers_no_precision_of_votes(length):
    inputs, before = build(length=length, past=4, dtype=torch.float32), torch.rand(2, 4)
    expected = results(selective_attention, inputs, before)
    actual = results(torch.autocast("cpu", dtype=torch.bfloat16)(selective_attention), inputs, before)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_votes_of_bfloat16_do_not_stall():
    """Added up in bfloat16, votes of 1 would stop at 256."""
    key = torch.ones(1, 1000, 1, 1, dtype=torch.bfloat16)
    query, expected = torch.ones_like(key), 998.0
    for form in FORMS:
        votes = form(query, key, key)[1]
        assert votes.dtype == torch.float32 and votes[0, 1].item() == expected
    selection, votable = torch.zeros(1, 1, dtype=torch.float32), torch.ones(1, 1, dtype=torch.bool)
    for _ in range(300):
        _, selection, _ = selective_attention_step(query[:, :1], key[:, :1], key[:, :1], selection, votable=votable)
    assert selection.item() == 300.0


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_huge_logits_give_no_nan(form, dtype, size):
    inputs = build(length=100, dtype=dtype)
    inputs = [inputs[0] * size, *inputs[1:]]
    for name, tensor in results(form, inputs, attention_mask=padded(100, "left")).items():
        assert tensor.isfinite().all(), name
    with torch.no_grad():
        assert form(*inputs, memory_budget=7)[0].isfinite().all()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_huge_logits_are_the_equation(size):
    query, key, value = build(length=100)
    assert_blocks_are_naive([query * size, key / size**0.5, value])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=SLOW)])
@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="Dynamo of torch 2.6 cannot trace this autograd.Function"
)
def test_compiled_is_eager(backend, monkeypatch):
    monkeypatch.undo()  # inductor does not know `torch.empty` that is filled
    torch.compiler.reset()
    inputs, before = build(length=9, past=3), torch.rand(2, 3, dtype=torch.float64)
    compiled = torch.compile(selective_attention, backend=backend, fullgraph=True)
    options = {"sliding_window": 5, "attention_mask": padded(12, "left")}
    expected = results(naive_selective_attention, inputs, before, **options)
    assert_same(results(compiled, inputs, before, block_size=4, **options), expected, **EXACT)


# Memory


def saved_bytes(length: int, block_size: int) -> tuple[int, int]:
    """What autograd keeps for the backward pass, beside the inputs; and their size."""
    inputs = [tensor.requires_grad_() for tensor in build(1, length, 4, 4, 16, dtype=torch.float32)]
    own, saved = {tensor.untyped_storage().data_ptr() for tensor in inputs}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = selective_attention(*inputs, block_size=block_size)  # noqa: F841  (keeps what is saved alive)
        return sum(size for where, size in saved.items() if where not in own), inputs[0].nbytes


@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("length", [512, 1024])
def test_training_keeps_one_row_of_votes_per_block(length, block_size):
    kept, per_input = saved_bytes(length, block_size)
    rows, normalizers, starts = 4 * length * length // block_size, 4 * 4 * length, length
    assert rows <= kept <= rows + per_input + normalizers + starts


class LargestTensor(TorchDispatchMode):
    """Records how many numbers the largest tensor has that any operation gives."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.element_size())
        return found


@pytest.mark.parametrize("option", ["plain", "documents", "padded_window"])
def test_no_tensor_is_as_large_as_all_pairs(option):
    """Forward and backward."""
    length, heads, block_size = 512, 4, 32
    options = OPTIONS[option](length) if option != "plain" else {}
    inputs = build(2, length, heads, heads, 8, dtype=torch.float32)
    with LargestTensor() as largest:
        results(selective_attention, inputs, block_size=block_size, **options)
    assert largest.size <= 2 * heads * block_size * length < 2 * length * length
    with LargestTensor() as largest:
        results(naive_selective_attention, inputs, **options)
    assert largest.size >= 2 * heads * length * length
    with torch.no_grad(), LargestTensor() as largest:
        selective_attention(*inputs, block_size=block_size, **options)
    assert largest.size <= 2 * heads * block_size * length


# Budgets


def held_row_by_row(inputs, budget: int, **options) -> torch.Tensor:
    """Which keys each query reads, `[batch, queries, keys]`, of the naive form without gradients."""
    with torch.no_grad():
        return details_of(inputs, memory_budget=budget, **options).probabilities.amax(dim=1) > 0


BUDGET_OPTIONS = ["plain", *(name for name in OPTIONS if name not in ("no_votes", "other_tau"))]


@pytest.mark.parametrize("option", BUDGET_OPTIONS)
@pytest.mark.parametrize("budget", [2, 3, 8, 64, 66, 200])
@pytest.mark.parametrize("past", [0, 40])
@torch.no_grad()
def test_blocks_prune_as_the_naive_form_does(option, budget, past):
    length = 100 - past
    options = OPTIONS[option](100) if option != "plain" else {}
    inputs = build(length=length, past=past)
    if past:
        options["initial_selection"] = (
            torch.rand(2, past, dtype=torch.float64) * options.get("attention_mask", torch.ones(2, 100))[:, :past]
        )
    options |= {"memory_budget": budget, "memory_tau": 1.0, "output_details": True}
    naive, blocks = (form(*inputs, **options) for form in FORMS)
    assert_close("output", blocks[0], naive[0], **EXACT)
    assert_close("votes", blocks[1], naive[1], **EXACT)
    assert_close("memory", blocks[2].memory, naive[2].memory, **EXACT)
    assert torch.equal(blocks[2].held, naive[2].held)
    if past <= budget and option != "given_starts":  # which are more than a small budget, and stay
        assert blocks[2].held.sum(-1).max() <= budget


@forms
@torch.no_grad()
def test_a_budget_for_all_is_none(form):
    inputs = build(length=70)
    output, _, details = form(*inputs, memory_budget=70, output_details=True)
    assert torch.equal(output, form(*inputs)[0]) and details.held.all()
    assert not torch.allclose(form(*inputs, memory_budget=20)[0], output)


@forms
@torch.no_grad()
def test_votes_do_not_depend_on_who_is_held(form):
    inputs = build(length=70)
    assert_close("votes", form(*inputs, memory_budget=5)[1], form(*inputs)[1], **EXACT)


@pytest.mark.parametrize("option", ["plain", "left_padding", "window", "strength", "documents"])
def test_gradients_under_a_budget(option):
    """Those of attention to what is held; the choice itself has none."""
    options = OPTIONS[option](30) if option != "plain" else {}
    inputs = build(length=30)
    pruned = results(naive_selective_attention, inputs, memory_budget=5, **options)
    seen = held_row_by_row(inputs, 5, **options)
    assert seen.sum(-1).max() == 5

    def attend_to(query, key, value, **others):
        *_, details = found = naive_selective_attention(query, key, value, **others)
        repeated_key, repeated_value = (tensor.repeat_interleave(2, dim=2) for tensor in (key, value))
        logits = torch.einsum("bihd,bjhd->bhij", query, repeated_key) * 8**-0.5 - details.selection[:, None]
        weights = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num()
        memory = (1 - details.selection.clamp(max=1.5) / 1.5).masked_fill(~seen, 0.0).sum(-1) - seen.any(-1).double()
        output = torch.einsum("bhij,bjhd->bihd", weights, repeated_value)
        return output, found[1], details._replace(memory=memory)

    if option == "left_padding":  # a row of -inf has no softmax to take gradients of
        seen = seen | (torch.eye(30, dtype=torch.bool) & ~options["attention_mask"].bool()[:, None])
        real = options["attention_mask"][..., None, None]
        rows = attend_to

        def attend_to(query, key, value, **others):
            output, votes, details = rows(query, key, value, **others)
            return output * real, votes, details._replace(memory=details.memory * real[..., 0, 0])

    assert_same(pruned, results(attend_to, inputs, **options), **EXACT)


def test_gradients_under_a_budget_are_refused_in_blocks():
    inputs = [tensor.requires_grad_() for tensor in build(length=9)]
    with pytest.raises(
        ValueError, match=r"`memory_budget` is for inference: use torch.no_grad\(\), or the naive form"
    ):
        selective_attention(*inputs, memory_budget=4)
    with torch.no_grad():
        selective_attention(*inputs, memory_budget=4)


def test_dropout_of_the_naive_form_drops_probabilities_alone():
    inputs = build(length=40)
    torch.manual_seed(0)
    output, votes, details = naive_selective_attention(*inputs, dropout=0.5, output_details=True)
    plain, plain_votes, plain_details = naive_selective_attention(*inputs, output_details=True)
    assert torch.equal(votes, plain_votes) and torch.equal(details.probabilities, plain_details.probabilities)
    assert not torch.allclose(output, plain)
    mean = torch.stack([naive_selective_attention(*inputs, dropout=0.5)[0] for _ in range(500)]).mean(0)
    assert (mean - plain).abs().max() < 0.5


# Errors


def test_both_forms_take_the_same_arguments():
    naive, blocks = (set(inspect.signature(form).parameters) for form in FORMS)
    assert naive - blocks == {"dropout"} and blocks - naive == {"block_size", "num_votes", "backend"}


ONES = torch.ones
INVALID = {
    "no_heads": ({"query": ONES(2, 10, 8)}, r"query \[batch, queries, heads, head_dim\].* got \[2, 10, 8\]"),
    "widths": ({"query": ONES(2, 10, 4, 5)}, r"got \[2, 10, 4, 5\], \[2, 10, 2, 8\], \[2, 10, 2, 8\]"),
    "value_length": ({"value": ONES(2, 9, 2, 8)}, r"got .* \[2, 9, 2, 8\]"),
    "value_heads": ({"value": ONES(2, 10, 1, 8)}, r"got .* \[2, 10, 1, 8\]"),
    "batch": ({"query": ONES(3, 10, 4, 8)}, r"got \[3, 10, 4, 8\]"),
    "dtypes": ({"value": ONES(2, 10, 2, 8)}, "one dtype, got torch.float64, torch.float64, torch.float32"),
    "groups": (
        {"query": ONES(2, 10, 3, 8, dtype=torch.float64)},
        "2 key-value heads cannot be shared evenly by 3 heads",
    ),
    "more_queries_than_keys": (
        {"query": ONES(2, 11, 4, 8, dtype=torch.float64)},
        "The 11 queries must be among the 10 keys",
    ),
    "head": ({"selection_head": 4}, "`selection_head` must be one of 4 heads, 0 first, got 4"),
    "negative_head": ({"selection_head": -1}, "`selection_head` .* got -1"),
    "window": ({"sliding_window": 1}, "`sliding_window` must be at least 2, .* got 1"),
    "budget": ({"memory_budget": 1}, "budget must be at least 2, .* got 1"),
}


@forms
@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments_are_named(form, case):
    changes, message = INVALID[case]
    query, key, value = build(length=10)
    with pytest.raises(ValueError, match=message):
        form(**{"query": query, "key": key, "value": value, **changes})
