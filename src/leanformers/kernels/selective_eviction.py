# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Context pruning of a block of queries (arXiv 2410.02703, section 4): which tokens are still held as each one comes.

For the tokens t of the block in order, with H the tokens held and F_t the votes that t finds,

    H <- H without those with F_tj = inf              t does not see them, and no later token will
    H <- H without argmax_{j in H} F_tj               if H is full; of several the oldest, and never a first token
    H <- H with t                                     F_tj <- inf outside H

Each step needs the one before, so one program walks down the rows of a text. H stays in its registers, the next row of
F is under way while this one is reduced, and both halves of the order, votes and age, are one 64-bit number, so that
the choice is one reduction. Few keys are walked by a single warp, which needs no barriers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOWEST_KEY = tl.constexpr(-(2**63))


def prune_(
    selection: Tensor,
    held: Tensor,
    is_start: Tensor,
    is_real: Tensor | None,
    memory_budget: int,
    protect_start: bool = True,
) -> None:
    """
    Drop tokens as the latest queries come, in place.

    Args:
        selection (`torch.Tensor`): `[batch, queries, end]`, float32, F of the last `queries` of the first `end` keys,
            inf where a key is not visible. It becomes inf where a key is gone.
        held (`torch.Tensor`): `[batch, keys]`, which tokens are held; it is updated.
        is_start (`torch.Tensor`): `[batch, keys]`, the first tokens.
        is_real (`torch.Tensor`, *optional*): `[batch, keys]`, False for padding.
        memory_budget (`int`): how many tokens are held at most.
        protect_start (`bool`, defaults to `True`): whether first tokens stay.
    """
    _prune(selection, held, is_start, is_real, memory_budget, protect_start)


@torch.library.custom_op("leanformers::selective_eviction", mutates_args=("selection", "held"))
def _prune(
    selection: Tensor, held: Tensor, is_start: Tensor, is_real: Tensor | None, memory_budget: int, protect_start: bool
) -> None:
    batch, num_rows, end = selection.shape
    if not selection.numel():
        return
    block = max(triton.next_power_of_2(end), 32)
    with torch.cuda.device_of(selection):
        walk_kernel[(batch,)](
            selection,
            held,
            is_start,
            is_real,
            num_rows,
            end,
            memory_budget,
            *selection.stride(),
            *held.stride(),
            *is_start.stride(),
            *((0, 0) if is_real is None else is_real.stride()),
            PROTECT_START=protect_start,
            HAS_PADDING=is_real is not None,
            BLOCK=block,
            num_warps=num_warps(block),
        )


@_prune.register_fake
def _(selection, held, is_start, is_real, memory_budget, protect_start) -> None:
    return None


def num_warps(block: int) -> int:
    """Eight keys for each thread, of which registers hold all that is known."""
    return min(max(block // 256, 1), 32)


@triton.jit(do_not_specialize=["num_rows", "end", "budget", "held_batch", "start_batch", "real_batch"])
def walk_kernel(
    selection,
    held,
    is_start,
    is_real,
    num_rows,
    end,
    budget,
    selection_batch,
    selection_row,
    selection_key,
    held_batch,
    held_key,
    start_batch,
    start_key,
    real_batch,
    real_key,
    PROTECT_START: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    keys = tl.arange(0, BLOCK)
    exists = keys < end
    row = selection + batch * selection_batch + keys.to(tl.int64) * selection_key
    held += batch * held_batch + keys * held_key
    is_held = tl.load(held, mask=exists, other=0).to(tl.int1)
    may_leave = exists
    if PROTECT_START:
        stays = tl.load(is_start + batch * start_batch + keys * start_key, mask=exists, other=0).to(tl.int1)
        may_leave = exists & (stays == 0)

    votes = tl.load(row, mask=exists, other=float("inf"))
    for index in range(num_rows):
        has_next = index + 1 < num_rows
        next_row = row + selection_row
        next_votes = tl.load(next_row, mask=exists & has_next, other=float("inf"))
        token = end - num_rows + index
        enters = token >= 0
        if HAS_PADDING:
            enters = tl.load(is_real + batch * real_batch + token.to(tl.int64) * real_key).to(tl.int1)
        is_held = is_held & ((votes < float("inf")) | (enters == 0))
        is_full = tl.sum(is_held.to(tl.int32), axis=0) >= budget
        order = tl.where(exists, in_order(votes, is_held & may_leave, keys), LOWEST_KEY)
        victim = age(tl.max(order, axis=0))
        is_held = is_held & ((keys != victim) | (is_full == 0) | (enters == 0))
        is_held = (is_held & (keys != token)) | ((keys == token) & enters)
        tl.store(row, float("inf"), mask=exists & (is_held == 0) & enters)
        row = next_row
        votes = next_votes
    tl.store(held, is_held, mask=exists)


@triton.jit
def in_order(votes, evictable, ages):
    """64-bit numbers, largest for what leaves first: what may, has the most votes and, of several, the lowest age."""
    votes = tl.where(evictable, votes, -1.0)
    votes = tl.where(votes == 0.0, 0.0, votes)  # -0 is 0
    bits = votes.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (ordered << 32) | (0x7FFFFFFF - ages.to(tl.int64))


@triton.jit
def age(order):
    """What `in_order` was given."""
    return 0x7FFFFFFF - (order & 0xFFFFFFFF)
