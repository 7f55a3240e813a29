# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Context pruning (arXiv 2410.02703, section 4): a layer that may hold `budget` tokens drops, before the next one enters,
the one with the most votes against it; of several the oldest. The first token of a document stays. What is gone never
returns.

Since the votes against a key do not depend on which others are held, what a cache would hold follows from F alone:
`Held` finds it for a whole text at once.
"""

import torch
from torch import Tensor

from .visible_keys import VisibleKeys

try:
    from leanformers.kernels import use_kernel
except ImportError:  # this code has come without leanformers
    use_kernel = None  # type: ignore[assignment]
try:
    from leanformers.kernels import selective_eviction
except ImportError:  # without Triton
    selective_eviction = None  # type: ignore[assignment]


def check_budget(memory_budget: int) -> None:
    if memory_budget < 2:
        raise ValueError(
            f"A memory budget must be at least 2, the first token and the current one, got {memory_budget}."
        )


def most_voted(selection: Tensor, evictable: Tensor, positions: Tensor) -> Tensor:
    """
    Which token to drop in each row: of those with the most votes the oldest.

    Args:
        selection (`torch.Tensor`): `[batch, slots]`, votes against each; inf for slots that hold nothing.
        evictable (`torch.Tensor`): `[batch, slots]`, False for what must stay.
        positions (`torch.Tensor`): `[batch, slots]`, the age of each.

    Returns:
        `torch.Tensor`: `[batch]`, an index each.
    """
    scores = torch.where(evictable, selection, -1.0)  # votes are not negative
    is_worst = scores == scores.amax(dim=-1, keepdim=True)
    return torch.where(is_worst, positions, torch.iinfo(positions.dtype).max).argmin(dim=-1)


def least_voted(selection: Tensor, is_start: Tensor, is_real: Tensor, budget: int) -> Tensor:
    """
    What is left of a prompt that was read in full: its first token and the least voted, of several the latest.

    Returns:
        `torch.Tensor`: `[batch, keys]`, True for at most `budget` tokens in each row.
    """
    scores = selection.masked_fill(is_start, -1.0).masked_fill(~is_real, float("inf"))
    order = scores.flip(-1).argsort(dim=-1, stable=True)[:, :budget]
    return torch.zeros_like(is_real).scatter(1, scores.shape[1] - 1 - order, True) & is_real


class Held:
    """
    The tokens that a layer holds, `[batch, keys]`, while queries come in one after another.

    Args:
        keys (`VisibleKeys`): all of them.
        past (`int`): how many are held before the first query.
        budget (`int`): how many are held at most.
        protect_start (`bool`, defaults to `True`): whether the first token stays.
        backend (`str`, *optional*): "triton" for the kernel, "torch", or "auto", see `leanformers.kernels`.
    """

    def __init__(
        self, keys: VisibleKeys, past: int, budget: int, protect_start: bool = True, backend: str | None = None
    ):
        check_budget(budget)
        self.keys, self.budget, self.protect_start, self.backend = keys, budget, protect_start, backend
        self.held = torch.ones_like(keys.is_start) if keys.is_real is None else keys.is_real.clone()
        self.held[:, past:] = False
        self.places = torch.arange(self.held.shape[1], device=self.held.device).expand_as(self.held)

    def prune_(self, selection: Tensor) -> Tensor:
        """Drop tokens as the latest queries come, and set their F `[batch, rows, end]` to inf where a key is gone."""
        if self._runs_as_kernel(selection):
            selective_eviction.prune_(
                selection, self.held, self.keys.is_start, self.keys.is_real, self.budget, self.protect_start
            )
            return selection
        rows, end = selection.shape[1:]
        for row, token in enumerate(range(end - rows, end)):
            self._enter(selection[:, row], token, end)
        return selection

    def _runs_as_kernel(self, selection: Tensor) -> bool:
        if use_kernel is None:
            return False
        obstacle = None if selection.dtype == torch.float32 else f"votes are {selection.dtype}, not torch.float32"
        return use_kernel("selective_eviction", selection, self.backend, obstacle)

    def _enter(self, selection: Tensor, token: int, end: int) -> None:
        held = self.held[:, :end]
        enters = torch.ones_like(held[:, :1]) if self.keys.is_real is None else self.keys.is_real[:, token, None]
        held &= (selection < float("inf")) | ~enters  # another document, or left behind by the window
        if token >= self.budget:
            evictable = held & ~self.keys.is_start[:, :end] if self.protect_start else held
            victim = most_voted(selection, evictable, self.places[:, :end])[:, None]
            is_full = held.sum(-1, keepdim=True) >= self.budget
            held &= ~torch.zeros_like(held).scatter(1, victim, is_full & enters)
        held[:, token] = enters[:, 0]
        selection.masked_fill_(~held & enters, float("inf"))
