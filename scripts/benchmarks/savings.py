# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The picture of the front page: what each family saves, drawn from the results beside it.

    python scripts/benchmarks/savings.py --output docs/figures/savings.png

Panels are two translators beside the dense transformer (multi30k_small_cpu.json), the speed of decoding over the
length of the context beside Llama (fast_weight_small_cpu.json), and perplexity over the tokens that each layer holds
beside the same model without selection (selective_attn_stdlib_cpu.json). Needs matplotlib (extra `bench`).
"""

import argparse
import json
from pathlib import Path

from leanformers.plots import EVALUATION, INK, TRAINING, blank_figure, dress, save

ROOT = Path(__file__).resolve().parents[2]
OURS, PEER = EVALUATION, TRAINING
TEST_SETS = {"test_2016_flickr": "o", "test_2017_flickr": "s"}
UNHARMED = 1.01  # perplexity under a budget over that without, for the title


def draw_translators(axis, runs: dict, name: str, title: str, quantity: str, label: str) -> None:
    """BLEU of both test sets over what the dense transformer and ours cost, from 0 on."""
    models = (("transformer", "transformer", PEER), (name, title, OURS))
    costs = [runs[run][quantity] / 1e6 for run, _, _ in models]
    for test_set, marker in TEST_SETS.items():
        bleu = [runs[run]["evaluation"][test_set]["bleu"] for run, _, _ in models]
        axis.plot(costs, bleu, color=INK, linewidth=0.8, linestyle=":", zorder=1)
        for cost, score, (_, _, color) in zip(costs, bleu, models, strict=True):
            axis.plot(cost, score, marker, color=color, markersize=7)
            at = {"xytext": (0, -15), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{score:.1f}", (cost, score), **at, fontsize=9, color=color)
        year = test_set.split("_")[1]
        axis.text(0.02 * max(costs), sum(bleu) / 2, f"test {year}", fontsize=8, color=INK, va="center")
    for cost, (run, text, color) in zip(costs, models, strict=True):
        best = max(runs[run]["evaluation"][test_set]["bleu"] for test_set in TEST_SETS)
        axis.text(cost, best + 2, text, fontsize=9, color=color, ha="center")
    axis.set_xlim(0, 1.15 * max(costs))
    axis.set_ylim(0, 45)
    dress(axis, f"{title}: {costs[1] / costs[0]:.2f} of the {label}", f"{label}, in millions")
    axis.set_ylabel("BLEU, Multi30k", fontsize=9, color=INK)


def draw_decoding(axis, results: list[dict]) -> None:
    """Tokens per second over the length of the context."""
    results = [result for result in results if result["case"].startswith("decoding step, after ")]
    results.sort(key=lambda result: result["shapes"]["length"])
    lengths = [result["shapes"]["length"] for result in results]
    for name, label, color in (("fast_weight", "FastWeight", OURS), ("llama", "Llama of the same size", PEER)):
        speeds = [result["contenders"][name]["median"] for result in results]
        axis.plot(lengths, speeds, "o-", color=color, markersize=4, linewidth=1.8, label=label)
    draw_lengths(axis, lengths)
    axis.set_ylim(bottom=0)
    faster = 1 / results[-1]["cost_ratios"]["llama"]
    dress(axis, f"FastWeight: {faster:.1f} times as fast after {lengths[-1]:,} tokens", "tokens read before")
    axis.set_ylabel("decoding, tokens per second", fontsize=9, color=INK)
    axis.legend(fontsize=9, frameon=False, loc="lower left")


def draw_budgets(axis, runs: dict, window: int) -> None:
    """Perplexity over the tokens that each layer holds, up to the whole window."""
    selective, plain = runs["selective"], runs["plain"]["test"]["perplexity"]
    measured = {int(budget): point["perplexity"] for budget, point in selective["test_by_memory_budget"].items()}
    measured[window] = selective["test"]["perplexity"]
    budgets = sorted(measured)
    perplexities = [measured[budget] for budget in budgets]
    axis.plot(budgets, perplexities, "o-", color=OURS, markersize=4, linewidth=1.8, label="SelectiveAttn")
    axis.axhline(plain, color=PEER, linewidth=1, linestyle="--")
    axis.plot(window, plain, "o", color=PEER, markersize=5, label="the same without selection")
    draw_lengths(axis, budgets)
    axis.set_ylim(0, 1.15 * plain)
    enough = min(budget for budget in budgets if measured[budget] <= UNHARMED * measured[window])
    dress(axis, f"SelectiveAttn: {enough} of {window} tokens are enough", "tokens that each layer holds")
    axis.set_ylabel("perplexity", fontsize=9, color=INK)
    axis.legend(fontsize=9, frameon=False, loc="lower left")


def draw_lengths(axis, lengths: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.minorticks_off()


def draw(results: Path, path: Path) -> Path:
    """Draws the four panels of the JSON files in the folder `results`."""
    translators, decoding, budgets = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("multi30k_small_cpu", "fast_weight_small_cpu", "selective_attn_stdlib_cpu")
    )
    figure = blank_figure(9.6, 6.4)
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    draw_translators(top_left, translators["runs"], "anthe", "Anthe", "num_parameters", "parameters")
    draw_translators(top_right, translators["runs"], "delight", "DeLighT", "macs", "multiplications")
    draw_decoding(bottom_left, decoding["results"])
    budget, point = next(iter(budgets["runs"]["selective"]["test_by_memory_budget"].items()))
    draw_budgets(bottom_right, budgets["runs"], round(int(budget) * point["memory_factor"]))
    return save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/figures/savings.png", help="PNG to write")
    arguments = parser.parse_args(argv)
    print(draw(arguments.results, arguments.output))


if __name__ == "__main__":
    main()
