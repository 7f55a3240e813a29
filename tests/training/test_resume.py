# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A run that is stopped and resumed ends bit for bit where the run that was never stopped does, dropout and all."""

import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from training.runs import SCRIPTS, train

from leanformers.training.checkpoints import find_damage, last_whole_checkpoint
from leanformers.training.length_buckets import LengthBucketSampler

# Six steps are an epoch.
FLAGS = ("--max_steps=14", "--save_steps=2", "--save_total_limit=20")


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(*recipe(folder, *FLAGS))
    return folder


def assert_same_weights(first, second):
    weights, others = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def stop_at(run, step, folder):
    """A copy of a run as it was after that step."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("model.safetensors", "*_results.json"))
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
        else:
            shutil.copy(run / checkpoint.name / "model.safetensors", checkpoint)
    return folder


@pytest.mark.parametrize("step", [4, 6, 8], ids=["within an epoch", "between epochs", "within a later epoch"])
def test_resumed_run_equals_uninterrupted_run(uninterrupted, tmp_path, step):
    run = stop_at(uninterrupted, step, tmp_path / "run")
    train(run / "arguments.yaml", f"--output_dir={run}", "--resume")
    assert_same_weights(run, uninterrupted)


def test_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path, caplog):
    run = stop_at(uninterrupted, 8, tmp_path / "run")
    weights = run / "checkpoint-8/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    train(run / "arguments.yaml", f"--output_dir={run}", "--resume")
    assert_same_weights(run, uninterrupted)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"]
)
def test_damage_is_found_in_every_file(uninterrupted, tmp_path, name):
    run = stop_at(uninterrupted, 4, tmp_path / "run")
    assert last_whole_checkpoint(run) == run / "checkpoint-4"
    path = run / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert name in find_damage(run / "checkpoint-4")
    assert last_whole_checkpoint(run) == run / "checkpoint-2"
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(ValueError, match=f"No checkpoint can be resumed.*{name}"):
        last_whole_checkpoint(run)


def test_unfinished_checkpoint_is_passed_over(uninterrupted, tmp_path):
    run = stop_at(uninterrupted, 4, tmp_path / "run")
    (run / "checkpoint-4/trainer_state.json").unlink()
    assert last_whole_checkpoint(run) == run / "checkpoint-2"


def test_ctrl_c_saves_and_resume_goes_on(recipe, uninterrupted, tmp_path):
    run = tmp_path / "run"
    argv = recipe(run, *FLAGS, "--logging_steps=1", "--save_steps=1000")
    command = [sys.executable, SCRIPTS / "train_seq2seq.py", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "'loss'" in line:
                process.send_signal(signal.SIGINT)
                break
        output = "".join([*seen, process.stdout.read()])
    assert process.returncode == 130, output
    assert "nothing is lost" in output and f"{run}/arguments.yaml --resume" in output
    assert "Traceback" not in output
    (checkpoint,) = run.glob("checkpoint-*")
    assert not (run / "model.safetensors").exists()
    assert int(checkpoint.name.split("-")[1]) < 14
    train(run / "arguments.yaml", "--resume")
    assert_same_weights(run, uninterrupted)


def test_full_disk_leaves_the_earlier_checkpoint(recipe, tmp_path):
    """A limit on the size of files stands for the full disk."""
    run = tmp_path / "run"
    train(*recipe(run, *FLAGS, "--max_steps=2"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be saved.*--resume"):
            train(*recipe(run, *FLAGS, "--save_total_limit=1", "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert find_damage(run / "checkpoint-2") is None


def test_buckets_hold_each_sentence_once_and_depend_on_the_epoch_only():
    lengths = [(7 * index) % 23 for index in range(101)]
    sampler = LengthBucketSampler(lengths, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(101))
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [max(batch) - min(batch) for batch in batches(lengths, first)]
    random = [max(batch) - min(batch) for batch in batches(lengths, list(range(101)))]
    assert sum(spread) < 0.2 * sum(random)
    assert [lengths[index] for index in first] != sorted(lengths)


def batches(lengths, order):
    return [[lengths[index] for index in order[start : start + 8]] for start in range(0, 96, 8)]
