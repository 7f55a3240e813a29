# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Sequence tasks: what is asked for follows from what came before, labels are the tokens, and seeds decide."""

import pytest
import torch

from leanformers.data.sequence_tasks import SEQUENCE_TASKS, START, build_sequence_task

NUM_TOKENS = {"assignment": (2, 3), "copying": (2, 2), "parity": (2, 1)}


@pytest.mark.parametrize("name", SEQUENCE_TASKS)
@pytest.mark.parametrize("length", [1, 2, 33])
def test_labels_are_the_tokens_that_are_asked_for(name, length):
    task = build_sequence_task(name)
    batch = task.batch(7, length)
    per_length, others = NUM_TOKENS[name]
    assert batch.input_ids.shape == batch.labels.shape == (7, per_length * length + others)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.long
    asked = batch.labels != -100
    assert torch.equal(batch.labels[asked], batch.input_ids[asked])
    assert asked.sum(dim=1).tolist() == [1 if name == "assignment" else length] * 7
    assert (batch.input_ids == START).sum(dim=1).tolist() == [1] * 7 and (batch.input_ids[:, 0] == START).all()
    assert batch.input_ids.min() >= 0 and batch.input_ids.max() < task.vocab_size


def test_every_token_occurs():
    for name in SEQUENCE_TASKS:
        task = build_sequence_task(name)
        assert task.batch(50, 50).input_ids.unique().tolist() == list(range(task.vocab_size))


def test_the_answer_is_the_value_last_assigned():
    task, rewritten, queries = build_sequence_task("assignment"), 0, set()
    for row in task.batch(200, 6).input_ids.tolist():
        pairs = list(zip(row[1:-2:2], row[2:-2:2], strict=True))
        assert row[-1] == dict(pairs)[row[-2]]
        rewritten += row[-1] != dict(pairs[::-1])[row[-2]]
        queries.add(row[-2])
    assert rewritten > 60 and len(queries) == task.num_names


def test_every_name_that_has_a_value_is_asked_for_as_often():
    ids = build_sequence_task("assignment").batch(3000, 3).input_ids
    names, query = ids[:, 1:-2:2], ids[:, -2]
    # x y y: as many questions about x as about y.
    is_pair = (names[:, 0] != names[:, 1]) & (names[:, 1] == names[:, 2])
    share = (query == names[:, 0])[is_pair].double().mean()
    assert is_pair.sum() > 500 and 0.44 < share < 0.56


def test_copies_are_copies():
    ids = build_sequence_task("copying").batch(5, 20).input_ids
    assert torch.equal(ids[:, 1:21], ids[:, 22:]) and len(ids[:, 21].unique()) == 1
    assert not torch.equal(ids[0], ids[1])


def test_parities_run():
    ids = build_sequence_task("parity").batch(20, 40).input_ids
    for row in ids.tolist():
        bits, parities = [token - 1 for token in row[1::2]], [token - 3 for token in row[2::2]]
        assert parities == [sum(bits[: end + 1]) % 2 for end in range(40)]


@pytest.mark.parametrize("name", SEQUENCE_TASKS)
def test_same_seed_same_sequences(name):
    first, again, other = (build_sequence_task(name, seed) for seed in (1, 1, 2))
    for length in (9, 4):
        expected = first.batch(8, length)
        assert all(map(torch.equal, expected, again.batch(8, length)))
        assert not torch.equal(expected.input_ids, other.batch(8, length).input_ids)
    assert not torch.equal(expected.input_ids, first.batch(8, 4).input_ids)


def test_no_such_task_and_no_such_sizes():
    with pytest.raises(ValueError, match="Unknown task 'sorting'; there are assignment, copying, parity"):
        build_sequence_task("sorting")
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        build_sequence_task("parity").batch(2, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        build_sequence_task("copying").batch(-1, 2)
