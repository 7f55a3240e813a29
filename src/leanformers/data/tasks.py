# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Data that need no download: number words to translate, made on the spot, and the sources of Python's own library.

"three hundred and twenty-one thousand, nine hundred and eighty-seven" becomes
"dreihunderteinundzwanzigtausendneunhundertsiebenundachtzig": units and tens swap places, "eins" loses its s inside a
word, and everything grows together, so that a model must read the whole source before it writes.
"""

import random
import sysconfig
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from datasets import Dataset, DatasetDict
from num2words import num2words
from transformers.utils import logging

logger = logging.get_logger(__name__)

MAX_DIGITS = 6
# What is installed beside the library, and its tests, which are longer than itself.
NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def number_translation(
    seed: int = 0, train_size: int = 30_000, validation_size: int = 500, test_size: int = 1_000
) -> DatasetDict:
    """Pairs of English and German number words for numbers from 0 to 999,999; no number is in two splits.

    The same arguments give the same pairs in the same order.
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    numbers = _draw_numbers(sum(sizes.values()), random.Random(seed))
    splits = DatasetDict()
    for name, size in sizes.items():
        drawn, numbers = numbers[:size], numbers[size:]
        splits[name] = Dataset.from_dict(
            {
                "source": [num2words(number, lang="en") for number in drawn],
                "target": [num2words(number, lang="de") for number in drawn],
            }
        )
    return splits


def _draw_numbers(count: int, generator: random.Random) -> list[int]:
    """Draw distinct numbers, as evenly over their digit counts as their supply allows, in random order."""
    total = 10**MAX_DIGITS
    if not 0 < count <= total:
        raise ValueError(f"The splits ask for {count} numbers altogether; there are 1 to {total} to draw from.")
    numbers: list[int] = []
    for digits in range(1, MAX_DIGITS + 1):
        supply = range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)
        share = (count - len(numbers)) // (MAX_DIGITS + 1 - digits)
        numbers += generator.sample(supply, min(share, len(supply)))
    generator.shuffle(numbers)
    return numbers


def standard_library() -> DatasetDict:
    """The `.py` files of this Python's standard library, a document each, without its tests.

    A file's split depends on its path within the library alone: of twenty files, about one is for validation and one
    for the test, and which they are is the same on every machine.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path.relative_to(root) for path in _sources(root)]
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    num_unreadable = 0
    for path in paths:
        try:
            text = (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            num_unreadable += 1
            continue
        if text.strip():
            texts[_split_of(path)].append(text)
    if num_unreadable:
        logger.warning(f"{num_unreadable} of {len(paths)} files of the standard library are no UTF-8 and left out.")
    if not all(texts.values()):
        raise ValueError(f"This Python keeps no sources of its standard library in {root}; give --train_files.")
    return DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in texts.items()})


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in NO_LIBRARY:
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _split_of(path: Path) -> str:
    twentieth = int(sha256(path.as_posix().encode()).hexdigest(), 16) % 20
    return {0: "validation", 1: "test"}.get(twentieth, "train")
