# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The original's integers: parameters of its published models and of their pieces, and sizes of their memories."""

import json

import pytest
import torch
from transformers import DynamicCache

from leanformers.accounting import count_parameters
from leanformers.modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM, FastWeightModel

VOCABULARY, CUTOFFS, LAYERS, HEADS, INNER = 267_735, [20_000, 40_000, 200_000], 16, 8, 2_048
# Preset -> parameters, parameters of the blocks, numbers in the memories of one sequence, and in its sums of keys.
PRESETS = {
    "wikitext103_small": (44_034_778, 9_496_576, 32_768, 0),
    "wikitext103_small_sum": (44_018_394, 9_480_192, 32_768, 2_048),
    "wikitext103_small_dpfp": (44_034_778, 9_496_576, 4 * 32_768, 0),
    "wikitext103_medium": (89_866_202, 21_057_536, 131_072, 0),
    "wikitext103_medium_sum": (89_833_434, 21_024_768, 131_072, 4_096),
    "wikitext103_medium_dpfp": (89_866_202, 21_057_536, 4 * 131_072, 0),
    "wikitext103_medium_full_context": (89_866_202, 21_057_536, 131_072, 0),
}


@pytest.fixture
def config_of(root):
    """A function from the name of a preset, and changes to it, to its configuration."""

    def read(preset: str, **changes) -> FastWeightConfig:
        path = root / "configs" / "model" / "fast_weight" / f"{preset}.json"
        return FastWeightConfig(**json.loads(path.read_text()) | changes)

    return read


@pytest.fixture
def build(config_of):
    """The same to the model on the meta device."""

    def create(preset: str) -> FastWeightForCausalLM:
        with torch.device("meta"):
            return FastWeightForCausalLM(config_of(preset))

    return create


@pytest.mark.parametrize("preset", PRESETS)
def test_totals(build, preset):
    model = build(preset)
    total, blocks, _, _ = PRESETS[preset]
    assert count_parameters(model) == total
    assert count_parameters(model.model.layers) == blocks
    assert (model.config.vocab_size, model.config.adaptive_cutoffs) == (VOCABULARY, CUTOFFS)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("small", 5_207_552), ("small_sum", 5_203_456), ("small_softmax", 5_203_456), ("100m", 100_262_400)],
)
def test_totals_of_the_presets_that_are_measured(build, preset, parameters):
    assert count_parameters(build(preset)) == parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_pieces(build, preset):
    model = build(preset)
    width, is_sum = model.config.hidden_size, preset.endswith("_sum")
    assert width == (128 if "small" in preset else 256)
    block = model.model.layers[0]
    pieces = {
        "attention": (block.attention, 4 * width**2 + (0 if is_sum else width * HEADS)),
        "mlp": (block.mlp, 2 * width * INNER + INNER + width),
        "attention_layer_norm": (block.attention_layer_norm, 2 * width),
        "mlp_layer_norm": (block.mlp_layer_norm, 2 * width),
        "model": (model.model, VOCABULARY * width + LAYERS * count_parameters(block)),
        "lm_head": (model.lm_head, VOCABULARY * width + VOCABULARY + len(CUTOFFS) * (width + 1)),
    }
    for name, (module, parameters) in pieces.items():
        assert count_parameters(module) == parameters, name
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.model.layer_norm is None


@pytest.mark.parametrize("preset", PRESETS)
def test_memories_are_as_large_as_published_for_any_length(config_of, preset):
    model = FastWeightModel(config_of(preset, vocab_size=10, adaptive_cutoffs=None, intermediate_size=8)).eval()
    for length in (1, 50):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long), past_key_values=cache)
        memories, sums = zip(*(layer.read() for layer in cache.layers), strict=True)
        assert sum(memory.numel() for memory in memories) == PRESETS[preset][2]
        assert sum(0 if one is None else one.numel() for one in sums) == PRESETS[preset][3]
        assert {memory.dtype for memory in memories} == {torch.float32}


@pytest.mark.parametrize("preset", PRESETS)
def test_published_sizes(config_of, preset):
    """Those of the paper's three scripts; the sum rule and DPFP change one option each."""
    config, is_small = config_of(preset), "small" in preset
    assert (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (16, 8, 2048)
    assert config.head_dim == (16 if is_small else 32)
    assert config.max_position_embeddings == (256 if is_small else 384)
    is_full_context = preset.endswith("full_context")
    assert config.position_embedding_type == ("none" if is_full_context else "sinusoidal_reversed")
    assert (config.norm_position, config.dropout, config.initializer_range) == ("post", 0.1, 0.02)
