# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Local `evaluate` modules: each subfolder is one, loadable by its path, and nothing is fetched when it runs."""

from pathlib import Path

import evaluate

DIRECTORY = Path(__file__).parent


def load(name: str) -> evaluate.EvaluationModule:
    """Load the metric `"translation"` or `"exact_match"`; combine several with `evaluate.combine`."""
    if not (DIRECTORY / name / f"{name}.py").is_file():
        names = sorted(path.parent.name for path in DIRECTORY.glob("*/*.py") if path.stem == path.parent.name)
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(names)}.")
    # In memory, so that concurrent runs of one user do not share a cache file.
    return evaluate.load(str(DIRECTORY / name), keep_in_memory=True)
