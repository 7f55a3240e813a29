# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What pip installs is what stands in the tree."""

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def setup_cfg(root):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


def shipped_files(root):
    """Every file of the packages, with its path in the wheel."""
    for top in ("src/leanformers", "modeling", "model_cards"):
        for path in (root / top).rglob("*"):
            if path.suffix in (".py", ".md", ".typed") and "__pycache__" not in path.parts:
                inside = path.relative_to(root / "src" if top.startswith("src") else root).as_posix()
                yield path, inside if top.startswith("src") else f"leanformers/{inside}"


@pytest.fixture(scope="module")
def distributions(root, tmp_path_factory):
    """Wheel and source distribution, built from a copy without what earlier builds left."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in ("src", "modeling", "model_cards"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    build = (
        "from setuptools import build_meta as backend\n"
        "print(backend.build_wheel('dist')); print(backend.build_sdist('dist'))"
    )
    run = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (wheel,), (sdist,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return wheel, sdist


def test_every_package_is_listed(root, setup_cfg):
    inside = (inside for path, inside in shipped_files(root) if path.name == "__init__.py")
    packages = sorted(path.removesuffix("/__init__.py").replace("/", ".") for path in inside)
    assert sorted(setup_cfg["options"]["packages"].split()) == packages


def test_every_folder_with_code_is_a_package(root):
    folders = {path.parent for path, _ in shipped_files(root) if path.suffix == ".py"}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_wheel_holds_every_file(root, distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        held = set(wheel.namelist())
    assert {inside for _, inside in shipped_files(root)} <= held
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_source_distribution_holds_every_file(root, distributions):
    with tarfile.open(distributions[1]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {path.relative_to(root).as_posix() for path, _ in shipped_files(root)} <= held


def test_installed_wheel_imports_from_its_own_files(distributions, tmp_path):
    """The wheel in a folder of its own, ahead of the editable installation."""
    with zipfile.ZipFile(distributions[0]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import leanformers\n"
        "from transformers import AutoConfig\n"
        "for family in leanformers.FAMILIES.values():\n"
        "    print(sys.modules[family.config_class.__module__].__file__)\n"
        "    assert type(AutoConfig.for_model(family.model_type)) is family.config_class\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(Path(line).is_relative_to(tmp_path) for line in run.stdout.split())


def test_all_extra_is_the_sum_of_the_others(setup_cfg):
    extras = dict(setup_cfg["options.extras_require"])
    (inside,) = re.findall(r"leanformers\[(.*)\]", extras.pop("all"))
    assert sorted(inside.split(",")) == sorted(extras)
