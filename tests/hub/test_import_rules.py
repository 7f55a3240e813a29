# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Who may import whom, and what the Hub's loader can follow."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in ROOT.glob("modeling/*/*.py") if path.name != "__init__.py")


def imports(path, relative=False):
    """The import statements of a file with whether each stands in the body of a `try`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    optional = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and bool(node.level) == relative:
            yield node, [node.module or ""], id(node) in optional
        elif isinstance(node, ast.Import) and not relative:
            yield node, [alias.name for alias in node.names], id(node) in optional


def ids(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the contracts are about."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "modeling", "model_cards", "scripts/dev"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def lint_imports(checkout):
    command = ["bash", "scripts/dev/lint_imports.sh"]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(command, cwd=checkout, env={"PATH": path}, capture_output=True, text=True)


def test_contracts_are_kept(checkout):
    run = lint_imports(checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("modeling/anthe/tensor_chain.py", "import leanformers.plots", "What is shipped to the Hub needs nothing"),
        ("src/leanformers/data/tasks.py", "import leanformers.modeling.anthe", "Data knows no model"),
        ("modeling/other/__init__.py", "import leanformers.modeling.anthe", "No family imports another"),
    ],
)
def test_contracts_bite(checkout, file, line, contract):
    (checkout / file).parent.mkdir(exist_ok=True)
    with open(checkout / file, "a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    run = lint_imports(checkout)
    assert run.returncode == 1
    assert re.search(f"{contract}.* BROKEN", run.stdout), run.stdout


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_shipped_file_needs_torch_and_transformers_alone(path):
    for node, modules, optional in imports(path):
        for module in modules:
            assert not module.startswith("transformers.models"), f"{path.name}:{node.lineno}: {module} is private"
            top = module.partition(".")[0]
            # huggingface_hub comes with transformers, whose configurations are declared with it.
            allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
            assert optional or top in allowed, f"{path.name}:{node.lineno}: {module} must stand in a try body"
            assert top != "leanformers" or module.startswith("leanformers.kernels"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_loader_follows_every_sibling(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    real = set()
    for node, (module,), _ in imports(path, relative=True):
        real.add(node.lineno)
        where = f"{path.name}:{node.lineno}"
        assert node.level == 1, f"{where}: more than one dot does not ship"
        assert module and "." not in module, f"{where}: only `from .name import thing` ships"
        assert path.with_name(f"{module}.py").is_file(), f"{where}: no sibling {module}.py"
        assert not lines[node.lineno - 1].endswith("\\"), f"{where}: the loader does not see past the line break"
    for number, line in enumerate(lines, 1):
        looks_relative = re.match(r"\s*(from\s+\.\S*\s+import\b|import\s+\.)", line)
        assert not looks_relative or number in real, f"{path.name}:{number}: text that the loader takes for an import"


def test_shipped_file_names_are_unique():
    assert [name for name, count in Counter(path.name for path in SHIPPED).items() if count > 1] == []


def test_nothing_imports_scripts_or_tests():
    outside = {path.stem for folder in ("scripts", "tests") for path in (ROOT / folder).rglob("*.py")}
    outside |= {"scripts", "tests"}
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("modeling/**/*.py")]:
        for node, modules, _ in imports(path):
            for module in modules:
                assert module.partition(".")[0] not in outside - {"evaluate"}, f"{ids(path)}:{node.lineno}: {module}"
