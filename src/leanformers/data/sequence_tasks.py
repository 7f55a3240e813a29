# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Sequences of tokens, made on the spot, that need more or less of their past (arXiv 2410.02703): the last value of
each name, everything, or one bit.

Labels are the tokens themselves where the task asks for them and -100 elsewhere; the model shifts them, as in
transformers. Every sequence begins with token 0, `START`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

START = 0


class TokenBatch(NamedTuple):
    """`torch.LongTensor`s of `[batch_size, num_tokens]`, none of it padding.

    Attributes:
        input_ids: tokens.
        labels: the tokens that are asked for; -100 elsewhere.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


class SequenceTask(ABC):
    """Batches of a task.

    Args:
        seed (`int`): The same calls on the same seed give the same batches.
    """

    vocab_size: int

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, batch_size: int, length: int) -> TokenBatch:
        """`batch_size` sequences of `length` assignments, symbols or bits, as the task has it.

        Raises:
            `ValueError`: if either is below 1.
        """
        for name, number in (("batch_size", batch_size), ("length", length)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        tokens, is_asked = self._sequences(batch_size, length)
        input_ids = torch.cat([torch.full((batch_size, 1), START), tokens], dim=1)
        labels = torch.full_like(input_ids, -100)
        labels[:, 1:] = tokens.masked_fill(~is_asked, -100)
        return TokenBatch(input_ids, labels)

    @abstractmethod
    def _sequences(self, batch_size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens behind the first one, `[batch_size, num_tokens - 1]`, and which of them are asked for."""

    def _draw(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=self.generator)


class VariableAssignment(SequenceTask):
    """`x 7 y 1 x 3 x`: what is x? Names get values, again and again, then one of them is asked for, and the answer, a
    3 here, is the last token. Only the latest value of each name is ever needed.

    `length` assignments are `2 * length + 3` tokens: each a name and a value, drawn with replacement; the name that is
    asked for, drawn from those that have a value; and the answer.
    """

    num_names, num_values = 3, 10
    vocab_size = 1 + num_values + num_names

    def _sequences(self, batch_size, length):
        names = self._draw(self.num_names, batch_size, length)
        values = self._draw(self.num_values, batch_size, length)
        last = torch.full((batch_size, self.num_names), -1)
        last = last.scatter_reduce(1, names, torch.arange(length).expand_as(names), "amax")
        query = torch.multinomial((last >= 0).double(), 1, generator=self.generator)
        answer = values.gather(1, last.gather(1, query))
        first_name = 1 + self.num_values
        pairs = torch.stack([first_name + names, 1 + values], dim=-1).flatten(1)
        tokens = torch.cat([pairs, first_name + query, 1 + answer], dim=1)
        return tokens, (torch.arange(tokens.shape[1]) == tokens.shape[1] - 1).expand_as(tokens)


class Copying(SequenceTask):
    """`p q p r | p q p r`: symbols, a separator, and the symbols again, which are asked for. All are needed until they
    are copied.

    `length` symbols, drawn with replacement, are `2 * length + 2` tokens.
    """

    num_symbols = 32
    vocab_size = 2 + num_symbols

    def _sequences(self, batch_size, length):
        symbols = 1 + self._draw(self.num_symbols, batch_size, length)
        separator = torch.full((batch_size, 1), 1 + self.num_symbols)
        tokens = torch.cat([symbols, separator, symbols], dim=1)
        return tokens, (torch.arange(tokens.shape[1]) > length).expand_as(tokens)


class RunningParity(SequenceTask):
    """`1 odd 0 odd 1 even`: each bit is followed by the parity of all bits so far, which is asked for. One parity and
    the bit after it are all that is needed.

    `length` bits are `2 * length + 1` tokens: 1 and 2 for bits, 3 and 4 for even and odd.
    """

    vocab_size = 5

    def _sequences(self, batch_size, length):
        bits = self._draw(2, batch_size, length)
        tokens = torch.stack([1 + bits, 3 + bits.cumsum(dim=1) % 2], dim=-1).flatten(1)
        return tokens, tokens >= 3


SEQUENCE_TASKS: dict[str, type[SequenceTask]] = {
    "assignment": VariableAssignment,
    "copying": Copying,
    "parity": RunningParity,
}


def build_sequence_task(name: str, seed: int = 0) -> SequenceTask:
    """The task of that name; the same calls on the same seed give the same batches."""
    if name not in SEQUENCE_TASKS:
        raise ValueError(f"Unknown task {name!r}; there are {', '.join(SEQUENCE_TASKS)}.")
    return SEQUENCE_TASKS[name](seed)
