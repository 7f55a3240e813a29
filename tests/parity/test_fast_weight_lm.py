# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The original FastWeight language models by segments: hidden states, losses of every token, carried states."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import DynamicCache

from leanformers.conversion import convert_state_dict
from numerics import assert_close

MODELS = ["lm_delta_elu_nopos_carry", "lm_delta_elu_pos_nocarry", "lm_sum_elu_pos"]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}


@pytest.fixture(params=MODELS)
def golden(request, shared):
    """Tensors, weights under the original's names, and hyper-parameters as they stand in the file: as text."""
    with safe_open(shared / "reference" / "fast_weight" / f"{request.param}.safetensors", "pt") as file:
        tensors, hparams = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    weights = {key.removeprefix("weight."): tensor for key, tensor in tensors.items() if key.startswith("weight.")}
    return tensors, weights, hparams


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_hidden_states_losses_and_carried_states(golden, dtype):
    tensors, weights, hparams = golden
    model = convert_state_dict("fast_weight", weights, hparams).to(dtype)
    cache = DynamicCache(config=model.config) if hparams["carry"] == "True" else None
    found = {}
    for index in range(len(json.loads(hparams["segments"]))):
        tokens, targets = tensors[f"tokens.{index}"].T, tensors[f"targets.{index}"].T
        with torch.no_grad():
            hidden = model.model(tokens, past_key_values=cache, use_cache=cache is not None).last_hidden_state
            log_probabilities = model.lm_head(hidden)
        found[f"hidden.{index}"] = hidden.transpose(0, 1)
        found[f"nll.{index}"] = -log_probabilities.gather(-1, targets[..., None])[..., 0].T
        for layer, state in enumerate(cache.layers if cache else ()):
            found[f"state.{index}.layer{layer}"] = state.read()[0]
    expected = {key: value for key, value in tensors.items() if key.startswith(("hidden", "nll", "state"))}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(key, found[key], value, absolute=TOLERANCES[dtype], relative=0.0)


def test_loss_in_training_is_the_mean_of_the_tokens(golden):
    """The cheap loss scores only the clusters that labels lie in; the file's losses are of all tokens."""
    tensors, weights, hparams = golden
    model = convert_state_dict("fast_weight", weights, hparams).double()
    tokens, targets = tensors["tokens.0"].T, tensors["targets.0"].T
    with torch.no_grad():
        loss = model(tokens, labels=tokens, shift_labels=targets).loss
    assert_close("loss", loss, tensors["nll.0"].mean(), absolute=1e-11, relative=0.0)
    ends = [int(end) for end in json.loads(hparams["cutoffs"])]
    assert {sum(target >= end for end in ends) for target in targets.flatten().tolist()} == {0, 1, 2}


def test_hyper_parameters_as_text_or_values(golden):
    _, weights, hparams = golden
    values = {key: json.loads(value.lower()) for key, value in hparams.items() if key != "layout"}
    as_text, as_values, in_args = (
        convert_state_dict("fast_weight", weights, given) for given in (hparams, values, {"args": values})
    )
    assert as_text.config.to_dict() == as_values.config.to_dict() == in_args.config.to_dict()
    assert all(map(torch.equal, as_text.state_dict().values(), as_values.state_dict().values()))


def test_configuration(golden):
    _, weights, hparams = golden
    config = convert_state_dict("fast_weight", weights, hparams).config
    assert config.adaptive_cutoffs == [60, 120] and config.vocab_size == 211
    assert (config.norm_position, config.final_norm, config.output_bias) == ("post", False, True)
    assert config.position_embedding_type == ("none" if hparams["no_pos"] == "True" else "sinusoidal_reversed")
    is_sum = hparams["attn_type"] == "34"
    assert (config.update_rule, config.key_norm, config.attention_norm) == (
        ("sum", "none", "output") if is_sum else ("delta", "sum", "none")
    )


def test_attention_norm_is_what_the_option_says(golden):
    """The original's comments and scripts take `skip_attn_normalization` for granted; its default is off."""
    tensors, weights, hparams = golden
    losses = {}
    for skips in ("True", "False", None):
        given = {key: value for key, value in hparams.items() if key != "skip_attn_normalization"}
        given |= {} if skips is None else {"skip_attn_normalization": skips}
        model = convert_state_dict("fast_weight", weights, given)
        assert model.config.attention_norm == ("none" if skips == "True" else "output")
        with torch.no_grad():
            losses[skips] = model(tensors["tokens.0"].T, labels=tensors["tokens.0"].T).loss
    assert losses["True"] != losses["False"] == losses[None]
