# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Ordinary attention in the place of a memory: the baseline of the paper's experiments, `update_rule="softmax"`."""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_fast_weight import FastWeightConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(d)) v on `[batch, heads, length, d]`; gives `[batch, length, heads, d]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SoftmaxAttention(nn.Module):
    """Ordinary attention, the baseline of `update_rule="softmax"`. Arguments as for `FastWeightMemory`."""

    def __init__(self, config: FastWeightConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, cast(int, config.head_dim)
        self.scaling, self.is_causal, self.num_key_value_groups = self.head_dim**-0.5, True, 1
        width = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As for `FastWeightMemory`, but the mask is the attention backend's, which keeps documents apart."""
        projected = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (
            tensor.unflatten(-1, (tensor.shape[-1] // self.head_dim, self.head_dim)).transpose(1, 2)
            for tensor in projected
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights
