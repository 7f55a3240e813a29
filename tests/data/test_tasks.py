# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Number words: right, reproducible, spread over all lengths, and never in two splits. Pairs to remember: as often as
the setting says, and asked for by what was written last."""

import random
from collections import Counter

import pytest
import torch
from num2words import num2words

from leanformers.data.tasks import AssociativeRetrieval, _draw_numbers, number_translation


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


def written_last(batch, row: int) -> dict[int, int]:
    """What each key of a sequence was last given, pair by pair."""
    return dict(zip(batch.keys[row].tolist(), batch.values[row].tolist(), strict=True))


@pytest.mark.parametrize("draw", [AssociativeRetrieval.batch, AssociativeRetrieval.every_query])
def test_setting_1_writes_every_key_and_every_value_once(draw):
    batch = draw(AssociativeRetrieval(30, setting=1), 5)
    for numbers in (batch.keys, batch.values):
        assert torch.equal(numbers.sort(dim=-1).values, torch.arange(30).expand(5, 30))
        assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(batch.keys, batch.values)


def test_setting_2_trains_on_twice_as_many_pairs_as_keys_and_evaluates_on_as_many():
    task = AssociativeRetrieval(30, setting=2)
    assert task.batch(5).keys.shape == task.batch(5).values.shape == (5, 60)
    assert task.every_query(5).keys.shape == (5, 30)
    many = task.batch(200)
    # Of 60 draws from 30 numbers, 1 - (29 / 30) ** 60 of the numbers are drawn.
    for numbers in (many.keys, many.values):
        found = torch.tensor([len(row.unique()) for row in numbers]) / 30
        assert 0.85 < found.float().mean() < 0.89 and found.max() <= 1


@pytest.mark.parametrize("setting", [1, 2])
def test_the_answer_is_the_last_value_written_under_the_key(setting):
    task = AssociativeRetrieval(12, setting)
    batch, every = task.batch(50), task.every_query(50)
    rewritten = 0
    for row in range(50):
        query = batch.queries[row].item()
        assert batch.answers[row].item() == written_last(batch, row)[query]
        first = batch.values[row][batch.keys[row] == query][0].item()
        rewritten += first != batch.answers[row].item()
        last = written_last(every, row)
        assert every.answers[row].tolist() == [last.get(key, -100) for key in every.queries[row].tolist()]
    assert every.queries.tolist() == [list(range(12))] * 50
    assert (every.answers.min() == -100) == (setting == 2) and (rewritten > 10) == (setting == 2)


def test_same_seed_same_pairs_to_remember():
    first, again, other = (AssociativeRetrieval(10, setting=2, seed=seed) for seed in (1, 1, 2))
    for draw in (AssociativeRetrieval.batch, AssociativeRetrieval.every_query, AssociativeRetrieval.batch):
        expected = draw(first, 4)
        assert all(map(torch.equal, expected, draw(again, 4)))
        assert not torch.equal(expected.keys, draw(other, 4).keys)


def test_no_keys_and_no_such_setting():
    with pytest.raises(ValueError, match="num_keys must be at least 1, got 0"):
        AssociativeRetrieval(0, setting=1)
    with pytest.raises(ValueError, match=r"setting must be 1 .* or 2 .*, got 3"):
        AssociativeRetrieval(10, setting=3)
