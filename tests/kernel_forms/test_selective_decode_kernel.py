# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of one token more and of what a prompt drops are torch's forms of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

pytest.importorskip("triton")

from kernel_forms.selective_steps import (
    check_layer,
    check_pruning,
    check_step,
    layer_of,
    read,
    slots_of,
    whole_numbers,
)
from models.test_selective_attn import small_model, words

from leanformers.kernels.selective_decode import Rule, Slots, replace_and_attend_
from leanformers.modeling.selective_attn import pruning_cache
from leanformers.modeling.selective_attn.context_pruning import Held
from leanformers.modeling.selective_attn.selective_attention import selective_attention, selective_attention_step
from leanformers.modeling.selective_attn.visible_keys import describe_keys

SLOW = pytest.mark.slow
PLACES = torch.arange(12)
LEFT = torch.tensor([[0], [5]]) <= PLACES
HOLES = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0]]).bool()
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2, "selection_head": 4, "selection_strength": 0.5}


# One step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"slots": 1, "heads": 1, "shared": 1, "head_dim": 8},
        {"slots": 70, "heads": 6, "shared": 2, "value_dim": 5},
        {"slots": 200, "heads": 2, "shared": 1, "head_dim": 24, "num_splits": 3},
    ],
    ids=str,
)
def test_a_step_is_torch_s(dtype, shape):
    check_step("cpu", dtype, **shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_logits_are_torch_s(dtype):
    check_step("cpu", dtype, slots=66, heads=2, shared=1, size=300.0)


def test_rows_that_see_nothing_are_zero():
    inputs = [torch.randn(2, 5, 2, 8) for _ in range(3)]
    visible = torch.tensor([[False] * 5, [True] * 5])
    for num_votes, votable in ((0, visible), (3, torch.ones_like(visible))):
        given = {"visible": visible, "votable": votable}
        step = selective_attention_step(inputs[0][:, :1], *inputs[1:], torch.zeros(2, 5), **given, backend="triton")
        assert not step[0][0].any() and step[0].isfinite().all()
        assert (step[1][0] > 0).any() == (num_votes > 0)


# A cache


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory_budgets": 4},
        {"memory_budgets": 2, **GROUPED},
        {"memory_budgets": 5, "sliding_window": 4},
        {"memory_budgets": 4, "protect_start": False, "protect_self": False},
        {"protect_self": False, "sliding_window": 3, **GROUPED},
    ],
    ids=str,
)
def test_a_cache_is_torch_s(fields, monkeypatch):
    check_layer(monkeypatch, **fields)


@pytest.mark.parametrize("is_real", [LEFT, HOLES], ids=["left", "holes"])
@pytest.mark.parametrize("fields", [{}, {"memory_budgets": 4}, {"memory_budgets": 3, "sliding_window": 4}], ids=str)
def test_a_cache_with_padding_is_torch_s(fields, is_real, monkeypatch):
    check_layer(monkeypatch, is_real=is_real, **fields)


@pytest.mark.parametrize("is_real", [None, LEFT], ids=["dense", "left"])
def test_steps_after_a_prompt_are_torch_s(is_real, monkeypatch):
    check_layer(monkeypatch, prompt=8, is_real=is_real, memory_budgets=5)


@torch.no_grad()
def test_a_cache_that_gets_a_budget_late_is_torch_s(monkeypatch):
    layer, hidden, states = layer_of(), whole_numbers(2, 9, 16), []
    for backend in ("torch", "triton"):
        cache = DynamicCache(config=layer.config)
        monkeypatch.setenv("LEANFORMERS_KERNELS", "torch")
        layer.config.memory_budgets = None
        read(layer, hidden[:, :6], None, cache, prompt=6)
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        layer.config.memory_budgets = 3
        states.append(read(layer, hidden[:, 6:], None, cache)[1][-1])
    for name, right in states[0].items():
        assert torch.equal(states[1][name], right), name


@torch.no_grad()
def test_tokens_are_written_where_room_was_left(monkeypatch):
    """Keys move when there is no room, or when something else has happened to them."""
    monkeypatch.setattr(pruning_cache, "ROOM", 2)
    layer, hidden, states, places = layer_of(), whole_numbers(2, 9, 16), [], []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        cache = DynamicCache(config=layer.config)
        for token in range(7):
            if token == 5:
                cache.reorder_cache(torch.tensor([1, 0]))
            read(layer, hidden[:, token, None], None, cache)
            places.append(cache.layers[0].keys.data_ptr())
        layer.config.memory_budgets = 7  # all slots, in a room for more
        states.append(read(layer, hidden[:, 7:], None, cache)[1][-1])
        layer.config.memory_budgets = None
    for name, right in states[0].items():
        assert torch.equal(states[1][name], right), name
    assert [before == after for before, after in zip(places[7:], places[8:], strict=False)] == [
        *(True, True, False, True, False, True)
    ]


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"memory_budgets": 3}, {}], ids=str)
def test_a_step_launches_one_kernel(fields, monkeypatch):
    """Between the projections, but for moments that need more room."""

    class Launches(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function._schema.name)
            return function(*args, **kwargs or {})

    monkeypatch.setenv("LEANFORMERS_KERNELS", "triton")
    layer, hidden = layer_of(**fields), whole_numbers(1, 5, 16)
    cache = DynamicCache(config=layer.config)
    read(layer, hidden[:, :4], None, cache)
    with Launches() as launches:
        layer(hidden[:, 4:], past_key_values=cache)
    # `fill_` is what puts NaN there in tests.
    without_data = re.compile("aten::(new_)?empty|aten::(view|_unsafe_view|transpose|t|slice|detach|fill_)$")
    ours = "replace" if fields else "append"
    assert [name for name in launches.names if not without_data.match(name)] == [
        *["aten::mm"] * 3,
        f"leanformers::selective_attention_{ours}",
        "aten::mm",
    ]


@torch.no_grad()
def test_recorded_votes_are_torch_s(monkeypatch):
    layer, hidden, caches = layer_of(), whole_numbers(2, 5, 16), []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        caches.append(DynamicCache(config=layer.config))
        read(layer, hidden[:, :1], None, caches[-1])
        caches[-1].layers[0].activate_past_recording()
        read(layer, hidden[:, 1:], None, caches[-1])
        caches[-1].layers[0].crop(-3)
    assert torch.equal(caches[0].layers[0].votes, caches[1].layers[0].votes)
    layer.config.memory_budgets = 4
    with pytest.raises(ValueError, match="no kernel for this: votes of a layer with a budget are recorded"):
        read(layer, hidden[:, :1], None, caches[1])


@pytest.mark.parametrize("num_splits", [2, 3])
def test_splits_share_what_is_replaced(num_splits):
    slots, rule = slots_of(), Rule(0.25, 1, 1.0)
    query, key, value = torch.randn(2, 1, 4, 16), torch.randn(2, 2, 1, 16), torch.randn(2, 2, 1, 16)
    is_real, results = torch.tensor([[True], [False]]), []
    for number in (1, num_splits):
        state = Slots(*(states.clone() for states in slots))
        results.append((replace_and_attend_(query, key, value, state, is_real, rule, number), state))
    (expected, whole), (found, parts) = results
    torch.testing.assert_close(found, expected)
    for name, right, actual in zip(Slots._fields, whole, parts, strict=True):
        torch.testing.assert_close(actual, right, msg=name)
    # The oldest of the most voted has left the first row, nothing the second.
    worst = slots.votes[0].eq(slots.votes[0].max())
    victim = torch.where(worst, slots.positions[0], 1000).argmin()
    assert whole.positions[0].ne(slots.positions[0]).nonzero()[:, 0].tolist() == [victim]
    assert whole.positions[0, victim] == 150 and whole.num_real.tolist() == [151, 150]
    assert torch.equal(whole.keys[0, :, victim], key[0, :, 0]) and torch.equal(
        whole.values[0, :, victim], value[0, :, 0]
    )
    assert torch.equal(whole.keys[1], slots.keys[1]) and torch.equal(whole.votes[1], slots.votes[1])


def test_what_is_updated_in_place_must_be_contiguous():
    slots = slots_of(num_slots=4)
    slots = slots._replace(votes=slots.votes.mT.contiguous().mT)
    inputs = torch.randn(2, 1, 4, 16), torch.randn(2, 2, 1, 16), torch.randn(2, 2, 1, 16)
    with pytest.raises(ValueError, match=r"must be contiguous, got strides \[\(1, 2\)\]"):
        replace_and_attend_(*inputs, slots, None, Rule(0.25, 0, 1.0))


# What a prompt drops


@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no_ties"])
@pytest.mark.parametrize(
    "options",
    [
        {"rows": 20, "past": 0, "budget": 4, "padded": False, "window": None, "documents": False},
        {"rows": 9, "past": 5, "budget": 6, "padded": True, "window": 5, "documents": False},
        {"rows": 17, "past": 3, "budget": 3, "padded": True, "window": None, "documents": True},
        {
            "rows": 9,
            "past": 2,
            "budget": 2,
            "padded": False,
            "window": None,
            "documents": False,
            "protect_start": False,
        },
        {"rows": 1, "past": 40, "budget": 40, "padded": False, "window": None, "documents": False},
    ],
    ids=str,
)
def test_a_prompt_drops_what_it_drops_in_torch(options, ties):
    check_pruning("cpu", ties=ties, **options)


@torch.no_grad()
def test_the_operator_prunes_by_its_kernel():
    inputs, options = [torch.randn(2, 20, 2, 8) for _ in range(3)], {"memory_budget": 4, "output_details": True}
    (output, votes, details), (right, cast, expected) = (
        selective_attention(*inputs, **options, backend=backend) for backend in ("triton", "torch")
    )
    assert torch.equal(output, right) and torch.equal(votes, cast) and torch.equal(details.held, expected.held)


# Models


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("fields", [{"memory_budgets": 4}, {}], ids=["budget", "unbounded"])
def test_generation_is_torch_s(fields, num_beams, monkeypatch):
    model, ids = small_model(num_hidden_layers=1, num_key_value_heads=1, **fields), words(2, 5)
    mask = torch.ones_like(ids)
    mask[0, :3], ids[0, :3] = 0, 0
    options = {"max_new_tokens": 5, "num_beams": num_beams, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None}
    results = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        results.append(model.generate(input_ids=ids, attention_mask=mask, **options))
    assert torch.equal(results[0].sequences, results[1].sequences)
    for right, actual in zip(results[0].logits, results[1].logits, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "fields"),
    [
        ("eager", {"memory_budgets": 3}),
        pytest.param("aot_eager", {"memory_budgets": 3}, marks=SLOW),
        pytest.param("aot_eager", {}, marks=SLOW),
    ],
    ids=str,
)
@torch.no_grad()
def test_compiled_steps_are_eager(backend, fields, monkeypatch):
    fields = {"num_hidden_layers": 1, "num_key_value_heads": 1, **fields}
    (model, ids), states = (small_model(**fields), words(1, 6)), []
    torch.compiler.reset()
    for name, step in (("torch", model), ("triton", torch.compile(model, backend=backend, fullgraph=True))):
        monkeypatch.setenv("LEANFORMERS_KERNELS", name)
        cache = DynamicCache(config=model.config)
        model(ids[:, :4], past_key_values=cache)
        logits = [step(ids[:, i : i + 1], past_key_values=cache).logits for i in (4, 5)]
        states.append((torch.cat(logits), cache.layers[0].votes, cache.layers[0].positions))
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-4)


# The operators of PyTorch


def test_registrations():
    slots = slots_of(1, 1, 3)
    query, key, value = torch.randn(1, 1, 2, 16), torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    operators, rule = torch.ops.leanformers, (0.25, 1, 1.0, True, True, None, None)
    votable, keys = torch.ones(1, 3, dtype=torch.bool), slots.keys.transpose(1, 2)
    step = query, keys, slots.values.transpose(1, 2), slots.votes, None, votable, 0.25, 0, 1.0, None
    calls = {
        operators.selective_attention_step: step,
        operators.selective_attention_append: (
            query,
            key,
            value,
            *slots._replace(votes=slots.votes[:, :2]),
            None,
            *rule,
        ),
        operators.selective_attention_replace: (query, key, value, *slots, None, *rule),
        operators.selective_eviction: (
            torch.rand(1, 2, 4),
            torch.ones(1, 4).bool(),
            torch.zeros(1, 4).bool(),
            None,
            3,
            True,
        ),
    }
    for operator, arguments in calls.items():
        torch.library.opcheck(operator.default, arguments)


# Where they do not apply


def test_what_the_kernels_cannot_take_is_told(monkeypatch):
    query, key, value = torch.randn(1, 1, 2, 8), torch.randn(1, 3, 2, 8), torch.randn(1, 3, 2, 8)
    given = {"votable": torch.ones(1, 3, dtype=torch.bool), "backend": "triton"}
    with pytest.raises(ValueError, match=r"the query is torch.float64"):
        selective_attention_step(query.double(), key.double(), value.double(), torch.zeros(1, 3).double(), **given)
    with pytest.raises(ValueError, match="gradients are asked for"):
        selective_attention_step(query.requires_grad_(), key, value, torch.zeros(1, 3), **given)
    with pytest.raises(ValueError, match="heads of 300 are wider than 256"):
        selective_attention_step(query, key, torch.randn(1, 3, 2, 300), torch.zeros(1, 3), **given)
    held = Held(describe_keys((1, 4), torch.device("cpu")), 0, 2, backend="triton")
    with pytest.raises(ValueError, match=r"votes are torch.float64, not torch.float32"):
        held.prune_(torch.zeros(1, 4, 4, dtype=torch.float64))
    monkeypatch.setenv("LEANFORMERS_KERNELS", "triton")
    layer, hidden = layer_of(), whole_numbers(1, 1, 16)
    with torch.no_grad(), pytest.raises(ValueError, match="memory rows are asked for"):
        layer(hidden, past_key_values=DynamicCache(config=layer.config), output_memories=True)
    with pytest.raises(ValueError, match="gradients are asked for"):
        layer(hidden, past_key_values=DynamicCache(config=layer.config))


# A real compiler


@SLOW
def test_kernels_fit_the_registers_and_shared_memory_of_gpus():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("selective_decode_resources.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    for name, found in json.loads(run.stdout).items():
        for architecture, limit in (("sm_80", 99), ("sm_90", 227)):  # sm_86 and 89 have no more, and the same code
            used = found[architecture]
            assert used["shared bytes"] <= limit * 1024, f"{name}: {used}"
            # What many keys are walked with does not fit; a little of it leaves little for the cache of a processor.
            assert used["spilled bytes"] <= (512 if name.startswith("eviction") else 0), f"{name}: {used}"
