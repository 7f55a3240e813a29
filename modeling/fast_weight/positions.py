# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Sinusoidal positions, counted up or down, and the documents that restarting positions tell apart."""

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache


def sinusoidal_positions(
    position_ids: torch.LongTensor, width: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Sines, then cosines, of `p * 10000^(-2i / width)`: `[batch, length]` -> `[batch, length, width]` of `dtype`."""
    exponents = torch.arange(0, width, 2, dtype=dtype, device=position_ids.device) / width
    angles = position_ids[..., None].to(dtype) * 10000**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def forward_positions(attention_mask: torch.Tensor | None, inputs: torch.Tensor, past_length: int) -> torch.LongTensor:
    """Position ids `[batch or 1, length]`, counted over the tokens that are no padding, the cached ones among them."""
    if attention_mask is None or attention_mask.dim() == 4:
        return torch.arange(inputs.shape[1], device=inputs.device)[None] + past_length
    return last_columns((attention_mask.long().cumsum(-1) - 1).clamp(min=0), inputs.shape[1])


def reversed_positions(
    attention_mask: torch.Tensor | None, inputs: torch.Tensor, document_ids: torch.LongTensor | None
) -> torch.LongTensor:
    """How many tokens of its document follow each token in this call, `[batch or 1, length]`."""
    if attention_mask is not None and attention_mask.dim() == 2:
        is_real = last_columns(attention_mask, inputs.shape[1]).long()
        return is_real.flip(-1).cumsum(-1).flip(-1) - is_real
    places = torch.arange(inputs.shape[1], device=inputs.device)
    if document_ids is None:
        return places.flip(0)[None]
    numbers = document_ids.contiguous()
    return torch.searchsorted(numbers, numbers, right=True) - 1 - places


def last_columns(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """`[batch, at least length]` -> `[batch, length]`, the last ones, for a length of 0 as well."""
    return tensor[:, tensor.shape[1] - length :]


def packed_positions(
    inputs: torch.Tensor, seq_idx: torch.Tensor | None = None, cu_seq_lens_q: torch.Tensor | None = None, **kwargs
) -> torch.LongTensor | None:
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
    position_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    batch_size: int,
) -> torch.LongTensor | None:
    """Numbers `[batch, length]` of packed documents, told by restarting positions without a mask or cache; or None."""
    if position_ids is None or attention_mask is not None or past_key_values is not None:
        return None
    restarts = position_ids.diff(dim=-1) != 1
    if not torch.compiler.is_compiling() and not restarts.any():
        return None
    return pad(restarts.long().cumsum(-1), (1, 0)).expand(batch_size, -1)
