# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Update rules and feature maps against the original's, gradients included."""

import pytest
import torch
from safetensors.torch import load_file

from leanformers.modeling.fast_weight.delta_rule import chunk_delta_rule, naive_delta_rule
from leanformers.modeling.fast_weight.feature_maps import dpfp, elu_plus_one, favor, normalize_features
from leanformers.modeling.fast_weight.normalized_rules import naive_normalized_rule, normalized_rule
from numerics import assert_close

EXACT = {"absolute": 1e-11, "relative": 1e-11}
NAMES = {"query": "phi_q", "key": "phi_k", "value": "v", "beta": "beta", "initial_state": "initial_state"}


@pytest.fixture
def golden(shared):
    """A function from the name of a golden file to its tensors, in float64 and `[batch, length, heads, ...]`."""

    def read(name: str) -> dict[str, torch.Tensor]:
        return {key: t.double() for key, t in load_file(shared / f"reference/fast_weight/{name}.safetensors").items()}

    return read


@pytest.mark.parametrize("form", [naive_delta_rule, chunk_delta_rule])
@pytest.mark.parametrize("name", ["op_delta_zero_init", "op_delta_init_state"])
def test_delta_rule(golden, name, form):
    file = golden(name)
    leaves = {}
    for argument, key in NAMES.items():
        tensor = file[key] if argument == "initial_state" else file[key].transpose(1, 2)
        leaves[argument] = (tensor[..., 0] if argument == "beta" else tensor).contiguous().requires_grad_()
    output, state = form(**leaves, output_final_state=True)
    assert_close("output", output.transpose(1, 2), file["out"], **EXACT)
    assert_close("final state", state, file["final_state"], **EXACT)
    gradients = torch.autograd.grad((output.transpose(1, 2) * file["grad_out"]).sum(), list(leaves.values()))
    for (argument, key), gradient in zip(NAMES.items(), gradients, strict=True):
        found = gradient[..., None] if argument == "beta" else gradient
        found = found if argument == "initial_state" else found.transpose(1, 2)
        assert_close(key, found, file[f"grad_{key}"], **EXACT)


@pytest.mark.parametrize("form", [naive_normalized_rule, normalized_rule])
@pytest.mark.parametrize("name", ["op_sum_zero_init", "op_sum_init_state"])
@pytest.mark.parametrize("norm", ["none", "output"])
def test_sum_rule(golden, name, form, norm):
    file = golden(name)
    query, key, value = (file[name].transpose(1, 2) for name in ("phi_q", "phi_k", "v"))
    states = {"initial_state": file["initial_state"]}
    if norm == "output":
        states["initial_normalizer"] = file["initial_z"][:, :, 0]
    output, state, normalizer = form(query, key, value, None, attention_norm=norm, **states)
    expected = file["out_unnormalised" if norm == "none" else "out_normalised"]
    assert_close("output", output.transpose(1, 2), expected, **EXACT)
    assert_close("final state", state, file["final_state"], **EXACT)
    if norm == "output":
        assert_close("final z", normalizer[:, :, None], file["final_z"], **EXACT)


def test_feature_maps(golden):
    file = golden("feature_maps")
    maps = {"elu_p1": elu_plus_one(file["x"]), "tanh": file["x"].tanh()}
    maps |= {f"dpfp{nu}": dpfp(file["x"], nu) for nu in (1, 2, 3)}
    for name, features in maps.items():
        assert_close(name, features, file[name], **EXACT)
        if name != "tanh":
            assert_close(name, normalize_features(features), file[f"{name}_sum_norm"], **EXACT)
            assert_close(name, normalize_features(features, 1e-5), file[f"{name}_sum_norm_eps"], **EXACT)


@pytest.mark.parametrize(("source", "eps"), [("lmtool", 1e-4), ("synth", 0.0)])
@pytest.mark.parametrize("num_features", [8, 12])
def test_favor(golden, source, eps, num_features):
    file = golden("feature_maps")
    projection = file[f"favor_{source}_proj_m{num_features}"]
    expected = file[f"favor_{source}_m{num_features}"]
    assert_close("features", favor(file["x"], projection, eps), expected, **EXACT)
