# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Every golden layer of the original FastWeight, segment by segment, through the converter and the real blocks."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import DynamicCache

from leanformers.conversion import convert_state_dict
from numerics import assert_close

ATTENTION_TYPES = {
    "layer_delta_elu_post_norm": 24,
    "layer_delta_elu_outnorm": 24,
    "layer_delta_elu_fullnorm": 44,
    "layer_delta_dpfp2": 26,
    "layer_delta_favor": 25,
    "layer_sum_elu": 34,
    "layer_sum_elu_type4_quadratic": 4,
    "layer_sum_dpfp_type6_quadratic": 6,
    "layer_softmax_type2": 2,
}
# Sums are not normalised and grow: their error is one of the largest entry.
TOLERANCES = {torch.float64: (1e-11, 0.0), torch.float32: (1e-5, 2e-6)}


def read(shared, name):
    """Tensors and hyper-parameters of a golden layer."""
    with safe_open(shared / "reference" / "fast_weight" / f"{name}.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    sizes = {key: int(metadata[key]) for key in ("n_head", "d_model", "d_head")}
    kwargs = {
        key: value for key, value in json.loads(metadata["kwargs"]).items() if key not in ("layer_id", "num_layer")
    }
    return tensors, {"attn_type": ATTENTION_TYPES[name], "n_layer": 1, "d_inner": 8, "n_token": 20, **sizes, **kwargs}


def build(golden, fast_weight_weights, dtype):
    """The converted model whose only layer is the golden one, and that layer's segments."""
    tensors, hparams = golden
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("weight.")}
    weights = fast_weight_weights({"proj_dim": 8, **hparams})
    weights |= {name.replace("weight.", "layers.0.dec_attn.", 1): tensor for name, tensor in own.items()}
    segments = [tensors[f"input.{i}"] for i in range(len(tensors)) if f"input.{i}" in tensors]
    return convert_state_dict("fast_weight", weights, hparams).to(dtype), [one.to(dtype) for one in segments]


def attention_sublayer(block, hidden_states, **options):
    """What the block has after its first residual, and its norm if that stands there: one layer of the original."""
    found = []
    place = block.attention_layer_norm if block.norm_position == "post" else block.mlp_layer_norm
    hook = place.register_forward_hook(lambda _, inputs, output: found.append((inputs[0], output)))
    with torch.no_grad():
        block(hidden_states, **options)
    hook.remove()
    return found[0][1 if block.norm_position == "post" else 0]


def causal_mask(hidden_states):
    length = hidden_states.shape[1]
    return torch.full((length, length), float("-inf"), dtype=hidden_states.dtype).triu(1)[None, None]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ATTENTION_TYPES)
def test_every_segment_with_its_states(shared, fast_weight_weights, name, dtype):
    golden = read(shared, name)
    model, segments = build(golden, fast_weight_weights, dtype)
    is_softmax = model.config.update_rule == "softmax"
    if is_softmax:
        model.set_attn_implementation("eager")
    cache = DynamicCache(config=model.config)
    absolute, relative = TOLERANCES[dtype]
    compared = 0
    for index, segment in enumerate(segments):
        inputs = segment.transpose(0, 1)
        mask = causal_mask(inputs) if is_softmax else None
        output = attention_sublayer(model.model.layers[0], inputs, attention_mask=mask, past_key_values=cache)
        found = {f"output.{index}": output.transpose(0, 1)}
        if not is_softmax:
            memory, normalizer = cache.layers[0].read()
            found[f"state.{index}"] = memory
            if normalizer is not None:
                found[f"z.{index}"] = normalizer[:, :, None]
        for key in found.keys() & golden[0].keys():
            assert_close(key, found[key], golden[0][key], absolute=absolute, relative=relative)
            compared += 1
    assert compared == sum(key.startswith(("output.", "state.", "z.")) for key in golden[0])


@pytest.mark.parametrize("name", ["layer_delta_elu_fullnorm", "layer_delta_elu_outnorm", "layer_sum_elu"])
def test_token_by_token_and_in_odd_pieces(shared, fast_weight_weights, name):
    golden = read(shared, name)
    model, segments = build(golden, fast_weight_weights, torch.float64)
    expected = torch.cat([golden[0]["output.0"], golden[0]["output.1"]]).transpose(0, 1)
    whole = torch.cat(segments).transpose(0, 1)
    for sizes in ([1] * whole.shape[1], [1, 5, 1, 20, 15]):
        cache = DynamicCache(config=model.config)
        pieces = [
            attention_sublayer(model.model.layers[0], piece, past_key_values=cache) for piece in whole.split(sizes, 1)
        ]
        assert_close(name, torch.cat(pieces, dim=1), expected, absolute=1e-11, relative=0.0)


def test_first_token_rule_is_for_a_memory_without_past(shared, fast_weight_weights):
    """With normalised removal the product with the sum of the keys is 1 at a first token, and true at any other."""
    golden = read(shared, "layer_delta_elu_fullnorm")
    model, segments = build(golden, fast_weight_weights, torch.float64)
    second = segments[1].transpose(0, 1)
    anew = attention_sublayer(model.model.layers[0], second, past_key_values=DynamicCache(config=model.config))
    assert (anew.transpose(0, 1) - golden[0]["output.1"]).abs().max() > 1e-3


def test_norm_before_attention_takes_the_place_of_its_input(shared, fast_weight_weights):
    """`pre_lnorm`: the layer without its norm behind, on the normalised input, which is also what it adds to."""
    (tensors, hparams), name = read(shared, "layer_delta_elu_post_norm"), "weight.layer_norm"
    model, segments = build((tensors, hparams | {"pre_lnorm": True}), fast_weight_weights, torch.float64)
    inputs = segments[0].transpose(0, 1)
    output = attention_sublayer(model.model.layers[0], inputs)
    weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
    normalised = torch.nn.functional.layer_norm(inputs, [32], weight, bias)
    plain, _ = build((tensors, hparams), fast_weight_weights, torch.float64)
    summed = plain.model.layers[0].attention(normalised)[0] + normalised
    assert_close("pre_lnorm", output, summed, absolute=1e-11, relative=0.0)
    assert model.config.norm_position == "pre_quirk" and model.model.layer_norm is None
