# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tasks whose data are made on the spot: translation of number words, English to German.

"three hundred and twenty-one thousand, nine hundred and eighty-seven" becomes
"dreihunderteinundzwanzigtausendneunhundertsiebenundachtzig": units and tens swap places, "eins" loses its s inside a
word, and everything grows together, so that a model must read the whole source before it writes.
"""

import random

from datasets import Dataset, DatasetDict
from num2words import num2words

MAX_DIGITS = 6


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
