# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Where kernels run, in what precision, and how often they are compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import triton
from kernel_forms.fast_weight_rules import draw

import leanformers.kernels
from leanformers.kernels import delta_rule, selective_attention, selective_votes
from leanformers.modeling.selective_attn.selective_attention import selective_attention as operator

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Describe a GPU that is not there."""

    def describe(capability: tuple[int, int] = (8, 0), release: str = "3.3.1", hip: str | None = None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(triton, "__version__", release)
        monkeypatch.setattr(torch.version, "hip", hip)

    leanformers.kernels._unfit_once.cache_clear()
    yield describe
    leanformers.kernels._unfit_once.cache_clear()


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({}, None),
        ({"capability": (12, 0), "release": "3.10.0+git1"}, None),
        ({"capability": (7, 5)}, "the GPU has compute capability 7.5, and they need 8.0"),
        ({"release": "3.2.0"}, "triton 3.2.0 is older than 3.3"),
        ({"hip": "6.4"}, "they are for GPUs of NVIDIA"),
    ],
    ids=str,
)
def test_gpus_for_which_triton_compiles_nothing_run_torch(gpu, fields, obstacle):
    gpu(**fields)
    assert leanformers.kernels._missing(GPU) == obstacle


def test_torch_compile_takes_the_answer_as_it_is(gpu):
    gpu(capability=(7, 5))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + len(leanformers.kernels._missing(GPU)), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == len(leanformers.kernels._missing(GPU))


@pytest.mark.parametrize(("kilobytes", "is_much"), [(99, False), (163, True), (227, True)])
def test_shared_memory_is_asked_of_triton(kilobytes, is_much, monkeypatch):
    """As torch 2.6 does not tell."""
    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": kilobytes * 1024})
    monkeypatch.setattr(selective_attention, "driver", SimpleNamespace(active=SimpleNamespace(utils=utils)))
    selective_attention.has_much_shared_memory.cache_clear()
    assert selective_attention.has_much_shared_memory(GPU) == is_much
    selective_attention.has_much_shared_memory.cache_clear()


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_follows_torch_by_either_name(precision):
    def found() -> str:
        return selective_votes.arithmetic(torch.float32)["PRECISION"]

    expected = {"ieee": "tf32x3", "tf32": "tf32"}[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision({"ieee": "highest", "tf32": "high"}[precision])
    assert found() == expected
    torch.set_float32_matmul_precision(before)
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch has one name only")
    try:
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = precision  # as Trainer does for `tf32`
        assert found() == expected
    finally:
        torch.backends.fp32_precision = "none"


@pytest.mark.parametrize("name", ["selective attention", "delta rule"])
def test_second_derivatives_are_refused(name):
    if name == "delta rule":
        inputs = [tensor.float().requires_grad_() for tensor in draw("delta", 1, 5, 1, 4, 4)]
        output, _ = delta_rule.chunk_delta_rule(*inputs)
    else:
        inputs = [torch.randn(1, 5, 1, 4, requires_grad=True) for _ in range(3)]
        output, _ = operator(*inputs, backend="triton")
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="_backward.default but no autograd formula was registered"):
        gradient.sum().backward()


def test_lengths_of_texts_and_caches_do_not_compile_anew():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("specializations.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    forms = {"selective_votes.votes_kernel": 3, "fast_weight_chunks.prepare_kernel": 2}
    forms["fast_weight_chunks.scan_kernel"] = 2
    assert len(found) == 15
    assert found == {name: forms.get(name, 1) for name in found}
