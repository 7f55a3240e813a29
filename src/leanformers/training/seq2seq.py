# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From sentence pairs to a trained, measured translator in one folder: what scripts/train_seq2seq.py does."""

import json
import os
import platform
from dataclasses import asdict, fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.utils import logging

from leanformers.accounting import count_parameters
from leanformers.arguments import (
    ModelArguments,
    TranslationDataArguments,
    TranslationTrainingArguments,
    nearest,
)
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.data.translation import load_translation, tokenize_translation
from leanformers.evaluation.loading import loading
from leanformers.evaluation.translation import load_translator

from .callbacks import CurvesCallback, InterruptCallback
from .checkpoints import ARGUMENTS_FILE, last_whole_checkpoint, prepare_output_dir, saving
from .trainer import TranslationTrainer

logger = logging.get_logger(__name__)

PACKAGES = ("leanformers", "torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu")


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside and can go on; `exit_code` is the one a shell expects."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


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
    with training_arguments.main_process_first(local=False):
        if training_arguments.should_save:
            prepare_output_dir(
                directory, resume=training_arguments.resume, overwrite=training_arguments.overwrite_output_dir
            )
    checkpoint = training_arguments.resume_from_checkpoint
    if training_arguments.resume:
        checkpoint = str(last_whole_checkpoint(directory))
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
    model = prepare_model(model_arguments, data_arguments, tokenizers)
    interrupt = InterruptCallback()
    trainer = TranslationTrainer(
        model=model,
        args=training_arguments,
        tokenizers=tokenizers,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        callbacks=[interrupt, CurvesCallback()],
    )
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.signal:
        raise TrainingInterrupted(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; nothing is lost. Go on with: "
            f"python scripts/train_seq2seq.py {directory / ARGUMENTS_FILE} --resume",
            exit_code=128 + interrupt.signal,
        )
    save_run(trainer, directory)
    return measure(trainer, splits, output.metrics)


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
        if model_arguments.config_overrides:
            raise ValueError(f"{model_arguments.model_name_or_path} is a saved model: it takes no config_overrides.")
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
    if not model_arguments.config_name:
        raise ValueError("Name the model: --config_name for a new one, --model_name_or_path for a saved one.")
    path = Path(model_arguments.config_name)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"The model configuration {path} cannot be read: {error}.") from error
    overrides = model_arguments.config_overrides or {}
    config_class = type(AutoConfig.for_model(settings.pop("model_type")))
    names = {entry.name for entry in fields(config_class)} | set(config_class.attribute_map)
    for key in overrides:
        if key not in names:
            raise ValueError(f"{config_class.__name__} has no {key!r}; did you mean {nearest(key, names)!r}?")
    settings |= {
        "vocab_size": tokenizers.target_vocab_size,
        "pad_token_id": tokenizers.target.pad_token_id,
        "bos_token_id": tokenizers.target.bos_token_id,
        "eos_token_id": tokenizers.target.eos_token_id,
        "decoder_start_token_id": tokenizers.target.bos_token_id,
    }
    if "source_vocab_size" in names:
        settings["source_vocab_size"] = None if tokenizers.shared else tokenizers.source_vocab_size
    try:
        return config_class(**settings | overrides)
    except (StrictDataclassError, ValueError) as error:
        # The cause of a strict dataclass' error is the sentence; the error itself names the validator before it.
        reason = " ".join(str(error.__cause__ or error).split())
        origin = f"{path} with overrides {overrides}" if overrides else path
        raise ValueError(f"{origin}: {reason}") from error


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


def write_arguments(path: Path, *arguments: Any) -> None:
    """All arguments in effect, in a file that the script takes in place of a recipe."""
    # `resume` and `overwrite_output_dir` belong to one call, the rest is no flag's value or a secret.
    left_out = {"resume", "resume_from_checkpoint", "overwrite_output_dir", "hub_token", "local_rank"}
    values = {
        entry.name: getattr(group, entry.name)
        for group in arguments
        for entry in fields(group)
        if entry.init and entry.name not in left_out
    }
    plain = {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
    kept = {key: value for key, value in plain.items() if value is not None and value != []}
    path.write_text(yaml.safe_dump(json.loads(json.dumps(kept, default=_to_plain)), sort_keys=False), encoding="utf-8")


def save_run(trainer: TranslationTrainer, directory: Path) -> None:
    """The model and its tokenizers, ready for `from_pretrained`, and the log of the training."""
    with saving(directory, remove=False):
        trainer.save_model()
        trainer.save_state()
    # A pickle, which nothing reads and a Hub repository should not hold; arguments.yaml says the same.
    if trainer.is_world_process_zero():
        (directory / "training_args.bin").unlink(missing_ok=True)


def measure(trainer: TranslationTrainer, splits: DatasetDict, train_metrics: dict[str, float]) -> dict[str, Any]:
    """Evaluate on validation and every test set, and write and return all results."""
    results: dict[str, dict[str, Any]] = {
        "train": train_metrics
        | {
            "num_parameters": count_parameters(trainer.model),
            "num_processes": trainer.args.world_size,
            "seed": trainer.args.seed,
            "device": str(trainer.args.device),
            "hardware": describe_hardware(),
            "versions": {"python": platform.python_version()} | installed_versions(),
        }
    }
    if "validation" in splits:
        results["eval"] = trainer.evaluate(splits["validation"]) | trainer.signatures
    tests = [name for name in splits if name.startswith("test")]
    for name in tests:
        metrics = trainer.evaluate(splits[name], metric_key_prefix=name)
        results["test"] = results.get("test", {}) | metrics | trainer.signatures
    for split, metrics in results.items():
        trainer.log_metrics(split, {key: value for key, value in metrics.items() if not isinstance(value, dict)})
        trainer.save_metrics(split, metrics)
    trainer.save_state()
    return {key: value for metrics in results.values() for key, value in metrics.items()}


def describe_hardware() -> str:
    """The machine this runs on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def installed_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _to_plain(value: Any) -> Any:
    """Dataclasses within TrainingArguments, such as the accelerator's configuration."""
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
