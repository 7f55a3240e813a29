# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The estimates of memory in training: what docs/scaling.md says of them, and their check at toy size."""

import json
import sys
from importlib import import_module

import pytest


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "scripts/benchmarks"))
    yield import_module("training_memory")
    for name in ("training_memory", "peak_memory", "registry"):
        sys.modules.pop(name, None)


def test_document_says_what_was_measured(script, root):
    cases = json.loads(script.RESULTS.read_text())["cases"]
    assert "\n".join(script.check_table(cases)) in (root / "docs/scaling.md").read_text()
    assert max(abs(case["error_percent"]) for case in cases) < 10
    assert {case["preset"] for case in cases} == set(script.CHECKED)


@pytest.mark.slow
def test_document_has_the_tables_that_the_script_prints(script, root):
    text = (root / "docs/scaling.md").read_text()
    for table in script.tables().split("\n\n"):
        assert table in text


@pytest.mark.slow
def test_estimate_is_compared_with_a_process(script, monkeypatch):
    monkeypatch.setattr(script, "CHECKED", {"fast_weight/tiny": (64, 64)})
    (case,) = script.check()["cases"]
    assert case["measured_peak_mib"] > 1
    assert case["estimated_total_mib"] == pytest.approx(sum(case["estimated_mib"].values()), abs=0.05)
