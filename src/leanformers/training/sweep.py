# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Points of a study in a JSON file: a finished point is kept at once, and a second run goes on with the rest."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


def run_points(
    path: str | Path,
    names: tuple[str, ...],
    wanted: Sequence[tuple],
    settings: Mapping[str, Any],
    run: Callable[..., dict],
    about: Mapping[str, Any],
    desc: str,
) -> list[dict]:
    """Run all points that the file does not have yet, and return all that it has then.

    Args:
        path: the JSON.
        names: of the entries that tell a point from others.
        wanted: points, each by the values of those entries, in the order in which they are run.
        settings: everything else that the results depend on, which points have as `settings`.
        run: called with those values and a progress bar, to write on what it is at; gives the point.
        about: what the file says besides the points, such as versions and machine.
        desc: of the progress bar.

    Raises:
        `ValueError`: if the file has one of the points with other settings, or points of another study.
    """
    path = Path(path)
    done = set()
    for point in read_points(path):
        if missing := [name for name in names if name not in point]:
            raise ValueError(f"{path} has points without {missing[0]!r}, of another study; give another output_file.")
        key = tuple(point[name] for name in names)
        if key in wanted and point["settings"] != settings:
            label = ", ".join(f"{name} {value}" for name, value in zip(names, key, strict=True))
            raise ValueError(
                f"{path} has {label} under other settings ({point['settings']}); give another output_file."
            )
        done.add(key)
    with tqdm([key for key in wanted if key not in done], desc=desc, unit="point") as progress:
        for key in progress:
            point = {**run(*key, progress), "settings": dict(settings)}
            # Read again: meanwhile another process may have finished other points of the file.
            write_points(path, names, [*read_points(path), point], about)
    return read_points(path)


def read_points(path: Path) -> list[dict]:
    """The points of an earlier run, or of none."""
    return json.loads(path.read_text(encoding="utf-8"))["points"] if path.is_file() else []


def write_points(path: Path, names: tuple[str, ...], points: list[dict], about: Mapping[str, Any]) -> None:
    """Put a new file in the place of the old one, which stays whole if this process ends here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = sorted(points, key=lambda point: tuple(point[name] for name in names))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**about, "points": rows}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
