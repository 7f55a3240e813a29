# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Figures as PNG (extra `bench`: matplotlib): training curves from the Trainer's `log_history`, the losses of the
retrieval study, the accuracies of the selection study, perplexities of searches for memory budgets, and what selective
attention forgets of a text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

TRAINING, EVALUATION, INK, GRID, FORGOTTEN = "#3b6ea8", "#d1603d", "#333333", "#dddddd", "#a8a8a8"
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
LABELLED_TOKENS = 64  # a longer text has no room for its tokens at the axes
COLUMNS, FONT_SIZE = 100, 7.5  # of printed text
CELL = (FONT_SIZE * 0.602 / 72, FONT_SIZE * 1.6 / 72)  # inches of a letter of DejaVu Sans Mono, and of a line

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
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = blank_figure(4.6 * columns, 3.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    last_step = max(1, *(step for curves in panels.values() for curve in curves.values() for step, _ in curve))
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, curves)
        axis.set_xlim(0, 1.03 * last_step)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)

    return save(figure, path)


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
    figure = blank_figure(7.2, 4.2)
    axis = figure.subplots()
    axis.axhline(NOTHING_READ, color=INK, linewidth=0.8, linestyle=":")
    for index, (label, curve) in enumerate(curves.items()):
        style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
        axis.plot(*zip(*curve, strict=True), **style, markersize=4.5, linewidth=1.6, label=label)
    axis.set_ylim(-0.015, TOP + 0.015)
    axis.set_xlim(left=0)
    dress(axis, title or "", "number of keys")
    axis.set_ylabel("loss", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(figure, path)


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
    figure = blank_figure(4.6 * columns, 3.1 * rows)
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
        dress(axis, title, x_label)
        axis.set_ylabel("accuracy", fontsize=9, color=INK)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return save(figure, path)


def _accuracy_panels(points: Sequence[Mapping]) -> dict[tuple[str, str], dict[str, dict[int, list[float]]]]:
    """Title and label of the axis -> label of the curve -> place on the axis -> accuracies of all seeds."""
    panels: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    # Selective before plain.
    for point in sorted(points, key=lambda point: (point["task"], point["model"] == "plain", point["seed"])):
        for entry in point["evaluations"]:
            if entry["memory_budget"] is None:
                panel, label, place = (point["task"], "length"), point["model"], entry["length"]
            elif entry["length"] == point["settings"]["train_length"]:
                panel, label, place = (
                    ("selective, with less memory", "memory budget"),
                    point["task"],
                    entry["memory_budget"],
                )
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


def perplexity_over_memory(searches: Mapping[str, Mapping], path: str | Path) -> Path:
    """Draws the perplexity over the share of the context that layers hold, a curve for each search for memory budgets,
    and returns the path of the PNG written. Dotted is the perplexity without budgets, and dashed the target.

    Args:
        searches: by label, each with `points`, `context_length`, `loss_without_budgets` and `target_loss`.
        path: the file to write; its folder is made if need be. Equal searches give equal files.
    """
    if not searches:
        raise ValueError("There is no search for memory budgets: nothing to draw.")
    figure = blank_figure(7.2, 4.2)
    axis = figure.subplots()
    least = 100.0
    for index, (label, search) in enumerate(searches.items(), start=1):
        color, points = SERIES[index % len(SERIES)], search["points"]
        shares = [100 / point["memory_factor"] for point in points]
        perplexities = [point["perplexity"] for point in points]
        axis.plot(shares, perplexities, color=color, linewidth=1.6, label=label)
        axis.plot(shares[-1], perplexities[-1], color=color, marker=MARKERS[index % len(MARKERS)], markersize=5)
        axis.annotate(
            f"1 / {points[-1]['memory_factor']:.1f}",
            (shares[-1], perplexities[-1]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
            color=color,
        )
        axis.axhline(math.exp(search["loss_without_budgets"]), color=color, linewidth=0.8, linestyle=":")
        axis.axhline(math.exp(search["target_loss"]), color=color, linewidth=0.8, linestyle="--")
        least = min(least, shares[-1])
    axis.set_xscale("log", base=2)
    ticks = [100 / 2**power for power in range(math.ceil(math.log2(100 / least)) + 1)]
    axis.set_xticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    axis.minorticks_off()
    lengths = sorted({search["context_length"] for search in searches.values()})
    of_what = f"of {lengths[0]} tokens" if len(lengths) == 1 else "of the context"
    dress(axis, "", f"share {of_what} that layers hold, in %")
    axis.set_ylabel("perplexity", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False)
    return save(figure, path)


def selection_heat_maps(tokens: Sequence[str], selections: Sequence[Any], path: str | Path) -> Path:
    """Draws F of each layer, the votes against each token when each later one came, and returns the path of the PNG
    written.

    Args:
        tokens: the text, token by token.
        selections: F of each layer, `[length, length]` numbers, those of a query in a row.
        path: the file to write; its folder is made if need be. Equal arguments give equal files.
    """
    import numpy as np

    votes = _check_selections(tokens, selections)
    columns = min(len(votes), 2)
    rows = math.ceil(len(votes) / columns)
    figure = blank_figure(4.8 * columns, 4.4 * rows)
    from matplotlib.colors import SymLogNorm

    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    norm = SymLogNorm(linthresh=1.0, vmin=0.0, vmax=max(1.0, *(float(matrix.max()) for matrix in votes)))
    later = np.triu(np.ones((len(tokens), len(tokens)), dtype=bool), k=1)
    for layer, (axis, matrix) in enumerate(zip(axes, votes, strict=False)):
        image = axis.imshow(np.ma.masked_array(matrix, later), cmap="viridis", norm=norm, interpolation="nearest")
        dress(axis, f"layer {layer}", "token voted against")
        axis.grid(False)
        axis.set_ylabel("votes of the tokens before this one", fontsize=9, color=INK)
        if len(tokens) <= LABELLED_TOKENS:
            names = ["".join(_shown(letter) for letter in token) for token in tokens]
            for set_ticks, rotation in ((axis.set_xticks, 90), (axis.set_yticks, 0)):
                set_ticks(range(len(names)), labels=names, fontsize=5, rotation=rotation, parse_math=False)
    for axis in axes[len(votes) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=list(axes), shrink=0.6, label="F")
    return save(figure, path)


def forgotten_tokens(
    tokens: Sequence[str], selections: Sequence[Any], path: str | Path, threshold: float = 1.0
) -> Path:
    """Prints the text once for each layer, with a line through each token that the layer has forgotten at its end, and
    returns the path of the PNG written.

    Args:
        tokens: the text, token by token.
        selections: F of each layer, `[length, length]` numbers, those of a query in a row.
        path: the file to write; its folder is made if need be. Equal arguments give equal files.
        threshold: votes with which a token counts as forgotten: those left of its attention are `exp(-threshold)`.
    """
    votes = _check_selections(tokens, selections)
    pieces = list(_typeset(tokens))
    num_rows = 2 + max(row for _, row, _, _ in pieces)
    figure = blank_figure((COLUMNS + 4) * CELL[0], (num_rows + 1.5) * CELL[1] * len(votes))
    axes = figure.subplots(len(votes), 1, squeeze=False).flatten()
    for layer, (axis, matrix) in enumerate(zip(axes, votes, strict=True)):
        is_forgotten = matrix[-1] > threshold
        axis.set_xlim(0, COLUMNS)
        axis.set_ylim(num_rows, 0)
        axis.set_axis_off()
        title = f"layer {layer}: {int(is_forgotten.sum())} of {len(tokens)} tokens forgotten"
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        for index, row, column, text in pieces:
            color = FORGOTTEN if is_forgotten[index] else INK
            style = {"color": color, "fontsize": FONT_SIZE, "family": "monospace", "va": "center"}
            axis.text(column, row + 0.5, text, **style, parse_math=False)
            if is_forgotten[index]:
                axis.plot([column, column + _width(text)], [row + 0.55] * 2, color=EVALUATION, linewidth=0.8)
    return save(figure, path)


def _check_selections(tokens: Sequence[str], selections: Sequence[Any]) -> list[Any]:
    import numpy as np

    votes = [np.asarray(matrix) for matrix in selections]
    if not votes or not len(tokens):
        raise ValueError(f"There are {len(tokens)} tokens and votes of {len(votes)} layers: nothing to draw.")
    for matrix in votes:
        if matrix.shape != (len(tokens), len(tokens)):
            raise ValueError(
                f"The votes of a layer are {list(matrix.shape)}, and should be [{len(tokens)}, {len(tokens)}], a row "
                "and a column for each token."
            )
    return votes


def _typeset(tokens: Sequence[str]) -> Iterator[tuple[int, int, int, str]]:
    """Token, row, column and letters of each stretch of a token within a row."""
    row = column = 0
    for index, token in enumerate(tokens):
        text, start = "", column
        for letter in token:
            shown = _shown(letter)
            if column + _width(shown) > COLUMNS:
                if text:
                    yield index, row, start, text
                row, column, text, start = row + 1, 0, "", 0
            text, column = text + shown, column + _width(shown)
            if letter == "\n":
                yield index, row, start, text
                row, column, text, start = row + 1, 0, "", 0
        if text:
            yield index, row, start, text


def _shown(letter: str) -> str:
    return {"\n": "\u21b5", "\t": "    "}.get(letter, letter if letter.isprintable() else "\ufffd")


def _width(text: str) -> int:
    """Letters of a typewriter that a text is as wide as."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def blank_figure(width: float, height: float):
    """A white matplotlib figure of so many inches, at 120 dots each, without a window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'leanformers[bench]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def save(figure, path: str | Path) -> Path:
    """Writes the PNG, makes its folder if need be, and returns its path. Equal figures give equal files."""
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
    dress(axis, title, "step")
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False)


def dress(axis, title: str, x_label: str) -> None:
    """Title, label, ticks and grid as all our figures have them."""
    axis.set_title(title, fontsize=11, color=INK, loc="left")
    axis.set_xlabel(x_label, fontsize=9, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
