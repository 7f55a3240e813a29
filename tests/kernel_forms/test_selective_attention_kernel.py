# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of selective attention are the paper's equation, in outputs, votes, memory rows and all gradients."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from kernel_forms.selective_sequences import check_sequence
from kernel_forms.tensor_cores import multiply_as_tensor_cores
from models.test_selective_attn import small_model, words
from ops.test_selective_attention import OPTIONS, build, padded, results

import leanformers.kernels
from leanformers.kernels import selective_votes
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM
from leanformers.modeling.selective_attn.selective_attention import selective_attention
from numerics import assert_close

SLOW = pytest.mark.slow
TINY = {"batch": 2, "heads": 2, "shared": 1}


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch):
    multiply_as_tensor_cores(monkeypatch)


# One form more


DIFFERENT = ["padded_documents", "padded_window", "documents_in_a_window", "strength", "no_votes", "scale"]
DIFFERENT += ["nothing_protected", "given_starts", "given_positions", "other_tau"]


@pytest.mark.parametrize("option", DIFFERENT)
def test_options_after_a_past(option):
    check_sequence("cpu", torch.float32, option, 20, 9, **TINY)


@pytest.mark.parametrize(("heads", "shared", "length"), [(3, 3, 1), (4, 2, 33), pytest.param(4, 1, 65, marks=SLOW)])
def test_any_heads(length, heads, shared):
    check_sequence("cpu", torch.float32, length=length, heads=heads, shared=shared)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(20, 12), (1, 1), pytest.param(80, 128, marks=SLOW)])
def test_any_widths(head_dim, value_dim):
    check_sequence("cpu", torch.float32, length=20, head_dim=head_dim, value_dim=value_dim, **TINY)


@pytest.mark.parametrize("block_size", [pytest.param(32, marks=SLOW), None])
def test_any_size_of_blocks(block_size):
    option = "documents_in_a_window"
    check_sequence("cpu", torch.float32, option, 130, 5, block_size=block_size, batch=2, heads=1, shared=1)


@pytest.mark.parametrize("option", ["plain", "padded_documents", "padded_window"])
def test_strips_of_one_block(option, monkeypatch):
    monkeypatch.setattr(selective_votes, "SELECTION_BYTES", 1)
    check_sequence("cpu", torch.float32, option, 40, 7, heads=1, shared=1)


@SLOW
@pytest.mark.parametrize(("length", "past"), [(2, 90), (65, 0), (64, 64), (130, 10)])
@pytest.mark.parametrize("option", ["plain", *OPTIONS])
def test_every_option(option, length, past):
    heads = {"batch": 2, "heads": 4, "shared": 2} if option == "another_head" else TINY
    check_sequence("cpu", torch.float32, option, length, past, block_size=64, **heads)


@SLOW
@pytest.mark.parametrize("option", ["plain", "padded_documents", "padded_window"])
def test_several_strips_of_several_blocks(option, monkeypatch):
    monkeypatch.setattr(selective_votes, "SELECTION_BYTES", 2 * 4 * 256 * 32)
    check_sequence("cpu", torch.float32, option, 190, 30)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [33, pytest.param(193, marks=SLOW)])
def test_half_precision(dtype, length):
    check_sequence("cpu", dtype, "left_padding", length, past=9, head_dim=16, **TINY)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e8), (torch.bfloat16, 1e4)], ids=str)
def test_huge_logits_give_no_nan(dtype, size):
    inputs = build(length=20, dtype=dtype, heads=2, shared=1)
    found = results(
        selective_attention,
        [inputs[0] * size, *inputs[1:]],
        attention_mask=padded(20, "left"),
        backend="triton",
        block_size=16,
    )
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_votes_of_bfloat16_do_not_stall():
    """Added up in bfloat16, votes of 1 would stop at 256."""
    key = torch.ones(1, 600, 1, 1, dtype=torch.bfloat16)
    votes = selective_attention(key, key, key, backend="triton")[1]
    assert votes.dtype == torch.float32 and votes[0, 1].item() == 598.0


# What else callers rely on


def test_without_gradients_the_same_and_of_any_strides():
    inputs, mask = build(length=20, dtype=torch.float32), padded(20, "right")
    strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in inputs]
    options = {"attention_mask": mask, "memory_tau": 1.0, "num_votes": 3, "output_details": True}
    with torch.no_grad():
        output, votes, details = selective_attention(*strided, backend="triton", **options)
        right, cast, expected = selective_attention(*inputs, backend="torch", **options)
    assert_close("output", output, right)
    assert_close("votes", votes, cast)
    assert_close("memory", details.memory, expected.memory)
    assert torch.equal(details.votes, expected.votes)
    assert not output[~mask.bool()].any() and not votes[~mask.bool()].any()


@pytest.mark.parametrize("used", range(3), ids=["output", "votes", "memory"])
def test_any_result_alone_has_its_gradient(used):
    inputs, found = [*build(length=9, past=3, dtype=torch.float32), torch.rand(2, 3)], []
    for backend in ("torch", "triton"):
        *leaves, before = (tensor.clone().requires_grad_() for tensor in inputs)
        options = {"initial_selection": before, "memory_tau": 1.0, "output_details": True, "backend": backend}
        output, votes, details = selective_attention(*leaves, **options)
        loss = (output, votes, details.memory)[used].square().sum()
        given = torch.autograd.grad(loss, (*leaves, before), allow_unused=True, materialize_grads=True)
        found.append(given)
    for right, actual in zip(*found, strict=True):
        assert_close("gradient", actual, right)


def test_results_do_not_vary():
    inputs = build(length=20, dtype=torch.float32, heads=2, shared=1)
    first, second = (results(selective_attention, inputs, backend="triton", block_size=16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiled_is_eager():
    torch.compiler.reset()
    inputs, before = build(length=9, past=3, dtype=torch.float32), torch.rand(2, 3)
    compiled = torch.compile(selective_attention, backend="aot_eager", fullgraph=True)
    options = {"sliding_window": 5, "attention_mask": padded(12, "left"), "backend": "triton"}
    expected = results(selective_attention, inputs, before, **options)
    for name, tensor in results(compiled, inputs, before, **options).items():
        assert_close(name, tensor, expected[name])


@pytest.mark.parametrize("tau", [pytest.param(None, marks=SLOW), 1.0])
def test_registration(tau, monkeypatch):
    monkeypatch.undo()  # opcheck compares what was never written
    query, key, value = (tensor.requires_grad_() for tensor in build(1, 5, 2, 1, past=2, dtype=torch.float32))
    known = (None, torch.arange(7)[None] == 0, None, None)
    arguments = (query, key, value, torch.zeros(1, 7), *known, None, 0.3, 0, 1.0, True, True, tau, 16)
    torch.library.opcheck(torch.ops.leanformers.selective_attention.default, arguments)


# Models


def loss_and_gradients(model, ids, **inputs) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, **inputs).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def preset(root: Path) -> SelectiveAttnForCausalLM:
    config = SelectiveAttnConfig.from_pretrained(root / "configs/model/selective_attn/tiny.json")
    return SelectiveAttnForCausalLM(config).train()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_model_trains_as_in_torch(checkpointing, root, monkeypatch):
    model, ids = preset(root), torch.randint(3, 256, (2, 24))
    model.config.memory_loss_coef = 0.1
    if checkpointing:
        model.gradient_checkpointing_enable()
    mask = padded(24, "right")
    found = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        found.append(loss_and_gradients(model, ids, attention_mask=mask, use_cache=False))
    for right, actual in zip(*found, strict=True):
        assert_close("gradient", actual, right)


def test_packed_documents_train_as_in_torch(root, monkeypatch):
    model, ids = preset(root), torch.randint(3, 256, (1, 24))
    positions = torch.cat([torch.arange(11), torch.arange(13)])[None]
    found = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        found.append(loss_and_gradients(model, ids, position_ids=positions, use_cache=False))
    for right, actual in zip(*found, strict=True):
        assert_close("gradient", actual, right)


@SLOW
def test_a_compiled_model_trains_as_in_torch(root, monkeypatch):
    monkeypatch.setenv("LEANFORMERS_KERNELS", "triton")
    torch.compiler.reset()
    model, ids = preset(root), torch.randint(3, 256, (1, 12))
    right = loss_and_gradients(model, ids, use_cache=False)
    compiled = torch.compile(model, backend="aot_eager")
    for expected, actual in zip(right, loss_and_gradients(compiled, ids, use_cache=False), strict=True):
        assert_close("gradient", actual, expected)


@torch.no_grad()
def test_a_prompt_in_pieces_is_read_as_in_torch(monkeypatch):
    model, ids, found = small_model(num_hidden_layers=1), words(2, 20), []
    mask = padded(20, "left")
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        cache, logits = None, []
        for start, end in ((0, 11), (11, 20)):
            output = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        found.append((torch.cat(logits, dim=1)[mask.bool()], cache.layers[0].votes))
    for right, actual in zip(*found, strict=True):
        assert_close("state", actual, right, relative=1e-4)


# Where they do not apply


def test_processors_take_torch_by_default(monkeypatch):
    monkeypatch.delenv("LEANFORMERS_KERNELS", raising=False)
    monkeypatch.setattr("leanformers.kernels.selective_attention.selective_attention", None)
    selective_attention(*build(length=5, dtype=torch.float32))


def test_what_the_kernels_cannot_take_is_told(monkeypatch):
    for inputs, message in (
        (build(length=5), r"the query is torch.float64"),
        (build(length=5, head_dim=130, dtype=torch.float32), "heads of 130 in torch.float32 are wider than 128"),
        (build(length=5, value_dim=260, dtype=torch.bfloat16), "heads of 260 in torch.bfloat16 are wider than 256"),
        (build(length=0, past=3, dtype=torch.float32), "there are no queries"),
        (build(batch=65536, length=1, heads=1, shared=1, head_dim=1, dtype=torch.float32), "a batch of 65536 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_attention(*inputs, backend="triton")
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch, got 'cuda'"):
        selective_attention(*build(length=5), backend="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="tensors are on the device 'cpu' and TRITON_INTERPRET is not 1"):
        selective_attention(*build(length=5, dtype=torch.float32), backend="triton")


def test_which_path_runs_is_logged_once(caplog):
    leanformers.kernels._log_once.cache_clear()
    inputs = build(length=3, dtype=torch.float32)
    with caplog.at_level(logging.INFO, logger="leanformers.kernels"):
        for _ in range(2):
            selective_attention(*inputs, backend="triton")
    assert [record.getMessage() for record in caplog.records] == ["selective_attention runs as its Triton kernel."]


# A real compiler


@SLOW
def test_kernels_fit_the_registers_and_shared_memory_of_gpus():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("selective_attention_resources.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    for name, found in json.loads(run.stdout).items():
        limit = {"sm_80": 163, "sm_86": 99, "sm_90": 227}[found["architecture"]]
        assert found["shared bytes"] <= limit * 1024, f"{name}: {found}"
        if "bfloat16" in name:  # in float32, which is multiplied in three products, not all fits
            assert found["spilled bytes"] <= 160, f"{name}: {found}"
