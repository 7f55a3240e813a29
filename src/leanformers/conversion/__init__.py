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
from transformers import PreTrainedConfig, PreTrainedModel

from ..data.tokenizers import TranslationTokenizers
from ..registry import get_family
from .fairseq import read_tokenizers
from .pretrained_folder import (
    read_generation_config,
    read_license,
    read_safetensors,
    read_shards,
    read_tokenizer,
)
from .torch_files import read_torch_file
from .vocabulary import read_vocabulary

__all__ = ["convert_checkpoint", "convert_state_dict", "read_checkpoint"]

PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Of a folder, the first of these is the checkpoint.
CHECKPOINT_NAMES = (
    *("weights.safetensors", "weights.pt", "best_model.pt", "model.safetensors", "model.safetensors.index.json"),
    *PICKLED_NAMES,
)
VOCABULARY = "vocab.txt"
RESAVE = """
If you trust it, save it again as safetensors, with its tokenizer, and convert that:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained("resaved")
    AutoTokenizer.from_pretrained(folder).save_pretrained("resaved")"""


def convert_state_dict(
    family: str, state_dict: Mapping[str, Any], hparams: Mapping[str, Any] | PreTrainedConfig, **options: Any
) -> PreTrainedModel:
    """Builds the model of `family` that computes what the original did.

    Args:
        family: a name of `leanformers.registry.FAMILIES`.
        state_dict: arrays or tensors under the original implementation's parameter names, in its orientation.
        hparams: the original's hyper-parameters, as text or numbers. SelectiveAttn's originals are models of
            transformers (llama, mistral, qwen2, qwen3): their configuration, or what it holds.
        options: of the family's module; Anthe has `allow_noncausal_gate`, SelectiveAttn the settings of selection, the
            others none.

    Raises:
        `ValueError`: if a hyper-parameter is unknown or impossible, or if the tensors are not exactly those of the
            model; the message lists them.
    """
    return import_module(f".{get_family(family).name}", __name__).convert(state_dict, hparams, **options)


def convert_checkpoint(
    family: str,
    source: str | Path,
    output: str | Path,
    hparams_file: str | Path | None = None,
    *,
    dict_dir: str | Path | None = None,
    codes: str | Path | None = None,
    vocabulary: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """`convert_state_dict` from a file to a folder for `from_pretrained`, which must be new or empty.

    A checkpoint of fairseq with its dictionaries, one with a vocabulary file, or a folder of transformers with its
    tokenizer becomes a whole folder for the Hub, with tokenizers and a card. A `generation_config.json` beside the
    source is carried over, and so is the licence that a card beside it states.

    Args:
        family, options: see `convert_state_dict`.
        source, hparams_file: see `read_checkpoint`.
        dict_dir: the folder of fairseq's dictionaries. By default they are looked for beside a `.pt` source.
        codes: the file of BPE codes; see `fairseq.read_tokenizers`.
        vocabulary: a file of words, see `vocabulary.py`. By default it is `vocab.txt` beside the source, if there is
            one.
    """
    source, output = _checkpoint_file(source), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"the output {output} exists and is not an empty folder; name another, nothing was written")
    state_dict, hparams = read_checkpoint(source, hparams_file)
    model = convert_state_dict(family, state_dict, hparams, **options)
    model.generation_config = read_generation_config(source.parent) or model.generation_config
    tokenizers = _tokenizers(source, hparams, model, dict_dir, codes, vocabulary)
    if tokenizers is None:
        model.save_pretrained(output)
        return model
    # Cards need packages of the `train` extra, which a conversion without tokenizers does not.
    from ..hub.export import export

    export(
        model,
        tokenizers.source,
        output,
        target_tokenizer=tokenizers.target,
        license_id=read_license(source.parent),
        check=False,
    )
    return model


def _tokenizers(
    source: Path,
    hparams: Mapping[str, Any],
    model: PreTrainedModel,
    dict_dir: str | Path | None,
    codes: str | Path | None,
    vocabulary: str | Path | None,
) -> TranslationTokenizers | None:
    """What was asked for or lies beside the source; a model of words ends lines where its vocabulary says."""
    if dict_dir or codes or (source.suffix == ".pt" and any(source.parent.glob("dict*.txt"))):
        return read_tokenizers(Path(dict_dir or source.parent), hparams.get("args", {}), model.config, codes)
    path = Path(vocabulary) if vocabulary else source.with_name(VOCABULARY)
    if not vocabulary and not path.is_file():
        carried = read_tokenizer(source.parent)
        return None if carried is None else TranslationTokenizers(carried, carried)
    tokenizer = read_vocabulary(path, model.config.vocab_size)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return TranslationTokenizers(tokenizer, tokenizer)


def read_checkpoint(
    source: str | Path, hparams_file: str | Path | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and hyper-parameters of a `.safetensors`, `.npz` or `.pt` file, which never runs code from it.

    Args:
        source: the file, an index of safetensors files (`model.safetensors.index.json`), or a folder with one of
            `CHECKPOINT_NAMES`.
        hparams_file: JSON with the hyper-parameters. By default they are what the file itself holds (safetensors as
            metadata, fairseq's `.pt` as `args` or `cfg`, whole models as attributes), or else `config.json` beside it.
    """
    source = _checkpoint_file(source)
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    if source.name in PICKLED_NAMES:
        raise ValueError(f"{source} is a pickle, which may hold code that runs on loading.{RESAVE}")
    readers = {".safetensors": read_safetensors, ".json": read_shards, ".npz": _read_npz, ".pt": read_torch_file}
    if source.suffix not in readers:
        raise ValueError(
            f"{source} is neither .safetensors nor .npz nor .pt; other formats may hold code that runs on "
            "loading, so save its arrays as one of these first"
        )
    state_dict, hparams = readers[source.suffix](source)
    beside = source.with_name("config.json")
    if hparams_file is not None or (not hparams and beside.is_file()):
        hparams = _read_hparams(Path(hparams_file or beside))
    if not hparams:
        raise ValueError(f"{source} holds no hyper-parameters; give them as a JSON file (--hparams)")
    return state_dict, hparams


def _checkpoint_file(source: str | Path) -> Path:
    source = Path(source)
    if not source.is_dir():
        return source
    found = [source / name for name in CHECKPOINT_NAMES if (source / name).is_file()]
    if not found:
        raise ValueError(f"the folder {source} holds no checkpoint: none of {', '.join(CHECKPOINT_NAMES)}")
    return found[0]


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
