# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The cache of selective attention: keys, values and the votes against each, in as many slots as a budget has."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import create_causal_mask

from .context_pruning import check_budget, least_voted, most_voted

try:
    from leanformers.kernels import selective_decode
except ImportError:  # this code has come without leanformers, or there is no Triton
    selective_decode = None  # type: ignore[assignment]

# Tokens that can be taken back while the past is recorded; assisted generation takes back fewer.
MAX_RECORDED = 128
ROOM = 256  # slots that a step leaves behind its own, lest all keys move for the next one
STATE = ("keys", "values", "votes", "positions", "is_start")


# transformers 5.24 renamed `past_key_values`.
CACHE_NAME = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"


def accept_cache(forward: Callable) -> Callable:
    """Let `forward` take its `past_key_values` under the name `cache` as well."""

    @wraps(forward)
    def renamed(self, *args, **kwargs):
        cache = kwargs.pop("cache", None)
        if cache is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them.")
            kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    # Pipelines bind arguments by their names.
    own, cache = signature(forward), Parameter("cache", Parameter.KEYWORD_ONLY, default=None)
    *named, rest = own.parameters.values()
    if rest.kind == Parameter.VAR_KEYWORD:
        renamed.__signature__ = own.replace(parameters=[*named, cache, rest])  # type: ignore[attr-defined]
    return renamed


class SelectiveAttentionLayer(CacheLayerMixin):
    """
    One layer in `DynamicCache(config=...)`. A slot holds, beside key and value, 13 bytes.

    Attributes:
        keys, values: `[batch, key_value_heads, slots, dim]`.
        votes: `[batch, slots]`, float32 (or float64), all votes against the token so far.
        positions: `[batch, slots]`, int64, how many tokens came before it, padding aside; -1 for a slot with nothing.
        is_start: `[batch, slots]`, the first token.
        num_real: `[batch]`, tokens seen, padding aside; `num_seen` counts it as well.
        seen: `[num_seen, 0]`. Exported programs take a cache of any length, but fix its numbers.

    Slots are in the order the tokens came in until the first is reused. Once there are as many as the budget, their
    number stays, and single tokens are written in place.
    """

    _layer_type = "selective_attention"
    is_compileable = False  # `num_seen` is a number of Python

    # None before the first token, which callers need not care about.
    keys: Any
    values: Any
    votes: Any
    positions: Any
    is_start: Any
    num_real: Any
    recorded: Any
    memory_budget: Any

    def __init__(self, **kwargs):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized, self.num_seen, self.memory_budget, self.record_past = False, 0, None, False
        self.votes = self.positions = self.is_start = self.num_real = self.recorded = None
        self.rooms: dict[str, tuple[Tensor, Tensor]] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, device = key_states.shape[0], key_states.device
        self.dtype, self.device = key_states.dtype, device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        precision = torch.promote_types(key_states.dtype, torch.float32)
        self.votes = torch.zeros(batch, 0, dtype=precision, device=device)
        self.positions = torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.is_start = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        self.num_real = torch.zeros(batch, dtype=torch.long, device=device)
        self.is_initialized = True

    @property
    def num_seen(self) -> int:
        return self.seen.shape[0]

    @num_seen.setter
    def num_seen(self, number: int) -> None:
        self.seen = torch.empty(number, 0, device=self.device if self.is_initialized else None)

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can give back the layer as it was: what a budget dropped is gone."""
        return self.memory_budget is None

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        is_real: Tensor | None = None,
        memory_budget: int | None = None,
        sliding_window: int | None = None,
        protect_start: bool = True,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """
        Let tokens enter. A single one takes the slot of another when as many as the budget are held; several are
        appended, and `settle` drops what does not fit.

        Args:
            key_states, value_states (`torch.Tensor`): `[batch, key_value_heads, tokens, dim]`.
            is_real (`torch.Tensor`, *optional*): `[batch, tokens]`, False for padding.
            memory_budget (`int`, *optional*): slots.
            sliding_window (`int`, *optional*): how many tokens each one sees, itself included.
            protect_start (`bool`, defaults to `True`): whether the first token stays, and nobody votes against it.

        Returns:
            All keys and values. The new tokens are the last ones, but for a single one in a reused slot.
        """
        is_full = self._is_full(key_states, value_states, memory_budget)
        num_tokens = key_states.shape[2]
        if is_real is None:
            positions = self.num_real[:, None] + torch.arange(num_tokens, device=key_states.device)
        else:
            positions = torch.where(is_real, self.num_real[:, None] + is_real.cumsum(-1) - 1, -1)
        is_start = positions == 0 if protect_start else torch.zeros_like(positions, dtype=torch.bool)
        new = (key_states, value_states, self.votes.new_zeros(positions.shape), positions, is_start)
        if is_full and num_tokens == 1:
            self._replace_one(dict(zip(STATE, new, strict=True)), is_real, sliding_window)
        else:
            if is_full:  # single tokens are anywhere
                self._gather(self.positions.argsort(dim=-1))
            for name, states in zip(STATE, new, strict=True):
                setattr(self, name, torch.cat([getattr(self, name), states], dim=states.dim() // 2))
        self.num_real = self.num_real + (num_tokens if is_real is None else is_real.sum(-1))
        self.num_seen += num_tokens
        return self.keys, self.values

    def step(
        self,
        query: Tensor,
        key_states: Tensor,
        value_states: Tensor,
        is_real: Tensor | None = None,
        memory_budget: int | None = None,
        sliding_window: int | None = None,
        protect_start: bool = True,
        **rule,
    ) -> Tensor:
        """
        `update`, `selective_attention_step` and `settle` of a single token in one kernel.

        Args:
            query (`torch.Tensor`): `[batch, 1, heads, head_dim]`.
            key_states, value_states, is_real, memory_budget, sliding_window, protect_start: as for `update`.
            rule: `scale`, `selection_head`, `strength` and `protect_self`, as for `selective_attention`.

        Returns:
            `torch.Tensor`: `[batch, 1, heads, value_dim]`.
        """
        numbers = selective_decode.Rule(sliding_window=sliding_window, protect_start=protect_start, **rule)
        is_full, states = self._is_full(key_states, value_states, memory_budget), (key_states, value_states)
        self.num_seen += 1
        if is_full:
            self._apply(Tensor.contiguous)  # room may be left, or what `crop` took back
            slots = selective_decode.Slots(*(getattr(self, name) for name in (*STATE, "num_real")))
            return selective_decode.replace_and_attend_(query, *states, slots, is_real, numbers)
        before, counted = self.votes, self.num_real
        rooms = {name: self._room(name) for name in STATE if name != "votes"}
        slots = selective_decode.Slots(**rooms, votes=before, num_real=counted)
        output, votes, self.num_real = selective_decode.append_and_attend_(query, *states, slots, is_real, numbers)
        self.settle(votes, cast=(votes - pad(before, (0, 1)))[:, None] if self.record_past else None)
        return output

    def visible(self, sliding_window: int | None = None) -> Tensor:
        """Which slots the latest token sees, itself among them: `[batch, slots]`."""
        is_held = self.positions >= 0
        if sliding_window is None:
            return is_held
        return is_held & (self.num_real[:, None] - 1 - self.positions < sliding_window)

    def known(self, length: int) -> dict[str, Tensor]:
        """What `selective_attention` needs to know of all slots, of which the last `length` are new."""
        before = self.votes[:, : self.votes.shape[1] - length]
        is_real = self.positions >= 0
        return {
            "attention_mask": is_real,
            "is_start": self.is_start,
            "positions": self.positions,
            "initial_selection": before,
        }

    def settle(self, votes: Tensor, held: Tensor | None = None, cast: Tensor | None = None) -> None:
        """
        Keep the votes `[batch, slots]` after the latest tokens, and, given `held` `[batch, slots]`, no more slots than
        the budget has. `cast` `[batch, tokens, slots]` are the votes of each of the latest tokens, for `crop`.
        """
        self.votes = votes
        if self.record_past and cast is not None:
            self._record(cast)
        if held is not None:
            self.positions = self.positions.masked_fill(~held, -1)
            if votes.shape[1] > self.memory_budget:
                first = held.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
                self._gather(first[:, : self.memory_budget])

    def least_voted(self) -> Tensor:
        """Which tokens are left of a text that was read in full: `[batch, slots]`."""
        return least_voted(self.votes, self.is_start, self.positions >= 0, self.memory_budget)

    def _is_full(self, key_states: Tensor, value_states: Tensor, memory_budget: int | None) -> bool:
        """Whether there are as many slots as the budget has, after making them so many if there were more."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if memory_budget is not None:
            check_budget(memory_budget)
        self.memory_budget = memory_budget
        if memory_budget is None or self.votes.shape[1] < memory_budget:
            return False
        if self.votes.shape[1] > memory_budget:  # read without a budget, or with a larger one
            self.settle(self.votes, self.least_voted())
        return True

    def _room(self, name: str) -> Tensor:
        """Let a state take one slot more, which is yet to be written, and give the state with the room behind it."""
        held = getattr(self, name)
        dim, number = held.dim() // 2, self.votes.shape[1]
        room, latest = self.rooms.get(name, (None, None))
        if latest is not held or room.shape[dim] == number:
            size = number + 1 + ROOM if self.memory_budget is None else min(number + 1 + ROOM, self.memory_budget)
            room = held.new_empty(*held.shape[:dim], size, *held.shape[dim + 1 :])
            room.narrow(dim, 0, number).copy_(held)
        self.rooms[name] = room, room.narrow(dim, 0, number + 1)
        setattr(self, name, self.rooms[name][1])
        return room

    def _replace_one(self, new: dict[str, Tensor], enters: Tensor | None, sliding_window: int | None) -> None:
        # What the new token will not see leaves first, empty slots among it.
        visible = self.visible() if sliding_window is None else self.visible(sliding_window - 1)
        scores = torch.where(visible, self.votes, float("inf"))
        slot = most_voted(scores, ~(self.is_start & visible), self.positions)[:, None]
        for name, state in [(name, getattr(self, name)) for name in STATE]:
            dim = state.dim() // 2
            index = slot if dim == 1 else slot[:, None, :, None].expand(-1, state.shape[1], -1, state.shape[3])
            written = new[name]
            if enters is not None:  # padding takes no slot
                written = torch.where(enters.view(-1, *[1] * (state.dim() - 1)), written, state.gather(dim, index))
            # In place, but where a gradient may need what was there.
            scatter = Tensor.scatter if written.requires_grad or state.requires_grad else Tensor.scatter_
            setattr(self, name, scatter(state, dim, index, written))

    def _gather(self, index: Tensor) -> None:
        """Keep the slots `index` `[batch, slots]`, in that order."""
        for name, state in [(name, getattr(self, name)) for name in STATE]:
            wide = index
            if state.dim() == 4:
                wide = index[:, None, :, None].expand(-1, state.shape[1], -1, state.shape[3])
            setattr(self, name, state.gather(state.dim() // 2, wide))

    def _apply(self, function: Callable[[Tensor], Tensor]) -> None:
        self.rooms = {}
        for name in (*STATE, "num_real", "recorded"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))

    # What `generate` asks of a layer

    def activate_past_recording(self) -> None:
        """From now on keep the votes of the latest tokens, so that `crop` can take them back."""
        self.record_past = True

    def _record(self, cast: Tensor) -> None:
        if self.recorded is not None:
            cast = torch.cat([pad(self.recorded, (0, cast.shape[2] - self.recorded.shape[2])), cast], dim=1)
        self.recorded = cast[:, -MAX_RECORDED:]

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens and their votes."""
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes minus the number of tokens to remove, got {tokens_to_remove}.")
        number = -tokens_to_remove
        if number == 0 or not self.is_initialized:
            return
        if self.memory_budget is not None:
            raise ValueError(
                f"A layer with a memory budget ({self.memory_budget}) has dropped tokens for later ones and cannot "
                "take those back: keep a copy of the cache (copy.deepcopy) from before them."
            )
        num_recorded = 0 if self.recorded is None else self.recorded.shape[1]
        if number > num_recorded:
            raise ValueError(
                f"The votes of the last {num_recorded} tokens are recorded, not of {number}: call "
                f"`cache.activate_past_recording()` before them, and crop at most {MAX_RECORDED}."
            )
        left = self.votes.shape[1] - number
        self.num_real = self.num_real - (self.positions[:, left:] >= 0).sum(-1)
        self.votes = (self.votes - self.recorded[:, -number:].sum(1)).clamp(min=0)[:, :left]
        self.recorded = self.recorded[:, :-number, :left]
        self.keys, self.values = self.keys[:, :, :left], self.values[:, :, :left]
        self.positions, self.is_start = self.positions[:, :left], self.is_start[:, :left]
        self.num_seen -= number

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._apply(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._apply(lambda state: state[indices.to(state.device)])
