# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Two processes train and measure what one does: same steps, same weights, no sentence counted twice."""

import json

import pytest
from safetensors.torch import load_file
from training.runs import run_script, train

from numerics import assert_close

FLAGS = ("--config_overrides=dropout=0.0", "--max_steps=8", "--eval_strategy=steps", "--eval_steps=4")


def test_two_processes_equal_one(root, recipe, tmp_path):
    config = str(root / "configs/accelerate/cpu_2_processes.yaml")
    process = run_script(
        "train_seq2seq.py",
        *recipe(tmp_path / "two", *FLAGS, "--per_device_train_batch_size=8"),
        launcher=("-m", "accelerate.commands.launch", "--config_file", config),
    )
    assert process.returncode == 0, process.stderr.decode()
    train(*recipe(tmp_path / "one", *FLAGS, "--per_device_train_batch_size=16"))
    two, one = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, weights in one.items():
        assert_close(name, two[name], weights, relative=1e-3, absolute=1e-5)
    shared, alone = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one"))
    assert (shared["num_processes"], alone["num_processes"]) == (2, 1)
    for prefix in ("eval", "test_first"):
        # 13 and 7 sentences do not share out evenly.
        assert shared[f"{prefix}_num_target_tokens"] == alone[f"{prefix}_num_target_tokens"]
        assert shared[f"{prefix}_perplexity"] == pytest.approx(alone[f"{prefix}_perplexity"], rel=1e-4)
        assert shared[f"{prefix}_chrf"] == pytest.approx(alone[f"{prefix}_chrf"], rel=1e-6)
