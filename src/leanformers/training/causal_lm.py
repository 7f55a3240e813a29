# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From text to a trained, measured language model in one folder: what scripts/train_clm.py does."""

from inspect import signature
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from leanformers.arguments import LanguageModelingDataArguments, LanguageModelTrainingArguments, ModelArguments
from leanformers.data.language_modeling import LaneSegments, TrainingBlocks, load_texts, tokenize_texts
from leanformers.data.tokenizers import train_language_tokenizer
from leanformers.evaluation.language_modeling import evaluation_windows
from leanformers.evaluation.loading import load_config, loading

from .carried_state import CarriedStateTrainer, check_carrying
from .checkpoints import ARGUMENTS_FILE
from .runs import (
    build_config,
    check_saved_model,
    complete_run,
    open_run,
    read_config,
    split_by_columns,
    write_arguments,
)
from .trainer import LanguageModelTrainer

logger = logging.get_logger(__name__)

# Of the positions that the model knows without a table: any number of tokens may stand in a block.
UNLIMITED_POSITIONS = ("sinusoidal", "none")


def train_language_model(
    model_arguments: ModelArguments,
    data_arguments: LanguageModelingDataArguments,
    training_arguments: LanguageModelTrainingArguments,
) -> dict[str, Any]:
    """Train, validate, test, and leave model, tokenizer, results and curves in `output_dir`.

    Returns:
        All results, as in `all_results.json`.

    Raises:
        TrainingInterrupted: On Ctrl-C or SIGTERM, after a checkpoint.
    """
    directory = Path(training_arguments.output_dir)
    checkpoint = open_run(training_arguments)
    with training_arguments.main_process_first(local=False):
        splits = load_texts(data_arguments)
        if "train" not in splits:
            raise ValueError("There is no text to train on: give --task stdlib, --dataset_name or --train_files.")
        train_texts = splits.pop("train")
        tokenizer = prepare_tokenizer(model_arguments, data_arguments, train_texts, directory)
        train_tokens = tokenize_texts(train_texts, tokenizer, data_arguments)
        num_lanes = training_arguments.eval_batch_size * training_arguments.world_size
        windows = evaluation_windows(splits, tokenizer, data_arguments, num_lanes=num_lanes)
    blocks = training_blocks(train_tokens, data_arguments, training_arguments)
    if training_arguments.should_save:
        write_arguments(directory / ARGUMENTS_FILE, model_arguments, data_arguments, training_arguments)

    set_seed(training_arguments.seed)
    model = prepare_model(model_arguments, tokenizer)
    check_fit(model, tokenizer, data_arguments, training_arguments)
    trainer_class = CarriedStateTrainer if data_arguments.carry_state else LanguageModelTrainer
    trainer = trainer_class(
        model=split_by_columns(model),
        args=training_arguments,
        tokenizer=tokenizer,
        train_dataset=blocks,
        eval_dataset=windows.get("validation"),
    )
    return complete_run(trainer, checkpoint, windows, "scripts/train_clm.py")


def training_blocks(
    tokens: Dataset, data_arguments: LanguageModelingDataArguments, training_arguments: LanguageModelTrainingArguments
) -> TrainingBlocks | LaneSegments:
    """What is trained on: blocks in random order, or with `carry_state` a lane for every row of a step."""
    block_size = data_arguments.block_size
    if not data_arguments.carry_state:
        return TrainingBlocks(tokens, block_size, data_arguments.pack_documents == "separate")
    num_lanes = training_arguments.train_batch_size * training_arguments.world_size
    lanes = LaneSegments.of_texts(tokens, block_size=block_size, num_lanes=num_lanes)
    if lanes.lane_length < block_size:
        raise ValueError(
            f"The training text has {len(lanes.tokens)} tokens, fewer than one block of block_size={block_size} for "
            f"each of the {num_lanes} rows of a step: take smaller blocks, fewer rows or more text."
        )
    return lanes


def prepare_tokenizer(
    model_arguments: ModelArguments,
    data_arguments: LanguageModelingDataArguments,
    texts: Dataset,
    directory: Path,
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, else that of the model, else that of the run, else a new one in `directory`.

    The first process to come trains it; any other finds it in the directory.
    """
    name = data_arguments.tokenizer_name or model_arguments.model_name_or_path
    if name:
        with loading(name):
            return AutoTokenizer.from_pretrained(name, trust_remote_code=model_arguments.trust_remote_code)
    if not (directory / "tokenizer_config.json").is_file():
        logger.warning(f"Training a {data_arguments.tokenizer_type} tokenizer on {len(texts)} documents.")
        tokenizer = train_language_tokenizer(
            texts["text"], data_arguments.tokenizer_type, data_arguments.tokenizer_vocab_size
        )
        tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def prepare_model(model_arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A saved model, or a new one of the named configuration with the tokenizer's vocabulary."""
    options = {
        "attn_implementation": model_arguments.attn_implementation,
        "trust_remote_code": model_arguments.trust_remote_code,
    }
    name = model_arguments.model_name_or_path
    if not name:
        config = prepare_config(model_arguments, tokenizer)
        _refuse_translator(config, model_arguments.config_name)
        return AutoModelForCausalLM.from_config(config, **options)
    check_saved_model(model_arguments)
    _refuse_translator(load_config(name, trust_remote_code=model_arguments.trust_remote_code), name)
    # A recipe's config_name gives way. Whatever it was saved in: half precision swallows small updates.
    with loading(name):
        return AutoModelForCausalLM.from_pretrained(name, dtype="float32", **options)


def prepare_config(model_arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of the JSON file with the tokenizer's size and special ids, and the overrides, which win."""
    config_class, settings = read_config(model_arguments)
    settings |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return build_config(config_class, settings, model_arguments)


def _refuse_translator(config: PreTrainedConfig, name: str | None) -> None:
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder, which is no language model: train it with scripts/train_seq2seq.py, or "
            "name a decoder."
        )


def check_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data_arguments: LanguageModelingDataArguments,
    training_arguments: LanguageModelTrainingArguments,
) -> None:
    """Refuse what the model cannot do before any time is spent on it."""
    config = model.config
    if data_arguments.carry_state:
        check_carrying(model, training_arguments)
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model's vocabulary only {config.vocab_size}: use the "
            "model's own tokenizer, or a model of that size."
        )
    longest = getattr(config, "max_position_embeddings", None)
    limited = getattr(config, "position_embedding_type", None) not in UNLIMITED_POSITIONS
    if limited and longest is not None and data_arguments.block_size > longest:
        raise ValueError(
            f"block_size={data_arguments.block_size} is more than the model's max_position_embeddings={longest}: take "
            "shorter blocks, or, for a new model, --config_overrides max_position_embeddings=..."
        )
    if data_arguments.pack_documents == "separate" and "position_ids" not in signature(model.forward).parameters:
        raise ValueError(
            f"{type(model).__name__} takes no position_ids, which keep packed documents apart: leave pack_documents "
            "at 'stream'."
        )
    check_selection(config, training_arguments)
    if training_arguments.label_smoothing_factor and getattr(config, "adaptive_cutoffs", None):
        raise ValueError(
            f"label_smoothing_factor={training_arguments.label_smoothing_factor} needs the probability of every word, "
            "which a model with adaptive_cutoffs does not compute in training: set it to 0."
        )


def check_selection(config: PreTrainedConfig, training_arguments: LanguageModelTrainingArguments) -> None:
    """Refuse what would be without effect on a model's selective attention."""
    steps = training_arguments.selection_warmup_steps
    if steps and not any(getattr(config, "selective_layers", ())):
        raise ValueError(
            f"selection_warmup_steps={steps} needs a model with selective attention, whose votes it lets grow: leave "
            "it out, or take a SelectiveAttn whose use_selective_attention is on."
        )
    if steps and not config.selection_strength:
        raise ValueError(
            f"selection_warmup_steps={steps} lets votes grow up to selection_strength, which is "
            f"{config.selection_strength} in this model: convert it with --selection-strength 1, or set that in its "
            "configuration."
        )
    smoothing = training_arguments.label_smoothing_factor
    if smoothing and getattr(config, "memory_loss_coef", 0):
        raise ValueError(
            f"label_smoothing_factor={smoothing} takes the labels from the model, which then computes no memory loss "
            f"(memory_loss_coef={config.memory_loss_coef}): set one of the two to 0."
        )
