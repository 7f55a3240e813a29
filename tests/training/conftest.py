# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The arguments of small runs on number words and on small programs, and a trained run that many tests read."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from training.runs import train, write_pairs, write_programs

# Dropout is on: a run that lost its random state would show.
MODEL = {
    "model_type": "anthe",
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "tc_ffn_ratio": 0.5,
    "dropout": 0.2,
}

LANGUAGE_MODEL = {
    "model_type": "delight",
    "is_encoder_decoder": False,
    "hidden_size": 64,
    "embedding_size": 32,
    "num_decoder_layers": 2,
    "min_depth": 2,
    "max_depth": 3,
    "normalize_before": True,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> list[str]:
    """Flags with parallel files: 96 pairs to train on, 13 to validate, and two test sets."""
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def recipe(data, tmp_path_factory) -> Callable[..., list[str]]:
    """Arguments of a small run: `recipe(output_dir, "--max_steps=6")`."""
    config = tmp_path_factory.mktemp("model") / "model.json"
    config.write_text(json.dumps(MODEL))
    settings = {
        "config_name": config,
        "tokenizer_vocab_size": 300,
        "max_source_length": 64,
        "max_target_length": 40,
        "per_device_train_batch_size": 16,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "logging_steps": 2,
        "save_steps": 1000,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }

    def arguments(output_dir: Path, *more: object) -> list[str]:
        flags = [f"--{key}={value}" for key, value in settings.items()]
        return [*flags, *data, f"--output_dir={output_dir}", *map(str, more)]

    return arguments


@pytest.fixture(scope="session")
def trained(recipe, tmp_path_factory) -> Path:
    """The folder of a run of 60 steps with validations and checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(*recipe(folder, "--max_steps=60", "--eval_strategy=steps", "--eval_steps=30", "--save_steps=30"))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, str]:
    """Files of small programs: one to train on, one to validate, one to test."""
    return write_programs(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def lm_recipe(texts, tmp_path_factory) -> Callable[..., list[str]]:
    """Arguments of a small run of a language model: `lm_recipe(output_dir, "--max_steps=6")`."""
    config = tmp_path_factory.mktemp("model") / "model.json"
    config.write_text(json.dumps(LANGUAGE_MODEL))
    settings = {
        "config_name": config,
        "train_files": texts["train"],
        "validation_files": texts["validation"],
        "test_files": texts["test"],
        "tokenizer_vocab_size": 280,
        "block_size": 32,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_steps": 1000,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }

    def arguments(output_dir: Path, *more: object) -> list[str]:
        flags = [f"--{key}={value}" for key, value in settings.items()]
        return [*flags, f"--output_dir={output_dir}", *map(str, more)]

    return arguments


@pytest.fixture
def capture_warnings(caplog, monkeypatch) -> Callable[[], str]:
    """What was logged; transformers' loggers do not pass it on by themselves."""
    monkeypatch.setattr(logging.getLogger("leanformers"), "propagate", True)
    return lambda: caplog.text
