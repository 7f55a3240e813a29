# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Each method's page leads from its equations to the code that computes them."""

import ast
import re

import pytest

from leanformers import FAMILIES

CODE = re.compile(r"\[`([\w.]+)`\]\((\w+\.py)\)")


@pytest.fixture(params=FAMILIES)
def folder(request, root):
    return root / "modeling" / request.param


def defined_in(path):
    """Functions, classes, and methods as `Class.method`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))


def test_equations_stand_beside_code_that_exists(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    links = CODE.findall(page)
    assert links
    for name, file in links:
        assert name in set(defined_in(folder / file)), f"{folder.name}/README.md: there is no {name} in {file}"


def test_every_line_by_line_form_stands_on_its_page(folder):
    linked = {name for name, _ in CODE.findall((folder / "README.md").read_text(encoding="utf-8"))}
    naive = {name for path in folder.glob("*.py") for name in defined_in(path) if name.startswith("naive_")}
    assert naive and naive <= linked


def test_every_page_shows_its_figure(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert f"](../../docs/figures/{folder.name}.png)" in page
