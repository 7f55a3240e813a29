# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Number words: right, reproducible, spread over all lengths, and never in two splits."""

import random
from collections import Counter

import pytest
from num2words import num2words

from leanformers.data.tasks import _draw_numbers, number_translation


@pytest.fixture(scope="module")
def splits():
    return number_translation(seed=3, train_size=300, validation_size=40, test_size=60)


def test_pairs_are_the_same_number_in_both_languages(splits):
    drawn = {num2words(number, lang="en"): number for number in _draw_numbers(400, random.Random(3))}
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 40, "test": 60}
    for split in splits.values():
        assert [num2words(drawn[source], lang="de") for source in split["source"]] == list(split["target"])


def test_no_number_is_in_two_splits(splits):
    counts = Counter(source for split in splits.values() for source in split["source"])
    assert len(counts) == 400 and set(counts.values()) == {1}


def test_same_seed_same_pairs(splits):
    again = number_translation(seed=3, train_size=300, validation_size=40, test_size=60)
    other = number_translation(seed=4, train_size=300, validation_size=40, test_size=60)
    for name, split in splits.items():
        assert list(split["source"]) == list(again[name]["source"])
        assert list(split["source"]) != list(other[name]["source"])


def test_numbers_are_balanced_by_digit_count_and_shuffled():
    numbers = _draw_numbers(31_500, random.Random(0))
    assert Counter(len(str(number)) for number in numbers) == {1: 10, 2: 90, 3: 900, 4: 9_000, 5: 10_750, 6: 10_750}
    held_out = Counter(len(str(number)) for number in numbers[-1_500:])
    assert min(held_out[digits] for digits in (4, 5, 6)) > 300


def test_every_number_can_be_drawn_once():
    assert sorted(_draw_numbers(10**6, random.Random(0))) == list(range(10**6))


@pytest.mark.parametrize("count", [0, 10**6 + 1])
def test_more_numbers_than_there_are(count):
    with pytest.raises(ValueError, match=f"ask for {count} numbers"):
        number_translation(train_size=count, validation_size=0, test_size=0)
