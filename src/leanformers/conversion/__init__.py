# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Original checkpoints -> our models. One module per family knows the original's parameter names and layout."""

import json
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ..registry import get_family

__all__ = ["convert_checkpoint", "convert_state_dict", "read_checkpoint"]


def convert_state_dict(
    family: str, state_dict: Mapping[str, Any], hparams: Mapping[str, Any], **options: Any
) -> PreTrainedModel:
    """Builds the model of `family` that computes what the original did.

    Args:
        family: a name of `leanformers.registry.FAMILIES`.
        state_dict: arrays or tensors under the original implementation's parameter names, in its orientation.
        hparams: the original's hyper-parameters, as text or numbers.
        options: of the family's module; Anthe has `allow_noncausal_gate`.

    Raises:
        `ValueError`: if a hyper-parameter is unknown or impossible, or if the tensors are not exactly those of the
            model; the message lists them.
    """
    return import_module(f".{get_family(family).name}", __name__).convert(state_dict, hparams, **options)


def convert_checkpoint(
    family: str, source: str | Path, output: str | Path, hparams_file: str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """`convert_state_dict` from a file to a folder for `from_pretrained`, which must be new or empty."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"the output {output} exists and is not an empty folder; name another, nothing was written")
    state_dict, hparams = read_checkpoint(source, hparams_file)
    model = convert_state_dict(family, state_dict, hparams, **options)
    model.save_pretrained(output)
    return model


def read_checkpoint(
    source: str | Path, hparams_file: str | Path | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and hyper-parameters of a `.safetensors` or `.npz` file, which never runs code from it.

    Without `hparams_file` (JSON), the hyper-parameters are the metadata of the safetensors file.
    """
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    if source.suffix not in readers:
        raise ValueError(
            f"{source} is neither .safetensors nor .npz; other formats may hold code that runs on loading, "
            "so save its arrays as one of these two first"
        )
    state_dict, hparams = readers[source.suffix](source)
    if hparams_file is not None:
        hparams = _read_hparams(Path(hparams_file))
    if not hparams:
        raise ValueError(f"{source} holds no hyper-parameters; give them as a JSON file (--hparams)")
    return state_dict, hparams


def _read_safetensors(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(source, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{source} is damaged or cut short ({error}); copy it again") from error


def _read_npz(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with np.load(source, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}, {}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} is not a complete .npz of plain arrays ({error})") from error


def _read_hparams(path: Path) -> dict[str, Any]:
    try:
        hparams = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the hyper-parameters {path} cannot be read as JSON ({error})") from error
    if not isinstance(hparams, dict):
        raise ValueError(f"the hyper-parameters {path} must be one JSON object, not a {type(hparams).__name__}")
    return hparams
