# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Data that need no download: number words to translate and pairs to remember, made on the spot, and the sources of
Python's own library.

"three hundred and twenty-one thousand, nine hundred and eighty-seven" becomes
"dreihunderteinundzwanzigtausendneunhundertsiebenundachtzig": units and tens swap places, "eins" loses its s inside a
word, and everything grows together, so that a model must read the whole source before it writes.
"""

import random
import sysconfig
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
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


class RetrievalBatch(NamedTuple):
    """Sequences of pairs and what is asked about them, `torch.LongTensor`s of numbers from 0 to `num_keys - 1`.

    Attributes:
        keys, values: `(batch_size, length)`, the pairs in the order in which they are written.
        queries: `(batch_size, num_queries)`, keys.
        answers: `(batch_size, num_queries)`, the value last written under that key; -100 where there is none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor
    answers: torch.Tensor


class AssociativeRetrieval:
    """Pairs of a key and a value to remember, and keys whose value is asked for (arXiv 2102.11174, section 6.1).

    Setting 1 writes each of `num_keys` keys once, with values that all differ: how much does a memory hold? Setting 2
    draws keys and values with replacement, so that what was written under a key is written over: does it forget
    what it should? There, training sequences are twice as long as `num_keys`, and those of `every_query` are as long
    as `num_keys`, as in the paper's code.

    Args:
        num_keys (`int`): S, the number of different keys, and of different values.
        setting (`int`): 1 or 2.
        seed (`int`): The same calls on the same seed give the same batches.
    """

    def __init__(self, num_keys: int, setting: int, seed: int = 0):
        if num_keys < 1:
            raise ValueError(f"num_keys must be at least 1, got {num_keys}.")
        if setting not in (1, 2):
            raise ValueError(f"setting must be 1 (every key once) or 2 (keys return), got {setting}.")
        self.num_keys, self.setting = num_keys, setting
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, batch_size: int) -> RetrievalBatch:
        """Sequences for training, each with one query: the key of a pair drawn from it."""
        keys, values = self._pairs(batch_size, self.setting * self.num_keys)
        places = torch.randint(keys.shape[1], (batch_size, 1), generator=self.generator)
        queries = keys.gather(1, places)
        answers = self._last_values(keys, values).gather(1, queries)
        return RetrievalBatch(keys, values, queries, answers)

    def every_query(self, batch_size: int) -> RetrievalBatch:
        """Sequences for evaluation, each with every key as a query."""
        keys, values = self._pairs(batch_size, self.num_keys)
        queries = torch.arange(self.num_keys).expand(batch_size, -1)
        return RetrievalBatch(keys, values, queries, self._last_values(keys, values))

    def _pairs(self, batch_size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (2, batch_size, length)
        if self.setting == 1:
            keys, values = torch.rand(shape, generator=self.generator).argsort(dim=-1)
        else:
            keys, values = torch.randint(self.num_keys, shape, generator=self.generator)
        return keys, values

    def _last_values(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_keys)`: the answer to every key."""
        places = torch.arange(keys.shape[1]).expand_as(keys)
        last = torch.full((len(keys), self.num_keys), -1).scatter_reduce(1, keys, places, "amax")
        return values.gather(1, last.clamp(min=0)).masked_fill(last < 0, -100)


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
