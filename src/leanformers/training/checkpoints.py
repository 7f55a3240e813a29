# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The output directory of a run: never overwritten by accident, and resumed from the last checkpoint that is whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

logger = logging.get_logger(__name__)

ARGUMENTS_FILE = "arguments.yaml"
# All there is of a run that failed before it trained: nothing that a new start does not make again.
PREPARED_FILES = {ARGUMENTS_FILE, "tokenizer.json", "tokenizer_config.json", "target_tokenizer"}


def prepare_output_dir(directory: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a directory that is in use, or clear it of an earlier run if `overwrite`."""
    if resume:
        if not directory.is_dir():
            raise ValueError(f"There is nothing to resume: {directory} does not exist.")
        return
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output_dir={directory} is a file; name a directory.")
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if names:
        if not overwrite and not names <= PREPARED_FILES:
            raise ValueError(
                f"{directory} is not empty: --resume goes on with the run in it, --overwrite_output_dir deletes that "
                "run, another --output_dir leaves it alone."
            )
        if ARGUMENTS_FILE not in names and not names <= PREPARED_FILES:
            raise ValueError(
                f"{directory} holds no run of this script (no {ARGUMENTS_FILE}), so --overwrite_output_dir does not "
                "delete it; name another --output_dir."
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)


def last_whole_checkpoint(directory: Path) -> Path:
    """The newest checkpoint without damage; one that is passed over is named in a warning."""
    checkpoints = sorted(directory.glob("checkpoint-*"), key=_step, reverse=True)
    damages: list[str] = []
    for checkpoint in checkpoints:
        damage = find_damage(checkpoint)
        if damage is None:
            for other in damages:
                logger.warning(f"{other} Going on from {checkpoint}.")
            return checkpoint
        damages.append(damage)
    if damages:
        raise ValueError(f"No checkpoint can be resumed. {' '.join(damages)}")
    raise ValueError(
        f"There is nothing to resume: {directory} has no checkpoint. --overwrite_output_dir starts the run again."
    )


def find_damage(checkpoint: Path) -> str | None:
    """A sentence on the first file of the checkpoint that is missing or damaged, or None."""
    # The Trainer writes its state last: without it the checkpoint was not finished.
    state = checkpoint / "trainer_state.json"
    if not state.is_file():
        return f"{checkpoint} is incomplete (it has no {state.name})."
    readers = {state.name: _read_json, "*.safetensors": _read_safetensors}
    readers |= dict.fromkeys(("*.pt", "*.pth", "*.bin"), _read_zip)
    for pattern, read in readers.items():
        for path in sorted(checkpoint.glob(pattern)):
            try:
                read(path)
            except (OSError, ValueError, SafetensorError, BadZipFile) as error:
                return f"{path} is damaged ({error})."
    return None


@contextmanager
def saving(directory: Path, *, remove: bool) -> Iterator[None]:
    """Turns a full disk into one sentence; with `remove`, without leaving half a checkpoint behind."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if remove:
            shutil.rmtree(directory, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{directory} could not be saved ({reason}). Earlier checkpoints are untouched: --resume goes on once "
            "there is room."
        ) from error


def _step(checkpoint: Path) -> int:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _read_safetensors(path: Path) -> None:
    # Opening compares the header with the length of the file.
    with safe_open(path, framework="pt"):
        pass


def _read_zip(path: Path) -> None:
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"checksum of {damaged} is wrong")
