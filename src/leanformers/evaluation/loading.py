# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A saved model that generates text, with the head that its configuration asks for, and its tokenizers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch
import transformers
import yaml
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from leanformers.arguments import LeanArgumentParser, ModelArguments
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.hub.safety import INDEX, refuse_shards_outside
from leanformers.registry import language_model_class
from leanformers.training.checkpoints import ARGUMENTS_FILE


@dataclass
class ScoringArguments:
    """How the text that a language model is measured on goes through it."""

    batch_size: int = field(default=8, metadata={"help": "Windows scored at once."})
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ...; the fastest there is if not given."})


@contextmanager
def loading(name_or_path: str) -> Iterator[None]:
    """One sentence on a model that is not there, or whose weights were cut off in a copy."""
    try:
        yield
    except SafetensorError as error:
        files = ", ".join(path.name for path in sorted(Path(name_or_path).glob("*.safetensors")))
        raise ValueError(
            f"The weights of {name_or_path} ({files}) are damaged ({error}); copy or download them again, or go "
            "back to an earlier checkpoint."
        ) from error
    except OSError as error:
        raise OSError(
            f"{name_or_path} is no folder or repository to load from: {' '.join(str(error).split())}"
        ) from error


def load_config(name_or_path: str | None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a saved model, which tells a translator from a language model."""
    if not name_or_path:
        raise ValueError("Name the model with --model_name_or_path: the folder of a run or a repository of the Hub.")
    with loading(name_or_path):
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)


def read_model_arguments(argv: Sequence[str]) -> ModelArguments:
    """The model that a command line names, its YAML files included: that decides on the other arguments."""
    files = list(takewhile(lambda argument: argument.endswith((".yaml", ".yml")), argv))
    settings: dict[str, str | bool] = {}
    for file in files:
        settings |= yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    wanted = settings.keys() & {"model_name_or_path", "trust_remote_code"}
    arguments, _ = LeanArgumentParser([ModelArguments], add_help=False).parse_args_into_dataclasses(
        [*(f"--{name}={settings[name]}" for name in wanted), *argv[len(files) :]],
        return_remaining_strings=True,
        look_for_args_file=False,
    )
    return arguments


def is_language_model(arguments: ModelArguments) -> bool:
    if not arguments.model_name_or_path:
        return False
    config = load_config(arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code)
    return not config.is_encoder_decoder


def trained_block_size(name_or_path: str) -> int | None:
    """`block_size` of the run in whose folder a model, or a checkpoint of it, lies; None if there is none."""
    folder = Path(name_or_path)
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    file = run / ARGUMENTS_FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("block_size") if file.is_file() else None


def load_generator(
    name_or_path: str | None, *, trust_remote_code: bool = False, **kwargs
) -> tuple[PreTrainedModel, TranslationTokenizers]:
    """A translator or a language model, from the folder of a run, an exported folder or a repository of the Hub.

    A language model's two tokenizers are one. `kwargs` (such as `dtype` and `attn_implementation`) go to the model's
    `from_pretrained`.
    """
    auto_class = language_model_class(load_config(name_or_path, trust_remote_code=trust_remote_code))
    index = Path(str(name_or_path), INDEX)
    if index.is_file():
        refuse_shards_outside(index, json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with loading(str(name_or_path)):
        tokenizers = TranslationTokenizers.from_pretrained(str(name_or_path), trust_remote_code=trust_remote_code)
        model = getattr(transformers, auto_class).from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code, **kwargs
        )
    return model.eval(), tokenizers


def fastest_device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
