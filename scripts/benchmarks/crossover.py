# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Says from which length on ours is ahead of its peers, and draws it, from the JSON that run.py wrote.

    python scripts/benchmarks/crossover.py scripts/benchmarks/results/fast_weight_small_cpu.json --png crossover.png

Cases with a `length` among their shapes become one panel per benchmark and quantity, the part of a case's name before
its comma. Needs matplotlib (extra `bench`) for `--png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

COLORS, INK, GRID = ("#d1603d", "#3b6ea8", "#4a9a6a", "#8a6bb1", "#8c8c8c"), "#333333", "#dddddd"
Panels = dict[str, list[dict]]


def panels(report: dict) -> Panels:
    """Title -> results by length."""
    found: Panels = {}
    for result in report["results"]:
        if "length" in result["shapes"]:
            title = f"{result['case'].partition(',')[0]} ({result['preset']}, {result['dtype']})"
            found.setdefault(title, []).append(result)
    for results in found.values():
        results.sort(key=lambda result: result["shapes"]["length"])
    return found


def first_length_ahead(results: list[dict], peer: str) -> int | None:
    """The shortest length from which on ours costs less at every length measured; None if not at the longest."""
    first = None
    for result in reversed(results):
        if result["cost_ratios"][peer] >= 1:
            break
        first = result["shapes"]["length"]
    return first


def verdicts(found: Panels) -> list[str]:
    lines = []
    for title, results in found.items():
        for peer in results[0]["cost_ratios"]:
            beside = [result for result in results if peer in result["cost_ratios"]]
            first = first_length_ahead(beside, peer)
            start = "not ahead at the longest" if first is None else f"ahead from {first:,} on"
            costs = (f"{result['shapes']['length']:,}: {result['cost_ratios'][peer]:.2f}" for result in beside)
            lines.append(f"{title} beside {peer}: {start} ({', '.join(costs)})")
    return lines


def draw(found: Panels, path: Path) -> None:
    """One panel for each quantity, over length, both axes logarithmic."""
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, results) in zip(axes, found.items(), strict=False):
        draw_panel(axis, title, results)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})  # matplotlib's version would make files differ


def draw_panel(axis, title: str, results: list[dict]) -> None:
    at = [result["shapes"]["length"] for result in results]
    for color, name in zip(COLORS, results[0]["contenders"], strict=False):
        measured = [result for result in results if name in result["contenders"]]  # what is too slow stops earlier
        summaries = [result["contenders"][name] for result in measured]
        there = at[: len(measured)]
        axis.plot(there, [summary["median"] for summary in summaries], "o-", color=color, markersize=3.5, label=name)
        low, high = zip(*(summary["quartiles"] for summary in summaries), strict=True)
        axis.fill_between(there, low, high, color=color, alpha=0.2, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(at, [f"{length:,}" for length in at], rotation=45)
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.set_xlabel("tokens", fontsize=9, color=INK)
    axis.set_ylabel(results[0]["unit"], fontsize=9, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, frameon=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON of run.py")
    parser.add_argument("--png", type=Path, help="file to draw to")
    arguments = parser.parse_args(argv)
    found = panels(json.loads(arguments.report.read_text()))
    if not found:
        parser.error(f"{arguments.report} has no case with a `length` among its shapes")
    print("\n".join(verdicts(found)))
    if arguments.png:
        draw(found, arguments.png)


if __name__ == "__main__":
    main()
