# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The cache of a fast weight memory: as large after a million tokens as after one."""

import functools
import inspect
from collections.abc import Callable

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer
from transformers.masking_utils import create_causal_mask

# transformers 5.24 renamed `past_key_values`.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def accept_cache(forward: Callable) -> Callable:
    """Let `forward` take `past_key_values` under the name `cache` as well."""

    @functools.wraps(forward)
    def forward_with_cache(*args, **kwargs):
        cache = kwargs.pop("cache", None)
        if cache is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them.")
            kwargs["past_key_values"] = cache
        return forward(*args, **kwargs)

    return forward_with_cache


class FastWeightLayer(LinearAttentionLayer, CacheLayerMixin):
    """
    One block's memory and the sum of its keys, in `DynamicCache(config=...)`. It counts the tokens it has seen, which
    `generate` asks of a cache, and takes new states as they are: they stay part of the graph until `detach_`.

    Attributes:
        seen: `[tokens, 0]`, so many as it has seen. Exported programs take a cache of any length, but fix its numbers.
    """

    _layer_type = "fast_weight"
    is_compileable = False  # the count is a number of Python
    is_croppable = False

    def __init__(self, **kwargs):
        CacheLayerMixin.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=2)
        self.seen = torch.empty(0, 0)

    def read(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Memory `[batch, heads, key_dim, value_dim]` and sum of keys `[batch, heads, key_dim]`, or None for empty."""
        return self.recurrent_states[0], self.recurrent_states[1]

    def write(self, memory: torch.Tensor, normalizer: torch.Tensor | None, num_tokens: int) -> None:
        """Replace both after `num_tokens` more tokens."""
        for i, state in enumerate((memory, normalizer)):
            self.recurrent_states[i] = state
            self.is_recurrent_states_initialized[i] = state is not None
            self.has_previous_state[i] = True
        self.device, self.dtype, self.is_initialized = memory.device, memory.dtype, True
        self.seen = memory.new_empty(self.get_seq_length() + num_tokens, 0)

    def detach_(self) -> None:
        """Cut the graph here: gradients of later tokens end at these states (truncated backpropagation)."""
        self._replace(lambda state: state.detach())

    def lazy_initialization(self, *args, **kwargs) -> None:
        """Nothing: `write` takes the states as they come."""

    def update(self, key_states, value_states, *args, **kwargs):
        raise NotImplementedError(
            "A fast weight memory holds no keys and values; it is written by its own model only."
        )

    def get_seq_length(self) -> int:
        return self.seen.shape[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError(
            "A fast weight memory cannot take back tokens: keep a copy of the cache (copy.deepcopy) from before them."
        )

    def reset(self) -> None:
        self.seen = torch.empty(0, 0)
        for i in self.recurrent_states:
            self.recurrent_states[i] = None
            self.is_recurrent_states_initialized[i] = self.has_previous_state[i] = False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._replace(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._replace(lambda state: state[indices.to(state.device)])

    def offload(self) -> None:
        LinearAttentionLayer.offload(self)

    def prefetch(self) -> None:
        LinearAttentionLayer.prefetch(self)

    def _replace(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for i, state in self.recurrent_states.items():
            if state is not None:
                self.recurrent_states[i] = function(state)
