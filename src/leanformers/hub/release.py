# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A small released checkpoint of each family: trained, with samples, exported with a card, checked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import (
    LANGUAGE_MODEL_GROUPS,
    TRANSLATION_GROUPS,
    LeanArgumentParser,
)
from ..evaluation.samples import take_samples
from ..training.causal_lm import train_language_model
from ..training.seq2seq import train_translation
from .export import RESULTS, export_run

TRANSLATION = (train_translation, TRANSLATION_GROUPS)
LANGUAGE = (train_language_model, LANGUAGE_MODEL_GROUPS)
MEGABYTE = 10**6


@dataclass(frozen=True)
class Release:
    """How a checkpoint is trained: by what, with which groups of arguments, and the recipes in `configs`, of which a
    later one wins."""

    train: Callable[..., dict[str, Any]]
    groups: tuple[type, ...]
    recipes: tuple[str, ...]


RELEASES = {
    "anthe": Release(*TRANSLATION, ("train/anthe_numbers.yaml",)),
    "delight": Release(*TRANSLATION, ("train/delight_multi30k.yaml", "release/delight.yaml")),
    "fast_weight": Release(*LANGUAGE, ("train/fast_weight_stdlib.yaml", "release/fast_weight.yaml")),
    "selective_attn": Release(*LANGUAGE, ("train/selective_attn_stdlib.yaml", "release/selective_attn.yaml")),
}


def make_release(
    family: str,
    output: Path,
    flags: Sequence[str] = (),
    *,
    configs: Path,
    repository: str | None = None,
    max_megabytes: float = 20,
) -> Path:
    """
    Train a family's release in `output/runs/<family>`, and export it to `output/<family>`.

    Args:
        flags: More arguments of the training. A run that is finished takes none.
        configs: The folder of recipes.
        repository: Name on the Hub, for the card.
        max_megabytes: How large the exported folder may be.

    Raises:
        ValueError: If the folder is larger, or `flags` would have no effect.
        TrainingInterrupted: On Ctrl-C or SIGTERM, after a checkpoint; the same call goes on from there.
    """
    run, folder = output / "runs" / family, output / family
    train(RELEASES[family], run, flags, configs)
    take_samples(run)
    export_run(run, folder, repository=repository, overwrite=True)
    size = folder_megabytes(folder)
    if size > max_megabytes:
        raise ValueError(f"{folder} has {size:.1f} MB, more than the {max_megabytes:g} that a release may have.")
    return folder


def train(release: Release, run: Path, flags: Sequence[str], configs: Path) -> None:
    """Train, unless that is done; go on where it stopped."""
    restarts = any(flag.startswith("--overwrite_output_dir") for flag in flags)
    if is_finished(run) and not restarts:
        if flags:
            raise ValueError(
                f"{run} is finished, and {flags[0]} has no effect on it: add --overwrite_output_dir to train anew."
            )
        return
    goes_on = ["--resume"] if any(run.glob("checkpoint-*")) and not restarts else []
    recipes = [str(configs / recipe) for recipe in release.recipes]
    release.train(*LeanArgumentParser(release.groups).parse([*recipes, f"--output_dir={run}", *goes_on, *flags]))


def is_finished(run: Path) -> bool:
    """Whether the test, which comes last, was measured."""
    results = run / RESULTS
    return results.is_file() and any(name.startswith("test") for name in json.loads(results.read_text("utf-8")))


def folder_megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MEGABYTE
