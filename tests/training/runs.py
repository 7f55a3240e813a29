# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How the tests of this folder run the scripts, or what they do without a new process."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from leanformers.arguments import (
    LanguageModelingDataArguments,
    LanguageModelTrainingArguments,
    LeanArgumentParser,
    ModelArguments,
    TranslationDataArguments,
    TranslationTrainingArguments,
)
from leanformers.training.causal_lm import train_language_model
from leanformers.training.seq2seq import train_translation

LANGUAGE_MODEL_GROUPS = (ModelArguments, LanguageModelingDataArguments, LanguageModelTrainingArguments)
GROUPS = (ModelArguments, TranslationDataArguments, TranslationTrainingArguments)
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def parse(*argv: object) -> tuple[ModelArguments, TranslationDataArguments, TranslationTrainingArguments]:
    return LeanArgumentParser(GROUPS).parse([str(argument) for argument in argv])


def train(*argv: object) -> dict:
    """What scripts/train_seq2seq.py does, without starting a process."""
    return train_translation(*parse(*argv))


def parse_language_model(
    *argv: object,
) -> tuple[ModelArguments, LanguageModelingDataArguments, LanguageModelTrainingArguments]:
    return LeanArgumentParser(LANGUAGE_MODEL_GROUPS).parse([str(argument) for argument in argv])


def train_lm(*argv: object) -> dict:
    """What scripts/train_clm.py does, without starting a process."""
    return train_language_model(*parse_language_model(*argv))


def run_here(monkeypatch: pytest.MonkeyPatch, name: str, *argv: object) -> None:
    """Run a script in this process: starting a new one costs seconds."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def run_script(name: str, *argv: object, launcher: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, from the repository's root as a user would."""
    command = [sys.executable, *launcher, str(SCRIPTS / name), *map(str, argv)]
    return subprocess.run(command, cwd=SCRIPTS.parent, env=os.environ, capture_output=True, timeout=240, **options)
