# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DeLighT's positions: counted over the tokens that are no padding, from row 2 of fairseq's table of sines."""

import math

import pytest
import torch

from leanformers.modeling.delight.embeddings import sinusoidal_positions
from leanformers.modeling.delight.modeling_delight import positions_of


def fairseq_row(position: int, width: int) -> list[float]:
    """Row of the table for one token: its padding id is 1, so that the first token has row 2."""
    row, half = position + 2, width // 2
    angles = [row * math.exp(-k * math.log(10000) / (half - 1)) for k in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles)]


@pytest.mark.parametrize("width", [4, 6, 64, 640])
def test_table_is_fairseqs(width):
    positions = [0, 1, 2, 63, 511, 1023]
    table = sinusoidal_positions(torch.tensor([positions, positions[::-1]]), 2, width)
    assert table.shape == (2, 6, width) and table.dtype == torch.float32
    for position, row, reversed_row in zip(positions, table[0], table[1].flip(0), strict=True):
        # The angle of a late position has few digits left in float32.
        assert row.tolist() == pytest.approx(fairseq_row(position, width), abs=2e-4)
        assert torch.equal(row, reversed_row)


def test_first_and_last_frequency():
    row = sinusoidal_positions(torch.tensor([[0]]), 2, 8)[0, 0].tolist()
    assert row[0] == pytest.approx(math.sin(2)) and row[4] == pytest.approx(math.cos(2))
    # The last one turns 10000 times slower: half - 1 steps lead there.
    assert row[3] == pytest.approx(math.sin(2e-4)) and row[7] == pytest.approx(math.cos(2e-4))


def test_padding_has_zeros():
    table = sinusoidal_positions(torch.tensor([[-1, 0, 1], [0, -1, -1]]), 2, 16)
    assert table[0, 0].eq(0).all() and table[1, 1:].eq(0).all()
    assert torch.equal(table[0, 1], table[1, 0]) and table[0, 1].ne(0).all()


@pytest.mark.parametrize("offset", [1, 2, 5])
def test_offset_moves_the_table(offset):
    ids = torch.arange(7)[None]
    assert torch.equal(sinusoidal_positions(ids, offset, 32), sinusoidal_positions(ids + offset, 0, 32))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 0, 1, 1], [-1, -1, 0, 1]),
        ([1, 1, 0, 0], [0, 1, -1, -1]),
        ([1, 0, 1, 0], [0, -1, 1, -1]),
        ([0, 0, 0, 0], [-1, -1, -1, -1]),
    ],
)
@pytest.mark.parametrize("past_length", [0, 1, 3])
def test_padding_is_not_counted(mask, expected, past_length):
    """A step after some tokens in the cache counts those too."""
    inputs = torch.zeros(1, 4 - past_length, 8)
    assert positions_of(torch.tensor([mask]), inputs, past_length).tolist() == [expected[past_length:]]
    assert positions_of(torch.tensor([mask]).bool(), inputs, past_length).tolist() == [expected[past_length:]]


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 1, 3, 5)])
def test_without_a_mask_of_tokens_all_are_counted(mask):
    assert positions_of(mask, torch.zeros(2, 3, dtype=torch.long), 2).tolist() == [[2, 3, 4]]
