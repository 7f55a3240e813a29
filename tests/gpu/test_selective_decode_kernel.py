# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of one token more and of what a prompt drops on a GPU, at real sizes."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_forms.selective_steps import check_layer, check_pruning, check_step, slots_of

from leanformers.kernels.selective_decode import Rule, Slots, replace_and_attend_

pytestmark = pytest.mark.gpu
RULE = Rule(scale=0.125, selection_head=0, strength=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"slots": 1, "heads": 8, "shared": 8, "head_dim": 64},
        {"slots": 2047, "heads": 32, "shared": 8, "head_dim": 128},
        {"slots": 32768, "heads": 12, "shared": 12, "head_dim": 64, "batch": 1},
        {"slots": 8191, "heads": 16, "shared": 1, "head_dim": 96, "value_dim": 40},
        {"slots": 300, "heads": 24, "shared": 4, "head_dim": 256, "batch": 64},
        {"slots": 512, "heads": 8, "shared": 8, "head_dim": 64, "size": 100.0},
    ],
    ids=str,
)
def test_a_step_is_torch_s(dtype, shape):
    check_step("cuda", dtype, **shape)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory_budgets": 32},
        {"memory_budgets": 48, "sliding_window": 40, "protect_start": False, "protect_self": False},
        {"memory_budgets": 300, "num_attention_heads": 6, "num_key_value_heads": 2, "selection_head": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_padded", [False, True], ids=["dense", "left"])
def test_a_cache_is_torch_s(fields, is_padded, monkeypatch):
    length = 400
    is_real = torch.arange(length, device="cuda") >= torch.tensor([[0], [90]], device="cuda") if is_padded else None
    check_layer(monkeypatch, "cuda", length=length, prompt=200, is_real=is_real, **fields)


@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no_ties"])
@pytest.mark.parametrize(("past", "budget"), [(0, 32), (500, 512), (8000, 8001)])
@pytest.mark.parametrize("window", [None, 300])
def test_a_prompt_drops_what_it_drops_in_torch(past, budget, window, ties):
    check_pruning("cuda", 128, past, budget, ties, padded=True, window=window, documents=past == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_splits", [1, 4])
def test_steps_replayed_from_a_graph_are_steps(dtype, num_splits):
    """With nothing that waits for the GPU."""
    start = Slots(*(states.cuda() for states in slots_of(3, 4, 1000, 64, dtype)))
    tokens = [
        [torch.randn(*shape, device="cuda").to(dtype) for shape in ((3, 1, 16, 64), (3, 4, 1, 64), (3, 4, 1, 64))]
        for _ in range(20)
    ]
    inputs, state = [tensor.clone() for tensor in tokens[0]], Slots(*(states.clone() for states in start))
    replace_and_attend_(*inputs, state, None, RULE, num_splits)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = replace_and_attend_(*inputs, state, None, RULE, num_splits)
    for states, first in zip(state, start, strict=True):
        states.copy_(first)
    expected = Slots(*(states.clone() for states in start))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        pairs = []
        for token in tokens:
            for tensor, new in zip(inputs, token, strict=True):
                tensor.copy_(new)
            graph.replay()
            pairs.append((output.clone(), replace_and_attend_(*token, expected, None, RULE, num_splits)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for actual, right in pairs:
        assert torch.equal(actual, right)
    for name, actual, right in zip(Slots._fields, state, expected, strict=True):
        assert torch.equal(actual, right), name


def test_votes_survive_many_programs():
    """All of a text's programs read the votes before the last of them writes: nothing gets lost in any order."""
    slots = Slots(*(states.cuda() for states in slots_of(64, 16, 256, 64)))
    query = torch.randn(64, 1, 16, 64, device="cuda")
    key, value = (torch.randn(64, 16, 1, 64, device="cuda") for _ in range(2))
    results = []
    for _ in range(20):
        state = Slots(*(states.clone() for states in slots))
        results.append((replace_and_attend_(query, key, value, state, None, RULE), *state))
    for result in results[1:]:
        for actual, right in zip(result, results[0], strict=True):
            assert torch.equal(actual, right)
