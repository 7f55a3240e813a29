# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model tests, as far as its release on PyPI carries them, run on our classes."""

import json
import os
import subprocess
import sys

import pytest
import transformers

from leanformers import FAMILIES

OTHERS = {"DeLighT": 100, "DeLighTLM": 100, "FastWeight": 80, "SelectiveAttn": 100, "SelectiveAttnGQA": 100}


@pytest.mark.parametrize(
    ("family", "least"),
    [
        *[(family, 100) for family in ("Anthe", "AntheTransformer")],
        *[pytest.param(family, least, marks=pytest.mark.slow) for family, least in OTHERS.items()],
    ],
)
def test_transformers_own_tests(family, least, root, shared, tmp_path):
    command = ["bash", "scripts/dev/peer_suite.sh", "--groups", "common,config,own", "--families", family]
    report = tmp_path / "report.json"
    run = subprocess.run(
        [*command, "--report", str(report)],
        cwd=root,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if run.returncode == 75:
        pytest.skip(
            f"transformers {transformers.__version__}'s own tests are not to be had: {run.stderr.strip()[-300:]}"
        )
    assert report.exists(), run.stdout[-3000:] + run.stderr[-3000:]
    result = json.loads(report.read_text())["families"][family]
    print(family, result["counts"])
    assert result["failures"] == {}
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    # 115 pass, 94 of a family without attention weights; many fewer would mean that the harness no longer recognises
    # what it is given.
    assert result["counts"]["passed"] >= least


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_has_a_shape_for_them(family, root):
    adapter = (root / "scripts/dev/peer_adapter.py").read_text(encoding="utf-8")
    assert f"config_class={family.config}," in adapter, f"scripts/dev/peer_adapter.py has no {family.config}"
