# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The judge of a Hub folder: does it load, run and save for somebody who has torch and transformers and nothing else?

    python -m leanformers.hub.check FOLDER [--static]

First comes what makes a folder unsafe to open (`safety.py`): with such a problem nothing more is done. The static half
(`static_checks.py`) reads the files. The live half (`clean_process.py`) loads them in a fresh Python process without
leanformers and without a network. That is no sandbox: of a stranger's folder, read the code first, or use --static.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .safety import safety_problems
from .shipped_code import code_origin
from .static_checks import static_problems

LIVE_TIMEOUT_SECONDS = 1800
# In names of environment variables.
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY", "ACCESS_KEY")
CLEAN_PROCESS = Path(__file__).with_name("clean_process.py")


@dataclass
class Report:
    """
    What `check` found.

    Args:
        directory (`Path`): The folder.
        problems (`list[str]`): One sentence each; empty if the folder can be published.
        live (`bool`): Whether the folder was also loaded and run.
        facts (`dict[str, str]`): What the live half measured: a digest of each Auto class's outputs for fixed ids.
        code (`str`): A sentence on whether the code is that of the installed leanformers; empty if it has no such
            family.
    """

    directory: Path
    problems: list[str]
    live: bool
    facts: dict[str, str] = field(default_factory=dict)
    code: str = ""

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        scope = "files read, loaded and run in a clean process" if self.live else "files read"
        code = [self.code] if self.code else []
        if self.ok:
            return "\n".join([f"{self.directory}: no problem found ({scope}).", *code])
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        problems = (f"  - {problem}" for problem in self.problems)
        return "\n".join([f"{self.directory}: {count} ({scope}):", *problems, *code])


def check(directory: str | os.PathLike, *, live: bool = True) -> Report:
    """
    Judge a Hub folder.

    Args:
        directory (`str` or `os.PathLike`): The folder.
        live (`bool`, defaults to `True`): Also load it through every Auto class in a clean process, run it, save it
            and load it again. Runs the folder's code.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return Report(directory, [f"{directory} is not a folder."], live=False)
    unsafe = safety_problems(directory)
    if unsafe:
        return Report(directory, unsafe, live=False, code=code_origin(directory))
    problems = static_problems(directory)
    facts: dict[str, str] = {}
    if live:
        live_problems, facts = _run_clean_process(directory)
        problems += live_problems
    return Report(directory, problems, live, facts, code_origin(directory))


def refuse_problems(folder: Path, name: Path) -> None:
    """`ValueError` with all problems of a folder, under the name that its user knows."""
    report = check(folder)
    if not report.ok:
        problems = "\n".join(f"  - {problem}" for problem in report.problems)
        raise ValueError(f"{name} is not fit for the Hub:\n{problems}")


def _run_clean_process(directory: Path) -> tuple[list[str], dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="leanformers-check-") as scratch:
        result = Path(scratch, "result.json")
        command = [sys.executable, str(CLEAN_PROCESS), str(directory.resolve()), str(result), scratch]
        try:
            process = subprocess.run(
                command,
                env=_clean_environment(scratch),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIVE_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [f"the clean process did not finish in {LIVE_TIMEOUT_SECONDS} s"], {}
        if not result.exists():
            last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
            return [f"the clean process died with exit code {process.returncode}: {last_line}"], {}
        found = json.loads(result.read_text(encoding="utf-8"))
        return found["problems"], found["facts"]


def _clean_environment(scratch: str) -> dict[str, str]:
    """The user's environment without anything that leads to his caches, secrets, Python paths or devices."""
    foreign = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON", "XDG_CACHE")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(foreign) and not any(word in key.upper() for word in SECRET_WORDS)
    }
    return environment | {
        "HF_HOME": os.path.join(scratch, "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONSAFEPATH": "1",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m leanformers.hub.check", description="Judge a Hub folder.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--static", action="store_true", help="only read the files; run nothing of them")
    options = parser.parse_args(arguments)
    report = check(options.directory, live=not options.static)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
