# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From sentence pairs to a trained, measured translator in one folder: what scripts/train_seq2seq.py does."""

from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.utils import logging

from leanformers.arguments import ModelArguments, TranslationDataArguments, TranslationTrainingArguments
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.data.translation import load_translation, tokenize_translation
from leanformers.evaluation.loading import loading
from leanformers.evaluation.translation import load_translator

from .checkpoints import ARGUMENTS_FILE
from .runs import (
    build_config,
    check_saved_model,
    complete_run,
    config_fields,
    open_run,
    read_config,
    split_by_columns,
    write_arguments,
)
from .trainer import TranslationTrainer

logger = logging.get_logger(__name__)


def train_translation(
    model_arguments: ModelArguments,
    data_arguments: TranslationDataArguments,
    training_arguments: TranslationTrainingArguments,
) -> dict[str, Any]:
    """Train, validate, test, and leave model, tokenizers, results and curves in `output_dir`.

    Returns:
        All results, as in `all_results.json`.

    Raises:
        TrainingInterrupted: On Ctrl-C or SIGTERM, after a checkpoint.
    """
    directory = Path(training_arguments.output_dir)
    checkpoint = open_run(training_arguments)
    with training_arguments.main_process_first(local=False):
        splits = load_translation(data_arguments)
        tokenizers = prepare_tokenizers(model_arguments, data_arguments, splits, directory)
        splits = DatasetDict(
            {name: tokenize_translation(split, tokenizers, data_arguments, name) for name, split in splits.items()}
        )
    if "train" not in splits:
        raise ValueError("There is no training data: give --task numbers, --dataset_name or --train_files.")
    if training_arguments.should_save:
        write_arguments(directory / ARGUMENTS_FILE, model_arguments, data_arguments, training_arguments)

    set_seed(training_arguments.seed)
    trainer = TranslationTrainer(
        model=split_by_columns(prepare_model(model_arguments, data_arguments, tokenizers)),
        args=training_arguments,
        tokenizers=tokenizers,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
    )
    return complete_run(trainer, checkpoint, splits, "scripts/train_seq2seq.py")


def prepare_tokenizers(
    model_arguments: ModelArguments, data_arguments: TranslationDataArguments, splits: DatasetDict, directory: Path
) -> TranslationTokenizers:
    """The tokenizers that are named, else those of the model, else those of the run, else new ones in `directory`.

    The first process to come trains them; any other finds them in the directory.
    """
    name = data_arguments.tokenizer_name or model_arguments.model_name_or_path
    if name:
        with loading(name):
            return TranslationTokenizers.from_pretrained(name, trust_remote_code=model_arguments.trust_remote_code)
    if not (directory / "tokenizer_config.json").is_file():
        logger.warning(f"Training {data_arguments.tokenizer_type} tokenizers on {len(splits['train'])} pairs.")
        tokenizers = TranslationTokenizers.train(
            splits["train"]["source"],
            splits["train"]["target"],
            kind=data_arguments.tokenizer_type,
            vocab_size=data_arguments.tokenizer_vocab_size,
            shared=data_arguments.shared_tokenizer,
        )
        tokenizers.save_pretrained(directory)
    return TranslationTokenizers.from_pretrained(directory)


def prepare_model(
    model_arguments: ModelArguments, data_arguments: TranslationDataArguments, tokenizers: TranslationTokenizers
) -> PreTrainedModel:
    """A saved model, or a new one of the named configuration with the tokenizers' vocabularies."""
    options = {"attn_implementation": model_arguments.attn_implementation}
    if not model_arguments.model_name_or_path:
        model = AutoModelForSeq2SeqLM.from_config(prepare_config(model_arguments, tokenizers), **options)
    else:
        check_saved_model(model_arguments)
        # A recipe's config_name gives way. Whatever it was saved in: half precision swallows small updates.
        model, _ = load_translator(
            model_arguments.model_name_or_path,
            trust_remote_code=model_arguments.trust_remote_code,
            dtype="float32",
            **options,
        )
    check_vocabulary(model.config, tokenizers)
    # What generate() uses from now on, in place of transformers' 20 tokens; the decoder's start token counts.
    model.generation_config.max_length = data_arguments.max_target_length + 1
    return model


def prepare_config(model_arguments: ModelArguments, tokenizers: TranslationTokenizers) -> PreTrainedConfig:
    """The configuration of the JSON file with the tokenizers' sizes and special ids, and the overrides, which win."""
    config_class, settings = read_config(model_arguments)
    settings |= {
        "vocab_size": tokenizers.target_vocab_size,
        "pad_token_id": tokenizers.target.pad_token_id,
        "bos_token_id": tokenizers.target.bos_token_id,
        "eos_token_id": tokenizers.target.eos_token_id,
        "decoder_start_token_id": tokenizers.target.bos_token_id,
    }
    if "source_vocab_size" in config_fields(config_class):
        settings["source_vocab_size"] = None if tokenizers.shared else tokenizers.source_vocab_size
    config = build_config(config_class, settings, model_arguments)
    if getattr(config, "share_embeddings", False) and not tokenizers.shared:
        raise ValueError(
            "share_embeddings gives source and target one token table, but there are two tokenizers, whose ids mean "
            "different things: train with --shared_tokenizer true, or set share_embeddings=false in config_overrides."
        )
    return config


def check_vocabulary(config: PreTrainedConfig, tokenizers: TranslationTokenizers) -> None:
    """Refuse a model whose embeddings have no row for some token: on a GPU that would be an assertion in a kernel."""
    sizes = {
        "source": (getattr(config, "source_vocab_size", None) or config.vocab_size, tokenizers.source_vocab_size),
        "target": (config.vocab_size, tokenizers.target_vocab_size),
    }
    for side, (rows, needed) in sizes.items():
        if rows < needed:
            raise ValueError(
                f"The {side} tokenizer has {needed} tokens, but the model's vocabulary only {rows}: use the "
                "model's own tokenizers, or a model of that size."
            )
