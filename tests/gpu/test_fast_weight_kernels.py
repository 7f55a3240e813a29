# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of fast weight memories at real sizes: the checks of tests/kernel_forms on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_forms.fast_weight_rules import check_rule, check_step, draw, results

from leanformers.kernels import delta_rule as kernels
from leanformers.kernels.fast_weight_step import fast_weight_step
from leanformers.modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM
from leanformers.modeling.fast_weight.delta_rule import chunk_delta_rule
from numerics import assert_close

pytestmark = pytest.mark.gpu
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def no_tf32_in_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@DTYPES
@pytest.mark.parametrize("rule", ["delta", "sum"])
@pytest.mark.parametrize(
    "options",
    [
        {"length": 1},
        {"length": 1000, "width": 64, "value_dim": 64, "heads": 4, "batch": 2},
        {"length": 1000, "width": 128, "value_dim": 128, "heads": 2},
        {"length": 500, "width": 300, "value_dim": 100, "share_of_starts": 0.01},
        {"length": 500, "width": 64, "value_dim": 64, "nu": 2, "eps": 0.0, "heads": 2},
        {"length": 300, "width": 33, "value_dim": 17, "nu": 3, "eps": 1e-3, "share_of_starts": 0.05, "batch": 2},
        {"length": 1000, "width": 64, "value_dim": 64, "heads": 4, "wants_state": False},
        {"length": 500, "width": 64, "value_dim": 64, "nu": 2, "eps": 0.0, "heads": 2, "wants_state": False},
        {"steps": [0, 1, 1, 300, 700], "width": 64, "value_dim": 64, "heads": 2},
        {"steps": [0, 64, 65, 200], "width": 200, "value_dim": 20},
    ],
    ids=str,
)
def test_errors_are_at_most_twice_those_of_torch(rule, dtype, options):
    check_rule("cuda", dtype, rule, **options)


@DTYPES
@pytest.mark.parametrize("norm", ["none", "output", "full"])
@pytest.mark.parametrize(("width", "nu"), [(64, 0), (300, 0), (64, 2), (33, 3)])
def test_steps_err_at_most_twice_as_much_as_torch(dtype, norm, width, nu):
    check_step("cuda", dtype, "delta", norm, width=width, value_dim=64, nu=nu, eps=0.0, batch=8, heads=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cuda_graph_runs_it_again(dtype):
    """Nothing of a launch depends on what tensors hold."""
    inputs = [tensor.to("cuda", dtype) for tensor in draw("delta", 2, 200, 2, 64, 64)]
    documents = torch.arange(200, device="cuda")[None].expand(2, -1) // 70
    options = {"dpfp_nu": 1, "key_norm_eps": 0.0}

    def both() -> list[torch.Tensor]:
        found = results(kernels.chunk_delta_rule, inputs, None, document_ids=documents, **options)
        step = fast_weight_step(*(tensor[:, :1].contiguous() for tensor in inputs), **options)
        return [*found.values(), *step[:2]]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compile first
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for tensor, fresh in zip(inputs, draw("delta", 2, 200, 2, 64, 64), strict=True):
        tensor.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    found = [tensor.clone() for tensor in captured]
    for actual, expected in zip(found, both(), strict=True):
        assert torch.equal(actual, expected)


def test_compiled_is_eager():
    torch.compiler.reset()
    inputs = [tensor.to("cuda", torch.bfloat16) for tensor in draw("delta", 2, 200, 2, 64, 64)]

    def rule(*tensors, **options):
        return chunk_delta_rule(*tensors, backend="triton", **options)

    expected = results(rule, inputs, None)
    for name, actual in results(torch.compile(rule, fullgraph=True), inputs, None).items():
        assert_close(name, actual, expected[name], relative=1e-2, absolute=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"dpfp_nu": 2, "attention_norm": "output"}, {"attention_norm": "full"}], ids=str
)
def test_a_model_takes_them_by_itself(changes, monkeypatch):
    sizes = {"vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    off = {"dropout": 0.0, "activation_dropout": 0.0, "eos_token_id": None}
    model = FastWeightForCausalLM(FastWeightConfig(**sizes, intermediate_size=128, **off, **changes)).cuda()
    tokens = torch.randint(4, 100, (2, 300), device="cuda")
    mask = torch.ones_like(tokens)
    mask[0, :50] = 0
    found = {}
    for backend in ("torch", "auto"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        loss = model.train()(input_ids=tokens, attention_mask=mask, labels=tokens).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        written = model.eval().generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
        found[backend] = [loss, *gradients, written]
    for actual, expected in zip(found["auto"], found["torch"], strict=True):
        assert_close("result", actual, expected, relative=1e-4, absolute=1e-6)
