# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Anthe beside transformers' Marian of the same depth, width, heads, feed-forward size and vocabulary.

Marian is configured as the transformer that Anthe replaces: separate source and target tables and an untied output,
which is what the default Anthe has too. Both get the same random tokens, without padding, in float32 SDPA by default.
"""

from __future__ import annotations

from functools import partial

import translators
from registry import Settings
from transformers import AutoConfig, MarianConfig
from translators import Contender


def marian_like(config) -> MarianConfig:
    """Marian of Anthe's depth, width, heads, feed-forward size and vocabularies, with separate, untied tables."""
    return MarianConfig(
        vocab_size=config.source_vocab_size or config.vocab_size,
        decoder_vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        encoder_ffn_dim=config.intermediate_size,
        decoder_ffn_dim=config.intermediate_size,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        dropout=config.dropout,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        forced_eos_token_id=None,
        decoder_start_token_id=config.decoder_start_token_id,
    )


def contenders(settings: Settings) -> dict[str, Contender]:
    config = AutoConfig.from_pretrained(settings.preset)
    return {"anthe": Contender(config), "marian": Contender(marian_like(config))}


training = partial(translators.training, contenders)
generation = partial(translators.generation, contenders)
memory = partial(translators.memory, contenders)
