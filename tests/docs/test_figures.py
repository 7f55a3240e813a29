# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The figures of the documents are drawn of the results and by the operators that they show."""

import json
import runpy
import shutil

import pytest
import torch

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def savings(root):
    return runpy.run_path(str(root / "scripts/benchmarks/savings.py"))


@pytest.fixture(scope="module")
def methods(root):
    return runpy.run_path(str(root / "scripts/dev/method_figures.py"))


def axes_of(draw, arguments, monkeypatch):
    """What a figure shows, in place of its file."""
    figures = []
    monkeypatch.setitem(draw.__globals__, "save", lambda figure, path: figures.append(figure))
    draw(*arguments)
    return figures[0].axes


def test_front_page_shows_what_the_results_say(savings, root, tmp_path, monkeypatch):
    results = root / "scripts/benchmarks/results"
    for name in ("multi30k_small_cpu", "fast_weight_small_cpu", "selective_attn_stdlib_cpu"):
        shutil.copy(results / f"{name}.json", tmp_path)
    runs = json.loads((results / "multi30k_small_cpu.json").read_text())["runs"]
    share = runs["anthe"]["num_parameters"] / runs["transformer"]["num_parameters"]
    axes = axes_of(savings["draw"], (tmp_path, None), monkeypatch)
    assert axes[0].get_title(loc="left") == f"Anthe: {share:.2f} of the parameters"
    assert {f"{runs['anthe']['evaluation']['test_2017_flickr']['bleu']:.1f}"} <= {t.get_text() for t in axes[0].texts}

    changed = json.loads((tmp_path / "multi30k_small_cpu.json").read_text())
    changed["runs"]["anthe"]["num_parameters"] = changed["runs"]["transformer"]["num_parameters"] // 2
    (tmp_path / "multi30k_small_cpu.json").write_text(json.dumps(changed))
    decoding = json.loads((tmp_path / "fast_weight_small_cpu.json").read_text())
    for result in decoding["results"]:
        result["cost_ratios"]["llama"] = 0.1
    (tmp_path / "fast_weight_small_cpu.json").write_text(json.dumps(decoding))
    axes = axes_of(savings["draw"], (tmp_path, None), monkeypatch)
    assert axes[0].get_title(loc="left") == "Anthe: 0.50 of the parameters"
    assert axes[2].get_title(loc="left") == "FastWeight: 10.0 times as fast after 16,384 tokens"


def test_front_page_picture_is_drawn_and_small(savings, root, tmp_path):
    path = tmp_path / "pictures" / "savings.png"
    savings["main"](["--output", str(path)])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert max(path.stat().st_size, (root / "docs/figures/savings.png").stat().st_size) < 150_000


def test_memories_without_overlap_read_back_what_they_hold(methods):
    (_, delta_rule, _), (_, sum_rule, _) = methods["rules_behind"]("DPFP-1")
    keys = torch.eye(64)[:20]
    assert max(methods["read_error"](delta_rule, keys, 5)) < 1e-10
    once, *again = methods["read_error"](sum_rule, keys, 5)
    assert once < 1e-10 and min(again) > 0.5


def test_shuffled_groups_reach_everything_and_others_their_own(methods):
    unit = methods["DExTra"](64, 32, 32, width_multiplier=2.0, depth=4, max_groups=4)
    assert methods["reached"](list(unit.layers), shuffle=True) == [0.5, 1.0, 1.0, 1.0]
    assert methods["reached"](list(unit.layers), shuffle=False) == [0.5, 0.5, 0.5, 0.5]


def test_votes_leave_the_latest_value_of_each_name(methods, monkeypatch):
    votes, selection, attention, held = axes_of(methods["selective_attn"], (None,), monkeypatch)
    names = [label.get_text() for label in held.get_xticklabels()]
    is_held = held.images[0].get_array()[-1]
    kept = [name for name, value in zip(names, is_held, strict=True) if value]
    assert kept == ["<s>", "z = 7", "y = 3", "x = 4", "print x"]
    assert [axis.get_title(loc="left")[0] for axis in (votes, selection, attention)] == ["S", "F", "a"]


@pytest.mark.slow
def test_figures_of_the_methods_are_drawn(methods, tmp_path):
    from leanformers import FAMILIES

    methods["main"](["--output", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(FAMILIES)
