# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of original Anthe weights: flags, gate orders, and everything that does not fit."""

import numpy as np
import pytest
import torch

from leanformers.conversion import convert_state_dict
from leanformers.conversion.anthe import config_from_hparams, parse_ref_string

SIZES = {"d_model": "32", "heads": "4", "d_ff": "64", "layers": "1+2", "src_vocab": "40", "tgt_vocab": "42"}
ANTHE = "geglu_gateattention:kqv_hsoftpos:2_tcffn:.05_tcpreatt:.3_tclength:2"


@pytest.mark.parametrize("ref_string", ["", ANTHE, "sameemb_projectoutput", "hsoftpos:2_tcemb:.3_tclength:3"])
def test_every_tensor_arrives(reference_weights, ref_string):
    hparams = {**SIZES, "ref_string": ref_string, "tgt_vocab": 40}
    weights = reference_weights(hparams)
    model = convert_state_dict("anthe", weights, hparams)
    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    assert total == pytest.approx(sum(weight.astype(np.float64).sum() for weight in weights.values()), abs=1e-6)
    assert not model.training
    assert (model.config.num_encoder_layers, model.config.num_decoder_layers) == (1, 2)


def test_tied_output_is_truly_tied(reference_weights):
    hparams = {**SIZES, "ref_string": "sameemb_projectoutput", "tgt_vocab": "40"}
    model = convert_state_dict("anthe", reference_weights(hparams), hparams)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("order", "gate"),
    [("kqv", "KgV"), ("vqk", "VgK"), ("kvq", "KgQ"), ("qvk", "VgQ"), ("qkv", "QgV"), ("vkq", "QgK")],
)
def test_gate_of_every_order(order, gate):
    hparams = {**SIZES, "ref_string": f"gateattention:{order}"}
    assert config_from_hparams(hparams, allow_noncausal_gate=True).attention_gate == gate
    if gate in ("KgV", "VgK"):
        assert config_from_hparams(hparams).attention_gate == gate
    else:
        with pytest.raises(ValueError, match=f"the gate {gate}.*allow_noncausal_gate=True"):
            config_from_hparams(hparams)


def test_default_gate_of_the_original_leaks_and_is_refused_unless_asked_for(reference_weights):
    hparams = {**SIZES, "ref_string": "gateattention"}
    with pytest.raises(ValueError, match="QgV, which lets target tokens see later ones"):
        convert_state_dict("anthe", reference_weights(hparams), hparams)
    model = convert_state_dict("anthe", reference_weights(hparams), hparams, allow_noncausal_gate=True)
    source = torch.randint(4, 40, (1, 6))
    target = torch.randint(4, 40, (1, 6))
    changed = target.clone()
    changed[0, 5] = 41
    with torch.no_grad():
        first, second = (model(source, decoder_input_ids=ids).logits for ids in (target, changed))
    assert (first - second)[:, :5].abs().max() > 1e-4


def test_values_of_flags():
    fields = parse_ref_string("geglu_tclayer_tclength:4_tcemb:.1")
    assert fields["tc_ffn_ratio"] == fields["tc_attn_ratio"] == 0.2
    assert (fields["tc_length"], fields["tc_embedding_length"], fields["tc_embedding_ratio"]) == (4, 4, 0.1)
    assert parse_ref_string("tcffn")["tc_length"] == 3
    assert parse_ref_string("hsoftpos_tcemb")["tc_embedding_length"] == 2
    assert parse_ref_string("hsoftpos")["soft_position_levels"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ref_string": "geglu_nopreatt"}, "flag 'nopreatt'.*not supported"),
        ({"ref_string": "sharedqkv"}, "flag 'sharedqkv'.*not supported"),
        ({"ref_string": "noffn"}, "flag 'noffn'.*not supported"),
        ({"ref_string": "mpolastlayer"}, "flag 'mpolastlayer'.*not supported"),
        ({"ref_string": "geglu_warp:9"}, "unknown flag 'warp:9'"),
        ({"ref_string": "geglu:9"}, "unknown flag 'geglu:9'"),
        ({"ref_string": "gateattention:kkk"}, "'gateattention:kkk'.*one of kqv"),
        ({"ref_string": "tcffn:much"}, "'tcffn:much'.*a number"),
        ({"ref_string": "tcffn:1.5"}, "tc_ffn_ratio.*between 0 and 1"),
        ({"ref_string": "hsoftpos:2_projectoutput"}, "projectoutput beside hsoftpos"),
        ({"ref_string": "hsoftpos:3", "d_model": "512"}, "87 wide"),
        ({"layers": "2-2"}, "layers must be like '6\\+6', not '2-2'"),
        ({"heads": "four"}, "heads must be a whole number, not 'four'"),
        ({"kind": "tc_dense"}, "one 'tc_dense', not of a model"),
    ],
)
def test_impossible_hparams_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_hparams({**SIZES, "ref_string": "", **changes})


def test_missing_hparams_are_listed():
    with pytest.raises(ValueError, match="lack ref_string, heads"):
        config_from_hparams({name: size for name, size in SIZES.items() if name != "heads"})


def test_all_tensors_that_do_not_fit_are_listed_at_once(reference_weights):
    hparams = {**SIZES, "ref_string": ANTHE}
    weights = reference_weights(hparams)
    del weights["enc0.ln1.gamma"]
    weights["dec7.ln1.gamma"] = np.zeros(32, np.float32)
    weights["lm_head.kernel"] = np.zeros((32, 41), np.float32)
    with pytest.raises(ValueError) as error:
        convert_state_dict("anthe", weights, hparams)
    message = str(error.value)
    assert "enc0.ln1.gamma is missing" in message
    assert "dec7.ln1.gamma has no place" in message
    assert "lm_head.kernel is [32, 41], which gives [41, 32] instead of [42, 32]" in message


def test_unknown_family_is_named():
    with pytest.raises(ValueError, match="anth"):
        convert_state_dict("anthy", {}, {})
