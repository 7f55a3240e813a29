# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The selection study: models learn and are evaluated as said, points are the same every time, and studies go on."""

import json
import sys
from contextlib import suppress
from importlib import import_module

import pytest
import torch

from leanformers.data.sequence_tasks import build_sequence_task
from leanformers.modeling.selective_attn import SelectiveAttnForCausalLM
from leanformers.training import selection_study
from leanformers.training.selection_study import (
    EVALUATION_SEED,
    SelectionArguments,
    configuration_of,
    evaluate,
    learning_rate_at,
    run_study,
    train_point,
)


def arguments(tmp_path, **changes) -> SelectionArguments:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "batch_size": 16}
    lengths = {"train_length": 4, "eval_lengths": [4, 8], "max_steps": 3, "warmup_steps": 1, "eval_sequences": 40}
    output = {"output_file": str(tmp_path / "new_folder" / "points.json")}
    return SelectionArguments(**{**sizes, **lengths, **output, **changes})


def test_parity_is_learned_and_needs_no_memory(tmp_path):
    settings = {"max_steps": 150, "warmup_steps": 10, "learning_rate": 2e-2, "memory_budgets": [2, 4]}
    point = train_point("parity", "selective", 1, arguments(tmp_path, task="parity", **settings))
    accuracies = {(entry["memory_budget"], entry["length"]): entry["accuracy"] for entry in point["evaluations"]}
    assert list(accuracies) == [(budget, length) for budget in (None, 2, 4) for length in (4, 8)]
    assert accuracies[None, 4] == accuracies[4, 4] == 1.0 and point["final_loss"] < 0.05
    assert accuracies[2, 4] < 0.8  # the bit alone, or the parity


def test_accuracy_counts_the_tokens_that_are_asked_for(tmp_path):
    settings = arguments(tmp_path, task="copying")
    torch.manual_seed(0)
    network = SelectiveAttnForCausalLM(configuration_of("selective", settings))
    for budget in (None, 3):
        found = evaluate(network, 5, budget, settings)
        batch = build_sequence_task("copying", EVALUATION_SEED).batch(40, 5)
        with torch.no_grad():
            answers = network(input_ids=batch.input_ids).logits.argmax(dim=-1)
        right = [answers[row, 6 + place] == batch.input_ids[row, 7 + place] for row in range(40) for place in range(5)]
        assert found["accuracy"] == sum(right) / 200
        assert (found["length"], found["num_tokens"], found["memory_budget"]) == (5, 12, budget)
        assert not network.training
    # Of 11 earlier tokens, the first and the one before have no votes against them.
    assert "memories" not in found and 2 <= evaluate(network, 5, None, settings)["memories"][0] < 11


def test_a_point_is_the_same_every_time(tmp_path):
    settings = arguments(tmp_path)
    first, again, other = (train_point("assignment", "selective", seed, settings) for seed in (1, 1, 2))
    plain = train_point("assignment", "plain", 1, settings)
    assert first["final_loss"] == again["final_loss"] and first["evaluations"] == again["evaluations"]
    assert len({point["final_loss"] for point in (first, other, plain)}) == 3
    assert first["num_parameters"] == plain["num_parameters"]
    assert all("memories" not in entry for entry in plain["evaluations"])


def test_plain_models_are_not_evaluated_with_budgets(tmp_path):
    point = train_point("assignment", "plain", 1, arguments(tmp_path, memory_budgets=[4]))
    assert [entry["memory_budget"] for entry in point["evaluations"]] == [None, None]


def test_learning_rate_rises_and_falls_to_nothing(tmp_path):
    settings = arguments(tmp_path, warmup_steps=4, max_steps=10)
    shares = [learning_rate_at(step, settings) for step in range(10)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert learning_rate_at(0, arguments(tmp_path, warmup_steps=0)) == 1


def run_and_count(settings, monkeypatch, fail_at: int | None = None) -> list[tuple]:
    """Run a study whose points cost nothing, and say which were run."""
    ran = []

    def point(task, model, seed, settings, progress=None):
        if len(ran) == fail_at:
            raise KeyboardInterrupt
        ran.append((task, model, seed))
        return {"task": task, "model": model, "seed": seed, "evaluations": []}

    monkeypatch.setattr(selection_study, "train_point", point)
    with suppress(KeyboardInterrupt):
        run_study(settings, {"versions": {"torch": "2"}})
    return ran


def test_an_interrupted_study_goes_on_and_tasks_share_a_file(tmp_path, monkeypatch):
    settings = arguments(tmp_path, task="parity", seeds=[2, 1])
    wanted = [("parity", model, seed) for seed in (2, 1) for model in ("selective", "plain")]
    assert run_and_count(settings, monkeypatch, fail_at=3) == wanted[:3]
    assert run_and_count(settings, monkeypatch) == wanted[3:]
    copying = arguments(tmp_path, task="copying", models=["plain"], batch_size=8)
    assert run_and_count(copying, monkeypatch) == [("copying", "plain", 1)]
    written = json.loads((tmp_path / "new_folder" / "points.json").read_text())
    keys = [(point["task"], point["model"], point["seed"]) for point in written["points"]]
    assert keys == sorted([*wanted, ("copying", "plain", 1)]) and written["versions"] == {"torch": "2"}


def test_points_of_other_settings_or_studies_are_not_taken_for_ours(tmp_path, monkeypatch):
    settings = arguments(tmp_path)
    run_and_count(settings, monkeypatch)
    with pytest.raises(ValueError, match="task assignment, model plain, seed 1 under other settings"):
        run_study(arguments(tmp_path, train_length=5), {})
    (tmp_path / "new_folder" / "points.json").write_text('{"points": [{"curve": "softmax", "num_keys": 4}]}')
    with pytest.raises(ValueError, match="has points without 'task', of another study"):
        run_study(settings, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sorting"}, "Unknown task 'sorting'"),
        ({"models": ["selective", "gated"]}, "A model is selective or plain, got 'gated'"),
        ({"models": []}, "models must name at least one"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"eval_lengths": []}, "eval_lengths must name at least one"),
        ({"eval_lengths": [4, 0]}, "eval_lengths must be at least 1, got 0"),
        ({"train_length": 0}, "train_length must be at least 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        ({"memory_budgets": [8, 1]}, "`memory_budgets` must be at least 2"),
        ({"num_attention_heads": 3}, "must divide `hidden_size`"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_script_writes_points_and_figure(tmp_path, root, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(root / "scripts" / "benchmarks"))
    recipe = str(root / "configs/train/selective_attn_assignment.yaml")
    output, figure = tmp_path / "points.json", tmp_path / "figure.png"
    argv = [recipe, "--output_file", str(output), "--figure", str(figure), "--seeds", "3", "--max_steps", "2"]
    sizes = ["--train_length", "2", "--eval_lengths", "2", "5", "--memory_budgets", "3", "--eval_sequences", "4"]
    try:
        import_module("selection_tasks").main([*argv, *sizes, "--threads", "1"])
    finally:
        for name in ("selection_tasks", "study", "run", "registry"):
            sys.modules.pop(name, None)
    report = json.loads(output.read_text())
    found = [(point["model"], point["seed"], len(point["evaluations"])) for point in report["points"]]
    assert found == [("plain", 3, 2), ("selective", 3, 4)]
    assert report["points"][0]["settings"]["max_steps"] == 2 and report["machine"]["threads"] == 1
    assert figure.read_bytes()[:4] == b"\x89PNG"
