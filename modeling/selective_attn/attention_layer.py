# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Selective attention with its projections, rotary positions and cache; and Llama's, where a layer does not select."""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .blocked_attention import memory_rows
from .configuration_selective_attn import SelectiveAttnConfig
from .pruning_cache import MAX_RECORDED
from .selective_attention import (
    naive_selective_attention,
    selective_attention,
    selective_attention_step,
    steps_as_kernel,
)

PROMPT_PIECE = 512  # tokens
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.jit.is_tracing)  # new in torch 2.7


class SelectiveAttnRMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)`, computed in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        precise = hidden_states.to(torch.float32)
        variance = precise.pow(2).mean(-1, keepdim=True)
        return self.weight * (precise * torch.rsqrt(variance + self.variance_epsilon)).to(hidden_states.dtype)


class SelectiveAttnRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions, `[batch, length, head_dim]` each, of any of transformers' kinds."""

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type: str = cast(dict, config.rope_parameters)["rope_type"]
        compute: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        """Frequencies `theta^(-2i / head_dim)`, and no scaling."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(
        self, hidden_states: torch.Tensor, position_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn `[batch, length, heads, head_dim]` by the angles of its positions."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[..., None, :] + torch.cat((-second, first), dim=-1) * sin[..., None, :]


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
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class SelectiveAttnAttention(nn.Module):
    """
    Selective attention, or Llama's: `[batch, length, hidden_size]` -> the same shape.

    Args:
        config (`SelectiveAttnConfig`): sizes and rules.
        layer_idx (`int`): index in the cache.
    """

    def __init__(self, config: SelectiveAttnConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.is_selective = config.selective_layers[layer_idx]
        self.sliding_window = config.sliding_window
        self.head_dim, shared_heads = cast(int, config.head_dim), cast(int, config.num_key_value_heads)
        self.num_key_value_groups = config.num_attention_heads // shared_heads
        self.scaling = self.head_dim**-0.5
        width, shared_width = config.num_attention_heads * self.head_dim, shared_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = SelectiveAttnRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = SelectiveAttnRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Args:
            hidden_states (`torch.Tensor`): `[batch, length, hidden_size]`.
            attention_mask (`torch.Tensor`, *optional*): of a selective layer `[batch, length]`, 0 for padding; else
                that of the attention backend.
            position_embeddings (`tuple[torch.Tensor, torch.Tensor]`, *optional*): cosines and sines of rotary
                positions.
            document_ids (`torch.LongTensor`, *optional*): `[batch, length]`, of packed documents.
            past_key_values (`Cache`, *optional*): updated in place.

        Returns:
            `(output, probabilities, selection, memory)`: `[batch, length, hidden_size]`; of the eager form, weights
            `[batch, heads, length, keys]` and F `[batch, length, keys]`; with `output_memories`, `[batch, length]`.
        """
        query, key, value = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (states.unflatten(-1, (-1, self.head_dim)) for states in (query, key, value))
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves norms and angles in float32
        attend = self._select if self.is_selective else self._attend
        output, *shown = attend(query, key, value, attention_mask, document_ids, past_key_values, **kwargs)
        return self.o_proj(output.flatten(2)), *shown

    def _attend(self, query, key, value, attention_mask, document_ids, past_key_values, **kwargs):
        """Llama's attention."""
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.sliding_window is not None:
            kwargs["sliding_window"] = self.sliding_window
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return output, weights, None, None

    def _select(self, query, key, value, is_real, document_ids, past_key_values, output_memories=False, **kwargs):
        """Selective attention of what is in the cache and what is new."""
        length, cache_layer, budget = query.shape[1], None, self._memory_budget()
        is_naive, is_lazy = self._is_naive(query, budget), self.config.prune_prompt == "lazy"
        is_whole = is_naive or is_lazy or output_memories or document_ids is not None
        if past_key_values is not None and budget is not None and length > PROMPT_PIECE and not is_whole:
            return self._select_piecewise(query, key, value, is_real, past_key_values)
        known = {"attention_mask": is_real, "document_ids": document_ids}
        if past_key_values is not None:
            # What comes after packed documents continues the last one.
            continued = is_real if document_ids is None else document_ids == document_ids[:, -1:]
            states = key.transpose(1, 2), value.transpose(1, 2)
            entering = {
                "is_real": None if continued is None else continued.bool(),
                "memory_budget": budget,
                "sliding_window": self.sliding_window,
                "protect_start": self.config.protect_start,
            }
            if (
                length == 1
                and not is_naive
                and self._steps_as_kernel(query, *states, past_key_values, output_memories)
            ):
                cache_layer = past_key_values.layers[self.layer_idx]
                return cache_layer.step(query, *states, **self._rule() | entering), None, None, None
            keys, values = past_key_values.update(*states, self.layer_idx, **entering)
            cache_layer = past_key_values.layers[self.layer_idx]
            if document_ids is None:
                key, value = keys.transpose(1, 2), values.transpose(1, 2)
            if length == 1:
                return self._select_one(query, key, value, is_real, cache_layer, is_naive, output_memories)
            if document_ids is None:
                known = cache_layer.known(length)

        form = selective_attention
        options = self._rule() | known | {"sliding_window": self.sliding_window, "output_details": True}
        options["memory_budget"] = None if is_lazy else budget
        options["memory_tau"] = self.config.memory_loss_tau if output_memories else None
        if is_naive:
            form, options["dropout"] = naive_selective_attention, self.config.attention_dropout * self.training
        elif cache_layer is not None and cache_layer.record_past:
            options["num_votes"] = MAX_RECORDED
        output, votes, details = form(query, key, value, **options)
        if cache_layer is not None:
            cache_layer.settle(votes, details.held, details.votes)
            if budget is not None and is_lazy:
                cache_layer.settle(votes, cache_layer.least_voted())
        return output, details.probabilities, details.selection, details.memory

    def _select_piecewise(self, query, key, value, is_real, past_key_values):
        """A long prompt under a budget, in time and memory linear in its length: what was dropped is read no more."""
        pieces = [states.split(PROMPT_PIECE, dim=1) for states in (query, key, value)]
        masks = [None] * len(pieces[0]) if is_real is None else is_real.split(PROMPT_PIECE, dim=1)
        outputs = [self._select(*piece, None, past_key_values)[0] for piece in zip(*pieces, masks, strict=True)]
        return torch.cat(outputs, dim=1), None, None, None

    def _select_one(self, query, key, value, is_real, cache_layer, is_naive, output_memories):
        """The next token, whose slot in the cache may be any."""
        visible = cache_layer.visible(self.sliding_window)
        votable = visible & ~cache_layer.is_start
        if self.config.protect_self:
            votable = votable & (cache_layer.positions < cache_layer.num_real[:, None] - 1)
        if is_real is not None:
            votable = votable & is_real.bool()
            visible = visible | ~visible.any(dim=-1, keepdim=True)  # lest a row has nothing to sum to 1
        before = cache_layer.votes
        output, votes, probabilities = selective_attention_step(
            query,
            key,
            value,
            before,
            visible=visible,
            votable=votable,
            scale=self.scaling,
            selection_head=self.config.selection_head,
            strength=self.config.selection_strength,
            naive=is_naive,
        )
        cache_layer.settle(votes, cast=(votes - before)[:, None] if cache_layer.record_past else None)
        memory = None
        if output_memories:
            seen = before.masked_fill(~visible, float("inf"))
            memory = memory_rows(seen[:, None], self.config.memory_loss_tau)
            memory = memory if is_real is None else memory * is_real
        return output, probabilities, before[:, None], memory

    def _steps_as_kernel(self, query, key, value, past_key_values, output_memories: bool) -> bool:
        obstacle, cache_layer = None, past_key_values.layers[self.layer_idx]
        if output_memories:
            obstacle = "memory rows are asked for"
        elif getattr(past_key_values, "offloading", False):
            obstacle = "the cache is offloaded"
        elif self._memory_budget() is not None and cache_layer.record_past:
            obstacle = "votes of a layer with a budget are recorded"
        elif cache_layer.keys is not None and cache_layer.keys.requires_grad:
            obstacle = "the cache has gradients"
        return steps_as_kernel(query, key, value, obstacle=obstacle)

    def _rule(self) -> dict[str, float | int | bool]:
        config = self.config
        return {
            "scale": self.scaling,
            "selection_head": config.selection_head,
            "strength": config.selection_strength,
            "protect_start": config.protect_start,
            "protect_self": config.protect_self,
        }

    def _memory_budget(self) -> int | None:
        return None if self.training else self.config.memory_budget(self.layer_idx)

    def _is_naive(self, query: torch.Tensor, budget: int | None = None) -> bool:
        """Whether only the naive form will do: it shows weights, drops some, is pruned with gradients, and is no loop
        that an exporter would unroll for one length."""
        needs_gradient = torch.is_grad_enabled() and query.requires_grad
        return (
            self.config._attn_implementation == "eager"
            or (self.training and self.config.attention_dropout > 0)
            or (budget is not None and needs_gradient)
            or is_exporting()
        )
