# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Training curves: a real log gives a picture of the right size, equal logs equal pictures, and errors are clear."""

import math
import struct
import sys

import pytest

from leanformers import plots
from leanformers.plots import (
    _accuracy_panels,
    _panels,
    _typeset,
    forgotten_tokens,
    perplexity_over_memory,
    retrieval_losses,
    selection_accuracies,
    selection_heat_maps,
    training_curves,
)


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
    assert list(panels) == [
        ("copying", "length"),
        ("parity", "length"),
        ("selective, with less memory", "memory budget"),
    ]
    assert panels["copying", "length"] == {"selective": {8: [0.6, 0.5]}, "plain": {8: [0.7], 16: [0.2]}}
    assert panels["parity", "length"] == {"selective": {8: [1.0], 16: [0.9]}}
    assert panels["selective, with less memory", "memory budget"] == {"copying": {2: [0.3, 0.4]}, "parity": {4: [0.8]}}


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


def budget_search(factors=(1.0, 2.0, 8.0), context_length=64) -> dict:
    points = [{"memory_factor": factor, "perplexity": 10 + factor / 8} for factor in factors]
    losses = {"loss_without_budgets": math.log(10.1), "target_loss": math.log(11.1)}
    return {"points": points, "context_length": context_length, **losses}


def test_perplexity_over_memory(tmp_path):
    pytest.importorskip("matplotlib")
    first = perplexity_over_memory({"a": budget_search()}, tmp_path / "new_folder" / "a.png").read_bytes()
    assert perplexity_over_memory({"a": budget_search()}, tmp_path / "b.png").read_bytes() == first
    two = {"a": budget_search(), "b": budget_search((1.0, 3.0), 128)}
    assert perplexity_over_memory(two, tmp_path / "c.png").read_bytes() != first
    assert png_size(tmp_path / "c.png") == (864, 504)
    perplexity_over_memory({"a": budget_search((1.0,))}, tmp_path / "d.png")
    with pytest.raises(ValueError, match="no search for memory budgets: nothing to draw"):
        perplexity_over_memory({}, tmp_path / "e.png")


TOKENS = ["</s>", "def f", "(x):\n", "\treturn", " $x$ ", "", "\u6f22\u5b57", "\x00", "y" * 150]


def selections(layers: int = 2, length: int = len(TOKENS)) -> list:
    """Votes that grow down each column, the more the earlier the token."""
    rows = range(length)
    return [[[(layer + 1) * max(0, row - column) / 4 for column in rows] for row in rows] for layer in range(layers)]


def test_texts_are_set_in_rows():
    pieces = list(_typeset(TOKENS))
    assert pieces[:4] == [(0, 0, 0, "</s>"), (1, 0, 4, "def f"), (2, 0, 9, "(x):\u21b5"), (3, 1, 0, "    return")]
    assert pieces[4:7] == [(4, 1, 10, " $x$ "), (6, 1, 15, "\u6f22\u5b57"), (7, 1, 19, "\ufffd")]
    assert pieces[7:] == [(8, 1, 20, "y" * 80), (8, 2, 0, "y" * 70)]  # wide letters take two columns each


def drawn_by(monkeypatch, draw, *arguments) -> list:
    """The axes of a figure instead of its file."""
    figures: list = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    draw(*arguments)
    return figures[0].axes


def test_forgotten_tokens_are_struck_out(monkeypatch):
    pytest.importorskip("matplotlib")
    axes = drawn_by(monkeypatch, forgotten_tokens, TOKENS, selections(), "a.png", 1.0)
    assert [axis.get_title(loc="left") for axis in axes] == [
        "layer 0: 4 of 9 tokens forgotten",
        "layer 1: 6 of 9 tokens forgotten",
    ]
    struck = [[text.get_text() for text in axis.texts if text.get_color() == plots.FORGOTTEN] for axis in axes]
    assert struck == [["</s>", "def f", "(x):\u21b5", "    return"], [*struck[0], " $x$ "]]  # and the empty one
    lines = [tuple(map(tuple, line.get_data())) for line in axes[0].lines]
    assert lines == [((0, 4), (0.55, 0.55)), ((4, 9), (0.55, 0.55)), ((9, 14), (0.55, 0.55)), ((0, 10), (1.55, 1.55))]


def test_heat_maps_show_what_came_before(monkeypatch):
    pytest.importorskip("matplotlib")
    first, second, color_bar = drawn_by(monkeypatch, selection_heat_maps, TOKENS, selections(), "a.png")
    for layer, axis in enumerate((first, second)):
        shown = axis.images[0].get_array()
        assert [shown[row].count() for row in range(9)] == list(range(1, 10))
        assert shown[8, 0] == 2.0 * (layer + 1)
    assert [label.get_text() for label in first.get_xticklabels()][2:4] == ["(x):\u21b5", "    return"]
    many = ["x"] * 70
    assert len(drawn_by(monkeypatch, selection_heat_maps, many, selections(1, 70), "a.png")[0].get_xticks()) < 20


def test_pictures_of_a_text_are_files(tmp_path):
    pytest.importorskip("matplotlib")
    tokens, votes = ["a ", "b$ ", "c"], selections(3, 3)
    for draw in (selection_heat_maps, forgotten_tokens):
        first = draw(tokens, votes, tmp_path / "new_folder" / "a.png").read_bytes()
        assert draw(tokens, votes, tmp_path / "b.png").read_bytes() == first and png_size(tmp_path / "b.png")
    assert forgotten_tokens(tokens, votes, tmp_path / "c.png", threshold=0.1).read_bytes() != first


@pytest.mark.parametrize(
    ("tokens", "votes", "message"),
    [
        ([], [[]], "0 tokens and votes of 1 layers: nothing to draw"),
        (["a"], [], "1 tokens and votes of 0 layers: nothing to draw"),
        (["a", "b"], selections(1, 3), r"are \[3, 3\], and should be \[2, 2\]"),
    ],
)
def test_votes_that_do_not_fit_the_text(tmp_path, tokens, votes, message):
    for draw in (selection_heat_maps, forgotten_tokens):
        with pytest.raises(ValueError, match=message):
            draw(tokens, votes, tmp_path / "a.png")
