# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What every training run does, whatever it trains: its directory, its new model's configuration, its end in a folder
with model, results and curves, and the file of arguments from which it goes on."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from leanformers.accounting import count_parameters
from leanformers.arguments import ModelArguments, RunTrainingArguments, nearest

from .callbacks import CurvesCallback, InterruptCallback
from .checkpoints import ARGUMENTS_FILE, last_whole_checkpoint, prepare_output_dir, saving
from .trainer import RunTrainer

PACKAGES = ("leanformers", "torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu")


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside and can go on; `exit_code` is the one a shell expects."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def open_run(training_arguments: RunTrainingArguments) -> str | None:
    """Make or check the output directory, and return the checkpoint to go on from, if any."""
    directory = Path(training_arguments.output_dir)
    with training_arguments.main_process_first(local=False):
        if training_arguments.should_save:
            prepare_output_dir(
                directory, resume=training_arguments.resume, overwrite=training_arguments.overwrite_output_dir
            )
    if training_arguments.resume:
        return str(last_whole_checkpoint(directory))
    return training_arguments.resume_from_checkpoint


def complete_run(
    trainer: RunTrainer, checkpoint: str | None, splits: Mapping[str, Any], script: str
) -> dict[str, Any]:
    """Train, save, validate and test.

    Args:
        checkpoint: Where to go on from, if anywhere.
        splits: What the trainer evaluates, by name; of these, `validation` and those that start with `test`.
        script: The one that goes on with this run after an interruption.
    """
    directory = Path(trainer.args.output_dir)
    interrupt = InterruptCallback()
    trainer.add_callback(interrupt)
    trainer.add_callback(CurvesCallback())
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.signal:
        raise TrainingInterrupted(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; nothing is lost. Go on with: "
            f"python {script} {directory / ARGUMENTS_FILE} --resume",
            exit_code=128 + interrupt.signal,
        )
    save_run(trainer, directory)
    return measure(trainer, splits, output.metrics)


def read_config(model_arguments: ModelArguments) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """The class and the settings of the JSON file, once it is known that the overrides' names are the class' own."""
    if not model_arguments.config_name:
        raise ValueError("Name the model: --config_name for a new one, --model_name_or_path for a saved one.")
    path = Path(model_arguments.config_name)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"The model configuration {path} cannot be read: {error}.") from error
    config_class = type(AutoConfig.for_model(settings.pop("model_type")))
    names = config_fields(config_class)
    for key in model_arguments.overrides:
        if key not in names:
            raise ValueError(f"{config_class.__name__} has no {key!r}; did you mean {nearest(key, names)!r}?")
    return config_class, settings


def config_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """The names that a configuration takes, other families' names for the same included."""
    return {entry.name for entry in fields(config_class)} | set(config_class.attribute_map)


def build_config(
    config_class: type[PreTrainedConfig], settings: dict[str, Any], model_arguments: ModelArguments
) -> PreTrainedConfig:
    """The configuration with the overrides, which win; a mistake is said with the file it is in."""
    overrides = model_arguments.overrides
    try:
        return config_class(**settings | overrides)
    except (StrictDataclassError, ValueError) as error:
        # The cause of a strict dataclass' error is the sentence; the error itself names the validator before it.
        reason = " ".join(str(error.__cause__ or error).split())
        path = model_arguments.config_name
        origin = f"{path} with overrides {overrides}" if overrides else path
        raise ValueError(f"{origin}: {reason}") from error


def tensor_parallel_size() -> int:
    """Over how many processes `accelerate launch` wants each matrix split."""
    return int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1"))


def split_by_columns(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or this process' share of it where `accelerate launch` asks for tensor parallelism (tp.yaml)."""
    size = tensor_parallel_size()
    if size == 1:
        return model
    # transformers splits what it loads; every process has the same weights to load.
    options = {"config": model.config, "state_dict": model.state_dict()}
    return type(model).from_pretrained(None, **options, distributed_config=DistributedConfig(tp_size=size))


def check_saved_model(model_arguments: ModelArguments) -> None:
    if model_arguments.overrides:
        raise ValueError(f"{model_arguments.model_name_or_path} is a saved model: it takes no config_overrides.")


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


def save_run(trainer: RunTrainer, directory: Path) -> None:
    """The model and its tokenizers, ready for `from_pretrained`, and the log of the training."""
    with saving(directory, remove=False):
        trainer.save_model()
        trainer.save_state()
    # A pickle, which nothing reads and a Hub repository should not hold; arguments.yaml says the same.
    if trainer.is_world_process_zero():
        (directory / "training_args.bin").unlink(missing_ok=True)


def measure(trainer: RunTrainer, splits: Mapping[str, Any], train_metrics: dict[str, float]) -> dict[str, Any]:
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
