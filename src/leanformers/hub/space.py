# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A Space, the Hub's kind of repository that runs: `page.py`, which `app.py` shows with one model, what they need, and
the metadata that starts it."""

import json
import shutil
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from packaging.version import Version

COLORS = ("indigo", "gray")
WRITTEN = {"app.py", "page.py", "requirements.txt", "README.md"}


def write_space(directory: Path, model: str, revision: str | None = None) -> Path:
    """
    Write the folder of a Space that shows one model.

    Args:
        directory (`Path`): The folder to write: a new one, or one that this wrote before.
        model (`str`): Repository of the model on the Hub, organisation/name.
        revision (`str`, *optional*): Commit of it to run. Its code runs in the Space, so pin what you have read.

    Raises:
        `FileExistsError`: if the folder holds anything else.
    """
    foreign = foreign_files(directory)
    if foreign:
        raise FileExistsError(f"{directory} cannot be written to: {foreign[0]}")
    directory.mkdir(parents=True, exist_ok=True)
    with as_file(files("leanformers.hub") / "page.py") as page:
        shutil.copyfile(page, directory / "page.py")
    arguments = ["--model", model, *(["--revision", revision] if revision else [])]
    (directory / "app.py").write_text(f"from page import main\n\nmain({json.dumps(arguments)})\n", encoding="utf-8")
    (directory / "requirements.txt").write_text(requirements(), encoding="utf-8")
    (directory / "README.md").write_text(card(model, revision), encoding="utf-8")
    return directory


def foreign_files(directory: Path) -> list[str]:
    """A sentence on each file that is no part of a Space."""
    foreign = sorted(path.name for path in directory.glob("*") if path.name not in WRITTEN)
    return [f"it holds {name}, which is no part of a Space; choose another folder." for name in foreign]


def requirements() -> str:
    """The versions that the page was tried with; gradio's own is in the metadata."""
    return "".join(f"{package}=={Version(version(package)).public}\n" for package in ("torch", "transformers"))


def card(model: str, revision: str | None) -> str:
    name = model.rpartition("/")[2]
    data = SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=version("gradio"),
        app_file="app.py",
        license="apache-2.0",
        models=[model],
        colorFrom=COLORS[0],
        colorTo=COLORS[1],
        short_description=f"Try {name} in the browser"[:60],
    )
    pinned = f"at commit `{revision}`"
    if revision is None:
        pinned = "in its newest version; to pin what you have read, add `--revision` in `app.py`"
    text = f"\n# {name}\n\nShows [{model}](https://huggingface.co/{model}), {pinned}.\n"
    return str(SpaceCard(f"---\n{data.to_yaml()}\n---\n{text}"))
