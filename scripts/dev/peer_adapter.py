# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Our families for transformers' own tests; read by peer_suite.sh."""

from peersuite import Family

from leanformers.modeling.anthe import AntheConfig, AntheForSeq2SeqLM, AntheModel
from leanformers.modeling.delight import (
    DeLighTConfig,
    DeLighTForCausalLM,
    DeLighTForConditionalGeneration,
    DeLighTModel,
)
from leanformers.modeling.fast_weight import (
    FastWeightConfig,
    FastWeightForCausalLM,
    FastWeightForSequenceClassification,
    FastWeightModel,
)
from leanformers.modeling.selective_attn import (
    SelectiveAttnConfig,
    SelectiveAttnForCausalLM,
    SelectiveAttnForSequenceClassification,
    SelectiveAttnModel,
)

ANTHE_HEADS = {"base": AntheModel, "seq2seq_lm": AntheForSeq2SeqLM}
ANTHE_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

DELIGHT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "embedding_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "min_depth": 2,
    "max_depth": 3,
    "max_groups": 4,
    "embedding_max_groups": 4,
}
DELIGHT_HEADS = {"base": DeLighTModel, "seq2seq_lm": DeLighTForConditionalGeneration}
DELIGHT_LM = DELIGHT_SIZES | {"is_encoder_decoder": False, "normalize_before": True}
DELIGHT_LM_HEADS = {"base": DeLighTModel, "causal_lm": DeLighTForCausalLM}
DELIGHT_LM_SKIPS = {
    "test_*_padding_matches_padding_free_with_position_ids": "in bfloat16 it allows 1/128, half a unit in the last "
    "place of logits of size 3, which the original's initialisation gives; test_own_packed_sequences compares in "
    "float32",
}

FAST_WEIGHT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    # As in stock Llama: with dropout, gradients stay noisy on a batch that is learnt by heart.
    "dropout": 0.0,
    "activation_dropout": 0.0,
}
FAST_WEIGHT_HEADS = {
    "base": FastWeightModel,
    "causal_lm": FastWeightForCausalLM,
    "sequence_classification": FastWeightForSequenceClassification,
}

SELECTIVE_ATTN_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SELECTIVE_ATTN_HEADS = {
    "base": SelectiveAttnModel,
    "causal_lm": SelectiveAttnForCausalLM,
    "sequence_classification": SelectiveAttnForSequenceClassification,
}
SELECTIVE_ATTN_SKIPS = {
    "test_bc_cache_name_forward": "it wants a warning about the name `past_key_values`, the only one below 5.24; both "
    "are taken without, as tests/models checks",
}

ADAPTIVE_SKIPS = {
    "test_resize_*": "adaptive tables and softmax are cut for one vocabulary: resizing is refused, with the reason",
}
ADAPTIVE_TABLE_SKIPS = {
    "test_model_get_set_embeddings": "adaptive tables are several, and no nn.Embedding",
}


def attention_shapes(self, batch_size, seq_length, config):
    """KgV stores no keys of cross-attention (`seq_length` None), only one number a head in their place."""
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if seq_length is None:
        return (batch_size, heads, 1), (batch_size, heads, head_dim)
    return ((batch_size, heads, seq_length, head_dim),) * 2


def check_memories(self, batch_size, past_key_values, seq_length, config):
    """In place of keys and values as long as the text, one memory a block, which is not."""
    self.assertEqual(len(past_key_values), config.num_hidden_layers)
    for layer in past_key_values.layers:
        memory, _ = layer.read()
        self.assertEqual(memory.shape[:2], (batch_size, config.num_attention_heads))
        self.assertEqual(memory.shape[3], config.head_dim)


def check_left_padding(self):
    """The test of that name, which is skipped without attention weights, though padding matters to a memory, too."""
    self.has_attentions = True
    test = getattr(super(type(self), self), "test_left_padding_compatibility", None)
    if test is None:
        self.skipTest("it is among the tests of generation, which are not to be had")
    test()


MEMORY_OVERRIDES = {
    "_check_past_key_values_for_generate": check_memories,
    "test_left_padding_compatibility": check_left_padding,
}


def fast_weight(name, attrs=None, skip=None, **fields):
    """A model with memories."""
    return Family(
        name=name,
        config_class=FastWeightConfig,
        config_kwargs=FAST_WEIGHT_SIZES | fields,
        heads=FAST_WEIGHT_HEADS,
        test_attrs={"has_attentions": False} | (attrs or {}),
        test_overrides=MEMORY_OVERRIDES,
        skip=skip or {},
    )


FAMILIES = [
    Family(
        name="Anthe",
        config_class=AntheConfig,
        config_kwargs=ANTHE_SIZES | {"tc_attn_ratio": 0.5, "tc_ffn_ratio": 0.5},
        heads=ANTHE_HEADS,
        test_attrs={"encoder_left_padding": True},
        test_overrides={"_get_attention_shape": attention_shapes},
        skip={
            "test_inputs_embeds_matches_input_ids": "it embeds target ids with the source table; AntheTransformer, "
            "which has one table, passes it"
        },
    ),
    Family(
        name="AntheTransformer",
        config_class=AntheConfig,
        config_kwargs=ANTHE_SIZES
        | {
            "attention_gate": "none",
            "ffn_type": "relu",
            "position_embedding_type": "sinusoidal",
            "tc_attn_ratio": None,
            "tc_ffn_ratio": None,
            "share_embeddings": True,
            "tie_word_embeddings": True,
        },
        heads=ANTHE_HEADS,
        test_attrs={"encoder_left_padding": True},
    ),
    Family(
        name="DeLighT",
        config_class=DeLighTConfig,
        config_kwargs=DELIGHT_SIZES,
        heads=DELIGHT_HEADS,
        test_attrs={"encoder_left_padding": True},
        skip={
            "test_load_save_without_tied_weights": "one table for encoder and decoder is a tied weight, and the "
            "config says so; DeLighTPreNorm, which has two, passes it"
        },
    ),
    Family(
        name="DeLighTPreNorm",
        config_class=DeLighTConfig,
        config_kwargs=DELIGHT_SIZES | {"share_embeddings": False, "normalize_before": True, "max_depth": None},
        heads=DELIGHT_HEADS,
        test_attrs={"encoder_left_padding": True},
        skip={
            "test_inputs_embeds_matches_input_ids": "it embeds target ids with the source table; DeLighT, which has "
            "one table, passes it"
        },
    ),
    Family(
        name="DeLighTLM",
        config_class=DeLighTConfig,
        config_kwargs=DELIGHT_LM,
        heads=DELIGHT_LM_HEADS,
        skip=DELIGHT_LM_SKIPS,
    ),
    Family(
        name="DeLighTAdaptiveLM",
        config_class=DeLighTConfig,
        config_kwargs=DELIGHT_LM | {"adaptive_cutoffs": [20, 50]},
        heads=DELIGHT_LM_HEADS,
        skip=DELIGHT_LM_SKIPS | ADAPTIVE_SKIPS | ADAPTIVE_TABLE_SKIPS,
    ),
    fast_weight("FastWeight"),
    fast_weight(
        "FastWeightSum",
        skip={"test_init_weights_can_init_buffers": "the buffer is FAVOR+'s matrix, which is random"},
        update_rule="sum",
        attention_norm="output",
        feature_map="favor",
        favor_redraw=False,
        norm_position="post",
    ),
    fast_weight(
        "FastWeightAdaptive",
        skip=ADAPTIVE_SKIPS | {"test_model_get_set_embeddings": "the adaptive softmax is no nn.Linear"},
        adaptive_cutoffs=[20, 50],
        attention_norm="full",
        feature_map="elu_plus_one",
    ),
    Family(
        name="FastWeightSoftmax",
        config_class=FastWeightConfig,
        config_kwargs=FAST_WEIGHT_SIZES | {"update_rule": "softmax", "position_embedding_type": "sinusoidal"},
        heads=FAST_WEIGHT_HEADS,
        test_attrs={"training_overfit_steps": 400},
    ),
    Family(
        name="SelectiveAttn",
        config_class=SelectiveAttnConfig,
        config_kwargs=SELECTIVE_ATTN_SIZES,
        heads=SELECTIVE_ATTN_HEADS,
        skip=SELECTIVE_ATTN_SKIPS,
    ),
    Family(
        name="SelectiveAttnGQA",
        config_class=SelectiveAttnConfig,
        config_kwargs=SELECTIVE_ATTN_SIZES
        | {"num_key_value_heads": 2, "qk_norm": True}
        | dict.fromkeys(("attention_bias", "attention_output_bias", "mlp_bias"), True),
        heads=SELECTIVE_ATTN_HEADS,
        skip=SELECTIVE_ATTN_SKIPS,
    ),
    Family(
        name="SelectiveAttnPlain",
        config_class=SelectiveAttnConfig,
        config_kwargs=SELECTIVE_ATTN_SIZES | {"use_selective_attention": False},
        heads=SELECTIVE_ATTN_HEADS,
        skip=SELECTIVE_ATTN_SKIPS,
    ),
]
