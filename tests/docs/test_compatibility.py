# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The compatibility table says what the tests recorded, and the documents say what the table does."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = (
    '<properties><property name="group" value="torch"/><property name="row" value="{row}"/>{more}</properties>'
)
VERDICT = '<property name="verdict" value="{}"/>'


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts/dev/compatibility.py"))


def report(path, *cases):
    """A junit report of tests given as name, row, model, further properties and outcome."""
    tests = "".join(
        f'<testcase classname="a" name="{name}">'
        + PROPERTIES.format(row=row, more=f'<property name="subject" value="{model}"/>{more}')
        + f"{outcome}</testcase>"
        for name, row, model, more, outcome in cases
    )
    path.write_text(f"<testsuites><testsuite>{tests}</testsuite></testsuites>", encoding="utf-8")
    return path


def failure(message):
    return f'<failure message="{message}">a traceback</failure>'


def test_worst_outcome_of_a_cell_stands_in_the_table(script, tmp_path):
    limits, refused = VERDICT.format("limits: no beams"), VERDICT.format("refused: has no keys")
    path = report(
        tmp_path / "junit.xml",
        ("1", "export", "Anthe", "", ""),
        ("2", "export", "Anthe", limits, ""),
        ("3", "export", "FastWeight", limits, ""),
        ("4", "export", "FastWeight", refused, ""),
        ("5", "export", "Llama", refused, ""),
        ("6", "export", "Llama", "", failure("ValueError: bad file /home/me/x.py at 0x7f12&#10;more")),
        ("7", "compile", "Anthe", "", '<skipped type="pytest.skip" message="no compiler"/>'),
        ("8", "compile", "Llama", "", '<skipped type="pytest.skip" message="no compiler"/>'),
        ("9", "compile", "Llama", "", ""),
        (
            "10",
            "compile",
            "DeltaNet (fla)",
            "",
            failure("RuntimeError: 0 active drivers ([]). There should only be one."),
        ),
    )
    results = script["collect"]([path], {})
    assert results["models"] == {"Anthe": "ours", "FastWeight": "ours", "Llama": "peer", "DeltaNet (fla)": "peer"}
    assert results["groups"] == {
        "torch": {
            "compile": {
                "Anthe": {"verdict": "not run", "note": "no compiler"},
                "DeltaNet (fla)": {"verdict": "not run", "note": "its kernels need a GPU"},
                "Llama": {"verdict": "works", "note": ""},
            },
            "export": {
                "Anthe": {"verdict": "limits", "note": "no beams"},
                "FastWeight": {"verdict": "refused", "note": "has no keys"},
                "Llama": {"verdict": "fails", "note": "ValueError: bad file .../x.py"},
            },
        }
    }
    assert script["our_failures"](results) == []
    page = script["render_page"](results)
    assert "| export | limits[^3] | refused[^4] | fails[^5] |  |" in page
    assert "[^3]: no beams\n[^4]: has no keys\n[^5]: `ValueError: bad file .../x.py`\n" in page
    readme = script["render_readme"](results, f"above\n{script['BEGIN']}\nold\n{script['END']}\nbelow\n")
    assert readme.startswith(f"above\n{script['BEGIN']}\n| ") and readme.endswith(f"|\n{script['END']}\nbelow\n")
    assert "old" not in readme and "|  | Anthe | FastWeight |\n" in readme  # ours alone
    assert "| torch | 0 of 2, 1 limited, 1 not run | 0 of 1, 1 refused |" in readme


def test_later_report_replaces_a_test_and_our_failures_are_told(script, tmp_path):
    first = report(tmp_path / "1.xml", ("1", "export", "Anthe", "", failure("a")), ("2", "export", "T5", "", ""))
    again = report(tmp_path / "2.xml", ("1", "export", "Anthe", "", ""), ("2", "export", "T5", "", failure("b")))
    suite = {"5.24.0": {"DeLighTLM": {"passed": 3, "failed": 1, "skipped": 2}, "T5": {"passed": 0, "failed": 4}}}
    cells = [script["collect"](reports, suite)["groups"]["torch"]["export"] for reports in ([first], [first, again])]
    assert [(cell["Anthe"]["verdict"], cell["T5"]["verdict"]) for cell in cells] == [
        ("fails", "works"),
        ("works", "fails"),
    ]
    told = [script["our_failures"](script["collect"](reports, suite)) for reports in ([first], [first, again])]
    assert told[1] == ["transformers 5.24.0, DeLighTLM: 1 of its own tests"]
    assert told[0] == ["torch, export, Anthe: a", *told[1]]


def test_failure_without_a_row_is_no_silent_gap(script, tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(f'<testsuite><testcase classname="a" name="b">{failure("crash")}</testcase></testsuite>')
    with pytest.raises(SystemExit, match="a::b failed without a row"):
        script["collect"]([path], {})


def test_counts_of_the_model_tests_are_read_from_their_reports(script, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"families": {"Anthe": {"counts": {"passed": 5, "skipped": 2, "subtests": 9}}}}))
    assert script["read_own_tests"]([path]) == {"Anthe": {"passed": 5, "failed": 0, "skipped": 2}}


def test_documents_are_what_the_results_say(script):
    assert script["stale_documents"]() == []
