# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One tiny model, exported once."""

import shutil
from pathlib import Path

import pytest
import torch

from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.hub.export import export
from leanformers.modeling.anthe import AntheConfig, AntheForSeq2SeqLM


@pytest.fixture(scope="session")
def tokenizers() -> TranslationTokenizers:
    lines = [["a man rides a bicycle", "two dogs run"], ["ein Mann fährt Fahrrad", "zwei Hunde rennen"]]
    return TranslationTokenizers.train(*lines, kind="bpe", vocab_size=272, shared=False)


def tiny_model(tokenizers: TranslationTokenizers, **changes) -> AntheForSeq2SeqLM:
    torch.manual_seed(0)
    config = AntheConfig(
        vocab_size=tokenizers.target_vocab_size,
        source_vocab_size=tokenizers.source_vocab_size,
        **{
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "tc_attn_ratio": 0.5,
            "tc_ffn_ratio": 0.5,
        }
        | changes,
    )
    return AntheForSeq2SeqLM(config).eval()


@pytest.fixture
def model(tokenizers: TranslationTokenizers) -> AntheForSeq2SeqLM:
    return tiny_model(tokenizers)


@pytest.fixture(scope="session")
def exported(tokenizers: TranslationTokenizers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Hub folder that no test may change."""
    return export(
        tiny_model(tokenizers),
        tokenizers.source,
        tmp_path_factory.mktemp("exported") / "anthe-tiny",
        target_tokenizer=tokenizers.target,
        metrics={"test_bleu": 1.5, "test_bleu_signature": "nrefs:1", "eval_perplexity": 3.25},
        training_log=[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}],
        arguments={"source_lang": "en", "target_lang": "de"},
        check=False,
    )


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(exported, tmp_path / "folder"))
