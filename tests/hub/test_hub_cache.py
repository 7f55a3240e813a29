# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A repository of the Hub, and a checkpoint of Trainer, used by somebody without leanformers and without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from leanformers.hub.clean_process import digest, outputs_of
from leanformers.modeling.anthe import AntheForSeq2SeqLM

CLEAN_PROCESS = Path(sys.modules[digest.__module__].__file__)
FIRST_COMMIT, SECOND_COMMIT = "1" * 40, "2" * 40


def make_hub_cache(home: Path, exported: Path) -> Path:
    """A cache as downloads leave it, with two commits: one with another output bias, and main. Returns the first."""
    repository = home / "hub" / "models--lean--tiny"
    first, second = (repository / "snapshots" / commit for commit in (FIRST_COMMIT, SECOND_COMMIT))
    for snapshot in (first, second):
        shutil.copytree(exported, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SECOND_COMMIT)
    tensors = load_file(first / "model.safetensors")
    tensors["lm_head.bias"] += 1
    save_file(tensors, first / "model.safetensors", metadata={"format": "pt"})
    return first


def train_one_step(model: AntheForSeq2SeqLM, tokenizers, folder: Path) -> Path:
    arguments = Seq2SeqTrainingArguments(
        folder, max_steps=1, per_device_train_batch_size=1, save_steps=1, report_to="none", use_cpu=True
    )
    row = {"input_ids": [5, 6, 3], "attention_mask": [1, 1, 1], "labels": [7, 8, 3]}
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=[row], processing_class=tokenizers.source)
    trainer.train()
    return folder / "checkpoint-1"


def test_repository_and_checkpoint_without_leanformers(
    exported: Path, model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path
):
    home = tmp_path / "hf_home"
    first = make_hub_cache(home, exported)
    checkpoint = train_one_step(model, tokenizers, tmp_path / "run")
    result = tmp_path / "result.json"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("stranger.py"), CLEAN_PROCESS, checkpoint, result],
        env=clean | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"},
        cwd=exported,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    seen = json.loads(result.read_text())

    assert (seen["config"], seen["base"]) == ("AntheConfig", "AntheModel")
    assert seen["module"].startswith("transformers_modules.lean.tiny.") and SECOND_COMMIT in seen["module"]
    assert seen["config class is one"] and seen["tokenizers differ"]
    assert seen["outputs"] == digest(outputs_of(AntheForSeq2SeqLM.from_pretrained(exported)))
    assert seen["outputs of the first commit"] == digest(outputs_of(AntheForSeq2SeqLM.from_pretrained(first)))
    assert seen["outputs of the first commit"] != seen["outputs"]
    assert seen["checkpoint"] == digest(outputs_of(model)) != seen["outputs"]
    assert seen["generates after another load"]
    [text] = seen["printed by the card's example"]
    assert isinstance(text, str)
