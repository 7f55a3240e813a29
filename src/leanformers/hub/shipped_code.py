# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Static rules for the code of a Hub folder: what the loader of transformers demands, seen with its own eyes too."""

import ast
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import transformers.utils.import_utils
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from ..registry import FAMILIES
from .safety import code_hashes

# huggingface_hub (for `strict` configurations) and safetensors are hard requirements of transformers itself.
ALLOWED_PACKAGES = {"torch", "transformers", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def code_problems(directory: Path) -> list[str]:
    """Problems of the Python files, one sentence each."""
    problems = []
    for path in sorted(directory.rglob("*.py")):
        if path.parent != directory:
            problems.append(f"{path.relative_to(directory)} is in a sub-folder, where the loader never looks.")
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            problems.append(f"{path.name} is not valid Python: {error}.")
            continue
        problems += _package_problems(path, tree)
        problems += _relative_import_problems(path, tree)
    return problems


def code_origin(directory: Path) -> str:
    """Whether the code is that of the installed leanformers, bit for bit; empty for a model that is none of its."""
    try:
        model_type = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    family = next((family for family in FAMILIES.values() if family.model_type == model_type), None)
    spec = find_spec(family.module) if family else None
    if spec is None or not spec.origin:
        return ""
    shipped, installed = code_hashes(directory), code_hashes(Path(spec.origin).parent)
    del installed["__init__.py"]
    differing = sorted(name for name in shipped.keys() | installed if shipped.get(name) != installed.get(name))
    name = f"leanformers {version('leanformers')}"
    if differing:
        return f"Its code differs from that of the installed {name} in {', '.join(differing)}: read it."
    return f"Its code is the same as that of the installed {name}, bit for bit."


def class_names(path: Path) -> set[str]:
    """Names of the classes at the top level of a file; empty if it is not valid Python."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _package_problems(path: Path, tree: ast.Module) -> list[str]:
    required = {name.partition(".")[0] for name in _unguarded_imports(tree)} | set(get_imports(path))
    return [
        f"{path.name} needs the package {name!r}: import only torch, transformers and the standard library outside "
        "`try: ... except ImportError:` (an import in a function or under TYPE_CHECKING counts)."
        for name in sorted(required - ALLOWED_PACKAGES)
    ]


def _unguarded_imports(node: ast.AST) -> Iterator[str]:
    """Absolute imports that run, or that the loader demands, without a fallback for an absent package."""
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module
    elif isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
        children = [*node.handlers, *node.orelse, *node.finalbody]
    elif isinstance(node, ast.If) and _asks_availability(node.test):
        children = [*node.orelse]
    for child in children:
        yield from _unguarded_imports(child)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(node, ast.Name) and node.id in IMPORT_ERRORS for node in ast.walk(handler.type))


def _asks_availability(test: ast.expr) -> bool:
    """`is_triton_available()` and its like, as far as transformers knows them: the loader skips these blocks."""
    names = [getattr(node.func, "id", "") for node in ast.walk(test) if isinstance(node, ast.Call)]
    return any(name.endswith("_available") and hasattr(transformers.utils.import_utils, name) for name in names)


def _relative_import_problems(path: Path, tree: ast.Module) -> list[str]:
    problems = []
    seen_by_loader = set(get_relative_imports(path))
    for name in sorted(seen_by_loader):
        if name.startswith("."):
            problems.append(f"{path.name} imports `.{name}` from outside the folder; only siblings ship.")
        elif "." in name or (path.parent / name).is_dir():
            problems.append(f"{path.name} imports the sub-package `.{name}`; the loader finds flat siblings only.")
        elif not (path.parent / f"{name}.py").is_file():
            problems.append(
                f"{path.name} imports `.{name}`, but {name}.py is not in the folder (to the loader a line of that "
                "form in a docstring, in a `try` or under TYPE_CHECKING is an import as well)."
            )
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        seen_as = "." * (node.level - 1) + (node.module or "")
        if not node.module or seen_as not in seen_by_loader:
            problems.append(
                f"{path.name}, line {node.lineno}: `{ast.unparse(node)}` is not seen by the loader; write "
                "`from .module import name` at the start of a line."
            )
    return problems
