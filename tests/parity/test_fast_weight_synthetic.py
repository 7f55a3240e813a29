# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The study of associative retrieval: the original's reads, by our model of it and by the rules that it unrolls."""

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from leanformers.modeling.fast_weight.delta_rule import chunk_delta_rule, chunk_sum_rule, naive_fwm_rule
from leanformers.modeling.fast_weight.feature_maps import build_feature_map, normalize_features
from leanformers.training.retrieval import RetrievalModel
from numerics import assert_close

# File -> update rule and feature map.
CASES = {
    "synthetic_linear_sum": ("sum", "elu_plus_one"),
    "synthetic_dpfp1_ours": ("delta", "dpfp"),
    "synthetic_tanh_fwm": ("fwm", "tanh"),
    "synthetic_softmax": ("softmax", "elu_plus_one"),
}
NUM_KEYS, WIDTH = 20, 16
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}


@pytest.fixture(params=CASES)
def golden(request, shared):
    with safe_open(shared / "reference" / "fast_weight" / f"{request.param}.safetensors", "pt") as file:
        return CASES[request.param], {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def weights_of(tensors, dtype):
    weights = {name[7:]: tensor.to(dtype) for name, tensor in tensors.items() if name.startswith("weight.")}
    # Values are their own one-hot vectors, and these two layers never reach the output.
    assert torch.equal(weights["embeddingV.weight"], torch.eye(NUM_KEYS, dtype=dtype))
    unused = ("embeddingV", "W_v", "W_f")
    return {name: tensor for name, tensor in weights.items() if not name.startswith(unused)}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_model_reads_what_the_original_reads(golden, dtype):
    (update_rule, feature_map), tensors = golden
    model = RetrievalModel(NUM_KEYS, update_rule, feature_map, hidden_size=WIDTH).to(dtype)
    weights = weights_of(tensors, dtype)
    used = {name: tensor for name, tensor in weights.items() if update_rule in ("delta", "fwm") or "W_b" not in name}
    model.load_state_dict(used)
    values = tensors["x_value"] - NUM_KEYS  # keys and values share one numbering there
    with torch.no_grad():
        read = model(tensors["x_key"], values, tensors["query"])[:, 0]
    assert_close("y_hat", read, tensors["y_hat"], absolute=TOLERANCES[dtype], relative=0.0)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rules_write_and_read_what_the_original_does(golden, dtype):
    (update_rule, feature_map), tensors = golden
    if update_rule == "softmax":
        pytest.skip("attention has no memory to compare")
    weights = weights_of(tensors, dtype)
    value = functional.one_hot(tensors["x_value"] - NUM_KEYS, NUM_KEYS).to(dtype)
    pairs = torch.cat([value, weights["embeddingK.weight"][tensors["x_key"]]], dim=-1)
    features, _ = build_feature_map(feature_map, WIDTH, nu=1)
    key = features(functional.linear(pairs, weights["W_k.weight"], weights["W_k.bias"]))
    asked = weights["embeddingK.weight"][tensors["query"]]
    query = features(functional.linear(asked, weights["W_q.weight"], weights["W_q.bias"]))
    beta = functional.linear(pairs, weights["W_b.weight"], weights["W_b.bias"])
    if update_rule != "sum":
        beta = beta.sigmoid()
    found = {"beta_used": beta, "phi_k": key, "phi_q": query}
    if update_rule == "delta":
        key, query = normalize_features(key), normalize_features(query, 1e-6)
    found["final_state"], found["y_hat"] = written_and_read(update_rule, key, query, value, beta[..., 0])
    if update_rule == "sum":
        found["final_z"] = key.sum(dim=1)
        total = (query[:, 0] * found["final_z"]).sum(dim=-1, keepdim=True)
        found["y_hat"] = found["y_hat"] / (total + 1e-6)
    relative = 2e-6 if dtype == torch.float32 else 0.0
    for name, tensor in found.items():
        assert_close(name, tensor, tensors[name], absolute=TOLERANCES[dtype], relative=relative)


def written_and_read(update_rule, key, query, value, beta):
    """The memory after all pairs, value first as in the original, and what the one query reads from it."""
    key, value, query = key[:, :, None], value[:, :, None], query[:, :, None].expand(*key.shape[:2], 1, -1)
    if update_rule == "sum":
        output, state = chunk_sum_rule(query, key, value, output_final_state=True)
    else:
        rule = chunk_delta_rule if update_rule == "delta" else naive_fwm_rule
        output, state = rule(query, key, value, beta[..., None], output_final_state=True)
    return state[:, 0].mT, output[:, -1, 0]
