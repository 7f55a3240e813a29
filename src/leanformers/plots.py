# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Figures as PNG (extra `bench`: matplotlib): training curves from the Trainer's `log_history`, the losses of the
retrieval study, and the accuracies of the selection study."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

TRAINING, EVALUATION, INK, GRID = "#3b6ea8", "#d1603d", "#333333", "#dddddd"
# What an evaluation logs beside its results: how fast it was, and on how much.
NO_RESULTS = (
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "tokens_per_second",
    "model_preparation_time",
    "num_target_tokens",
    "num_tokens",
    "num_words",
)

SERIES = ("#333333", "#3b6ea8", "#d1603d", "#4d9a5b", "#8c5aa8", "#c49a2a", "#4aa3a3", "#a34a6b")
MARKERS = "os^Dv<>P"
NOTHING_READ = 0.5  # the retrieval loss of a model that always answers zeros
TOP = 0.6

Curve = list[tuple[float, float]]


def training_curves(log_history: Sequence[Mapping], path: str | Path) -> Path:
    """Draws loss, learning rate and each evaluation metric over steps, and returns the path of the PNG written.

    Args:
        log_history: `trainer.state.log_history`, or the list of that name in a `trainer_state.json`.
        path: the file to write; its folder is made if need be. Equal logs give equal files.
    """
    panels = _panels(log_history)
    if not panels:
        raise ValueError(
            f"log_history has {len(log_history)} entries and none with a loss or metric per step: nothing to draw; "
            "train for at least one `logging_steps`"
        )
    figure_class = _figure_class()
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = figure_class(figsize=(4.6 * columns, 3.1 * rows), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    last_step = max(1, *(step for curves in panels.values() for curve in curves.values() for step, _ in curve))
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, curves)
        axis.set_xlim(0, 1.03 * last_step)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)

    return _save(figure, path)


def retrieval_losses(points: Sequence[Mapping], path: str | Path, title: str | None = None) -> Path:
    """Draws the best evaluation loss over the number of keys, a curve each, and returns the path of the PNG written.

    Args:
        points: of the retrieval study, each with `curve`, `num_keys` and `best_loss`. A loss above 0.6 is drawn there.
        path: the file to write; its folder is made if need be. Equal points give equal files.
        title: of the figure.
    """
    curves: dict[str, Curve] = {}
    for point in sorted(points, key=lambda point: (point["curve"], point["num_keys"])):
        if math.isfinite(point["best_loss"]):
            curves.setdefault(point["curve"], []).append((point["num_keys"], min(point["best_loss"], TOP)))
    if not curves:
        raise ValueError(f"None of {len(points)} points has a finite loss: nothing to draw.")
    figure = _figure_class()(figsize=(7.2, 4.2), dpi=120, layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.axhline(NOTHING_READ, color=INK, linewidth=0.8, linestyle=":")
    for index, (label, curve) in enumerate(curves.items()):
        style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
        axis.plot(*zip(*curve, strict=True), **style, markersize=4.5, linewidth=1.6, label=label)
    axis.set_ylim(-0.015, TOP + 0.015)
    axis.set_xlim(left=0)
    _dress(axis, title or "", "number of keys")
    axis.set_ylabel("loss", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def selection_accuracies(points: Sequence[Mapping], path: str | Path) -> Path:
    """Draws accuracies over the length, a panel for each task and a curve for each model, with a dotted line at the
    longest training sequences; and over the memory budget at that length, a curve for each task. Curves are means over
    seeds, amid the range of all seeds. Returns the path of the PNG written.

    Args:
        points: of the selection study, each with `task`, `model`, `settings` and `evaluations`.
        path: the file to write; its folder is made if need be. Equal points give equal files.
    """
    panels = _accuracy_panels(points)
    if not panels:
        raise ValueError(f"None of {len(points)} points has an evaluation: nothing to draw.")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _figure_class()(figsize=(4.6 * columns, 3.1 * rows), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    trained = {point["task"]: point["settings"]["train_length"] for point in points}
    for axis, ((title, x_label), curves) in zip(axes, panels.items(), strict=False):
        for index, (label, curve) in enumerate(curves.items(), start=1 if title in trained else 3):
            _draw_range(axis, label, curve, {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index]})
        if title in trained:
            axis.axvline(trained[title], color=INK, linewidth=0.8, linestyle=":")
        places = sorted({place for curve in curves.values() for place in curve})
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, labels=places)
        axis.minorticks_off()
        axis.set_ylim(-0.03, 1.03)
        _dress(axis, title, x_label)
        axis.set_ylabel("accuracy", fontsize=9, color=INK)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return _save(figure, path)


def _accuracy_panels(points: Sequence[Mapping]) -> dict[tuple[str, str], dict[str, dict[int, list[float]]]]:
    """Title and label of the axis -> label of the curve -> place on the axis -> accuracies of all seeds."""
    panels: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    # Selective before plain.
    for point in sorted(points, key=lambda point: (point["task"], point["model"] == "plain", point["seed"])):
        for entry in point["evaluations"]:
            if entry["memory_budget"] is None:
                panel, label, place = (point["task"], "length"), point["model"], entry["length"]
            elif entry["length"] == point["settings"]["train_length"]:
                panel, label, place = ("with less memory", "memory budget"), point["task"], entry["memory_budget"]
            else:
                continue
            panels.setdefault(panel, {}).setdefault(label, {}).setdefault(place, []).append(entry["accuracy"])
    return dict(sorted(panels.items(), key=lambda item: item[0][1] == "memory budget"))


def _draw_range(axis, label: str, curve: Mapping[int, list[float]], style: Mapping[str, str]) -> None:
    """A curve of means amid the range of what they are means of."""
    places = sorted(curve)
    values = [curve[place] for place in places]
    means = [sum(numbers) / len(numbers) for numbers in values]
    axis.plot(places, means, **style, markersize=4.5, linewidth=1.6, label=label)
    lowest, highest = ([choose(numbers) for numbers in values] for choose in (min, max))
    axis.fill_between(places, lowest, highest, color=style["color"], alpha=0.18, linewidth=0)


def _figure_class() -> type:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'leanformers[bench]'") from error
    return Figure


def _save(figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})  # matplotlib's version would make files differ
    return path


def _panels(log_history: Sequence[Mapping]) -> dict[str, dict[str, Curve]]:
    """Title -> label -> curve, without the curves that the log does not hold."""
    panels = {
        "loss": {"training": _curve(log_history, "loss"), "evaluation": _curve(log_history, "eval_loss")},
        "learning rate": {"training": _curve(log_history, "learning_rate")},
        "memory loss": {"training": _curve(log_history, "memory_loss")},
        "selection strength": {"training": _curve(log_history, "selection_strength")},
    }
    metrics = dict.fromkeys(key for entry in log_history for key in entry if key.startswith("eval_"))
    for key in metrics:
        name = key.removeprefix("eval_")
        if name != "loss" and not name.endswith(NO_RESULTS):
            panels[name.replace("_", " ")] = {"evaluation": _curve(log_history, key)}
    present = {title: {label: curve for label, curve in curves.items() if curve} for title, curves in panels.items()}
    return {title: curves for title, curves in present.items() if curves}


def _curve(log_history: Sequence[Mapping], key: str) -> Curve:
    """Finite numbers under `key` by step; a metric may also be a text (a signature) or NaN, which has no place."""
    values = {entry["step"]: entry[key] for entry in log_history if "step" in entry and key in entry}
    numbers = {step: value for step, value in values.items() if isinstance(value, int | float)}
    return sorted((step, value) for step, value in numbers.items() if math.isfinite(value))


def _draw(axis, title: str, curves: dict[str, Curve]) -> None:
    for label, curve in curves.items():
        marker = "o" if label == "evaluation" or len(curve) == 1 else None
        color = EVALUATION if label == "evaluation" else TRAINING
        axis.plot(*zip(*curve, strict=True), color=color, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    values = [value for curve in curves.values() for _, value in curve]
    if title == "loss" and min(values) > 0 and max(values) > 50 * min(values):
        axis.set_yscale("log")
    _dress(axis, title, "step")
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False)


def _dress(axis, title: str, x_label: str) -> None:
    axis.set_title(title, fontsize=11, color=INK, loc="left")
    axis.set_xlabel(x_label, fontsize=9, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
