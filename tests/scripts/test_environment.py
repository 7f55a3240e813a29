# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""scripts/environment.sh on machines that lack something; what it installs is tested by README's slow commands."""

import os
import subprocess
import sys

import pytest

PREPARE = 'set -euo pipefail; source scripts/environment.sh; prepare_environment "$1" train; echo "ready: $python"'


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def prepare(root, tmp_path):
    def run(python, folder=tmp_path / "environment"):
        return subprocess.run(
            ["bash", "-c", PREPARE, "bash", str(folder)],
            cwd=root,
            env={**os.environ, "PYTHON": python},
            capture_output=True,
            text=True,
        )

    return run


def test_no_python(prepare):
    run = prepare("/no/python")
    assert run.returncode == 1
    assert "no '/no/python' on PATH; install Python 3.10 or newer" in run.stderr


def test_old_python(prepare, tmp_path):
    old = 'case "$1" in --version) echo "Python 3.9.2";; *) exit 1;; esac'
    run = prepare(write_program(tmp_path / "python3", old))
    assert run.returncode == 1
    assert "Python 3.9.2 is too old; leanformers needs 3.10 or newer" in run.stderr


def test_no_venv_module(prepare, tmp_path):
    bare = f'case "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"'
    run = prepare(write_program(tmp_path / "python3", bare))
    assert run.returncode == 1
    assert "has no venv module. On Debian and Ubuntu: sudo apt install python3-venv" in run.stderr
    assert not (tmp_path / "environment").exists()


def test_prepared_environment_is_left_alone_until_setup_cfg_changes(prepare, root, tmp_path):
    """An interpreter that logs what it is asked stands for one in which everything is installed."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    log = tmp_path / "log"
    write_program(folder / "bin/python", f'echo "$*" >> {log}\ncase "$*" in *torch*) echo 2.13.0 here;; esac')
    first = prepare(sys.executable, folder)
    assert first.returncode == 0, first.stderr
    assert "torch 2.13.0 is there" in first.stdout and "installing leanformers[train]" in first.stdout
    asked = log.read_text()
    assert "pip install" in asked and "-e .[train]" in asked
    second = prepare(sys.executable, folder)
    assert second.returncode == 0 and f"using {folder}" in second.stdout
    assert log.read_text() == asked
    (folder / ".leanformers-train").write_text("what another setup.cfg left")
    assert "installing leanformers[train]" in prepare(sys.executable, folder).stdout
