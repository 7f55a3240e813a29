# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Make the compatibility table of what the tests of tests/ecosystem record.

    python scripts/dev/compatibility.py -n 2
    python scripts/dev/compatibility.py --junit earlier.xml repeated.xml --own-tests 5.24.0 reports/5.24.0/*.json
    python scripts/dev/compatibility.py --check

Without `--junit` it runs them all, slow ones too, on our models and on their peers, of which DeltaNet only where
flash-linear-attention can be imported. It writes docs/compatibility.json, and of that docs/compatibility.md and the
short table between two comments in README.md. Exit status 1 if something fails on a model of ours or, with `--check`,
if the documents are not what the JSON says.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE, README = ROOT / "docs/compatibility.json", ROOT / "docs/compatibility.md", ROOT / "README.md"
BEGIN, END = "<!-- compatibility:begin -->", "<!-- compatibility:end -->"
TOOLS = (
    *("torch", "transformers", "accelerate", "peft", "trl", "lm-eval", "evaluate", "datasets", "torchao"),
    *("bitsandbytes", "onnx", "onnxruntime", "onnxscript", "optimum-quanto", "triton", "flash-linear-attention"),
)
MARKS = {"works": "✓", "limits": "limits", "refused": "refused", "fails": "fails", "not run": "not run"}
OTHERS = {"limits": "limited", "refused": "refused", "fails": "fail", "not run": "not run"}
WORST_FIRST = ("fails", "refused", "limits", "works", "not run")
LONGEST_NOTE = 160
NO_GPU = "0 active drivers"  # Triton's error where there is none, and no other form of a kernel


def run_tests(junit: Path, num_workers: int) -> None:
    """Whether tests fail is for the table to say: only a run that could not be made is an error."""
    command = [sys.executable, "-m", "pytest", "tests/ecosystem", "-m", "tool and not gpu and not network", "-q"]
    command += ["-n", str(num_workers), "--tb=short", f"--junitxml={junit}"]
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, "LEANFORMERS_PEERS": "1"}).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest could not run the tests (exit status {code}).")


def first_line(text: str) -> str:
    """The first line of an error, without what is different on each machine and in each run."""
    line = text.strip().partition("\n")[0].strip()
    line = re.sub(r"(?<![\w:/])(?:/[\w.@+-]+)+/", ".../", line)
    line = re.sub(r" at 0x[0-9a-f]+", "", line)
    return line if len(line) <= LONGEST_NOTE else f"{line[:LONGEST_NOTE].rstrip()}..."


def outcome_of(case: ElementTree.Element, properties: list[tuple[str, str]]) -> tuple[str, str]:
    """Verdict and note of one test."""
    for tag in ("failure", "error"):
        if (problem := case.find(tag)) is not None:
            message = problem.get("message", "")
            return ("not run", "its kernels need a GPU") if NO_GPU in message else ("fails", first_line(message))
    if (skipped := case.find("skipped")) is not None:
        return "not run", first_line(skipped.get("message", ""))
    verdicts = [value.partition(": ")[::2] for name, value in properties if name == "verdict"]
    return min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict[0]), default=("works", ""))


def read_cells(reports: list[Path]) -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """All outcomes of each cell (group, row, model). Of a test in several reports the last one counts."""
    tests = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            properties = [(part.get("name", ""), part.get("value", "")) for part in case.iter("property")]
            outcome, cell = outcome_of(case, properties), dict(properties)
            if "row" in cell:
                tests[name] = (cell["group"], cell["row"], cell["subject"]), outcome
            elif outcome[0] == "fails":
                raise SystemExit(f"{report}: {name} failed without a row to stand in: {outcome[1]}")
    cells: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for cell, outcome in tests.values():
        cells.setdefault(cell, []).append(outcome)
    return cells


def worst(outcomes: list[tuple[str, str]]) -> dict[str, str]:
    verdict = min((verdict for verdict, _ in outcomes), key=WORST_FIRST.index)
    notes = sorted({note for other, note in outcomes if other == verdict and note})
    return {"verdict": verdict, "note": "; ".join(notes)}


def read_own_tests(reports: list[Path]) -> dict[str, dict[str, int]]:
    """Counts of transformers' own tests of each tested family, from what peer_suite.sh reports."""
    counts = {}
    for report in reports:
        for family, result in json.loads(report.read_text(encoding="utf-8"))["families"].items():
            counts[family] = {kind: result["counts"].get(kind, 0) for kind in ("passed", "failed", "skipped")}
    return counts


def tool_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return versions


def collect(reports: list[Path], own_tests: dict[str, dict]) -> dict:
    """All that the documents say."""
    sys.path.insert(0, str(ROOT / "tests"))
    from ecosystem.subjects import DELTA_NET, OURS, PEERS

    cells = read_cells(reports)
    present = {subject for _, _, subject in cells}
    models = [subject for subject in (*OURS, *PEERS, DELTA_NET) if subject.name in present]
    groups: dict[str, dict[str, dict]] = {}
    for group, row, subject in sorted(cells):
        groups.setdefault(group, {}).setdefault(row, {})[subject] = worst(cells[group, row, subject])
    return {
        "versions": tool_versions(),
        "models": {model.name: "peer" if model.is_peer else "ours" for model in models},
        "groups": groups,
        "own_tests": own_tests,
    }


def our_failures(results: dict) -> list[str]:
    ours = [model for model, kind in results["models"].items() if kind == "ours"]
    failures = [
        f"{group}, {row}, {model}: {cells[model]['note']}"
        for group, rows in results["groups"].items()
        for row, cells in rows.items()
        for model in ours
        if cells.get(model, {}).get("verdict") == "fails"
    ]
    peers = {column(model) for model, kind in results["models"].items() if kind == "peer"}
    return failures + [
        f"transformers {number}, {family}: {counts['failed']} of its own tests"
        for number, families in results["own_tests"].items()
        for family, counts in families.items()
        if counts["failed"] and family not in peers
    ]


def column(model: str) -> str:
    """The tested family that stands for a model; others are variants."""
    return model.replace(" ", "")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Footnotes:
    """Numbered in the order they are first used, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, cell: dict[str, str] | None) -> str:
        if cell is None:
            return ""
        note = cell["note"]
        if cell["verdict"] == "fails":
            note = f"`{note.replace('`', chr(39))}`"
        if not note:
            return MARKS[cell["verdict"]]
        return f"{MARKS[cell['verdict']]}[^{self.numbers.setdefault(note, len(self.numbers) + 1)}]"

    def render(self) -> str:
        return "\n".join(f"[^{number}]: {note}" for note, number in self.numbers.items())


HOW_TO_READ = """\
Made by `scripts/dev/compatibility.py` of what the tests in `tests/ecosystem` saw, each on a tiny model with random
weights, on a CPU. Our models stand on the left; for comparison there are others, on which the same tests ran.

✓ works. `limits`: works, but for what the note says. `refused`: a clear error says so, the note why. `fails`: the test
failed; the note is the first line of the error. `not run`: a tool or a GPU was missing. Nothing: does not apply."""
OWN_TESTS = """\
All tests that a model of transformers itself has to pass, slow ones among them: passed / failed / skipped. Tests of
GPUs, FlashAttention, kernels, DeepSpeed and vision, and of what an architecture does not have, are skipped for
everybody. Names that are in no table above are variants of a family, as `scripts/dev/peer_adapter.py` has them."""


def render_page(results: dict) -> str:
    models, footnotes = list(results["models"]), Footnotes()
    parts = [
        "# Compatibility",
        HOW_TO_READ,
        "Versions: " + ", ".join(f"{tool} {number}" for tool, number in results["versions"].items()) + ".",
    ]
    for group, rows in results["groups"].items():
        lines = [[row, *(footnotes.mark(cells.get(model)) for model in models)] for row, cells in rows.items()]
        parts += [f"## {group}", table(["", *models], lines)]
    if results["own_tests"]:
        parts += ["## transformers' own tests", OWN_TESTS, own_tests_table(results["own_tests"])]
    return "\n\n".join([*parts, footnotes.render()]).rstrip() + "\n"


def own_tests_table(own_tests: dict) -> str:
    families = dict.fromkeys(family for counts in own_tests.values() for family in counts)
    cells = [
        [" / ".join(map(str, counts.get(family, {}).values())) for counts in own_tests.values()] for family in families
    ]
    head = ["", *(f"transformers {number}" for number in own_tests)]
    return table(head, [[family, *line] for family, line in zip(families, cells, strict=True)])


def own_tests_mark(counts: dict[str, int] | None) -> str:
    if counts is None:
        return ""
    return f"{counts['failed']} fail" if counts["failed"] else f"all {counts['passed']}"


def summary(cells: list[dict[str, str]]) -> str:
    """How many rows of a group work on a model, and what became of the others."""
    counts = Counter(cell["verdict"] for cell in cells)
    if not cells:
        return ""
    if counts["works"] == len(cells):
        return f"all {len(cells)}"
    others = [f"{counts[verdict]} {word}" for verdict, word in OTHERS.items() if counts[verdict]]
    return ", ".join([f"{counts['works']} of {len(cells)}", *others])


def render_readme_table(results: dict) -> str:
    """Our models alone, a line for each group."""
    models = [model for model, kind in results["models"].items() if kind == "ours"]
    lines = [
        [group, *(summary([cells[model] for cells in rows.values() if model in cells]) for model in models)]
        for group, rows in results["groups"].items()
    ]
    for number, families in results["own_tests"].items():
        marks = [own_tests_mark(families.get(column(model))) for model in models]
        lines.append([f"transformers' own tests, {number}", *marks])
    return table(["", *models], lines)


def render_readme(results: dict, text: str) -> str:
    """`text` with the table between its two comments."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md needs the lines {BEGIN} and {END}, for the table to stand between.")
    return f"{before}{BEGIN}\n{render_readme_table(results)}\n{END}{after}"


def documents(results: dict) -> Iterator[tuple[Path, str]]:
    yield PAGE, render_page(results)
    yield README, render_readme(results, README.read_text(encoding="utf-8"))


def stale_documents() -> list[Path]:
    """Those that are not what docs/compatibility.json says."""
    rendered = documents(json.loads(RESULTS.read_text(encoding="utf-8")))
    return [path for path, text in rendered if not path.exists() or path.read_text(encoding="utf-8") != text]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--junit", nargs="+", type=Path, metavar="FILE", help="runs already made, later ones win")
    parser.add_argument("-n", type=int, default=0, metavar="WORKERS", help="processes to run the tests in")
    parser.add_argument(
        *("--own-tests",),
        nargs="+",
        action="append",
        default=[],
        metavar=("VERSION", "FILE"),
        help="reports of peer_suite.sh --slow with that transformers; without them the last ones stay",
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.check:
        stale = stale_documents()
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what docs/compatibility.json says.")
        return 1 if stale else 0
    own_tests = json.loads(RESULTS.read_text(encoding="utf-8"))["own_tests"] if RESULTS.exists() else {}
    own_tests |= {number: read_own_tests([Path(file) for file in files]) for number, *files in arguments.own_tests}
    with tempfile.TemporaryDirectory() as folder:
        reports = arguments.junit
        if reports is None:
            reports = [Path(folder, "junit.xml")]
            run_tests(reports[0], arguments.n)
        results = collect(reports, own_tests)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path, text in documents(results):
        path.write_text(text, encoding="utf-8")
    failures = our_failures(results)
    for failure in failures:
        print(f"fails: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
