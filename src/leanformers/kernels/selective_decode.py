# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
One token more of selective attention (arXiv 2410.02703), from slots that hold keys, values and the votes F so far.

    v    = argmax_j F_j over what may leave, of several the oldest           once a budget is full: the slot that
    k_v, v_v, F_v, position_v <- those of the new token                      the new token takes
    O^h  = sum_j softmax_j(scale q^h . k_j - F_j) v_j
    F_j <- F_j + strength relu(scale q^0 . k_j) where the token may vote

One launch does all of it. A program reads the keys of one key-value head once, for all heads that share it, and keeps
a running maximum and sum of its softmax. The votes are a row of the logits that it computes anyway. With a budget each
program finds v for itself, as the votes are few and none waits for another; the new token is where its softmax starts,
so that nobody reads the slot which is written. Everybody reads F, hence the program of a text that is done last adds
the votes cast: who that is is counted in the upper half of `num_real`, which then is 0 again.

Few texts with many slots would leave most of the processor idle: then each program takes a split of the slots, and
a second launch weighs their results,

    O^h = sum_s exp(m_s - max m) O_s / sum_s exp(m_s - max m) l_s
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .selective_eviction import in_order
from .selective_votes import IS_INTERPRETED, TYPES, multiply

BLOCK_SLOTS = 64
SPLIT_SLOTS = 256  # a split has at least so many, or it is not worth its second launch
BLOCK_VOTES = 1024  # slots that are looked through for v at once
ARRIVAL = tl.constexpr(2**32)


class Slots(NamedTuple):
    """What a cache holds."""

    keys: Tensor  # [batch, key_value_heads, slots, dim], as are values
    values: Tensor
    votes: Tensor  # [batch, slots], float32
    positions: Tensor  # [batch, slots], int64, -1 for a slot with nothing
    is_start: Tensor  # [batch, slots], which tokens nobody votes against
    num_real: Tensor  # [batch], int64, how many tokens there have been


class Rule(NamedTuple):
    """The numbers of a step."""

    scale: float
    selection_head: int
    strength: float
    protect_start: bool = True
    protect_self: bool = True
    sliding_window: int | None = None


def selective_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    selection: Tensor,
    *,
    visible: Tensor | None = None,
    votable: Tensor,
    scale: float | None = None,
    selection_head: int = 0,
    strength: float = 1.0,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, None]:
    """
    Attention with the votes cast so far, then the token's own votes; arguments and results as in `modeling`, but that
    a row which sees nothing has an output of 0, and

    Args:
        num_splits (`int`, *optional*): among how many programs the slots of a key-value head are split.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output, selection = _step(
        query, key, value, selection, visible, votable, scale, selection_head, strength, num_splits
    )
    return output, selection, None


def append_and_attend_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slots: Slots,
    is_real: Tensor | None,
    rule: Rule,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The same, of a cache that has room: the token takes the first slot behind those that are taken, padding as well.

    Args:
        query (`torch.Tensor`): `[batch, 1, heads, head_dim]`.
        key, value (`torch.Tensor`): `[batch, key_value_heads, 1, dim]`, of the token.
        slots (`Slots`): before the token. There are votes for those that are taken; all else but `num_real` has at
            least one slot more, which is written in place.
        is_real (`torch.Tensor`, *optional*): `[batch, 1]`, False if the token is padding, which does not vote.
        rule (`Rule`): the numbers of a step.
        num_splits (`int`, *optional*): as above.

    Returns:
        `(output, votes, num_real)`: `[batch, 1, heads, value_dim]`, the votes after the token `[batch, slots + 1]`,
        and the number of tokens.
    """
    return _append_and_attend(query, key, value, *slots, is_real, *rule, num_splits)


def replace_and_attend_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slots: Slots,
    is_real: Tensor | None,
    rule: Rule,
    num_splits: int | None = None,
) -> Tensor:
    """
    The same, of a cache whose slots are all taken: the token takes that of the most voted, padding takes none.

    Args:
        query (`torch.Tensor`): `[batch, 1, heads, head_dim]`.
        key, value (`torch.Tensor`): `[batch, key_value_heads, 1, dim]`, of the token.
        slots (`Slots`): before the token; all six are updated in place.
        is_real, rule, num_splits: as for `append_and_attend_`.

    Returns:
        `torch.Tensor`: `[batch, 1, heads, value_dim]`.

    Raises:
        `ValueError`: if what is to be updated is not contiguous.
    """
    if strides := [states.stride() for states in slots if not states.is_contiguous()]:
        raise ValueError(f"What is updated in place must be contiguous, got strides {strides}: pass copies.")
    return _replace_and_attend(query, key, value, *slots, is_real, *rule, num_splits)


@torch.library.custom_op("leanformers::selective_attention_step", mutates_args=())
def _step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    selection: Tensor,
    visible: Tensor | None,
    votable: Tensor,
    scale: float,
    selection_head: int,
    strength: float,
    num_splits: int | None,
) -> tuple[Tensor, Tensor]:
    masks = {"visible": None if visible is None else visible.contiguous(), "votable": votable.contiguous()}
    new_votes = torch.empty_like(selection, memory_format=torch.contiguous_format)
    rule = Rule(scale, selection_head, strength)
    output = _launch(query, key, value, selection.contiguous(), new_votes, rule, num_splits, **masks)
    return output, new_votes


@torch.library.custom_op(
    "leanformers::selective_attention_append", mutates_args=("keys", "values", "positions", "is_start")
)
def _append_and_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    votes: Tensor,
    positions: Tensor,
    is_start: Tensor,
    num_real: Tensor,
    is_real: Tensor | None,
    scale: float,
    selection_head: int,
    strength: float,
    protect_start: bool,
    protect_self: bool,
    sliding_window: int | None,
    num_splits: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = Rule(scale, selection_head, strength, protect_start, protect_self, sliding_window)
    known = {"positions": positions, "is_start": is_start, "num_real": num_real, "is_real": is_real}
    new = {"new_key": _dense(key), "new_value": _dense(value), "new_num_real": torch.empty_like(num_real)}
    new_votes = votes.new_empty(votes.shape[0], votes.shape[1] + 1)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    output = _launch(query, keys, values, votes.contiguous(), new_votes, rule, num_splits, **known, **new)
    return output, new_votes, new["new_num_real"]


@torch.library.custom_op(
    "leanformers::selective_attention_replace",
    mutates_args=("keys", "values", "votes", "positions", "is_start", "num_real"),
)
def _replace_and_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    votes: Tensor,
    positions: Tensor,
    is_start: Tensor,
    num_real: Tensor,
    is_real: Tensor | None,
    scale: float,
    selection_head: int,
    strength: float,
    protect_start: bool,
    protect_self: bool,
    sliding_window: int | None,
    num_splits: int | None,
) -> Tensor:
    rule = Rule(scale, selection_head, strength, protect_start, protect_self, sliding_window)
    known = {"positions": positions, "is_start": is_start, "num_real": num_real, "is_real": is_real}
    new = {"new_key": _dense(key), "new_value": _dense(value)}
    cast = torch.empty_like(votes)
    return _launch(query, keys.transpose(1, 2), values.transpose(1, 2), votes, cast, rule, num_splits, **known, **new)


def _fake_output(query: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(*query.shape[:3], value.shape[-1])


@_step.register_fake
def _(query, key, value, selection, *rest):
    return _fake_output(query, value), torch.empty_like(selection, memory_format=torch.contiguous_format)


@_append_and_attend.register_fake
def _(query, key, value, keys, values, votes, positions, is_start, num_real, *rest):
    new_votes = votes.new_empty(votes.shape[0], votes.shape[1] + 1)
    return _fake_output(query, value), new_votes, torch.empty_like(num_real)


@_replace_and_attend.register_fake
def _(query, key, value, *rest):
    return _fake_output(query, value)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    votes: Tensor,
    new_votes: Tensor,
    rule: Rule,
    num_splits: int | None,
    *,
    visible: Tensor | None = None,
    votable: Tensor | None = None,
    positions: Tensor | None = None,
    is_start: Tensor | None = None,
    num_real: Tensor | None = None,
    is_real: Tensor | None = None,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    new_num_real: Tensor | None = None,
) -> Tensor:
    """Keys and values are `[batch, slots, key_value_heads, dim]`; what is mutated is a view of what was given."""
    query, key, value = _dense(query), _dense(key), _dense(value)
    (batch, num_slots), num_shared, num_heads = votes.shape, key.shape[2], query.shape[2]
    head_dim, value_dim = key.shape[-1], value.shape[-1]
    replaces = new_key is not None and new_num_real is None
    output = value.new_empty(batch, 1, num_heads, value_dim)
    if not batch:
        return output
    num_splits, split_size = split(num_slots, batch * num_shared, query.device, num_splits)
    part, maxima, sums = output, None, None
    if num_splits > 1:
        part = query.new_empty(batch, num_heads, num_splits, value_dim, dtype=torch.float32)
        maxima, sums = query.new_empty(2, batch, num_heads, num_splits, dtype=torch.float32)
    with torch.cuda.device_of(query):
        attend_kernel[(batch, num_shared, num_splits)](
            query,
            key,
            value,
            new_key,
            new_value,
            new_num_real,
            votes,
            positions,
            is_start,
            num_real,
            None if is_real is None else is_real.contiguous(),
            visible,
            votable,
            part,
            maxima,
            sums,
            new_votes,
            rule.scale,
            rule.scale * rule.strength,
            num_slots,
            split_size,
            rule.sliding_window or 0,
            query.stride(0),
            query.stride(2),
            *key.stride()[:3],
            *value.stride()[:3],
            *((0, 0) if new_key is None else new_key.stride()[:2]),
            *((0, 0) if new_value is None else new_value.stride()[:2]),
            0 if positions is None else positions.stride(0),
            0 if is_start is None else is_start.stride(0),
            SELECTION_HEAD=rule.selection_head,
            PROTECT_START=rule.protect_start,
            PROTECT_SELF=rule.protect_self,
            HAS_WINDOW=rule.sliding_window is not None,
            **constants(query.dtype, num_heads // num_shared, head_dim, value_dim, num_slots if replaces else 0),
        )
        if num_splits > 1:
            block = max(triton.next_power_of_2(value_dim), 16)
            weigh_kernel[(batch * num_heads,)](part, maxima, sums, output, num_splits, value_dim, BLOCK=block)
    return output


def constants(dtype: torch.dtype, group: int, head_dim: int, value_dim: int, num_slots: int) -> dict[str, Any]:
    """The sizes of blocks, and how products are computed: float32 by threads, not tensor cores, in their registers."""
    is_single, is_wide = dtype == torch.float32, max(head_dim, value_dim) > 64
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "ROWS": max(triton.next_power_of_2(group), 16),
        "SLOTS": BLOCK_SLOTS // 2 if is_single and is_wide else BLOCK_SLOTS,
        "DIM": max(triton.next_power_of_2(head_dim), 16),
        "OUT_DIM": max(triton.next_power_of_2(value_dim), 16),
        "VOTES": min(max(triton.next_power_of_2(num_slots), 16), BLOCK_VOTES),
        "TYPE": tl.float32 if IS_INTERPRETED else TYPES[dtype],
        "PRECISION": "ieee" if is_single else "tf32",
        "num_warps": 8 if is_single and is_wide else 4,
        "num_stages": 2 if is_single or max(head_dim, value_dim) > 128 else 3,
    }


def split(num_slots: int, num_programs: int, device: torch.device, num_splits: int | None = None) -> tuple[int, int]:
    """How many splits there are, and the slots of each: enough for two programs on each multiprocessor."""
    if num_splits is None:
        has_processors = device.type == "cuda"
        num_processors = torch.cuda.get_device_properties(device).multi_processor_count if has_processors else 1
        num_splits = max(min(2 * num_processors // num_programs, num_slots // SPLIT_SLOTS), 1)
    size = max(triton.cdiv(triton.cdiv(num_slots, num_splits), BLOCK_SLOTS), 1) * BLOCK_SLOTS
    return max(triton.cdiv(num_slots, size), 1), size


@triton.jit(do_not_specialize=["num_slots", "split_size", "window", "positions_batch", "is_start_batch"])
def attend_kernel(
    query,
    key,
    value,
    new_key,  # with a cache, as the next one
    new_value,
    new_num_real,  # where the token is appended, not where it replaces another
    votes,
    positions,  # of a cache, as the next three; the last may be None
    is_start,
    num_real,
    is_real,
    visible,  # if there is no cache; may be None
    votable,
    output,  # of each split, if there is more than one, and the next two
    maxima,
    sums,
    new_votes,  # where the token replaces another, the votes cast
    scale,
    vote_scale,
    num_slots,
    split_size,
    window,
    query_batch,
    query_head,
    key_batch,
    key_slot,
    key_head,
    value_batch,
    value_slot,
    value_head,
    new_key_batch,
    new_key_head,
    new_value_batch,
    new_value_head,
    positions_batch,
    is_start_batch,
    SELECTION_HEAD: tl.constexpr,
    PROTECT_START: tl.constexpr,
    PROTECT_SELF: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    DIM: tl.constexpr,
    OUT_DIM: tl.constexpr,
    VOTES: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HAS_CACHE: tl.constexpr = new_key is not None
    APPENDS: tl.constexpr = new_num_real is not None
    REPLACES: tl.constexpr = HAS_CACHE and not APPENDS
    batch, shared, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    rows, dims, out_dims = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, OUT_DIM)
    is_dim, is_out_dim = dims < HEAD_DIM, out_dims < VALUE_DIM
    heads = shared * GROUP + rows
    is_voter = heads == SELECTION_HEAD
    has_voter = shared == SELECTION_HEAD // GROUP
    q = tl.load(
        query + batch * query_batch + heads[:, None] * query_head + dims[None, :],
        mask=(rows < GROUP)[:, None] & is_dim[None, :],
        other=0.0,
    )
    votes += batch * num_slots
    new_votes += batch * (num_slots + 1 if APPENDS else num_slots)

    slot = -1  # of the token, if it is among those below
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, OUT_DIM), tl.float32)
    if HAS_CACHE:
        enters = part >= 0
        if is_real is not None:
            enters = tl.load(is_real + batch).to(tl.int1)
        positions += batch * positions_batch
        is_start += batch * is_start_batch
        num_before = tl.load(num_real + batch, volatile=True) % ARRIVAL  # others count their arrival meanwhile
        latest = num_before + enters.to(tl.int64) - 1
        writes = part == 0
        own_slot = num_slots
        if REPLACES:
            own_slot = most_voted(votes, positions, is_start, latest, num_slots, window, HAS_WINDOW, VOTES)
            slot = tl.where(enters, own_slot, -1)
            writes = writes & enters
        own_key = tl.load(new_key + batch * new_key_batch + shared * new_key_head + dims, mask=is_dim, other=0.0)
        own_value = tl.load(
            new_value + batch * new_value_batch + shared * new_value_head + out_dims, mask=is_out_dim, other=0.0
        )
        if writes:
            own = tl.sum(q.to(tl.float32) * own_key.to(tl.float32)[None, :], axis=1)
            if enters:
                top = own * scale
                total += 1.0
                mean += own_value.to(tl.float32)[None, :]
            place = tl.cast(own_slot, tl.int64)
            tl.store(key + batch * key_batch + shared * key_head + place * key_slot + dims, own_key, mask=is_dim)
            value_place = value + batch * value_batch + shared * value_head + place * value_slot
            tl.store(value_place + out_dims, own_value, mask=is_out_dim)
            if has_voter:
                vote = tl.maximum(tl.sum(tl.where(is_voter, own, 0.0), axis=0) * vote_scale, 0.0)
                may_vote = enters & (latest >= (1 if PROTECT_START else 0)) & (not PROTECT_SELF)
                tl.store(new_votes + own_slot, tl.where(may_vote, vote, 0.0))
            if APPENDS:
                tl.store(positions + own_slot, tl.where(enters, latest, -1), mask=shared == 0)
                tl.store(is_start + own_slot, enters & (latest == 0) & PROTECT_START, mask=shared == 0)
                tl.store(new_num_real + batch, latest + 1, mask=shared == 0)

    key += batch * key_batch + shared * key_head
    value += batch * value_batch + shared * value_head
    end = tl.minimum((part + 1) * split_size, num_slots)
    for first in range(part * split_size, end, SLOTS):
        slots = first + tl.arange(0, SLOTS)
        exists = (slots < end) & (slots != slot)
        f = tl.load(votes + slots, mask=exists, other=0.0)
        if HAS_CACHE:
            position = tl.load(positions + slots, mask=exists, other=-1)
            sees = position >= 0
            if HAS_WINDOW:
                sees = sees & (latest - position < window)
            may_vote = sees & (tl.load(is_start + slots, mask=exists, other=1).to(tl.int1) == 0) & enters
        else:
            sees = exists
            if visible is not None:
                sees = tl.load(visible + batch * num_slots + slots, mask=exists, other=0).to(tl.int1)
            may_vote = tl.load(votable + batch * num_slots + slots, mask=exists, other=0).to(tl.int1)
        far = slots.to(tl.int64)[:, None]
        k = tl.load(key + far * key_slot + dims[None, :], mask=exists[:, None] & is_dim[None, :], other=0.0)
        v = tl.load(
            value + far * value_slot + out_dims[None, :], mask=exists[:, None] & is_out_dim[None, :], other=0.0
        )
        products = multiply(q, tl.trans(k), TYPE, PRECISION)
        if has_voter:
            vote = tl.sum(tl.where(is_voter[:, None], products, 0.0), axis=0) * vote_scale
            vote = tl.where(may_vote, tl.maximum(vote, 0.0), 0.0)
            if not REPLACES:
                vote += f
            tl.store(new_votes + slots, vote, mask=exists)
        logits = tl.where(sees[None, :], products * scale - f[None, :], float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing is seen so far
        weights = tl.exp(logits - reference[:, None])
        shrink = tl.exp(top - reference)
        total = total * shrink + tl.sum(weights, axis=1)
        products = multiply(weights.to(v.dtype), v, TYPE, PRECISION)
        mean = mean * shrink[:, None] + products
        top = new_top

    is_head = rows < GROUP
    if maxima is None:
        mean = mean / tl.where(total > 0.0, total, 1.0)[:, None]
        place = batch * GROUP * tl.num_programs(1) + heads
    else:
        place = (batch * GROUP * tl.num_programs(1) + heads) * tl.num_programs(2) + part
        tl.store(maxima + place, top, mask=is_head)
        tl.store(sums + place, total, mask=is_head)
    tl.store(
        output + place[:, None] * VALUE_DIM + out_dims[None, :], mean, mask=is_head[:, None] & is_out_dim[None, :]
    )
    if REPLACES:
        tl.debug_barrier()  # all threads have read the votes and written their own
        num_arrived = tl.atomic_add(num_real + batch, ARRIVAL, sem="acq_rel") // ARRIVAL + 1
        if num_arrived == tl.num_programs(1) * tl.num_programs(2):
            for first in range(0, num_slots, VOTES):
                slots = first + tl.arange(0, VOTES)
                exists = slots < num_slots
                f = tl.load(votes + slots, mask=exists & (slots != slot), other=0.0)
                cast = tl.load(new_votes + slots, mask=exists, other=0.0, cache_modifier=".cg")
                tl.store(votes + slots, f + cast, mask=exists)
            tl.store(positions + slot, latest, mask=enters)
            tl.store(is_start + slot, (latest == 0) & PROTECT_START, mask=enters)
            tl.store(num_real + batch, num_before + enters.to(tl.int64))


@triton.jit
def most_voted(votes, positions, is_start, latest, num_slots, window, HAS_WINDOW: tl.constexpr, VOTES: tl.constexpr):
    """The slot to be reused: what the new token does not see leaves first, and nothing at all before everything."""
    best = tl.full((), -(2**63), tl.int64)
    slot = tl.zeros((), tl.int32)
    for first in range(0, num_slots, VOTES):
        slots = first + tl.arange(0, VOTES)
        exists = slots < num_slots
        position = tl.load(positions + slots, mask=exists, other=-1)
        sees = position >= 0
        if HAS_WINDOW:
            sees = sees & (latest - position < window)
        stays = tl.load(is_start + slots, mask=exists, other=0).to(tl.int1) & sees
        f = tl.load(votes + slots, mask=exists, other=0.0)
        order = in_order(tl.where(sees, f, float("inf")), stays == 0, position)
        order = tl.where(exists, order, -(2**63))
        tile_best = tl.max(order, axis=0)
        if tile_best > best:
            best = tile_best
            slot = tl.min(tl.where(order == tile_best, slots, num_slots), axis=0)
    return slot


@triton.jit(do_not_specialize=["num_splits"])
def weigh_kernel(parts, maxima, sums, output, num_splits, VALUE_DIM, BLOCK: tl.constexpr):
    """Output of one head of its splits."""
    head, dims = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_dim = dims < VALUE_DIM
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    for part in range(0, num_splits):
        place = head * num_splits + part
        part_top = tl.load(maxima + place)
        new_top = tl.maximum(top, part_top)
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink, weight = tl.exp(top - reference), tl.exp(part_top - reference)
        total = total * shrink + tl.load(sums + place) * weight
        mean = mean * shrink + tl.load(parts + place * VALUE_DIM + dims, mask=is_dim, other=0.0) * weight
        top = new_top
    tl.store(output + head * VALUE_DIM + dims, mean / tl.where(total > 0.0, total, 1.0), mask=is_dim)
