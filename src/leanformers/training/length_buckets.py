# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Batches of sentences of similar length, in an order that a resumed run finds again.

transformers' `LengthGroupedSampler` draws from the global random state, so that a run resumed within an epoch sees
other batches than the one that was never stopped, and it walks from long to short sentences. This one depends on the
seed and the epoch alone, and shuffles the batches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Batches that are sorted together: enough for little padding, few enough to leave neighbours to chance.
POOL_BATCHES = 50


class LengthBucketSampler(Sampler[int]):
    """Indices such that each `batch_size` of them in a row have similar lengths.

    Args:
        lengths: Of every sentence.
        batch_size: Of one optimizer step on all processes, so that any number of processes sees the same steps.
        seed: The same seed gives the same order in the same epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        num_full = len(self) // self.batch_size
        # A short batch in between would shift the borders of all that follow.
        remainder = order[num_full * self.batch_size :]
        batches = []
        for pool in _chunks(order[: num_full * self.batch_size], POOL_BATCHES * self.batch_size):
            batches += _chunks(sorted(pool, key=self.lengths.__getitem__), self.batch_size)
        for position in torch.randperm(num_full, generator=generator).tolist():
            yield from batches[position]
        yield from remainder


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
