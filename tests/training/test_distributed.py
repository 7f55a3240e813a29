# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Two processes train and measure what one does: same steps, same weights, no sentence counted twice."""

import json
import os
import signal
import subprocess
import sys

import pytest
from training.runs import SCRIPTS, assert_same_runs, launch_together, launcher, run_script, train, train_lm

from leanformers.training.checkpoints import find_damage

LAUNCHER = launcher()
FLAGS = ("--config_overrides=dropout=0.0", "--max_steps=8", "--eval_strategy=steps", "--eval_steps=4")


def test_two_processes_equal_one(recipe, tmp_path):
    process = run_script(
        "train_seq2seq.py",
        *recipe(tmp_path / "two", *FLAGS, "--per_device_train_batch_size=8"),
        launcher=LAUNCHER,
    )
    assert process.returncode == 0, process.stderr.decode()
    train(*recipe(tmp_path / "one", *FLAGS, "--per_device_train_batch_size=16"))
    assert_same_runs(tmp_path / "two", tmp_path / "one")
    shared, alone = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one"))
    assert (shared["num_processes"], alone["num_processes"]) == (2, 1)
    for prefix in ("eval", "test_first"):
        # 13 and 7 sentences do not share out evenly.
        assert shared[f"{prefix}_num_target_tokens"] == alone[f"{prefix}_num_target_tokens"]
        assert shared[f"{prefix}_perplexity"] == pytest.approx(alone[f"{prefix}_perplexity"], rel=1e-4)
        assert shared[f"{prefix}_chrf"] == pytest.approx(alone[f"{prefix}_chrf"], rel=1e-6)


SELECTIVE = {
    "model_type": "selective_attn",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "memory_loss_coef": 0.1,
}


@pytest.mark.parametrize("name", ["cpu_2", "fsdp2"])
def test_two_processes_equal_one_language_model(lm_recipe, tmp_path, name):
    (tmp_path / "model.json").write_text(json.dumps(SELECTIVE))
    # Its memory loss is a mean over the rows of all processes.
    flags = (f"--config_name={tmp_path / 'model.json'}", "--max_steps=10", "--eval_strategy=steps", "--eval_steps=5")
    # Lest Adam make whole steps of what is mere rounding in a gradient.
    flags += ("--adam_epsilon=1e-3",)
    # Within an epoch: at its end the processes' batches are filled up with blocks from its beginning.
    flags += ("--pack_documents=separate", "--documents=lines", "--block_size=64", "--context_window=20")
    argv = lm_recipe(tmp_path / "two", *flags, "--per_device_train_batch_size=2", "--per_device_eval_batch_size=3")
    launch_together(tmp_path, name, [{"script": "scripts/train_clm.py", "argv": argv}])
    train_lm(*lm_recipe(tmp_path / "one", *flags, "--per_device_train_batch_size=4"))
    assert_same_runs(tmp_path / "two", tmp_path / "one")
    shared, alone = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one"))
    assert 0.5 < shared["epoch"] == alone["epoch"] < 1
    for prefix in ("eval", "test"):
        assert shared[f"{prefix}_num_tokens"] == alone[f"{prefix}_num_tokens"]
        for metric in ("perplexity", "perplexity_per_word", "bits_per_byte"):
            assert shared[f"{prefix}_{metric}"] == pytest.approx(alone[f"{prefix}_{metric}"], rel=1e-3)


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_at_one_step(recipe, tmp_path):
    argv = recipe(tmp_path / "run", "--max_steps=500", "--logging_steps=1")
    command = [sys.executable, *LAUNCHER, SCRIPTS / "train_seq2seq.py", *argv]
    # A session of its own, to which the signal goes as from a terminal: to the launcher and to both processes.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if "'loss'" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        output = process.stdout.read()
    assert "nothing is lost" in output and "Interrupted outside" not in output
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert find_damage(checkpoint) is None
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    step = int(checkpoint.name.split("-")[1])
    resumed = run_script(
        "train_seq2seq.py", tmp_path / "run/arguments.yaml", "--resume", f"--max_steps={step + 2}", launcher=LAUNCHER
    )
    assert resumed.returncode == 0, resumed.stderr.decode()
