# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""No figure in the tables of a model card, or of the released checkpoints, without a file that holds it.

It is rounded as the table has it. In brackets are ranges, and figures that the originals' authors published.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from leanformers import FAMILIES

FILE = re.compile(r"scripts/benchmarks/results/\w+\.json")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
RULE = re.compile(r"[|:\- ]+")
# Of what the files have: itself, percent, millions, minutes of seconds, KiB of bytes, MiB.
SCALES = (1, 100, 1e-6, 1 / 60, 2**-10, 2**-20)


def numbers(content):
    """All that is a number in a file of results, in names and texts too."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers(key)
            yield from numbers(value)
    elif isinstance(content, list):
        for value in content:
            yield from numbers(value)
    elif isinstance(content, str):
        yield from (float(match.replace(",", "")) for match in NUMBER.findall(content))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)


def results(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    yield from numbers(content)
    if path.stem == "selective_attn_tasks":  # shown are means over the seeds
        found = defaultdict(list)
        for point in content["points"]:
            for entry in point["evaluations"]:
                kind = (point["task"], point["model"], entry["length"], entry["memory_budget"])
                found[kind].append(entry["accuracy"])
        yield from map(fmean, found.values())


def figures(card):
    """`(figure, row)` of the tables, without what heads them."""
    lines = card.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not RULE.fullmatch(line) and not RULE.fullmatch(following or "x"):
            plain = re.sub(r"`[^`]*`|\([^)]*\)", "", line)
            yield from ((figure, line) for figure in NUMBER.findall(plain))


def holds(figure, values):
    decimals = len(figure.partition(".")[2])
    wanted, margin = float(figure.replace(",", "")), 0.5 * 10**-decimals + 1e-9
    return any(abs(value * scale - wanted) <= margin for scale in SCALES for value in values)


@pytest.mark.parametrize("page", [*(family.card for family in FAMILIES.values()), "docs/publishing.md"])
def test_every_figure_is_in_a_file_that_the_page_names(page, root: Path):
    card = (root / page).read_text(encoding="utf-8")
    values = {value for name in set(FILE.findall(card)) for value in results(root / name)}
    found = list(figures(card))
    assert len(found) >= 20, f"the tables of {page} have {len(found)} figures"
    assert [(figure, row) for figure, row in found if not holds(figure, values)] == []


def test_a_stale_figure_is_found():
    card = "| | time |\n|:--|--:|\n| ours | 0.42 (0.40 to 0.44) |\n| `small` | 1,097 |\n"
    assert [figure for figure, _ in figures(card)] == ["0.42", "1,097"]
    assert holds("0.42", {0.4249}) and not holds("0.42", {0.4251, 42.6})
    assert holds("1,097", {1096.6}) and holds("68", {4083.0})
    assert list(numbers({"after 600 steps": [True, "2,048 tokens"]})) == [600.0, 2048.0]
