# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How tests run the scripts, on several processes or without a new one, on what data, and how they compare runs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from leanformers.arguments import (
    LANGUAGE_MODEL_GROUPS,
    TRANSLATION_GROUPS,
    LanguageModelingDataArguments,
    LanguageModelTrainingArguments,
    LeanArgumentParser,
    ModelArguments,
    TranslationDataArguments,
    TranslationTrainingArguments,
)
from leanformers.data.tasks import number_translation
from leanformers.training.causal_lm import train_language_model
from leanformers.training.seq2seq import train_translation
from numerics import assert_close

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def parse(*argv: object) -> tuple[ModelArguments, TranslationDataArguments, TranslationTrainingArguments]:
    return LeanArgumentParser(TRANSLATION_GROUPS).parse([str(argument) for argument in argv])


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


def launcher(name: str = "cpu_2", *flags: str) -> tuple[str, ...]:
    """`accelerate launch` with configs/accelerate/<name>.yaml, behind `python`."""
    config = SCRIPTS.parent / f"configs/accelerate/{name}.yaml"
    return ("-m", "accelerate.commands.launch", "--config_file", str(config), *flags)


def launch_together(folder: Path, name: str, runs: list[dict]) -> None:
    """Several runs of the scripts, one after the other in the processes of one launch (see several_scripts.py)."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(runs))
    command = [sys.executable, *launcher(name, "--mixed_precision", "no")]
    worker = Path(__file__).with_name("several_scripts.py")
    done = subprocess.run([*command, worker, plan], cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def write_pairs(folder: Path) -> list[str]:
    """Flags with parallel files: 96 pairs to train on, 13 to validate, and two test sets."""
    for name, split in number_translation(train_size=96, validation_size=13, test_size=7).items():
        for side in ("source", "target"):
            (folder / f"{name}.{side}").write_text("\n".join(split[side]) + "\n", encoding="utf-8")
    pair = f"{folder}/test.source,{folder}/test.target"
    return [
        *("--train_files", f"{folder}/train.source", f"{folder}/train.target"),
        *("--validation_files", f"{folder}/validation.source", f"{folder}/validation.target"),
        *("--test_files", f"first={pair}", f"second={pair}"),
    ]


def write_programs(folder: Path) -> dict[str, str]:
    """Files of small programs: one to train on, one to validate, one to test."""
    for name, first, last in (("train", 0, 120), ("validation", 200, 211), ("test", 300, 305)):
        programs = [f"def add_{number}(x):\n    return x + {number % 7}\n\n" for number in range(first, last)]
        (folder / f"{name}.py").write_text("\n".join(programs), encoding="utf-8")
    return {name: str(folder / f"{name}.py") for name in ("train", "validation", "test")}


def losses_of(run: Path) -> list[float]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def assert_same_runs(first: Path, second: Path, *, relative: float = 1e-3, losses: float = 1e-4) -> None:
    """The same weights, within `relative` of each tensor, and the same curve of the loss."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (second, first))
    for name, expected in weights.items():
        assert_close(name, others[name], expected, relative=relative, absolute=1e-5)
    assert losses_of(first) == pytest.approx(losses_of(second), rel=losses)
