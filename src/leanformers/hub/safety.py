# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What makes a Hub folder unsafe to read or run: anything that leads out of it, and code that its card does not list.

A configuration names files, and what loads it joins those names to the folder: `../../x` or `/x` would be read, and as
code run, from elsewhere.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from ..data.tokenizers import TARGET_SUBFOLDER

INDEX = "model.safetensors.index.json"
NAMING_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", INDEX)
# A mapping of what is text, not a name.
TOKENS = "added_tokens_decoder"


def safety_problems(directory: Path) -> list[str]:
    """One sentence per problem. With one of these, nothing else of the folder should be opened."""
    return _link_problems(directory) or [*_name_problems(directory), *_code_problems(directory)]


def code_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each Python file under the folder, by its path in there."""
    files = sorted(directory.rglob("*.py"))
    return {file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leads_out(name: str) -> bool:
    """Whether a name that should be of a file in a folder is of one elsewhere, on any system."""
    absolute = re.match(r"~?/+[^/]|[A-Za-z]:[/\\]|\\\\", name)
    return absolute is not None or ".." in re.split(r"[/\\]", name)


def refuse_shards_outside(index: Path, weight_map: dict[str, str]) -> None:
    """`ValueError` if an index of weights takes some from outside its folder."""
    outside = sorted({shard for shard in map(str, weight_map.values()) if leads_out(shard)})
    if outside:
        raise ValueError(f"{index} takes weights from outside its folder ({', '.join(outside)}); do not load it")


def _link_problems(directory: Path) -> list[str]:
    problems = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_symlink():
            problems.append(
                f"{name} is a link, to {os.readlink(path)}: put the file itself there (`hf download` does with "
                "--local-dir)."
            )
        elif not path.is_file() and not path.is_dir():
            problems.append(f"{name} is neither a file nor a folder; delete it.")
    return problems


def _name_problems(directory: Path) -> list[str]:
    problems = []
    for folder in (directory, directory / TARGET_SUBFOLDER):
        for file in (folder / name for name in NAMING_FILES):
            outside = {text for text in _strings(_content(file)) if not re.search(r"\s", text) and leads_out(text)}
            name = file.relative_to(directory)
            problems += [f"{name} names {text}, which is outside the folder." for text in sorted(outside)]
    return problems


def _content(file: Path) -> object:
    """What is no JSON names nothing: the loader fails on it."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        return None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key != TOKENS:
                yield from _strings(one)


def _code_problems(directory: Path) -> list[str]:
    listed = listed_hashes(directory)
    if listed is None:
        return []  # which is a problem of the card
    found = code_hashes(directory)
    problems = [f"{name} is listed in README.md (code_hashes), but missing." for name in sorted(listed.keys() - found)]
    for name, digest in found.items():
        if name not in listed:
            problems.append(f"{name} is not among the code that README.md lists (code_hashes); it was added later.")
        elif digest != listed[name]:
            problems.append(
                f"{name} is not the file that README.md lists (code_hashes): its SHA-256 is {digest}, listed is "
                f"{listed[name]}."
            )
    return problems


def listed_hashes(directory: Path) -> dict[str, str] | None:
    """`code_hashes` of the card's metadata; None if it has none that can be read."""
    card = directory / "README.md"
    try:
        listed = (metadata_load(card) or {}).get("code_hashes") if card.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None
    return listed if isinstance(listed, dict) else None
