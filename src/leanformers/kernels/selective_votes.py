# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
The votes of selective attention (arXiv 2410.02703) in tiles of queries I and keys J, once for all heads:

    S_ij = strength relu(scale q^0_i . k_j), 0 where i may not vote against j         F_ij = sum_{k<i} S_kj

No tile waits for another. The first launch sums up the columns of each, C_Ij = sum_{i in I} S_ij. Their running sum
over I, a row per block of queries, is all that is kept; the second launch computes S again and with it

    F_ij = base_Ij + sum_{k in I, k<i} S_kj                  base_I = base_0 + sum_{I'<I} C_I'

On the way back the columns of dF are summed up likewise, from the last query on, and the third launch finds what the
logits of the voting head receive:

    dL^0_ij += strength [S_ij > 0] (rest_Ij + sum_{k in I, k>i} dF_kj)

F is stored as log2(e) F, for exp2, and is inf where a query does not see a key, so that attention needs no mask.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

LOG2_E = tl.constexpr(math.log2(math.e))
BLOCK_K = 64  # keys of a tile; what reads F may take fewer at once, but no more
SELECTION_BYTES = 2**28  # of F at a time, as far as a block of queries fits; more of it leaves fewer launches


@triton.jit
def load_rows(matrix, first, end, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """`[ROWS, PADDED]`: rows from `first` on of a matrix `[end, WIDTH]`, and 0 beyond it."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, PADDED)
    pointers = matrix + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    is_inside = (first + rows < end)[:, None]
    if WIDTH != PADDED:
        is_inside = is_inside & (columns < WIDTH)[None, :]
    return tl.load(pointers, mask=is_inside, other=0.0)


@triton.jit
def matrix_of(tensor, batch, num_tokens, num_heads, head, width):
    """Where the rows of one head begin in `[batch, tokens, heads, width]`."""
    return tensor + (tl.cast(batch, tl.int64) * num_tokens * num_heads + head) * width


@triton.jit
def store_rows(matrix, rows_of, first, end, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write what `load_rows` reads."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, PADDED)
    pointers = matrix + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    is_inside = (first + rows < end)[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointers, rows_of.to(matrix.dtype.element_ty), mask=is_inside)


@triton.jit
def multiply(left, right, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Matrix product in float32. `TYPE` is that of the inputs, but for the interpreter, which has no bfloat16."""
    return tl.dot(left.to(TYPE), right.to(TYPE), input_precision=PRECISION)


@triton.jit
def tile(matrix, batch, num_rows, num_columns, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to a tile of `[batch, num_rows, num_columns]`."""
    start = (tl.cast(batch, tl.int64) * num_rows + row) * num_columns + column
    return matrix + start + tl.arange(0, ROWS)[:, None] * num_columns + tl.arange(0, COLUMNS)[None, :]


@triton.jit(do_not_specialize=["length", "past", "window"])
def votes_kernel(
    query,  # of the voting head, as are all keys: [batch, tokens, head_dim]
    key,
    is_real,  # [batch, keys], or None, as the next three may be
    is_start,
    documents,
    positions,
    first_keys,  # [batch, blocks], before which a block of queries sees no key, or None
    sums,  # first launch: C, [batch, blocks, columns]
    bases,  # second launch: base, [batch, blocks + 1, columns]
    selection,  # second launch: F, [batch, strip, columns]
    memory,  # second launch, or None: what each tile adds to the memory rows, [batch, tiles, strip]
    rests,  # third launch: rest, [batch, blocks of the strip, columns]
    gradient,  # third launch: dF, [batch, strip, columns], to be replaced by dL^0
    query_batch_stride,
    query_stride,
    key_batch_stride,
    key_stride,
    length,
    past,
    first_row,  # of the strip
    strip,
    num_columns,
    window,
    scale,
    strength,
    tau,
    PROTECT_SELF: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # of `first_keys`
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of S, and what one of the three launches makes of it."""
    column, block, batch = tl.program_id(0) * COLUMNS, tl.program_id(1), tl.program_id(2)
    row, num_keys = first_row + block * ROWS, past + length
    if column >= past + row + ROWS:
        return
    if first_keys is not None:  # noqa: SIM102  (decided when the kernel is compiled)
        if column < tl.load(first_keys + batch * tl.cdiv(length, BLOCK_Q) + row // BLOCK_Q):
            return

    query += tl.cast(batch, tl.int64) * query_batch_stride
    key += tl.cast(batch, tl.int64) * key_batch_stride
    q = load_rows(query, row, length, query_stride, ROWS, HEAD_DIM, PADDED_DIM)
    k = load_rows(key, column, num_keys, key_stride, COLUMNS, HEAD_DIM, PADDED_DIM)
    votes = tl.maximum(multiply(q, tl.trans(k), TYPE, PRECISION) * scale, 0.0) * strength

    voters, voted = past + row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    is_voter, is_voted = voters < num_keys, voted < num_keys
    tokens = tl.cast(batch, tl.int64) * num_keys
    hidden = voted[None, :] > voters[:, None]
    if documents is not None:
        own = tl.load(documents + tokens + voters, mask=is_voter, other=0)
        other = tl.load(documents + tokens + voted, mask=is_voted, other=0)
        hidden = hidden | (own[:, None] != other[None, :])
    if positions is not None:
        own = tl.load(positions + tokens + voters, mask=is_voter, other=0)
        other = tl.load(positions + tokens + voted, mask=is_voted, other=0)
        hidden = hidden | (own[:, None] - other[None, :] >= window)
    if is_real is not None:
        is_voter = is_voter & (tl.load(is_real + tokens + voters, mask=is_voter, other=0) != 0)
        is_voted = is_voted & (tl.load(is_real + tokens + voted, mask=is_voted, other=0) != 0)
    if is_start is not None:
        is_voted = is_voted & (tl.load(is_start + tokens + voted, mask=is_voted, other=1) == 0)
    is_self = voted[None, :] == voters[:, None]
    votes = tl.where(hidden | (is_voter == 0)[:, None] | (is_voted == 0)[None, :], 0.0, votes)
    if PROTECT_SELF:
        votes = tl.where(is_self, 0.0, votes)

    if sums is not None:
        num_blocks = tl.num_programs(1)
        tl.store(sums + (tl.cast(batch, tl.int64) * num_blocks + block) * num_columns + voted, tl.sum(votes, axis=0))

    if selection is not None:
        place = (tl.cast(batch, tl.int64) * (tl.cdiv(length, ROWS) + 1) + row // ROWS) * num_columns
        base = tl.load(bases + place + voted)
        before = base[None, :] + (tl.cumsum(votes, axis=0) - votes)
        before = tl.where(hidden, float("inf"), before)
        before = tl.where(is_self, 0.0, before)  # padding sees itself, too, so that no row is empty
        tl.store(tile(selection, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS), before * LOG2_E)
        if memory is not None:
            in_mind = tl.sum(1.0 - tl.minimum(before, tau) / tau, axis=1)
            place = (tl.cast(batch, tl.int64) * (num_columns // COLUMNS) + tl.program_id(0)) * strip
            tl.store(memory + place + block * ROWS + tl.arange(0, ROWS), in_mind)

    if gradient is not None:
        place = (tl.cast(batch, tl.int64) * tl.num_programs(1) + block) * num_columns
        rest = tl.load(rests + place + voted)
        pointers = tile(gradient, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS)
        d_selection = tl.load(pointers)
        later = tl.cumsum(d_selection, axis=0, reverse=True) - d_selection
        tl.store(pointers, tl.where(votes > 0, (rest[None, :] + later) * strength, 0.0))


IS_INTERPRETED = not isinstance(votes_kernel, triton.JITFunction)
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def padded(width: int) -> int:
    """What a dimension of a matrix product must be rounded up to."""
    return max(16, triton.next_power_of_2(width))


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """In what kernels multiply matrices: float32 as exactly as PyTorch is set to, by three products if need be."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9; once it is used, what was there before raises
        is_exact = matmul.fp32_precision != "tf32"
    else:
        is_exact = torch.get_float32_matmul_precision() == "highest"
    return {"TYPE": tl.float32 if IS_INTERPRETED else TYPES[dtype], "PRECISION": "tf32x3" if is_exact else "tf32"}


class Rule(NamedTuple):
    """The numbers of the operator that concern votes."""

    sliding_window: int | None
    scale: float
    selection_head: int
    strength: float
    protect_start: bool
    protect_self: bool
    memory_tau: float | None


class Voting:
    """
    Launches `votes_kernel`.

    Args:
        query, key (`torch.Tensor`): `[batch, tokens, heads, head_dim]`.
        known: `is_real`, `is_start`, `document_ids` and `positions`, `[batch, keys]` each.
        rule (`Rule`): numbers of the operator.
        block_q (`int`): queries of a tile in the first two launches.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        known: tuple[Tensor | None, Tensor, Tensor | None, Tensor | None],
        rule: Rule,
        block_q: int,
    ):
        is_real, is_start, document_ids, positions = known
        (self.batch, self.length, num_heads, self.head_dim), self.num_keys = query.shape, key.shape[1]
        self.past, self.rule, self.block_q = self.num_keys - self.length, rule, block_q
        self.query = query[:, :, rule.selection_head]
        self.key = key[:, :, rule.selection_head // (num_heads // key.shape[2])]
        # None is what makes no difference.
        self.is_real, self.document_ids = self._dense(is_real), self._dense(document_ids)
        self.is_start = self._dense(is_start if rule.protect_start else None)
        self.positions = self._dense(None if rule.sliding_window is None else positions)
        self.num_blocks = triton.cdiv(self.length, block_q)
        self.columns = triton.cdiv(self.num_keys, BLOCK_K) * BLOCK_K
        fitting = SELECTION_BYTES // (4 * self.batch * self.columns) // block_q
        self.strip = min(max(fitting, 1), self.num_blocks) * block_q
        self.first_keys, self.last_queries = self._first_keys(), None
        if self.first_keys is not None:
            tiles = torch.arange(0, self.columns, BLOCK_K, device=query.device)
            sees_tile = self.first_keys[..., None] <= tiles
            self.last_queries = (sees_tile.sum(1) * block_q).to(torch.int32)

    def _dense(self, known: Tensor | None) -> Tensor | None:
        return None if known is None else known.expand(self.batch, self.num_keys).contiguous()

    def _first_keys(self) -> Tensor | None:
        """From which key on each block of queries sees any, `[batch, blocks]`; never less than for the one before."""
        seen = []
        if self.document_ids is not None:
            (low, high), (key_low, key_high) = self._ranges(self.document_ids)
            seen.append((low <= key_high) & (key_low <= high))
        if self.positions is not None:
            (low, _), (_, key_high) = self._ranges(self.positions)
            seen.append(low - key_high < self.rule.sliding_window)
        if not seen:
            return None
        first = torch.stack(seen).all(0).to(torch.uint8).argmax(-1) * BLOCK_K
        return first.flip(1).cummin(1).values.flip(1).to(torch.int32)

    def _ranges(self, known: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Least and greatest in blocks of queries `[batch, blocks, 1]`, and of keys `[batch, 1, tiles]`."""
        low, high = _block_range(known[:, self.past :], self.block_q)
        key_low, key_high = _block_range(known, BLOCK_K)
        return (low[:, :, None], high[:, :, None]), (key_low[:, None], key_high[:, None])

    def strips(self) -> list[tuple[int, int]]:
        """First query and number of queries of each part of F that is there at once."""
        return [(row, min(self.strip, self.length - row)) for row in range(0, self.length, self.strip)]

    def num_columns_of(self, row: int, num_rows: int) -> int:
        """How many keys, in whole tiles, are not after the queries."""
        return triton.cdiv(self.past + row + num_rows, BLOCK_K) * BLOCK_K

    def bases(self, base: Tensor) -> Tensor:
        """Votes against each key before each block of queries and after the last, `[batch, blocks + 1, columns]`."""
        sums = base.new_zeros(self.batch, self.num_blocks, self.columns)
        self._launch(0, self.length, self.block_q, sums=sums)
        base = pad(base, (0, self.columns - self.num_keys), value=float("inf"))
        return torch.cat([base[:, None], sums], dim=1).cumsum(1)

    def select(self, row: int, num_rows: int, bases: Tensor, selection: Tensor) -> Tensor | None:
        """Write F of a strip, `[batch, strip, columns]`, and return its memory rows, `[batch, num_rows]`."""
        memory = None
        if self.rule.memory_tau is not None:
            memory = bases.new_zeros(self.batch, self.columns // BLOCK_K, self.strip)
        self._launch(row, num_rows, self.block_q, bases=bases, selection=selection, memory=memory)
        return None if memory is None else memory.sum(1)[:, :num_rows] - 1  # the token itself has F = 0

    def give_back(
        self, row: int, num_rows: int, gradient: Tensor, sums: Tensor, remaining: Tensor, block_q: int
    ) -> Tensor:
        """
        Turn dF of a strip into what the logits of the voting head receive.

        Args:
            gradient (`torch.Tensor`): dF `[batch, strip, columns]`, overwritten.
            sums (`torch.Tensor`): its sums over blocks of queries, `[batch, blocks of the strip, columns]`.
            remaining (`torch.Tensor`): dF summed up over all queries after the strip, `[batch, columns]`.
            block_q (`int`): the queries of these blocks.

        Returns:
            `torch.Tensor`: `remaining` for the strip before.
        """
        from_here = sums.flip(1).cumsum(1).flip(1) + remaining[:, None]
        self._launch(row, num_rows, block_q, rests=from_here - sums, gradient=gradient)
        return from_here[:, 0]

    def _launch(self, row: int, num_rows: int, block_q: int, **ending: Tensor | None) -> None:
        grid = (self.num_columns_of(row, num_rows) // BLOCK_K, triton.cdiv(num_rows, block_q), self.batch)
        results = {name: ending.get(name) for name in ENDINGS}
        votes_kernel[grid](
            self.query,
            self.key,
            self.is_real,
            self.is_start,
            self.document_ids,
            self.positions,
            self.first_keys,
            **results,
            query_batch_stride=self.query.stride(0),
            query_stride=self.query.stride(1),
            key_batch_stride=self.key.stride(0),
            key_stride=self.key.stride(1),
            length=self.length,
            past=self.past,
            first_row=row,
            strip=self.strip,
            num_columns=self.columns,
            window=self.rule.sliding_window or 0,
            scale=self.rule.scale,
            strength=self.rule.strength,
            tau=self.rule.memory_tau or 1.0,
            PROTECT_SELF=self.rule.protect_self,
            BLOCK_Q=self.block_q,
            ROWS=block_q,
            COLUMNS=BLOCK_K,
            HEAD_DIM=self.head_dim,
            PADDED_DIM=padded(self.head_dim),
            **arithmetic(self.query.dtype),
            num_warps=8,
        )


ENDINGS = ("sums", "bases", "selection", "memory", "rests", "gradient")


def _block_range(known: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Least and greatest of each block of `[batch, tokens]`."""
    last = known[:, -1:].expand(-1, -known.shape[1] % size)
    return torch.aminmax(torch.cat([known, last], dim=1).unflatten(1, (-1, size)), dim=-1)
