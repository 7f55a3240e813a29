# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""SelectiveAttn: the equivalences of language models with and without budgets, and what only votes have."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models.causal_lm_suite import CausalLMSuite
from models.suite import FIRST_WORD, loss_and_gradients, pad, perturb
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed

from leanformers.accounting import cache_bytes
from leanformers.modeling.selective_attn import (
    SelectiveAttnConfig,
    SelectiveAttnForCausalLM,
    SelectiveAttnForSequenceClassification,
    SelectiveAttnModel,
    attention_layer,
)
from numerics import assert_close

VOCAB_SIZE = 60
PLAIN = {"use_selective_attention": False}
GROUPED = {
    "num_key_value_heads": 2,
    "qk_norm": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "selection_head": 3,
    "tie_word_embeddings": False,
}
LEARNED = {"position_embedding_type": "learned", "max_position_embeddings": 64, "protect_self": False}
WINDOW = {"sliding_window": 4}
CONFIGS = {
    "default": {},
    "grouped": GROUPED,
    "learned": LEARNED,
    "mixed": {"use_selective_attention": [True, False], "protect_start": False},
    "window": WINDOW,
    "mixed_window": {"use_selective_attention": [False, True], "sliding_window": 5},
    "plain": PLAIN,
}
BUDGETS = {
    "small": {"memory_budgets": 3},
    "of_each_layer": {"memory_budgets": [2, 5], **GROUPED},
    "window": {"memory_budgets": [3, 4], "sliding_window": 5, "protect_start": False},
    "learned": {"memory_budgets": 4, **LEARNED},
}


def small_config(**fields) -> SelectiveAttnConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return SelectiveAttnConfig(**{**sizes, "intermediate_size": 48, **fields})


def small_model(model_class: type = SelectiveAttnForCausalLM, implementation: str = "sdpa", **fields):
    set_seed(0)
    model = model_class._from_config(small_config(**fields), attn_implementation=implementation)
    perturb(model, 0.3)  # so that votes weigh
    return model.eval()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCAB_SIZE, shape)


def cache_of(model, ids: torch.Tensor, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, **inputs).past_key_values


class TestSelectiveAttnForCausalLM(CausalLMSuite):
    config_class, base_model_class = SelectiveAttnConfig, SelectiveAttnModel
    model_class = SelectiveAttnForCausalLM
    metadata_fields = {"bos_token_id": "what `generate` starts with when it is given no prompt"}
    field_changes = {
        "vocab_size": ({}, 64),
        "hidden_size": ({}, 64),
        "intermediate_size": ({}, 32),
        "num_hidden_layers": ({}, 3),
        "num_attention_heads": ({}, 2),
        "num_key_value_heads": ({}, 2),
        "head_dim": ({}, 4),
        "hidden_act": ({}, "gelu"),
        "use_selective_attention": ({}, [True, False]),
        "selection_head": ({}, 1),
        "protect_start": ({}, False),
        "protect_self": ({}, False),
        "selection_strength": ({}, 0.5),
        "memory_budgets": ({}, [3, 4]),
        "prune_prompt": ({"memory_budgets": 3}, "lazy"),
        "memory_loss_coef": ({}, 0.1),
        "memory_loss_tau": ({"memory_loss_coef": 0.1}, 0.5),
        "position_embedding_type": ({}, "learned"),
        "rope_parameters": ({}, {"rope_type": "default", "rope_theta": 100.0}),
        "max_position_embeddings": ({"position_embedding_type": "learned"}, 64),
        "sliding_window": ({}, 3),
        "qk_norm": ({}, True),
        "attention_bias": ({}, True),
        "attention_output_bias": ({}, True),
        "mlp_bias": ({}, True),
        "attention_dropout": ({}, 0.3),
        "rms_norm_eps": ({}, 1e-2),
        "initializer_range": ({}, 0.1),
        "tie_word_embeddings": ({}, False),
        "use_cache": ({}, False),
        "pad_token_id": ({}, 5),
        "eos_token_id": ({}, list(range(VOCAB_SIZE))),
    }
    fixed_buffers = ("inv_freq",)
    configs = CONFIGS

    def pytest_generate_tests(self, metafunc):
        super().pytest_generate_tests(metafunc)
        if "config" in metafunc.fixturenames:
            metafunc.parametrize("config", self.configs.values(), ids=self.configs, indirect=True)

    @pytest.fixture
    def config(self, request) -> SelectiveAttnConfig:
        return small_config(**request.param)

    def small_config(self, **fields) -> SelectiveAttnConfig:
        return small_config(**fields)

    def visible(self, config, mask):
        seen = super().visible(config, mask)
        return seen if config.sliding_window is None else seen.triu(1 - config.sliding_window)

    def test_gradient_checkpointing_leaves_the_cache_alone(self, model, config, rows):
        with pytest.raises(ValueError, match="cannot carry `past_key_values`"):
            super().test_gradient_checkpointing_leaves_the_cache_alone(model, config, rows)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("chunks", [[1] * 10, [7, 1, 1, 1], [3, 2, 5], [1, 9]], ids=str)
    def test_cached_chunks_equal_the_whole(self, model, config, rows, chunks, side):
        if config.sliding_window is not None and not all(config.selective_layers) and side == "right":
            pytest.skip("the window of transformers' own attention counts padding in the middle as tokens")
        super().test_cached_chunks_equal_the_whole(model, config, rows, chunks, side)
