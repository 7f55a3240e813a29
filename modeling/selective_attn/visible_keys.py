# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Which keys a query sees, and which of them are first tokens: padding on either side, documents, a window."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache


class VisibleKeys(NamedTuple):
    """What is known of the keys beside their vectors; None where it makes no difference."""

    is_real: Tensor | None  # [batch, keys]
    is_start: Tensor  # [batch, keys]
    document_ids: Tensor | None  # [batch, keys]
    positions: Tensor | None  # [batch, keys], with a window only
    sliding_window: int | None

    def hidden_from(self, rows: slice, end: int) -> Tensor | None:
        """Which of the first `end` keys the tokens `rows` do not see, order and padding aside: [batch, rows, end]."""
        hidden = None
        if self.document_ids is not None:
            hidden = self.document_ids[:, rows, None] != self.document_ids[:, None, :end]
        if self.positions is not None and self.sliding_window is not None:
            too_far = self.positions[:, rows, None] - self.positions[:, None, :end] >= self.sliding_window
            hidden = too_far if hidden is None else hidden | too_far
        return hidden


def describe_keys(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    sliding_window: int | None = None,
    is_start: Tensor | None = None,
    positions: Tensor | None = None,
) -> VisibleKeys:
    """`VisibleKeys` of `[batch, keys]` tokens: each document starts with its first token that is no padding."""
    is_real = None if attention_mask is None else attention_mask.bool()
    if sliding_window is not None and sliding_window < 2:
        raise ValueError(f"`sliding_window` must be at least 2, the token and the one before, got {sliding_window}.")
    if sliding_window is not None and positions is None:
        positions = count_tokens(is_real, shape, device)
    if is_start is None:
        is_start = first_tokens(is_real, document_ids, shape, device)
    return VisibleKeys(is_real, is_start, document_ids, positions, sliding_window)


def count_tokens(is_real: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """How many tokens that are no padding come before each one, `[batch, keys]`."""
    if is_real is None:
        return torch.arange(shape[1], device=device).expand(shape)
    return is_real.long().cumsum(-1) - is_real.long()


def first_tokens(
    is_real: Tensor | None, document_ids: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """Which tokens are the first of their document that is no padding, `[batch, keys]`."""
    places = torch.arange(shape[1], device=device).expand(shape)
    if document_ids is None and is_real is None:
        return places == 0
    if is_real is None:
        is_real = torch.ones(shape, dtype=torch.bool, device=device)
    latest = torch.where(is_real, places, -1).cummax(-1)[0]
    before = torch.where(places == 0, -1, latest.roll(1, -1))  # the last token that is no padding before each one
    is_first = before < 0
    if document_ids is not None:
        is_first = is_first | (document_ids.gather(1, before.clamp(min=0)) != document_ids)
    return is_real & is_first


def packed_positions(
    inputs: Tensor, seq_idx: Tensor | None = None, cu_seq_lens_q: Tensor | None = None, **kwargs
) -> Tensor | None:
    """
    Position ids `[batch, length]` of packed documents, told otherwise than by positions: by their numbers `seq_idx`
    `[batch, length]`, which rise, or by where they begin and end, `cu_seq_lens_q` `[documents + 1]`. Without, None.
    """
    if seq_idx is None and cu_seq_lens_q is None:
        return None
    places = torch.arange(inputs.shape[1], device=inputs.device)
    if seq_idx is None:
        seq_idx = torch.searchsorted(cu_seq_lens_q, places.to(cu_seq_lens_q.dtype), right=True)[None]
    numbers = seq_idx.contiguous()
    return places - torch.searchsorted(numbers, numbers)


def documents_of(
    position_ids: Tensor | None, attention_mask: Tensor | None, past_key_values: Cache | None, batch_size: int
) -> Tensor | None:
    """Numbers `[batch, length]` of packed documents, told by restarting positions without a mask or cache; or None."""
    if position_ids is None or attention_mask is not None or past_key_values is not None:
        return None
    restarts = position_ids.diff(dim=-1) != 1
    if not torch.compiler.is_compiling() and not restarts.any():
        return None
    return pad(restarts.long().cumsum(-1), (1, 0)).expand(batch_size, -1)
