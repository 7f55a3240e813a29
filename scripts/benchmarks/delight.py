# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DeLighT beside transformers' Marian at the widths of Transformer-base, whatever DeLighT's own width is.

Both have one vocabulary with one table for source, target and output, and static sinusoids. Generation is measured as
it is after long use: DeLighT then looks up what its embeddings make of each token, at the price of two tables, which
the peak memory contains.
"""

from __future__ import annotations

from functools import partial

import torch
import translators
from registry import Settings
from transformers import AutoConfig, MarianConfig, PreTrainedModel
from translators import Contender

ROWS_AT_ONCE = 4096


def transformer_base(config) -> MarianConfig:
    """Six and six layers of width 512, with DeLighT's vocabulary and special ids."""
    return MarianConfig(
        vocab_size=config.vocab_size,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.1,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        forced_eos_token_id=None,
        decoder_start_token_id=config.decoder_start_token_id,
    )


@torch.no_grad()
def embed_the_vocabulary(model: PreTrainedModel) -> None:
    """From then on the embeddings are looked up in a table."""
    ids = torch.arange(model.config.vocab_size, device=model.device)[None]
    for stack in (model.model.encoder, model.model.decoder):
        for some in ids.split(ROWS_AT_ONCE, dim=1):
            stack.embeddings(some, None, torch.zeros_like(some))


def contenders(settings: Settings) -> dict[str, Contender]:
    config = AutoConfig.from_pretrained(settings.preset)
    return {"delight": Contender(config, embed_the_vocabulary), "marian": Contender(transformer_base(config))}


training = partial(translators.training, contenders)
generation = partial(translators.generation, contenders)
memory = partial(translators.memory, contenders)
