# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Two processes train and measure what one does: same steps, same weights, no sentence counted twice."""

import json
import os
import signal
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from training.runs import SCRIPTS, run_script, train

from leanformers.training.checkpoints import find_damage
from numerics import assert_close

LAUNCHER = (
    *("-m", "accelerate.commands.launch"),
    *("--config_file", str(SCRIPTS.parent / "configs/accelerate/cpu_2_processes.yaml")),
)
FLAGS = ("--config_overrides=dropout=0.0", "--max_steps=8", "--eval_strategy=steps", "--eval_steps=4")


def test_two_processes_equal_one(recipe, tmp_path):
    process = run_script(
        "train_seq2seq.py",
        *recipe(tmp_path / "two", *FLAGS, "--per_device_train_batch_size=8"),
        launcher=LAUNCHER,
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


@pytest.mark.parametrize(("name", "kind"), [("cpu_2_processes", "MULTI_GPU"), ("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_accelerate_takes_every_key(root, name, kind):
    config = load_config_from_file(str(root / f"configs/accelerate/{name}.yaml"))
    assert config.distributed_type == kind and config.num_processes == 2


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
