# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a model is compared with is of its own shape: where ours without its saving exists, both are of one size."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from leanformers.accounting import macs
from leanformers.modeling.selective_attn import SelectiveAttnConfig
from leanformers.ordinary import ordinary_config, ordinary_model


def ours_and_ordinary(root, preset):
    config = AutoConfig.from_pretrained(root / f"configs/model/{preset}.json")
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        ours = auto_class.from_config(config)
    return ours, ordinary_model(ours)


@pytest.mark.parametrize(
    ("preset", "tolerance"),
    [
        ("selective_attn/small_plain", 0),
        ("selective_attn/100m", 0),
        ("fast_weight/small_softmax", 2e-3),  # without its biases
        ("anthe/transformer_base", 5e-4),  # with Marian's biases of projections
    ],
)
def test_parameters_are_those_of_ours_without_its_saving(preset, tolerance, root):
    ours, ordinary = ours_and_ordinary(root, preset)
    assert ordinary.num_parameters(only_trainable=True) == pytest.approx(ours.num_parameters(), rel=tolerance)


def test_heads_may_be_wider_than_the_width_has_room_for():
    """Heads of a width of their own, fewer of keys and values: both have the same, and no other parameters."""
    shape = {"hidden_size": 48, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 16}
    for heads in (5, 1):
        config = SelectiveAttnConfig(**shape | {"num_key_value_heads": heads}, vocab_size=50, num_hidden_layers=2)
        ours = AutoModelForCausalLM.from_config(config)
        assert ordinary_model(ours).num_parameters() == ours.num_parameters()


def test_tables_are_shared_as_ours_are(root):
    """Published with one table for source, target and output."""
    ours, ordinary = ours_and_ordinary(root, "delight/wmt14_en_de_512")
    assert ours.config.share_embeddings
    config = ordinary_config(ours)
    table = config.vocab_size * config.d_model
    layers = ordinary.num_parameters(only_trainable=True) - table
    assert 0 < layers < 60e6
    assert config.encoder_ffn_dim == 4 * ours.config.hidden_size


def test_what_is_counted_runs(root):
    ours, ordinary = ours_and_ordinary(root, "selective_attn/tiny")
    table = ordinary.config.vocab_size * ordinary.config.hidden_size
    assert macs(ordinary, 16) > 16 * (ordinary.num_parameters() - table)
