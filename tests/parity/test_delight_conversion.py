# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of original DeLighT weights: options, their defaults, tied tensors, and everything that does not fit."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from leanformers.conversion import convert_state_dict
from leanformers.conversion.delight import config_from_options, options_of
from leanformers.modeling.delight import DeLighTForCausalLM, DeLighTForConditionalGeneration

OPTIONS = {
    "delight_emb_map_dim": 32,
    "delight_emb_out_dim": 64,
    "delight_emb_depth": 2,
    "delight_enc_layers": 2,
    "delight_enc_min_depth": 2,
    "delight_enc_max_depth": 3,
    "delight_dec_layers": 2,
    "delight_dec_min_depth": 2,
    "delight_dec_max_depth": 3,
}
ADAPTIVE = {"adaptive_input": True, "adaptive_softmax_cutoff": "10,20", "tie_adaptive_weights": True}


def config_of(changes=None, is_translation=True):
    options = options_of({"args": OPTIONS | (changes or {})}, is_translation)
    return config_from_options(options, 40, 40 if is_translation else None)


def test_translation_has_the_defaults_of_the_original(delight_weights):
    config = config_of({"delight_emb_max_groups": None})
    assert (config.num_encoder_layers, config.ffn_reduction, config.hidden_act) == (2, 4, "silu")
    assert (config.dropout, config.activation_dropout, config.dextra_dropout) == (0.1, 0.0, 0.1)
    assert not (config.share_embeddings or config.tie_word_embeddings or config.normalize_before)
    bare = config_from_options(options_of({"args": {"delight_dropout": 0.3}}, True), 40, 40)
    assert (bare.embedding_size, bare.hidden_size, bare.embedding_depth, bare.max_groups) == (128, 128, 4, 4)
    assert (bare.min_depth, bare.max_depth, bare.num_encoder_layers, bare.num_decoder_layers) == (4, 8, 8, 8)
    assert (bare.dextra_dropout, bare.max_position_embeddings, bare.source_vocab_size) == (0.3, 1024, None)


def test_language_model_has_the_defaults_of_the_original():
    bare = config_from_options(options_of({"args": {"delight_dropout": 0.3, "tokens_per_sample": 512}}, False), 40)
    assert (bare.embedding_size, bare.hidden_size, bare.max_position_embeddings) == (64, 128, 512)
    assert bare.normalize_before and bare.final_norm and not bare.is_encoder_decoder
    assert not config_of({"decoder_normalize_before": False, "no_decoder_final_norm": True}, False).final_norm
    assert config_of({"max_target_positions": 128, "tokens_per_sample": 512}, False).max_position_embeddings == 128


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"delight_enc_ffn_red": 2}, {"encoder_ffn_reduction": 2, "ffn_reduction": 4}),
        ({"delight_dec_max_groups": 4}, {"encoder_max_groups": 2, "max_groups": 4}),
        ({"delight_enc_width_mult": 1.5}, {"encoder_width_multiplier": 1.5, "width_multiplier": 2.0}),
        ({"encoder_normalize_before": True}, {"encoder_normalize_before": True, "normalize_before": False}),
        ({"encoder_learned_pos": True}, {"encoder_position_embedding_type": "learned"}),
        ({"max_source_positions": 9}, {"encoder_max_position_embeddings": 9, "max_position_embeddings": 1024}),
        ({"delight_enc_layers": 4}, {"num_encoder_layers": 4, "num_decoder_layers": 2}),
        ({"delight_dec_min_depth": 3}, {"max_depth": None, "encoder_min_depth": 2, "encoder_max_depth": 3}),
        (
            {"delight_enc_min_depth": 3, "delight_enc_scaling": "uniform"},
            {"min_depth": 2, "max_depth": 3, "encoder_min_depth": 3, "encoder_max_depth": None},
        ),
        ({"no_token_positional_embeddings": True}, {"position_embedding_type": "none"}),
        ({"glt_shuffle": False}, {"feature_shuffle": False}),
        ({"no_glt_shuffle": True}, {"feature_shuffle": False}),
        ({"no_scale_embedding": True}, {"scale_embedding": False}),
        ({"define_iclr": True}, {"dextra_layout": "define"}),
        ({"act_type": "sigmoid"}, {"hidden_act": "sigmoid"}),
        ({"pe_dropout": 0.2, "delight_emb_dropout": 0.3}, {"position_dropout": 0.2, "embedding_dropout": 0.3}),
    ],
)
def test_fields_of_options(changes, fields):
    expected = {name: value for name, value in config_of().to_dict().items() if name.startswith("encoder_")} | fields
    config = config_of(changes).to_dict()
    assert {name: config[name] for name in expected} == expected


def test_stacks_that_differ_in_everything_get_all_of_their_tensors(delight_weights):
    changes = {
        "delight_enc_min_depth": 4,
        "delight_enc_max_depth": 4,
        "delight_enc_scaling": "uniform",
        "delight_enc_max_groups": 8,
        "delight_enc_ffn_red": 8,
        "delight_enc_width_mult": 3.0,
        "encoder_normalize_before": True,
        "encoder_learned_pos": True,
        "max_source_positions": 12,
    }
    weights = delight_weights(OPTIONS | changes, 40, 50)
    model = convert_state_dict("delight", weights, {"args": OPTIONS | changes, "src_vocab": 50, "tgt_vocab": 40})
    assert isinstance(model, DeLighTForConditionalGeneration) and not model.training
    given = sum(tensor.double().sum().item() for name, tensor in weights.items() if not name.endswith("version"))
    assert sum(tensor.double().sum().item() for tensor in model.parameters()) == pytest.approx(given, abs=1e-5)
    assert [len(layer.dextra.layers) for layer in model.model.encoder.layers] == [4, 4]


@pytest.mark.parametrize(
    "hparams",
    [
        {"kind": "decoder-only language model", "args": OPTIONS, "tgt_vocab": 40},
        {"kind": "lm", "args": Namespace(**OPTIONS), "vocab": 40},
        {"args": OPTIONS, "vocab_size": "40", "pad_idx": 1},
        OPTIONS,
    ],
    ids=["golden", "namespace", "no kind", "options alone"],
)
def test_language_model_is_told_by_its_tensors(delight_weights, hparams):
    weights = {name: tensor.numpy() for name, tensor in delight_weights(OPTIONS, 40).items()}
    model = convert_state_dict("delight", weights, hparams)
    assert isinstance(model, DeLighTForCausalLM) and model.config.vocab_size == 40


@pytest.mark.parametrize("cutoffs", ["10,20", "[10, 20]", [10, 20], (10, 20, 40), ["10", "20"]])
def test_cutoffs_as_text_or_list(cutoffs):
    assert config_of(ADAPTIVE | {"adaptive_softmax_cutoff": cutoffs}, False).adaptive_cutoffs == [10, 20]


def test_half_precision_becomes_single(delight_weights):
    weights = {name: tensor.half() for name, tensor in delight_weights(OPTIONS, 40).items()}
    model = convert_state_dict("delight", weights, {"args": OPTIONS})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


TIED = OPTIONS | {"share_all_embeddings": True, "share_decoder_input_output_embed": True}


def test_tied_table_is_one(delight_weights):
    weights = delight_weights(TIED, 40, 40)
    model = convert_state_dict("delight", weights, {"args": TIED})
    table = model.get_output_embeddings().weight
    assert table is model.get_input_embeddings().weight is model.model.decoder.embeddings.embed_tokens.weight
    del weights["encoder.embed_tokens.map_layer.weight"]
    again = convert_state_dict("delight", weights, {"args": TIED})
    assert torch.equal(again.get_input_embeddings().weight, table)


def test_output_tied_to_the_targets_table_alone(delight_weights):
    options = OPTIONS | {"share_decoder_input_output_embed": True}
    weights = delight_weights(options, 40, 50)
    model = convert_state_dict("delight", weights, {"args": options})
    assert model.get_output_embeddings().weight is model.model.decoder.embeddings.embed_tokens.weight
    source_table = model.get_input_embeddings().weight
    assert torch.equal(source_table, weights["encoder.embed_tokens.map_layer.weight"]) and len(source_table) == 50


@pytest.mark.parametrize(
    ("options", "sizes", "name"),
    [
        (TIED, (40, 40), "encoder.embed_tokens.map_layer.weight"),
        (OPTIONS | ADAPTIVE, (40,), "decoder.adaptive_softmax.head.word_proj.weight"),
        (OPTIONS | ADAPTIVE, (40,), "decoder.adaptive_softmax.tail.1.2.weight"),
        (OPTIONS | ADAPTIVE | {"tie_adaptive_proj": True}, (40,), "decoder.adaptive_softmax.tail.0.0.weight"),
    ],
)
def test_tied_tensors_that_differ_are_refused(delight_weights, options, sizes, name):
    weights = delight_weights(options, *sizes)
    convert_state_dict("delight", weights, {"args": options})
    weights[name] = weights[name] + 1
    with pytest.raises(ValueError, match=rf"{name} and decoder\.embed_tokens\S+ are tied .* but differ"):
        convert_state_dict("delight", weights, {"args": options})


@pytest.mark.parametrize(
    ("changes", "is_translation", "message"),
    [
        ({"norm_type": "bn"}, True, "norm_type 'bn'.*not supported"),
        ({"act_type": "prelu"}, True, "act_type 'prelu' .only swish, relu"),
        ({"act_type": "leaky"}, False, "act_type 'leaky'"),
        ({"no_cross_attention": True}, True, "no_cross_attention is not supported"),
        (ADAPTIVE, True, "adaptive input or softmax in a translation model"),
        ({"adaptive_input": True}, False, "adaptive_input without adaptive_softmax_cutoff"),
        ({"adaptive_softmax_cutoff": "10,20"}, False, "adaptive_softmax_cutoff without adaptive_input"),
        (ADAPTIVE | {"no_scale_embedding": True}, False, "adaptive_input with no_scale_embedding"),
        (ADAPTIVE | {"adaptive_input_cutoff": "10,30"}, False, "cutoffs 10,30 .* only the same bands"),
        (ADAPTIVE | {"adaptive_input_factor": 4}, False, "the factor 4, .* only the same bands"),
        (ADAPTIVE | {"adaptive_softmax_factor": 1.5}, False, "a whole number, not 1.5"),
        (ADAPTIVE | {"adaptive_softmax_cutoff": "a,b"}, False, "whole numbers like '20000,60000', not 'a,b'"),
        (ADAPTIVE | {"adaptive_softmax_cutoff": "30,20"}, False, "adaptive_cutoffs.*must rise"),
        (ADAPTIVE | {"adaptive_softmax_cutoff": "10,50"}, False, "adaptive_cutoffs.*vocab_size.*40"),
        ({"delight_dec_scaling": "uniform"}, True, "delight_dec_scaling .* 'uniform' from 2 to 3"),
        ({"delight_enc_scaling": "linear"}, True, "delight_enc_scaling must be 'block'.*'linear'"),
        ({"delight_dec_min_depth": 1}, True, "min_depth.*at least 2, got 1"),
        ({"delight_enc_layers": 1}, True, "needs at least 2 blocks"),
        ({"delight_dec_max_groups": 3}, True, "a power of two.*got 3"),
        ({"delight_enc_ffn_red": 7}, True, "must divide"),
        ({"share_all_embeddings": True}, True, "needs `tie_word_embeddings`"),
    ],
)
def test_impossible_options_are_named(changes, is_translation, message):
    with pytest.raises(ValueError, match=message):
        config_of(changes, is_translation)


def test_all_tensors_that_do_not_fit_are_listed_at_once(delight_weights):
    weights = delight_weights(OPTIONS, 40, 40)
    del weights["encoder.layers.1.self_attn.linear_kqv.bias"]
    weights["decoder.layers.7.fc1.weights"] = torch.zeros(16, 64)
    weights["decoder.layers.0.fc1.weights"] = torch.zeros(8, 64)
    weights["encoder.layers.0.dextra_layer.dextra_layers.0.bias"] = torch.zeros(4, 1, 8)
    with pytest.raises(ValueError) as error:
        convert_state_dict("delight", weights, {"args": OPTIONS})
    message = str(error.value)
    assert "encoder.layers.1.self_attn.linear_kqv.bias is missing" in message
    assert "decoder.layers.7.fc1.weights has no place" in message
    assert "decoder.layers.0.fc1.weights is [8, 64], which gives [8, 64] instead of [16, 64]" in message
    assert "dextra_layers.0.bias is [4, 1, 8], which gives [4, 8] instead of [2, 16]" in message


def test_deeper_model_than_the_options_say_is_refused(delight_weights):
    weights = delight_weights(OPTIONS | {"delight_dec_max_depth": 4}, 40, 40)
    with pytest.raises(ValueError, match="decoder.layers.1.dextra_layer_sa.dextra_layers.3.weights has no place"):
        convert_state_dict("delight", weights, {"args": OPTIONS})


@pytest.mark.parametrize("name", ["src_vocab", "tgt_vocab"])
def test_vocabulary_that_does_not_fit_the_weights(delight_weights, name):
    stack = {"src_vocab": "encoder", "tgt_vocab": "decoder"}[name]
    message = f"the {stack} a vocabulary of 48, but its token table has 40 rows: a dictionary that does not fit"
    with pytest.raises(ValueError, match=message):
        convert_state_dict("delight", delight_weights(OPTIONS, 40, 40), {"args": OPTIONS, name: 48})


def test_token_table_must_be_there(delight_weights):
    weights = delight_weights(OPTIONS, 40)
    del weights["decoder.embed_tokens.map_layer.weight"]
    with pytest.raises(ValueError, match=r"decoder\.embed_tokens\.map_layer\.weight is missing"):
        convert_state_dict("delight", weights, {"args": OPTIONS})


def test_checkpoint_of_another_architecture_is_refused(delight_weights, reference_weights):
    anthe = {"d_model": 32, "heads": 4, "d_ff": 64, "layers": 1, "src_vocab": 40, "tgt_vocab": 40, "ref_string": ""}
    others = [
        ({"encoder.embed_tokens.weight": torch.zeros(40, 32), "decoder.layers.0.fc1.weight": torch.zeros(9, 32)}, 2),
        (reference_weights(anthe), len(reference_weights(anthe))),
        ({"a_unit.dextra_layers.0.weights": np.zeros((2, 16, 16))}, 1),
        ({}, 0),
    ]
    for weights, count in others:
        with pytest.raises(ValueError, match=f"not the tensors of a DeLighT model: none of the {count} belongs"):
            convert_state_dict("delight", weights, {"args": OPTIONS})
    with pytest.raises(ValueError, match="of an encoder-decoder, but no tensor belongs to an encoder"):
        convert_state_dict("delight", delight_weights(OPTIONS, 40), {"kind": "encoder-decoder", "args": OPTIONS})
    with pytest.raises(ValueError, match="none of the original's options .*delight_emb_out_dim"):
        convert_state_dict("delight", delight_weights(OPTIONS, 40), anthe)
    with pytest.raises(ValueError, match="lack ref_string"):
        convert_state_dict("anthe", delight_weights(OPTIONS, 40), {"args": OPTIONS})


def test_there_are_no_options_of_conversion():
    with pytest.raises(TypeError, match="allow_noncausal_gate"):
        convert_state_dict("delight", {}, {"args": OPTIONS}, allow_noncausal_gate=True)
