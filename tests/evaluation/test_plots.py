# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Training curves: a real log gives a picture of the right size, equal logs equal pictures, and errors are clear."""

import math
import struct
import sys

import pytest

from leanformers.plots import _accuracy_panels, _panels, retrieval_losses, selection_accuracies, training_curves


def trainer_log(steps: int = 200) -> list[dict]:
    """A log as `Trainer` writes it: training entries, evaluation entries, and the closing summary."""
    log: list[dict] = []
    for step in range(10, steps + 1, 10):
        log.append({"loss": 5 / step, "grad_norm": 0.5, "learning_rate": 1e-3 / step, "epoch": 0.1, "step": step})
        if step % 50 == 0:
            speed = {"eval_runtime": 1.5, "eval_samples_per_second": 9.0, "eval_steps_per_second": 2.0}
            scores = {"eval_loss": 6 / step, "eval_bleu": step / 3, "eval_exact_match": step / steps}
            log.append({**scores, **speed, "eval_bleu_signature": "nrefs:1|case:mixed", "epoch": 0.1, "step": step})
    return [*log, {"train_runtime": 3.0, "train_loss": 0.2, "epoch": 1.0, "step": steps}]


def png_size(path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_png_of_a_real_log(tmp_path):
    pytest.importorskip("matplotlib")
    path = training_curves(trainer_log(), tmp_path / "new_folder" / "training_curves.png")
    width, height = png_size(path)
    assert 800 <= width <= 2400 and 300 <= height <= 1600
    assert 5_000 < path.stat().st_size < 500_000


def test_equal_logs_give_equal_files_and_other_logs_do_not(tmp_path):
    pytest.importorskip("matplotlib")
    first = training_curves(trainer_log(), tmp_path / "a.png").read_bytes()
    assert training_curves(trainer_log(), tmp_path / "b.png").read_bytes() == first
    assert training_curves(trainer_log(steps=150), tmp_path / "c.png").read_bytes() != first


def test_what_is_drawn():
    panels = _panels(trainer_log(steps=100))
    assert list(panels) == ["loss", "learning rate", "bleu", "exact match"]
    assert list(panels["loss"]) == ["training", "evaluation"]
    assert panels["loss"]["evaluation"] == [(50, 6 / 50), (100, 6 / 100)]
    assert len(panels["learning rate"]["training"]) == 10


def test_numbers_without_a_place_are_left_out():
    panels = _panels([{"loss": math.nan, "step": 1}, {"loss": 2.0, "step": 2}, {"eval_bleu": math.inf, "step": 2}])
    assert panels == {"loss": {"training": [(2, 2.0)]}}


@pytest.mark.parametrize("log", [[], [{"train_runtime": 1.0, "step": 0}]], ids=["empty", "summary only"])
def test_empty_log_says_what_to_do(tmp_path, log):
    with pytest.raises(ValueError, match="nothing to draw.*logging_steps"):
        training_curves(log, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"leanformers\[bench\]"):
        training_curves(trainer_log(), tmp_path / "curves.png")


def test_retrieval_losses_are_drawn_and_those_off_the_scale_at_its_edge(tmp_path):
    pytest.importorskip("matplotlib")
    points = [{"curve": "dpfp1_sum", "num_keys": keys, "best_loss": keys / 400} for keys in (20, 160)]
    fwm = {"curve": "tanh_fwm", "num_keys": 20, "best_loss": 1.5}
    first = retrieval_losses([*points, fwm], tmp_path / "new_folder" / "a.png", "a title").read_bytes()
    assert retrieval_losses([fwm, *points[::-1]], tmp_path / "b.png", "a title").read_bytes() == first
    assert retrieval_losses([*points, {**fwm, "best_loss": 9.0}], tmp_path / "c.png", "a title").read_bytes() == first
    assert retrieval_losses(points, tmp_path / "d.png", "a title").read_bytes() != first


def test_no_retrieval_losses_to_draw(tmp_path):
    with pytest.raises(ValueError, match="None of 1 points has a finite loss"):
        retrieval_losses([{"curve": "favor64_delta", "num_keys": 140, "best_loss": math.nan}], tmp_path / "a.png")


def selection_point(task: str, model: str, seed: int, accuracies: dict) -> dict:
    """A point of the selection study, with accuracies by budget and length."""
    evaluations = [
        {"memory_budget": budget, "length": length, "accuracy": accuracy}
        for (budget, length), accuracy in accuracies.items()
    ]
    return {
        "task": task,
        "model": model,
        "seed": seed,
        "settings": {"train_length": 8},
        "evaluations": evaluations,
    }


SELECTION_POINTS = [
    selection_point("parity", "selective", 1, {(None, 8): 1.0, (None, 16): 0.9, (4, 8): 0.8, (4, 16): 0.1}),
    selection_point("copying", "plain", 1, {(None, 8): 0.7, (None, 16): 0.2}),
    selection_point("copying", "selective", 2, {(None, 8): 0.5, (2, 8): 0.4}),
    selection_point("copying", "selective", 1, {(None, 8): 0.6, (2, 8): 0.3}),
]


def test_what_is_drawn_of_the_selection_study():
    panels = _accuracy_panels(SELECTION_POINTS)
    assert list(panels) == [("copying", "length"), ("parity", "length"), ("with less memory", "memory budget")]
    assert panels["copying", "length"] == {"selective": {8: [0.6, 0.5]}, "plain": {8: [0.7], 16: [0.2]}}
    assert panels["parity", "length"] == {"selective": {8: [1.0], 16: [0.9]}}
    assert panels["with less memory", "memory budget"] == {"copying": {2: [0.3, 0.4]}, "parity": {4: [0.8]}}


def test_selection_accuracies_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    first = selection_accuracies(SELECTION_POINTS, tmp_path / "new_folder" / "a.png")
    width, height = png_size(first)
    assert 800 <= width <= 2400 and 300 <= height <= 1600
    again = selection_accuracies(SELECTION_POINTS[::-1], tmp_path / "b.png").read_bytes()
    assert again == first.read_bytes()
    assert selection_accuracies(SELECTION_POINTS[:3], tmp_path / "c.png").read_bytes() != again
    with pytest.raises(ValueError, match="None of 0 points has an evaluation"):
        selection_accuracies([], tmp_path / "d.png")
