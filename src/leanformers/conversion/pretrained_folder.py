# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Folders of `save_pretrained`: weights in one safetensors file or in shards, tokenizer, settings of generation."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..hub.safety import refuse_shards_outside

logger = logging.get_logger(__name__)

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
GENERATION_NAME = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def read_safetensors(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata."""
    try:
        with safe_open(source, "pt") as file:
            metadata = dict(file.metadata() or {})
            metadata.pop("format", None)  # which framework saved it
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{source} is damaged or cut short ({error}); copy it again") from error


def read_shards(index: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of the safetensors files that a `model.safetensors.index.json` names, one file after the other; and no
    metadata."""
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not index.with_name(name).is_file()]
    if missing:
        raise ValueError(f"{index} names {', '.join(missing)}, which are not beside it; copy them there")
    tensors: dict[str, torch.Tensor] = {}
    for shard in tqdm(shards, desc="reading", unit="shard"):
        found, _ = read_safetensors(index.with_name(shard))
        lost = [name for name, place in weight_map.items() if place == shard and name not in found]
        if lost:
            raise ValueError(f"{index} says that {shard} holds {', '.join(lost)}, which it does not")
        tensors |= found
    return tensors, {}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors files, or damaged ({error!r})") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"the weight_map of {index} must give the name of a file for each tensor")
    refuse_shards_outside(index, weight_map)
    return weight_map


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, if there is one. Code that comes with it is not run."""
    if not any((folder / name).is_file() for name in TOKENIZER_NAMES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged file or one for which a package is missing, any
        raise ValueError(
            f"the tokenizer in {folder} cannot be loaded ({error}); repair it, or take the files "
            f"{', '.join(TOKENIZER_NAMES)} away to convert without"
        ) from error


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The settings of generation in a folder, if there are any, without those that have no effect as they do not
    sample: transformers refuses to save them once anything is changed."""
    path = folder / GENERATION_NAME
    if not path.is_file():
        return None
    try:
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
        unused = [] if settings.do_sample else [name for name in SAMPLING if getattr(settings, name, None) is not None]
        settings.update(**dict.fromkeys(unused))
        settings.validate(strict=True)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used ({error}); repair it or take it away") from error
    if unused:
        logger.warning(f"{path} does not sample (do_sample), so that {', '.join(unused)} had no effect: left out.")
    return settings


def read_license(folder: Path) -> str:
    """The licence of the weights as the folder's card has it, by the Hub's name; "unknown" if it has none."""
    card = folder / "README.md"
    try:
        data = (metadata_load(card) if card.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):
        data = {}
    stated = data.get("license")
    return stated if isinstance(stated, str) else "unknown"
