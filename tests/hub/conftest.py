# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tiny models of every kind, each exported once; one of Anthe stands for what is the same for all."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from leanformers import FAMILIES, get_family
from leanformers.data.tokenizers import TranslationTokenizers, train_language_tokenizer
from leanformers.hub.export import export
from leanformers.modeling.anthe import AntheConfig, AntheForSeq2SeqLM
from leanformers.modeling.delight import DeLighTConfig, DeLighTForCausalLM, DeLighTForConditionalGeneration
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM
from leanformers.registry import language_model_class

DELIGHT = {"hidden_size": 64, "embedding_size": 16, "num_decoder_layers": 2, "min_depth": 2, "max_depth": 3}


@pytest.fixture(scope="session")
def tokenizers() -> TranslationTokenizers:
    lines = [["a man rides a bicycle", "two dogs run"], ["ein Mann fährt Fahrrad", "zwei Hunde rennen"]]
    return TranslationTokenizers.train(*lines, kind="bpe", vocab_size=272, shared=False)


@pytest.fixture(scope="session")
def language_tokenizer() -> TranslationTokenizers:
    one = train_language_tokenizer(["def main():\n    return 0", "for name in names:\n    print(name)"], "bpe", 272)
    return TranslationTokenizers(one, one)


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


def delight_translator(tokenizers: TranslationTokenizers) -> DeLighTForConditionalGeneration:
    sizes = {"vocab_size": tokenizers.target_vocab_size, "source_vocab_size": tokenizers.source_vocab_size}
    special_ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    options = {"num_encoder_layers": 2, "share_embeddings": False}
    return DeLighTForConditionalGeneration(DeLighTConfig(**DELIGHT, **special_ids, **sizes, **options))


def delight_language_model(tokenizers: TranslationTokenizers) -> DeLighTForCausalLM:
    """With adaptive tables and softmax: of all heads, theirs differs most from others."""
    sizes = {"vocab_size": tokenizers.target_vocab_size, "adaptive_cutoffs": [20, 100]}
    options = {"is_encoder_decoder": False, "normalize_before": True, "bos_token_id": 2, "eos_token_id": 2}
    return DeLighTForCausalLM(DeLighTConfig(**DELIGHT, **sizes, **options, pad_token_id=0))


def language_model_of_preset(name: str, tokenizers: TranslationTokenizers) -> PreTrainedModel:
    """As the preset `tiny` of that family is, with the tokenizer's vocabulary."""
    preset = Path(__file__).resolve().parents[2] / f"configs/model/{name}/tiny.json"
    special_ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    config = AutoConfig.from_pretrained(preset, vocab_size=tokenizers.target_vocab_size, **special_ids)
    return get_family(name).model_class("AutoModelForCausalLM")(config)


def selective_language_model(tokenizers: TranslationTokenizers) -> SelectiveAttnForCausalLM:
    """With a budget smaller than any text, so that what is shipped is what prunes."""
    sizes = {"vocab_size": tokenizers.target_vocab_size, "hidden_size": 32, "intermediate_size": 48}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "memory_budgets": [3, 4]}
    special_ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    return SelectiveAttnForCausalLM(SelectiveAttnConfig(**sizes, **depth, **special_ids))


MODELS = {
    "anthe": tiny_model,
    "delight": delight_translator,
    "delight_lm": delight_language_model,
    "selective_attn_lm": selective_language_model,
}
# A translator of another family has to be written here.
MODELS |= {
    f"{name}_lm": partial(language_model_of_preset, name)
    for name in FAMILIES
    if not MODELS.keys() & {name, f"{name}_lm"}
}
RESULTS = {
    "AutoModelForSeq2SeqLM": {"test_bleu": 1.5, "test_bleu_signature": "nrefs:1", "eval_perplexity": 3.25},
    "AutoModelForCausalLM": {"test_perplexity": 3.25, "test_perplexity_per_word": 20.5},
}


@pytest.fixture
def model(tokenizers: TranslationTokenizers) -> AntheForSeq2SeqLM:
    return tiny_model(tokenizers)


@pytest.fixture
def language_model(language_tokenizer: TranslationTokenizers) -> DeLighTForCausalLM:
    torch.manual_seed(0)
    return delight_language_model(language_tokenizer)


def export_tiny(model: PreTrainedModel, tokenizers: TranslationTokenizers, folder: Path) -> Path:
    translates = model.config.is_encoder_decoder
    return export(
        model,
        tokenizers.source,
        folder,
        target_tokenizer=tokenizers.target,
        metrics=RESULTS[language_model_class(model.config)],
        training_log=[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}],
        arguments={"source_lang": "en", "target_lang": "de"} if translates else {"task": "stdlib"},
        check=False,
    )


@pytest.fixture(scope="session")
def exported(tokenizers: TranslationTokenizers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Hub folder that no test may change."""
    return export_tiny(tiny_model(tokenizers), tokenizers, tmp_path_factory.mktemp("exported") / "anthe-tiny")


@pytest.fixture(scope="session", params=MODELS)
def exported_of_each_kind(request, tokenizers, language_tokenizer, tmp_path_factory) -> Path:
    """The same of every model."""
    torch.manual_seed(0)
    fitting = language_tokenizer if request.param.endswith("_lm") else tokenizers
    return export_tiny(MODELS[request.param](fitting), fitting, tmp_path_factory.mktemp("each") / request.param)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(exported, tmp_path / "folder"))
