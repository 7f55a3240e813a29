# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The ordinary transformer in whose place a model stands, of transformers' own classes: beside it a model is lean."""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    MarianConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

FFN_RATIO = 4  # of the width, where a configuration has no such layer of its own
SHARED = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


def ordinary_model(model: PreTrainedModel) -> PreTrainedModel:
    """The ordinary transformer beside `model` (`ordinary_config`), to count with: its weights are arbitrary."""
    config = ordinary_config(model)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        ordinary = auto_class.from_config(config)
    ordinary.to_empty(device="cpu")
    ordinary.tie_weights()  # which `to_empty` parted
    return ordinary


def ordinary_config(model: PreTrainedModel) -> PreTrainedConfig:
    """
    Marian's configuration for an encoder-decoder, Mistral's for a decoder, with the model's vocabulary, width, depth,
    tables and feed-forward size (4 times the width where the model's layers have none). Mistral without a window is a
    Llama whose heads may have a width of their own.

    Its gated feed-forward layer has three matrices. Where the model's has two, it gets two thirds of the size, so
    that it has as many parameters ([Shazeer 2020](https://arxiv.org/abs/2002.05202)).
    """
    common = {name: getattr(model.config, name) for name in SHARED}
    build = _translator if model.config.is_encoder_decoder else _language_model
    return build(model, common)


def _translator(model: PreTrainedModel, common: dict) -> MarianConfig:
    config, size = model.config, _intermediate_size(model.config)
    return MarianConfig(
        **common,
        vocab_size=config.source_vocab_size or config.vocab_size,
        decoder_vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        encoder_ffn_dim=size,
        decoder_ffn_dim=size,
        share_encoder_decoder_embeddings=getattr(config, "share_embeddings", False),
        decoder_start_token_id=config.decoder_start_token_id,
        forced_eos_token_id=None,
    )


def _language_model(model: PreTrainedModel, common: dict) -> MistralConfig:
    config, size = model.config, _intermediate_size(model.config)
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    return MistralConfig(
        **common,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=size if is_gated else round(size * 2 / 3),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
        sliding_window=None,
        # Only where it can be chosen: DeLighT's narrow head is what it saves.
        head_dim=config.to_dict().get("head_dim"),
    )


def _intermediate_size(config: PreTrainedConfig) -> int:
    return getattr(config, "intermediate_size", None) or FFN_RATIO * config.hidden_size
