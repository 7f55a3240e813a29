# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of the update rules err no more than torch, and the operators take them where they shall."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("triton")

from kernel_forms.fast_weight_rules import KERNEL, check_rule, draw, results
from kernel_forms.tensor_cores import multiply_as_tensor_cores

from leanformers.kernels import delta_rule as kernels
from leanformers.modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM
from leanformers.modeling.fast_weight.delta_rule import chunk_delta_rule, chunk_sum_rule, naive_delta_rule
from leanformers.modeling.fast_weight.normalized_rules import dpfp_rule
from numerics import assert_close

SLOW = pytest.mark.slow
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
OPTIONS = {
    "one_token": ("delta", F32, {"batch": 2, "length": 1, "heads": 2}),
    "short": ("delta", F32, {"batch": 2, "length": 5, "heads": 2, "width": 3, "value_dim": 1}),
    "chunks": ("delta", F32, {"length": 65}),
    "from_zero": ("delta", F32, {"length": 33, "carried": False}),
    "bfloat16": ("delta", BF16, {"length": 130}),
    "bfloat16_without_state": ("delta", BF16, {"length": 70, "wants_state": False}),
    "float16": ("delta", F16, {"length": 40}),
    "documents": ("delta", F32, {"batch": 2, "length": 70, "share_of_starts": 0.1}),
    "wide_documents": ("delta", BF16, {"length": 70, "width": 150, "share_of_starts": 0.05, "wants_state": False}),
    "dpfp": ("delta", F32, {"length": 37, "width": 5, "nu": 2, "eps": 0.0}),
    "dpfp_not_normalised": ("delta", F32, {"length": 20, "width": 4, "nu": 1}),
    "sum": ("sum", F32, {"batch": 2, "length": 70, "share_of_starts": 0.1}),
    "sum_dpfp": ("sum", BF16, {"length": 37, "width": 5, "nu": 3, "eps": 1e-3}),
    "sequences": ("delta", F32, {"steps": [0, 1, 1, 20, 20, 41], "chunk_size": 16, "width": 8, "value_dim": 4}),
}
SLOW_OPTIONS = {
    "wide": ("delta", F32, {"length": 70, "width": 300}),
    "wide_values": ("delta", BF16, {"batch": 2, "length": 200, "heads": 2, "width": 64, "value_dim": 70}),
    "wide_sequences": ("delta", F32, {"steps": [0, 0, 30, 31, 80], "width": 70, "value_dim": 20, "chunk_size": 16}),
    "wide_bfloat16": ("delta", BF16, {"length": 140, "width": 150, "share_of_starts": 0.05}),
    "wide_dpfp": ("delta", BF16, {"length": 70, "width": 70, "nu": 2, "eps": 0.0}),
    "dpfp_without_state": ("delta", BF16, {"length": 70, "width": 20, "nu": 2, "eps": 0.0, "wants_state": False}),
    "many_documents": ("delta", F32, {"length": 150, "share_of_starts": 0.5}),
    "far_moves": ("delta", F32, {"length": 20, "width": 4, "nu": 12, "eps": 0.0}),
    "wide_sum": ("sum", F16, {"length": 70, "width": 300, "share_of_starts": 0.05}),
    "sum_sequences": ("sum", BF16, {"steps": [0, 70, 75], "width": 40, "wants_state": False}),
    "small_chunks": ("delta", BF16, {"length": 70, "chunk_size": 16}),
    "large_chunks": ("delta", F32, {"length": 140, "chunk_size": 64}),
}
CASES = [*OPTIONS, *(pytest.param(name, marks=SLOW) for name in SLOW_OPTIONS)]


@pytest.mark.parametrize("name", CASES)
def test_errors_are_at_most_twice_those_of_torch(name, monkeypatch):
    multiply_as_tensor_cores(monkeypatch)
    rule, dtype, options = (OPTIONS | SLOW_OPTIONS)[name]
    check_rule("cpu", dtype, rule, **options)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_keys_that_nearly_agree_do_not_overflow(dtype):
    """Powers of the triangular matrix would, though its inverse is small."""
    inputs = draw("delta", 1, 128, 1, 64, 16)
    inputs[1] = normalize(inputs[1] * 0.2 + inputs[1][:, :1], dim=-1)
    inputs[3] = inputs[3] * 0.05 + 0.95
    inputs = [tensor.to(dtype) for tensor in inputs]
    expected, _ = naive_delta_rule(*(tensor.double() for tensor in inputs))
    error = 1e-4 if dtype == F32 else 2e-2
    assert_close("output", kernels.chunk_delta_rule(*inputs)[0], expected, relative=error, absolute=error)


def test_no_nan_at_extreme_and_at_vanishing_inputs():
    """Features of zero have no sum to be divided by, as those of padding; huge ones swallow what is beside them."""
    query, key, value, beta = (tensor.float() for tensor in draw("delta", 1, 40, 1, 3, 4, unit=False))
    key[:, 5:9], query[:, 7], key[:, 20], query[:, 21] = 0, 0, torch.tensor([1.0, -1.0, 1.0]), 1e9
    key[:, 22], key[:, 23], beta[:, :3], beta[:, 10:13], value[:, 30] = 1e9, 1e-15, 0, 1, 1e30
    options = {"dpfp_nu": 1, "key_norm_eps": 0.0}
    found = results(kernels.chunk_delta_rule, [query, key, value, beta], None, **options)
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.parametrize("rule", ["delta", "sum"])
@pytest.mark.parametrize("nu", [0, 1])
def test_masked_tokens_leave_no_trace(rule, nu):
    inputs = [tensor.float() for tensor in draw(rule, 1, 40, 1, 6, 5)]
    kept = torch.rand(40) < 0.6
    masked = [inputs[0], inputs[1] * kept[:, None, None], *inputs[2:]]
    options = {"output_final_state": True, "dpfp_nu": nu, "key_norm_eps": 0.0}
    output, last = KERNEL[rule](*masked, **options)
    expected, expected_last = KERNEL[rule](*(tensor[:, kept] for tensor in inputs), **options)
    assert_close("output", output[:, kept], expected, relative=1e-6, absolute=1e-6)
    assert_close("final state", last, expected_last, relative=1e-6, absolute=1e-6)


@pytest.mark.parametrize("norm", ["none", "output", "full"])
@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_normalisations_run_through(rule, norm):
    if (rule, norm) == ("sum", "full"):
        pytest.skip("the sum rule removes nothing")
    query, key, value, *beta = draw(rule, 1, 40, 2, 4, 5, unit=False)
    documents = (torch.arange(40) // 15)[None]
    options = {"attention_norm": norm, "initial_state": torch.randn(1, 2, 8, 5), "document_ids": documents}
    if norm != "none":
        options["initial_normalizer"] = torch.rand(1, 2, 8) + 1
    inputs = [*(tensor.float() for tensor in (query, key, value)), *([tensor.float() for tensor in beta] or [None])]
    by_torch = dpfp_rule(*inputs, nu=1, key_norm_eps=0.0, backend="torch", **options)
    by_kernel = dpfp_rule(*inputs, nu=1, key_norm_eps=0.0, backend="triton", **options)
    for actual, expected in zip(by_kernel, by_torch, strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert actual.dtype == expected.dtype
            assert_close("result", actual, expected, relative=2e-5, absolute=2e-5)
    for backend, whole in (("torch", by_torch), ("triton", by_kernel)):
        options |= {"backend": backend, "output_final_state": False}
        output, state, _ = dpfp_rule(*inputs, nu=1, key_norm_eps=0.0, **options)
        assert torch.equal(output, whole[0]) and state is None


@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_compiled_in_one_graph(rule):
    torch.compiler.reset()
    inputs = [tensor.float() for tensor in draw(rule, 1, 20, 1, 4, 5)]
    state = torch.randn(1, 1, 4, 5)
    form = {"delta": chunk_delta_rule, "sum": chunk_sum_rule}[rule]

    def through_kernel(*tensors, **options):
        return form(*tensors, backend="triton", **options)

    compiled = torch.compile(through_kernel, backend="aot_eager", fullgraph=True)
    expected = results(through_kernel, inputs, state)
    for name, actual in results(compiled, inputs, state).items():
        assert torch.equal(actual, expected[name]), name


@pytest.mark.parametrize("tests", ["test_schema", "test_autograd_registration", "test_faketensor"])
def test_operators_are_what_they_say(tests):
    inputs = [tensor.float().requires_grad_() for tensor in draw("delta", 1, 10, 1, 4, 5)]
    documents = torch.zeros(1, 10, dtype=torch.int32)
    arguments = (*inputs, torch.randn(1, 1, 8, 5), documents, None, 0, 1, 0.0, True)
    torch.library.opcheck(torch.ops.leanformers.fast_weight_chunks, arguments, test_utils=tests)
    steps = torch.tensor([0, 3, 10])
    arguments = (*inputs[:3], None, None, None, steps, 16, 0, None, False)
    torch.library.opcheck(torch.ops.leanformers.fast_weight_chunks, arguments, test_utils=tests)


def small_model(**changes) -> FastWeightForCausalLM:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    off = {"dropout": 0.0, "activation_dropout": 0.0, "eos_token_id": None}
    return FastWeightForCausalLM(FastWeightConfig(**{**sizes, "intermediate_size": 16, **off, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"dpfp_nu": 2, "attention_norm": "output", "num_hidden_layers": 2}, marks=SLOW),
        pytest.param({"attention_norm": "full"}, marks=SLOW),
        pytest.param({"update_rule": "sum", "attention_norm": "output"}, marks=SLOW),
        pytest.param({"feature_map": "elu_plus_one", "attention_norm": "full"}, marks=SLOW),
        pytest.param({"feature_map": "favor", "favor_redraw": False, "key_norm": "none"}, marks=SLOW),
    ],
    ids=str,
)
def test_a_model_learns_and_writes_the_same(changes, monkeypatch):
    model = small_model(**changes)
    tokens = torch.randint(4, 40, (2, 20))
    mask, positions = torch.ones_like(tokens), torch.arange(20).repeat(2, 1) % 9
    mask[0, :6] = 0
    found = {}
    for backend in ("torch", "triton"):
        monkeypatch.setenv("LEANFORMERS_KERNELS", backend)
        padded = model.train()(input_ids=tokens, attention_mask=mask, labels=tokens).loss
        packed = model(input_ids=tokens, position_ids=positions, labels=tokens, use_cache=False).loss
        gradients = torch.autograd.grad(padded + packed, list(model.parameters()))
        written = model.eval().generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False)
        found[backend] = [padded, packed, *gradients, written]
    for actual, expected in zip(found["triton"], found["torch"], strict=True):
        assert_close("result", actual, expected, relative=1e-5, absolute=1e-7)
    assert torch.equal(found["triton"][-1], found["torch"][-1])


def test_operators_take_the_kernel_when_asked_only(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, *arguments, **constants: calls.append(kernel.fn.__name__))
    inputs = [tensor.float() for tensor in draw("delta", 1, 10, 1, 4, 5)]
    for options, expected in (({}, 0), ({"backend": "torch"}, 0), ({"backend": "triton"}, 2)):
        calls.clear()
        chunk_delta_rule(*inputs, **options)
        assert len(calls) == expected
    monkeypatch.setenv("LEANFORMERS_KERNELS", "triton")
    chunk_sum_rule(*inputs[:3])
    assert calls == ["prepare_kernel", "scan_kernel"] * 2
    chunk_sum_rule(*inputs[:3], backend="torch")
    assert len(calls) == 4
    output, state = chunk_sum_rule(*(tensor[:, :0] for tensor in inputs[:3]), output_final_state=True)
    assert output.shape == (1, 0, 1, 5) and state.eq(0).all()  # nothing to compute is no obstacle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float64}, "it takes float32, bfloat16 and float16, not torch.float64"),
        ({"chunk_size": 5}, "chunk_size must be 16, 32 or 64, not 5"),
    ],
    ids=str,
)
def test_what_the_kernel_cannot_take_is_named(changes, message):
    options = {"dtype": F32, **changes}
    dtype = options.pop("dtype")
    inputs = [tensor.to(dtype) for tensor in draw("delta", 1, 10, 1, 4, 5)]
    with pytest.raises(ValueError, match=f"The delta rule has no kernel for this: {message}"):
        chunk_delta_rule(*inputs, backend="triton", **options)


COMPILED = [
    *((dtype, 64, 64, 0) for dtype in ("bfloat16", "float32")),
    ("float32", 32, 32, 0),
    ("bfloat16", 128, 128, 0),
    *((dtype, 64, 64, 2) for dtype in ("bfloat16", "float32")),
]


@SLOW
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles_for_gpus_and_fits(arch, tmp_path):
    """Without a GPU: registers hold what they shall, and shared memory is below what a block may have."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = os.path.join(os.path.dirname(__file__), "compile_fast_weight.py")
    report = tmp_path / "report.json"
    arguments = [sys.executable, script, str(arch), str(report), json.dumps(COMPILED)]
    subprocess.run(arguments, check=True, env={**environment, "TRITON_CACHE_DIR": str(tmp_path / "cache")})
    found = json.loads(report.read_text())
    assert {row["kernel"] for row in found} == {
        *("prepare_kernel", "scan_kernel", "reverse_kernel", "gradients_kernel", "normalization_kernel"),
        "step_kernel",
    }
    for row in found:
        assert row["shared"] <= {80: 99, 90: 227}[arch] * 1024, row  # sm_86 and 89 have no more, and the code of 80
        assert row["spilled"] <= 128, row
