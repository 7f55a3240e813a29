# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The update rules in chunks are the recurrences, in outputs, final memory and all gradients."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanformers.modeling.fast_weight import delta_rule
from leanformers.modeling.fast_weight.delta_rule import (
    chunk_delta_rule,
    chunk_sum_rule,
    naive_delta_rule,
    naive_fwm_rule,
    naive_sum_rule,
)
from numerics import assert_close, assert_low_precision_close

EXACT = {"relative": 1e-10, "absolute": 1e-10}
SINGLE = {"relative": 1e-5, "absolute": 1e-5}
NAIVE = {"delta": naive_delta_rule, "sum": naive_sum_rule}
CHUNK = {"delta": chunk_delta_rule, "sum": chunk_sum_rule}
SLOW = pytest.mark.slow
LENGTHS = (1, 2, 63, 64, 65, 100, 193)
rules = pytest.mark.parametrize("rule", ["delta", "sum"])
starts = pytest.mark.parametrize("carried", [False, True], ids=["from_zero", "carried"])
packings = pytest.mark.parametrize("packed", [False, True], ids=["one_document", "documents"])


def build(rule: str, batch=2, length=70, heads=3, key_dim=7, value_dim=5, dtype=torch.float64) -> list[torch.Tensor]:
    """Query, key, value and, for the delta rule, beta. Keys of length 1 replace all of what they had stored."""
    key = torch.nn.functional.normalize(torch.randn(batch, length, heads, key_dim, dtype=torch.float64), dim=-1)
    query, value = torch.randn_like(key), torch.randn(batch, length, heads, value_dim, dtype=torch.float64)
    beta = [torch.rand(batch, length, heads, dtype=torch.float64)] if rule == "delta" else []
    return [tensor.to(dtype) for tensor in (query, key, value, *beta)]


def memory(inputs: list[torch.Tensor], rows: int | None = None) -> torch.Tensor:
    (batch, _, heads, key_dim), value_dim = inputs[1].shape, inputs[2].shape[-1]
    return torch.randn(rows or batch, heads, key_dim, value_dim, dtype=inputs[0].dtype)


def results(form, inputs, state=None, **options) -> dict[str, torch.Tensor]:
    """Output, final memory and the gradients of a loss that weighs every entry of both differently."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*inputs, *([] if state is None else [state]))]
    initial_state = None if state is None else leaves[-1]
    output, final = form(*leaves[: len(inputs)], initial_state=initial_state, output_final_state=True, **options)
    names = ["query", "key", "value", "beta"][: len(inputs)] + ["initial state"] * (state is not None)
    loss = sum((tensor * weights(tensor)).sum() for tensor in (output, final))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return {"output": output, "final state": final, **dict(zip(names, gradients, strict=True))}


def weights(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape).cos()


def assert_same(actual: dict, expected: dict, **tolerances) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(name, actual[name], expected[name], **tolerances)


def draw_documents(batch: int, length: int, share: float = 0.1) -> torch.Tensor:
    """Numbers that change where a document begins, and do not always rise."""
    return (torch.rand(batch, length) < share).long().cumsum(-1) % 3


@rules
@pytest.mark.parametrize("length", LENGTHS)
@starts
@packings
def test_chunks_are_the_recurrence(rule, length, carried, packed):
    inputs = build(rule, length=length)
    state = memory(inputs) if carried else None
    options = {"document_ids": draw_documents(2, length)} if packed else {}
    assert_same(
        results(CHUNK[rule], inputs, state, **options), results(NAIVE[rule], inputs, state, **options), **EXACT
    )


@rules
@pytest.mark.parametrize("length", LENGTHS)
@starts
@packings
def test_float32_is_as_good_as_its_precision(rule, length, carried, packed):
    inputs = build(rule, length=length, key_dim=16, value_dim=12, dtype=torch.float32)
    state = memory(inputs) if carried else None
    options = {"document_ids": draw_documents(2, length)} if packed else {}
    doubled = [tensor.double() for tensor in inputs], None if state is None else state.double()
    assert_same(results(CHUNK[rule], inputs, state, **options), results(NAIVE[rule], *doubled, **options), **SINGLE)


@rules
@pytest.mark.parametrize(("key_dim", "value_dim"), [(1, 1), (64, 3), (3, 64), (80, 80)])
def test_any_widths(rule, key_dim, value_dim):
    inputs = build(rule, 1, 100, 5, key_dim, value_dim)
    state = memory(inputs)
    assert_same(results(CHUNK[rule], inputs, state), results(NAIVE[rule], inputs, state), **EXACT)


@settings(max_examples=60, deadline=None)
@given(
    *(st.sampled_from(["delta", "sum"]), st.integers(0, 40), st.integers(1, 45), st.sampled_from([1, 60, 10_000])),
    *(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 99)),
)
def test_any_shape_in_chunks_of_any_size(rule, length, chunk_size, at_once, batch, heads, packed, carried, seed):
    torch.manual_seed(seed)
    inputs = build(rule, batch, length, heads, 4, 3)
    state = memory(inputs) if carried else None
    options = {"document_ids": draw_documents(batch, length)} if packed else {}
    naive = results(NAIVE[rule], inputs, state, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_rule, "ROWS_AT_ONCE", at_once)
        in_chunks = results(CHUNK[rule], inputs, state, chunk_size=chunk_size, **options)
    assert_same(in_chunks, naive, **EXACT)


@rules
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_documents_are_separate_calls(rule, share):
    inputs, document_ids = build(rule, batch=2, length=193), draw_documents(2, 193, share)
    state = memory(inputs)
    packed = results(CHUNK[rule], inputs, state, document_ids=document_ids)
    assert_same(packed, results(NAIVE[rule], inputs, state, document_ids=document_ids), **EXACT)
    for row in range(2):
        starts = [0, *(document_ids[row].diff().nonzero()[:, 0] + 1).tolist(), 193]
        first = state[row : row + 1]
        for begin, end in zip(starts, starts[1:], strict=False):
            inside = [tensor[row : row + 1, begin:end] for tensor in inputs]
            output, last = NAIVE[rule](*inside, initial_state=first, output_final_state=True)
            assert_close("document", packed["output"][row : row + 1, begin:end], output, **EXACT)
            first = None
        assert_close("last memory", packed["final state"][row : row + 1], last, **EXACT)


def separately(form, inputs, state, steps: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, states = [], []
    for i, (begin, end) in enumerate(zip(steps, steps[1:], strict=False)):
        first = None if state is None else state[i : i + 1]
        inside = [tensor[:, begin:end] for tensor in inputs]
        output, last = form(*inside, initial_state=first, output_final_state=True)
        outputs.append(output)
        states.append(last)
    return torch.cat(outputs, dim=1), torch.cat(states)


@rules
@starts
@pytest.mark.parametrize("steps", [[0, 100], [0, 1, 64, 65, 193], [0, 0, 5, 5, 5, 40, 40], [0, 30, 60, 90]], ids=len)
def test_sequences_side_by_side_are_separate_calls(rule, steps, carried):
    inputs = build(rule, batch=1, length=steps[-1])
    state = memory(inputs, rows=len(steps) - 1) if carried else None

    def apart(*tensors, initial_state, output_final_state):
        return separately(NAIVE[rule], tensors, initial_state, steps)

    packed = results(CHUNK[rule], inputs, state, cu_seqlens=torch.tensor(steps))
    assert_same(packed, results(apart, inputs, state), **EXACT)


@rules
def test_no_sequence_at_all(rule):
    inputs = build(rule, batch=1, length=0)
    output, state = CHUNK[rule](*inputs, output_final_state=True, cu_seqlens=torch.tensor([0]))
    assert output.shape == (1, 0, 3, 5) and state.shape == (0, 3, 7, 5)


@rules
@pytest.mark.parametrize("form", [NAIVE, CHUNK], ids=["naive", "chunk"])
def test_length_zero_leaves_the_memory_as_it_is(rule, form):
    inputs = build(rule, length=0)
    state = memory(inputs)
    output, last = form[rule](*inputs, initial_state=state, output_final_state=True)
    assert output.shape == (2, 0, 3, 5) and torch.equal(last, state)
    assert form[rule](*inputs, output_final_state=True)[1].eq(0).all()


@rules
def test_a_batch_of_no_rows(rule):
    output, state = CHUNK[rule](*build(rule, batch=0), output_final_state=True)
    assert output.shape == (0, 70, 3, 5) and state.shape == (0, 3, 7, 5)


@rules
@pytest.mark.parametrize("pieces", [(1, 99), (64, 36), (33, 1, 1, 65), (20, 0, 80)], ids=str)
def test_a_sequence_in_pieces_is_the_whole(rule, pieces):
    def in_pieces(*inputs, initial_state, output_final_state):
        outputs, state = [], initial_state
        for piece in zip(*(tensor.split(pieces, dim=1) for tensor in inputs), strict=True):
            output, state = CHUNK[rule](*piece, initial_state=state, output_final_state=True)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    inputs = build(rule, length=100)
    state = memory(inputs)
    assert_same(results(in_pieces, inputs, state), results(CHUNK[rule], inputs, state), **EXACT)


@rules
def test_final_state_only_on_request(rule):
    for length in (1, 70):
        for form in (NAIVE[rule], CHUNK[rule]):
            assert form(*build(rule, length=length))[1] is None


@rules
@pytest.mark.parametrize("how", ["key", "beta"])
def test_masked_tokens_leave_no_trace(rule, how):
    if how == "beta" and rule == "sum":
        pytest.skip("the sum rule has no beta")
    inputs = build(rule, length=150)
    state, kept = memory(inputs), torch.rand(150) < 0.6
    masked = list(inputs)
    if how == "key":
        masked[1] = inputs[1] * kept[:, None, None]
    else:
        masked[3] = inputs[3] * kept[:, None]
    output, last = CHUNK[rule](*masked, initial_state=state, output_final_state=True)
    alone = [tensor[:, kept] for tensor in inputs]
    expected, expected_last = CHUNK[rule](*alone, initial_state=state, output_final_state=True)
    assert_close("output", output[:, kept], expected, **EXACT)
    assert_close("final state", last, expected_last, **EXACT)


@rules
@pytest.mark.parametrize("length", [1, 64, 100])
def test_nothing_but_masked_tokens_is_exactly_nothing(rule, length):
    inputs = build(rule, length=length, dtype=torch.float32)
    inputs[1] = torch.zeros_like(inputs[1])
    state = memory(inputs)
    assert torch.equal(CHUNK[rule](*inputs, initial_state=state, output_final_state=True)[1], state)


@rules
def test_a_row_does_not_depend_on_its_batch(rule):
    inputs = build(rule, batch=3, length=100)
    output, _ = CHUNK[rule](*inputs)
    for row in range(3):
        alone, _ = CHUNK[rule](*(tensor[row : row + 1] for tensor in inputs))
        assert_close("row", output[row : row + 1], alone, **EXACT)


@rules
@pytest.mark.parametrize("length", [1, 100])
def test_later_tokens_move_nothing_before_them(rule, length):
    inputs = build(rule, length=length + 30)
    output, _ = CHUNK[rule](*inputs)
    changed = [torch.cat([tensor[:, :length], torch.rand_like(tensor[:, length:])], dim=1) for tensor in inputs]
    assert_close("output", CHUNK[rule](*changed)[0][:, :length], output[:, :length], **EXACT)


@rules
@pytest.mark.parametrize("length", [1, 100])
def test_inputs_need_not_be_contiguous_and_stay_as_they_are(rule, length):
    inputs = build(rule, length=length)
    state = memory(inputs)
    strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in inputs]
    strided_state = state.mT.contiguous().mT
    assert not strided_state.is_contiguous()
    assert_same(results(CHUNK[rule], strided, strided_state), results(NAIVE[rule], inputs, state), **EXACT)
    before = [tensor.clone() for tensor in (*strided, strided_state)]
    with torch.no_grad():  # where work may be done in place
        CHUNK[rule](*strided, initial_state=strided_state, output_final_state=True)
    assert all(map(torch.equal, before, (*strided, strided_state)))


@rules
@pytest.mark.parametrize("length", [1, 2, 100, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_without_gradients_the_same(rule, length, packed):
    inputs = build(rule, length=length, dtype=torch.float32)
    state = memory(inputs)
    options = {"initial_state": state, "output_final_state": True}
    if packed:
        options["document_ids"] = draw_documents(2, length, 0.02)
    output, last = CHUNK[rule](*(tensor.requires_grad_() for tensor in inputs), **options)
    with torch.no_grad():
        actual, actual_last = CHUNK[rule](*inputs, **options)
    assert not actual.requires_grad
    assert_close("output", actual, output, relative=1e-6, absolute=1e-6)
    assert_close("final state", actual_last, last, relative=1e-6, absolute=1e-6)


@rules
@pytest.mark.parametrize("length", [1, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_strays_no_further_than_the_recurrence(rule, length, dtype):
    inputs = build(rule, length=length, dtype=dtype)
    state = memory(inputs).float()
    exact = results(NAIVE[rule], [tensor.float() for tensor in inputs], state)
    fast, naive = (results(form[rule], inputs, state) for form in (CHUNK, NAIVE))
    assert fast["output"].dtype == dtype and fast["final state"].dtype == torch.float32
    for name, expected in exact.items():
        assert_low_precision_close(name, fast[name], naive[name], expected)


@rules
@pytest.mark.parametrize("length", [1, 100])
def test_memory_of_half_precision_inputs_is_exact(rule, length):
    inputs = build(rule, length=length, dtype=torch.bfloat16)
    expected = NAIVE[rule](*(tensor.double() for tensor in inputs), output_final_state=True)[1]
    assert_close("final state", CHUNK[rule](*inputs, output_final_state=True)[1], expected, **SINGLE)


@rules
@pytest.mark.parametrize("length", [1, 100])
def test_autocast_lowers_no_precision(rule, length):
    inputs = build(rule, length=length, dtype=torch.float32)
    state = memory(inputs)
    expected = results(CHUNK[rule], inputs, state)
    actual = results(torch.autocast("cpu", dtype=torch.bfloat16)(CHUNK[rule]), inputs, state)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_keys_that_nearly_agree_do_not_overflow():
    """Powers of the triangular matrix would, though its inverse is small."""
    inputs = build("delta", 1, 1024, 2, 64, 64, torch.float32)
    inputs[1] = torch.nn.functional.normalize(inputs[1] * 0.2 + inputs[1][:, :1], dim=-1)
    inputs[3] = inputs[3] * 0.05 + 0.95
    expected, _ = naive_delta_rule(*(tensor.double() for tensor in inputs))
    assert_close("output", chunk_delta_rule(*inputs)[0], expected, relative=1e-4, absolute=1e-4)


def saved_bytes(rule: str, length: int) -> int:
    """What autograd keeps for the backward pass."""
    inputs = [tensor.requires_grad_() for tensor in build(rule, 1, length, 2, 64, 64, torch.float32)]
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = CHUNK[rule](*inputs, output_final_state=True)  # noqa: F841  (keeps what is saved alive)
        return sum(saved.values())


@rules
def test_training_keeps_one_memory_per_chunk(rule):
    at_1024, at_2048 = saved_bytes(rule, 1024), saved_bytes(rule, 2048)
    one_per_token = 2048 * 2 * 64 * 64 * 4
    assert at_2048 < 2.1 * at_1024
    assert at_2048 < one_per_token / 3


@starts
def test_fast_weight_memory_by_its_definition(carried):
    query, key, value, beta = inputs = build("delta", length=9)
    first = memory(inputs) if carried else None
    state = torch.zeros(2, 3, 7, 5, dtype=torch.float64) if first is None else first.clone()
    output, last = naive_fwm_rule(*inputs, initial_state=first, output_final_state=True)
    for row, t, head in ((row, t, head) for row in range(2) for t in range(9) for head in range(3)):
        k, v = key[row, t, head], value[row, t, head]
        old = state[row, head]
        new = old + torch.outer(k, beta[row, t, head] * (v - k @ old))
        if t > 0 or carried:
            new = new / max(1.0, new.square().sum().sqrt().item())
        state[row, head] = new
        read = query[row, t, head] @ new
        read = (read - read.mean()) / (read.var(correction=0) + 1e-5).sqrt()
        assert_close("read", output[row, t, head], read, **EXACT)
    assert_close("final state", last, state, **EXACT)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="Dynamo of torch 2.6 cannot trace triangular solves of matrices"
)
@pytest.mark.parametrize(
    ("rule", "length", "backend"),
    [
        ("delta", 5, "aot_eager"),
        *(pytest.param(rule, length, "inductor", marks=SLOW) for rule in NAIVE for length in (1, 70)),
    ],
)
def test_compiled_is_eager(rule, length, backend):
    torch.compiler.reset()
    inputs = build(rule, length=length)
    state = memory(inputs)
    compiled = torch.compile(partial(CHUNK[rule], chunk_size=4), backend=backend, fullgraph=True)
    assert_same(results(compiled, inputs, state), results(NAIVE[rule], inputs, state), **EXACT)


def wrong(**changes):
    """Arguments of a call with one thing wrong."""
    query, key, value, beta = build("delta", 2, 10, 3, 4, 5)
    return {"query": query, "key": key, "value": value, "beta": beta, **changes}


ONES = torch.ones
INVALID = {
    "no_heads": ({"query": ONES(2, 10, 4), "key": ONES(2, 10, 4)}, r"key_dim\] and value .* got \[2, 10, 4\]"),
    "widths": ({"query": ONES(2, 10, 3, 5)}, r"got \[2, 10, 3, 5\], \[2, 10, 3, 4\] and \[2, 10, 3, 5\]"),
    "value_length": ({"value": ONES(2, 9, 3, 5)}, r"got .* and \[2, 9, 3, 5\]"),
    "value_heads": ({"value": ONES(2, 10, 1, 5)}, r"got .* and \[2, 10, 1, 5\]"),
    "whole_numbers": ({"key": ONES(2, 10, 3, 4, dtype=torch.long)}, "floating point, got .*torch.int64"),
    "beta": ({"beta": ONES(2, 10, 3, 1)}, r"beta must be .* = \[2, 10, 3\], got \[2, 10, 3, 1\]"),
    "state_width": ({"initial_state": ONES(2, 3, 5, 4)}, r"= \[2, 3, 4, 5\], got torch.float32 \[2, 3, 5, 4\]"),
    "state_batch": ({"initial_state": ONES(1, 3, 4, 5)}, r"= \[2, 3, 4, 5\], got torch.float32 \[1, 3, 4, 5\]"),
    "state_dtype": ({"initial_state": ONES(2, 3, 4, 5).long()}, "must be floating point .* got torch.int64"),
    "documents": ({"document_ids": ONES(2, 9).long()}, r"document_ids must be \[2, 10\], got \[2, 9\]"),
    "cu_seqlens_batch": ({"cu_seqlens": torch.tensor([0, 10])}, r"\(10\) of a batch of 1 \(here 2\), got \[0, 10\]"),
    "chunk_size": ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
}


@rules
@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments_are_named(rule, case):
    changes, message = INVALID[case]
    arguments = wrong(**changes)
    if rule == "sum":
        if "beta" in changes:
            pytest.skip("the sum rule has no beta")
        del arguments["beta"]
    with pytest.raises(ValueError, match=message):
        CHUNK[rule](**arguments)


@pytest.mark.parametrize("steps", [[], [0, 9], [1, 10], [0, 6, 4, 10]], ids=str)
def test_invalid_cu_seqlens_are_named(steps):
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to the length \(10\)"):
        chunk_delta_rule(*build("delta", 1, 10), cu_seqlens=torch.tensor(steps, dtype=torch.long))


def test_documents_and_cu_seqlens_exclude_each_other():
    with pytest.raises(ValueError, match="either document_ids or cu_seqlens"):
        chunk_sum_rule(*build("sum", 1, 10), document_ids=torch.zeros(1, 10).long(), cu_seqlens=torch.tensor([0, 10]))


def test_no_kernel_without_a_gpu():
    assert not delta_rule.has_kernel(torch.zeros(1, 9, 1, 8, dtype=torch.bfloat16), 8)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [65, 193, 1000])
@pytest.mark.parametrize("sequences", [False, True], ids=["rows", "side_by_side"])
def test_kernel_is_the_recurrence(length, sequences):
    """To what the rounding of its inputs and of what it stores leaves: two percent of the root mean square."""
    pytest.importorskip("fla", reason="needs fla-core")
    options = {"cu_seqlens": torch.tensor([0, 40, length], device="cuda")} if sequences else {}
    inputs = build("delta", 1 if sequences else 2, length, 3, 64, 32, torch.bfloat16)
    state = memory(inputs, rows=2).float().cuda()
    inputs = [tensor.cuda() for tensor in inputs]
    assert delta_rule.has_kernel(inputs[2], 64)
    through_kernel = results(chunk_delta_rule, inputs, state, **options)
    exact = results(chunk_delta_rule, [tensor.float() for tensor in inputs], state, **options)
    for name, expected in exact.items():
        error = (through_kernel[name].float() - expected).square().mean().sqrt()
        assert error < 0.02 * expected.square().mean().sqrt(), f"{name}: {error}"
