# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Kernels touch their own tensors alone, and no program and no thread races with another, whatever their order."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from kernel_forms.fast_weight_rules import KERNEL, draw
from kernel_forms.fast_weight_rules import results as fast_weight_results
from kernel_forms.memory_accesses import watched
from kernel_forms.selective_steps import slots_of
from ops.test_selective_attention import OPTIONS, build, results
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor

from leanformers.kernels import selective_votes
from leanformers.kernels.fast_weight_chunks import reverse_kernel, scan_kernel
from leanformers.kernels.fast_weight_step import fast_weight_step
from leanformers.kernels.selective_decode import (
    Rule,
    Slots,
    append_and_attend_,
    replace_and_attend_,
    selective_attention_step,
)
from leanformers.kernels.selective_eviction import prune_
from leanformers.modeling.selective_attn.selective_attention import selective_attention

RULE = Rule(scale=0.3, selection_head=2, strength=1.0, protect_self=False)
IS_REAL = torch.tensor([[True], [False]])


def attend(option: str, **shape) -> dict[str, Tensor]:
    """In strips of two blocks."""
    inputs = build(length=33, past=20, head_dim=5, **shape)
    options = OPTIONS[option](53)
    before = torch.rand(2, 20) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selective_votes, "SELECTION_BYTES", 2 * 4 * 64 * 32)
        return results(selective_attention, inputs, before, backend="triton", block_size=16, **options)


def token(heads: int = 4, shared: int = 2, dim: int = 16) -> list[Tensor]:
    return [torch.randn(shape) for shape in ((2, 1, heads, dim), (2, shared, 1, dim), (2, shared, 1, dim))]


def step() -> dict[str, Tensor]:
    keys, values = torch.randn(2, 2, 150, 2, 12)
    masks = {name: torch.rand(2, 150) < 0.7 for name in ("visible", "votable")}
    query, votes = torch.randn(2, 1, 6, 12), torch.rand(2, 150)
    output, votes, _ = selective_attention_step(query, keys, values, votes, num_splits=2, **masks)
    return {"output": output, "votes": votes}


def append() -> dict[str, Tensor]:
    slots = slots_of(num_slots=150)
    with_room = [torch.cat([states, states[..., :2, :]], dim=2) for states in slots[:2]]
    with_room += [slots.votes, *(torch.cat([states, states[:, :2]], dim=1) for states in slots[3:5]), slots.num_real]
    output, *after = append_and_attend_(*token(), Slots(*with_room), IS_REAL, RULE._replace(sliding_window=70), 2)
    return {"output": output, **{str(i): states for i, states in enumerate([*after, *with_room])}}


def replace() -> dict[str, Tensor]:
    """Of two rows one has padding, which replaces nothing."""
    slots = slots_of(num_slots=150)
    outputs = [replace_and_attend_(*token(), slots, IS_REAL, RULE._replace(sliding_window=140), 2) for _ in range(3)]
    return {"output": torch.cat(outputs), **slots._asdict()}


def evict() -> dict[str, Tensor]:
    selection = torch.randint(0, 4, (2, 9, 40)).float()
    held, is_start = torch.ones(2, 41, dtype=torch.bool), torch.arange(41).expand(2, -1) == 0
    prune_(selection, held, is_start, torch.rand(2, 41) < 0.8, 20)
    return {"selection": selection, "held": held}


def update(rule: str, dtype: torch.dtype, steps: list[int] | None = None, documents: bool = False, **options):
    width = options.pop("width", 20)
    inputs = [tensor.to(dtype) for tensor in draw(rule, 1, 37, 2, width, 17)]
    rows = len(steps) - 1 if steps else 1
    state = torch.randn(rows, 2, width * (2 * options.get("dpfp_nu", 0) or 1), 17)
    if steps:
        options["cu_seqlens"] = torch.tensor(steps)
    if documents:
        options["document_ids"] = (torch.arange(37) // 11)[None]
    return fast_weight_results(KERNEL[rule], inputs, state, chunk_size=16, **options)


def write(norm: str) -> dict[str, Tensor]:
    query, key, value, beta = (tensor.float() for tensor in draw("delta", 2, 1, 2, 5, 40))
    states = {"initial_state": torch.randn(2, 2, 20, 40), "initial_normalizer": torch.rand(2, 2, 20)}
    found = fast_weight_step(query, key, value, beta, attention_norm=norm, dpfp_nu=2, key_norm_eps=0.0, **states)
    return dict(zip(("output", "memory", "normalizer"), found, strict=True))


BF16, F32 = torch.bfloat16, torch.float32
RUNS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "attention": lambda: attend("padded_documents", dtype=F32, heads=3, shared=3),
    "attention of pairs": lambda: attend("padded_window", dtype=BF16, heads=4, shared=2),
    "step": step,
    "step that appends": append,
    "step that replaces": replace,
    "eviction": evict,
    "delta rule": lambda: update("delta", BF16, documents=True),
    "delta rule of wide keys": lambda: update("delta", F32, width=40, documents=True),
    "delta rule of sequences": lambda: update("delta", F32, width=40, steps=[0, 0, 20, 21, 37]),
    "sum rule of wide keys": lambda: update("sum", F32, width=40),
    "DPFP": lambda: update("delta", F32, width=3, dpfp_nu=1, key_norm_eps=0.0),
    "fast weight step": lambda: write("full"),
}


@pytest.mark.parametrize("order", ["shuffled", pytest.param("reversed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUNS)
def test_programs_may_come_in_any_order(name, order):
    found = []
    for each in ("in order", order):
        torch.manual_seed(0)
        with watched(each) as launches:
            found.append(RUNS[name]())
        assert launches
    expected, actual = found
    for result, tensor in expected.items():
        assert torch.equal(actual[result], tensor), result


# What the watch is for


@triton.jit
def shift_kernel(numbers, end, SIZE: tl.constexpr):
    """Programs move numbers that others overwrite."""
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(numbers + places, tl.load(numbers + places + 1, mask=places + 1 < end), mask=places < end)


@triton.jit
def turn_kernel(numbers, out, SIZE: tl.constexpr, WAITS: tl.constexpr):
    """Threads read what others wrote."""
    places = tl.arange(0, SIZE)
    tl.store(out + places, tl.load(numbers + places))
    if WAITS:
        tl.debug_barrier()
    tl.store(numbers + places, tl.load(out + SIZE - 1 - places))


@triton.jit
def sum_kernel(numbers, count, out, SIZE: tl.constexpr, EARLY: tl.constexpr):
    """The last program, or one before it, adds up what all have written."""
    program = tl.program_id(0)
    tl.store(out + program, tl.load(numbers + program) * 2)
    tl.debug_barrier()
    if tl.atomic_add(count, 1) == tl.num_programs(0) - 1 - EARLY:
        tl.store(numbers, tl.sum(tl.load(out + tl.arange(0, SIZE)), axis=0))


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "message"),
    [
        (shift_kernel, {"grid": 1, "end": 16}, {"grid": 2, "end": 16}, "programs race"),
        (shift_kernel, {"grid": 1, "end": 16}, {"grid": 1, "end": 17}, "outside of all tensors"),
        (turn_kernel, {"WAITS": True}, {"WAITS": False}, "no barrier between"),
        (sum_kernel, {"grid": 16, "EARLY": 0}, {"grid": 16, "EARLY": 1}, "does not wait"),
    ],
    ids=["programs", "bounds", "threads", "last"],
)
def test_the_watch_sees_what_is_wrong(kernel, right, wrong, message):
    def launch(grid: int = 1, **options) -> None:
        numbers = torch.arange(16.0)
        tensors = {"out": torch.zeros(16), "count": torch.zeros(1, dtype=torch.int32)}
        given = {name: tensor for name, tensor in tensors.items() if name in kernel.arg_names}
        with watched():
            kernel[(grid,)](numbers, **given, **options, SIZE=16 // grid if kernel is shift_kernel else 16)

    launch(**right)
    with pytest.raises((AssertionError, InterpreterError), match=message):
        launch(**wrong)


# Large tensors


@pytest.fixture
def vast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Tensor]:
    """Zeros by name, with places that 32 bits cannot count. What is not written takes no room."""
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)  # copies all that was given onto itself
    return lambda name: torch.from_file(str(tmp_path / name), shared=True, size=3 * 2**30, dtype=torch.float32)


@pytest.mark.parametrize("resident", [True, False])
def test_memories_of_a_long_row(vast, resident):
    """Three chunks of as many heads as make the third memory begin at 2 ** 31; one of the heads runs."""
    sizes = {"KEY_DIM": 16, "VALUE_DIM": 16, "WIDTH": 16, "NU": 0, "C": 16, "BK": 16, "BV": 16, "RESIDENT": resident}
    shared = {**sizes, "length": 48, "heads": 2**22, "DELTA": True, "PRECISION": "tf32x3", "MEMORY": "tf32x3"}
    shared |= dict.fromkeys(("documents", "cu_seqlens", "first_chunks", "query_scale", "key_scale"))
    shared |= dict.fromkeys(("NORMALIZED", "PACKED", "VARLEN"), False)
    shared |= dict.fromkeys(("query", "key", "beta", "within"), read := vast("read"))
    forward = {"value": read, "inverse": read, "initial": None, "output": None, "CARRIED": False, "KEEP": True}
    backward = {"transposed": read, "d_output": read, "d_final": read, "d_initial": torch.zeros(256)}
    with watched():
        scan_kernel[(1, 1)](corrected=vast("corrected"), memories=vast("memories"), **forward, **shared)
        reverse_kernel[(1, 1)](d_value=vast("d_value"), d_memories=vast("d_memories"), **backward, **shared)


def test_a_cache_of_many_slots(vast):
    """Three key-value heads, as far from each other as caches of 2 ** 26 slots have them."""
    keys = vast("keys").as_strided((1, 5, 3, 16), (3 * 2**30, 16, 2**30, 1))
    query, votable = torch.randn(1, 1, 3, 16), torch.ones(1, 5, dtype=torch.bool)
    with watched():
        selective_attention_step(query, keys, keys, torch.zeros(1, 5), votable=votable)
