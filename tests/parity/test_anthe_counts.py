# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The original's integers: factors and bonds of its tensor chains, and the parameter counts of its Keras models."""

import pytest
import torch

from leanformers.accounting import count_parameters, parameter_table
from leanformers.conversion.anthe import config_from_hparams
from leanformers.modeling.anthe import AntheForSeq2SeqLM
from leanformers.modeling.anthe.tensor_chain import TensorChainLinear, factorize

GATED = "geglu_gateattention:kqv_hsoftpos:2"
ANTHE = f"{GATED}_tcffn:.005_tcpreatt:.07_tclength:2"


def build(ref_string: str) -> AntheForSeq2SeqLM:
    sizes = {"d_model": 512, "heads": 8, "d_ff": 2048, "layers": "6+6", "src_vocab": 32000, "tgt_vocab": 32000}
    with torch.device("meta"):
        return AntheForSeq2SeqLM(config_from_hparams({"ref_string": ref_string, **sizes}))


@pytest.mark.parametrize(
    ("ref_string", "total"),
    [
        ("sameemb_projectoutput", 60_522_496),
        ("sameemb", 76_938_496),
        ("", 93_322_496),
        ("gateattention:kqv", 93_322_496),
        ("geglu", 93_324_536),
        ("hsoftpos:2", 68_910_592),
        (GATED, 68_912_632),
        (f"{GATED}_tcffn:.1_tclength:2", 46_226_296),
        (f"{GATED}_tcemb:.2_tclength:2", 62_353_912),
        (ANTHE, 30_695_032),
        (f"{ANTHE}_sameemb", 26_516_984),
    ],
)
def test_total(ref_string, total):
    model = build(ref_string)
    assert count_parameters(model) == total
    assert parameter_table(model).total == total


@pytest.mark.parametrize(
    ("ref_string", "encoder_layer", "decoder_layer"),
    [
        ("sameemb_projectoutput", 3_152_384, 4_204_032),
        ("gateattention:kqv", 3_152_384, 4_204_032),
        ("geglu", 3_152_554, 4_204_202),
        ("hsoftpos:2", 3_152_384, 4_204_032),
        (GATED, 3_152_554, 4_204_202),
        (f"{GATED}_tcffn:.1_tclength:2", 1_262_026, 2_313_674),
        (ANTHE, 334_090, 653_066),
    ],
)
def test_layers(ref_string, encoder_layer, decoder_layer):
    model = build(ref_string)
    assert {count_parameters(layer) for layer in model.model.encoder.layers} == {encoder_layer}
    assert {count_parameters(layer) for layer in model.model.decoder.layers} == {decoder_layer}


def test_where_the_parameters_of_anthe_are():
    rows = parameter_table(build(ANTHE)).rows
    in_layers = sum(amount for group, amount in rows.items() if ".layers." in group and "embed" not in group)
    assert in_layers == 5_922_936
    assert rows["lm_head"] == 16_416_000
    assert sum(rows.values()) - in_layers - rows["lm_head"] == 2 * 4_178_048


@pytest.mark.parametrize(
    ("length", "size", "factors"),
    [
        (2, 512, (32, 16)),
        (2, 1365, (39, 35)),
        (2, 2048, (32, 64)),
        (2, 32000, (80, 400)),
        (2, 128, (8, 16)),
        (2, 384, (24, 16)),
        (2, 30, (6, 5)),
        (3, 512, (16, 2, 16)),
        (3, 1365, (3, 35, 13)),
        (3, 2048, (32, 2, 32)),
        (3, 96, (4, 3, 8)),
        (3, 32000, (16, 125, 16)),
        (3, 3, (1, 3, 1)),
        (3, 14, (2, 7, 1)),
        (3, 30, (3, 2, 5)),
        (3, 15, (3, 1, 5)),
        (4, 512, (8, 4, 4, 4)),
        (4, 6, (2, 1, 1, 3)),
        (4, 30, (2, 1, 3, 5)),
    ],
)
def test_factors(length, size, factors):
    assert factorize(size, length) == factors


@pytest.mark.parametrize(
    ("sizes", "ratio", "bond"),
    [((512, 512), 0.07, 14), ((512, 1365), 0.005, 2), ((1365, 512), 0.005, 2), ((512, 1365), 0.1, 38)],
)
def test_bonds(sizes, ratio, bond):
    with torch.device("meta"):
        assert TensorChainLinear(*sizes, ratio, length=2).bond_dim == bond
