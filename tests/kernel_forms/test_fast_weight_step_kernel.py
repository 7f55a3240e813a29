# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One token of a fast weight memory as one launch is what torch computes of it."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_forms.fast_weight_rules import check_step, draw

from leanformers.kernels import fast_weight_step as steps
from leanformers.modeling.fast_weight.normalized_rules import dpfp_rule, normalized_rule

RULES = [("delta", norm) for norm in ("none", "output", "full")] + [("sum", "none"), ("sum", "output")]


@pytest.mark.parametrize(("rule", "norm"), RULES)
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
@pytest.mark.parametrize(("nu", "eps"), [(0, None), (2, 0.0)], ids=["mapped", "dpfp"])
def test_errors_are_at_most_twice_those_of_torch(rule, norm, carried, nu, eps):
    check_step("cpu", torch.float32, rule, norm, carried=carried, nu=nu, eps=eps, width=9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    check_step("cpu", dtype, "delta", "output", nu=1, eps=1e-3)


@pytest.mark.parametrize(("width", "value_dim", "nu"), [(300, 5, 0), (70, 33, 2), (1, 1, 0)])
def test_any_widths(width, value_dim, nu):
    check_step("cpu", torch.float32, "delta", "full", width=width, value_dim=value_dim, nu=nu, batch=2, heads=1)


def test_a_zero_key_leaves_no_trace():
    query, key, value, beta = (tensor.float() for tensor in draw("delta", 2, 1, 2, 5, 6))
    states = {"initial_state": torch.randn(2, 2, 10, 6), "initial_normalizer": torch.rand(2, 2, 10)}
    output, memory, normalizer = steps.fast_weight_step(
        *(query, key * 0, value, beta), attention_norm="full", dpfp_nu=1, key_norm_eps=0.0, **states
    )
    assert output.isfinite().all() and torch.equal(memory, states["initial_state"])
    assert torch.equal(normalizer, states["initial_normalizer"])


def test_states_before_stay_as_they_are():
    query, key, value, beta = (tensor.float() for tensor in draw("delta", 2, 1, 2, 5, 6))
    state = torch.randn(2, 2, 6, 5).mT
    before = state.clone()
    steps.fast_weight_step(query, key, value, beta, initial_state=state)
    assert torch.equal(state, before)


@pytest.mark.parametrize("form", ["normalized", "dpfp"])
def test_one_launch_where_no_gradient_is_wanted(form, monkeypatch):
    calls, launch = [], steps.launch

    def counted(*arguments, **constants):
        calls.append(arguments[0].fn.__name__)
        launch(*arguments, **constants)

    monkeypatch.setattr(steps, "launch", counted)
    inputs = [tensor.float() for tensor in draw("delta", 1, 1, 1, 4, 5)]

    def call(*tensors, backend="triton"):
        options = {"attention_norm": "output", "backend": backend}
        if form == "dpfp":
            return dpfp_rule(*tensors, nu=1, key_norm_eps=0.0, **options)[0]
        return normalized_rule(tensors[0].abs(), tensors[1].abs(), *tensors[2:], **options)[0]

    output = call(*inputs)
    assert calls == ["step_kernel"]
    torch.testing.assert_close(output, call(*inputs, backend="torch"), atol=1e-6, rtol=1e-6)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    gradient = torch.autograd.grad(call(*leaves).sum(), leaves[2])[0]
    assert calls == ["step_kernel"]
    torch.testing.assert_close(gradient, torch.autograd.grad(call(*leaves, backend="torch").sum(), leaves[2])[0])


def test_compiled_in_one_graph():
    torch.compiler.reset()
    query, key, value, beta = (tensor.float() for tensor in draw("delta", 1, 1, 1, 4, 5))

    def step(*inputs):
        return steps.fast_weight_step(*inputs, dpfp_nu=1, attention_norm="output")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(compiled(query, key, value, beta), step(query, key, value, beta), strict=True):
        assert torch.equal(actual, expected)


def test_the_operator_is_what_it_says():
    inputs = [tensor.float() for tensor in draw("delta", 1, 1, 1, 4, 5)]
    torch.library.opcheck(
        torch.ops.leanformers.fast_weight_step,
        (*inputs, torch.randn(1, 1, 8, 5), torch.rand(1, 1, 8), 2, 1e-5, 1, 0.0),
        test_utils=["test_schema", "test_faketensor"],
    )
