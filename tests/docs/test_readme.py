# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the documents tell a reader to type works.

A ```python block runs, in one process with those above it. A ```bash block is read: its scripts, files and flags must
exist. README's that are marked `bash slow` run too when slow tests are asked for; the others need the Hub, a GPU, or
files of the reader's.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "modeling/*/README.md", "model_cards/*.md", "scripts/benchmarks/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "template.md"  # has gaps, filled in when a card is written, and tested then
]
FLAG = re.compile(r"--[A-Za-z][\w-]*")
# evaluate.py takes the arguments that its model calls for: without one those of translators.
MORE_HELP = {"scripts/evaluate.py": ["--model_name_or_path", "configs/model/delight/lm_tiny.json"]}


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """The ``` blocks of a language: number of the first line, text."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = path.read_text(encoding="utf-8")
    for match in fence.finditer(text):
        yield text.count("\n", 0, match.start()) + 2, match[1]


def commands(path):
    for first_line, text in blocks(path, "bash(?: slow)?"):
        for number, line in enumerate(text.splitlines()):
            if line.strip() and not line.startswith("#"):
                yield pytest.param(line, id=f"{name(path)}:{first_line + number}")


@pytest.fixture
def checkout(tmp_path):
    """Links to all of the repository but what is written there, so that commands write into a folder of ours."""
    for path in ROOT.iterdir():
        if path.name not in ("outputs", "data", ".git", ".venv"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(command, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@cache
def flags_of(*program):
    """The flags that a Python program shows in its help."""
    help_text = run([sys.executable, *program, "--help"], ROOT)
    assert help_text.returncode == 0, help_text.stderr[-2000:]
    return set(FLAG.findall(help_text.stdout))


def check_program(words):
    """The script or module exists, and so do the files and flags it is given."""
    if words[0] == "accelerate":
        words = words[words.index(next(word for word in words if word.endswith(".py"))) - 1 :]
    if words[0] in ("bash", "python") and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    for word in words:
        if word.startswith(("configs/", "scripts/")):
            assert (ROOT / word).exists(), f"there is no {word}"
    given = {flag.group() for flag in map(FLAG.fullmatch, words) if flag}
    if words[0] == "python" and given:
        program = words[1:3] if words[1] == "-m" else words[1:2]
        known = [flags_of(*program), flags_of(*program, *MORE_HELP.get(program[0], []))]
        assert any(given <= flags for flags in known), f"{' '.join(program)} has no {given - known[0]}"


@pytest.mark.parametrize("command", [command for path in DOCUMENTS for command in commands(path)])
def test_command_names_what_exists(command):
    for part in command.split(" | "):
        words = [word for word in shlex.split(part, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        assert words[0] in ("accelerate", "bash", "echo", "pip", "python"), f"unknown program {words[0]}"
        check_program(words)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if any(blocks(path, "python"))], ids=name)
def test_python_blocks_run(path, checkout):
    # Blank lines in place of the text around keep the line numbers of a traceback those of the document.
    code = ""
    for first_line, text in blocks(path, "python"):
        code += "\n" * (first_line - 1 - code.count("\n")) + text
    result = run([sys.executable, "-c", code], checkout)
    assert result.returncode == 0, f"{name(path)}:\n{result.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_readme_commands_run(checkout):
    """In order, as later ones use what earlier ones wrote."""
    for first_line, text in blocks(ROOT / "README.md", "bash slow"):
        result = run(["bash", "-euo", "pipefail", "-c", text], checkout)
        assert result.returncode == 0, f"README.md:{first_line}:\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{name(path)} links to {target}, which is not there"


def test_readme_shows_every_family():
    from leanformers import FAMILIES

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[0]
    for family in FAMILIES.values():
        start = f"| [{family.title}](modeling/{family.name}/README.md)"
        rows = [line for line in table.splitlines() if line.startswith(start)]
        assert len(rows) == 1, f"README.md has {len(rows)} rows that begin with {start!r}"
        assert family.paper in rows[0] and re.search(r"\(scripts/benchmarks/results/\w+\.json\)", rows[0])


def test_every_paper_can_be_cited():
    from leanformers import FAMILIES

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    missing = [family.title for family in FAMILIES.values() if f"arXiv:{family.paper}" not in citation]
    assert not missing, f"CITATION.cff lacks the papers of {missing}"


def test_license_header_stands_in_every_file():
    header = "# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0."
    for folder in ("modeling", "model_cards", "scripts", "src", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.startswith(header), f"{name(path)} lacks the first line {header!r}"
            ast.parse(text, feature_version=(3, 10))
