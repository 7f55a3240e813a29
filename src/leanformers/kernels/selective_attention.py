# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Selective attention (arXiv 2410.02703) with F from memory: `selective_votes.py` writes it, a strip of queries at a
time, once for all heads, and every head subtracts it,

    P^h = exp(scale q^h k^T - F - log Z^h)                  O^h = P^h v           log Z by online softmax

Strips come in order, and on the way back (`selective_gradients.py`) in reverse. There are no atomic operations, so
that results do not vary from run to run, and nothing of the size of all queries times all keys is kept: F and dF of
one strip, and a row of votes per block of queries.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.runtime import driver

from .selective_gradients import delta_kernel, key_gradient_kernel, query_gradient_kernel, selection_gradient_kernel
from .selective_votes import (
    BLOCK_K,
    LOG2_E,
    Rule,
    Voting,
    arithmetic,
    load_rows,
    matrix_of,
    multiply,
    padded,
    store_rows,
    tile,
)


@triton.jit
def attend_to_tile(
    q,
    key,
    value,
    f,
    maximum,
    total,
    output,
    column,
    num_keys,
    num_shared,
    scale,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax: the running maximum, sum and unnormalised output after some keys more."""
    k = load_rows(key, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
    v = load_rows(value, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
    exponents = multiply(q, tl.trans(k), TYPE, PRECISION) * scale - f
    new_maximum = tl.maximum(maximum, tl.max(exponents, axis=1))
    shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)  # nothing was visible so far
    p = tl.exp2(exponents - shift[:, None])
    fading = tl.exp2(maximum - shift)
    output = output * fading[:, None] + multiply(p.to(v.dtype), v, TYPE, PRECISION)
    return new_maximum, total * fading + tl.sum(p, axis=1), output


@triton.jit(do_not_specialize=["length", "past"])
def attend_kernel(
    query,  # [batch, queries, heads, head_dim]
    key,  # [batch, keys, key_value_heads, head_dim]
    value,  # [batch, keys, key_value_heads, value_dim]
    selection,  # [batch, strip, columns]
    first_keys,  # [batch, blocks], or None
    output,  # [batch, queries, heads, value_dim]
    normalizer,  # [batch, heads, queries], log2 Z
    num_heads,
    groups,
    length,
    past,
    first_row,
    strip,
    num_columns,
    scale,  # of the exponents of 2
    IS_PAIR: tl.constexpr,  # two heads share each tile of F that is read
    BLOCK_Q: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads that read the same of F run at the same time, and queries with the most keys begin.
    head = tl.program_id(0) * 2 if IS_PAIR else tl.program_id(0)
    block, batch = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    row, num_keys, num_shared = first_row + block * ROWS, past + length, num_heads // groups
    first_key = 0
    if first_keys is not None:
        first_key = tl.load(first_keys + batch * tl.cdiv(length, BLOCK_Q) + row // BLOCK_Q)
        first_key = tl.multiple_of(first_key, COLUMNS)  # so that F is read in vectors

    stride, output_stride = num_heads * HEAD_DIM, num_heads * VALUE_DIM
    query = matrix_of(query, batch, length, num_heads, head, HEAD_DIM)
    key_0 = matrix_of(key, batch, num_keys, num_shared, head // groups, HEAD_DIM)
    value_0 = matrix_of(value, batch, num_keys, num_shared, head // groups, VALUE_DIM)
    q_0 = load_rows(query, row, length, stride, ROWS, HEAD_DIM, PADDED_DIM)
    maximum_0 = tl.full([ROWS], float("-inf"), tl.float32)
    total_0 = tl.zeros([ROWS], tl.float32)
    output_0 = tl.zeros([ROWS, PADDED_VALUE], tl.float32)
    if IS_PAIR:
        key_1 = matrix_of(key, batch, num_keys, num_shared, (head + 1) // groups, HEAD_DIM)
        value_1 = matrix_of(value, batch, num_keys, num_shared, (head + 1) // groups, VALUE_DIM)
        q_1 = load_rows(query + HEAD_DIM, row, length, stride, ROWS, HEAD_DIM, PADDED_DIM)
        maximum_1 = tl.full([ROWS], float("-inf"), tl.float32)
        total_1 = tl.zeros([ROWS], tl.float32)
        output_1 = tl.zeros([ROWS, PADDED_VALUE], tl.float32)

    for column in range(first_key, tl.minimum(past + row + ROWS, num_keys), COLUMNS):
        f = tl.load(tile(selection, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS))
        maximum_0, total_0, output_0 = attend_to_tile(
            q_0,
            key_0,
            value_0,
            f,
            maximum_0,
            total_0,
            output_0,
            column,
            num_keys,
            num_shared,
            scale,
            COLUMNS,
            HEAD_DIM,
            PADDED_DIM,
            VALUE_DIM,
            PADDED_VALUE,
            TYPE,
            PRECISION,
        )
        if IS_PAIR:
            maximum_1, total_1, output_1 = attend_to_tile(
                q_1,
                key_1,
                value_1,
                f,
                maximum_1,
                total_1,
                output_1,
                column,
                num_keys,
                num_shared,
                scale,
                COLUMNS,
                HEAD_DIM,
                PADDED_DIM,
                VALUE_DIM,
                PADDED_VALUE,
                TYPE,
                PRECISION,
            )

    rows = row + tl.arange(0, ROWS)
    total_0 = tl.where(rows < length, total_0, 1.0)  # beyond the last query there may be nothing visible
    normalizer += (tl.cast(batch, tl.int64) * num_heads + head) * length
    output = matrix_of(output, batch, length, num_heads, head, VALUE_DIM)
    tl.store(normalizer + rows, maximum_0 + tl.log2(total_0), mask=rows < length)
    store_rows(output, output_0 / total_0[:, None], row, length, output_stride, ROWS, VALUE_DIM, PADDED_VALUE)
    if IS_PAIR:
        total_1 = tl.where(rows < length, total_1, 1.0)
        tl.store(normalizer + length + rows, maximum_1 + tl.log2(total_1), mask=rows < length)
        output += VALUE_DIM
        store_rows(output, output_1 / total_1[:, None], row, length, output_stride, ROWS, VALUE_DIM, PADDED_VALUE)


class Launch(NamedTuple):
    """How a kernel is cut into programs."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# By the padded width of a head and the bytes of a number: what fits into the registers and the shared memory of sm_80
# and sm_90, as ptxas reports them.
ATTEND = {
    (64, 2): Launch(128, 64, 8, 3),
    (128, 2): Launch(128, 64, 8, 3),
    (256, 2): Launch(64, 32, 8, 2),
    (64, 4): Launch(64, 32, 4, 2),
    (128, 4): Launch(64, 32, 8, 2),
}
SELECTION_GRADIENT = {
    (64, 2): Launch(128, 64, 8, 2),
    (128, 2): Launch(64, 64, 8, 2),
    (256, 2): Launch(64, 32, 8, 2),
    (64, 4): Launch(64, 32, 8, 2),
    (128, 4): Launch(64, 32, 8, 1),
}
QUERY_GRADIENT = {
    (64, 2): Launch(128, 64, 8, 2),
    (128, 2): Launch(64, 64, 8, 2),
    (256, 2): Launch(64, 32, 8, 2),
    (64, 4): Launch(64, 32, 8, 2),
    (128, 4): Launch(32, 32, 8, 2),
}
KEY_GRADIENT = {
    (64, 2): Launch(64, 64, 4, 2),
    (128, 2): Launch(64, 64, 8, 2),
    (256, 2): Launch(32, 32, 8, 2),
    (64, 4): Launch(32, 64, 8, 2),
    (128, 4): Launch(16, 32, 8, 2),
}


@cache
def has_much_shared_memory(device: torch.device) -> bool:
    """Whether tiles of more than one step fit into it, as on A100 and H100."""
    if device.type != "cuda":
        return True
    # Of torch, only since 2.7.
    return driver.active.utils.get_device_properties(device.index)["max_shared_mem"] >= 160 * 1024


def block_of(block_size: int | None, dtype: torch.dtype) -> int:
    """Queries for which one row of votes is kept."""
    most = 64 if dtype == torch.float32 else 128
    return min(max(16, triton.next_power_of_2(block_size or most)), most)


class Attention:
    """
    Launches the kernels above.

    Args:
        query, key, value (`torch.Tensor`): `[batch, tokens, heads, dim]`, contiguous.
        known: `is_real`, `is_start`, `document_ids` and `positions`, `[batch, keys]` each.
        rule (`Rule`): numbers of the operator.
        block_size (`int`, *optional*): queries for which one row of votes is kept.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, known, rule: Rule, block_size: int | None):
        self.query, self.key, self.value, self.rule = query, key, value, rule
        (self.batch, self.length, self.num_heads, head_dim), self.num_keys = query.shape, key.shape[1]
        self.num_shared, value_dim = value.shape[2:]
        self.block_q = block_of(block_size, query.dtype)
        self.voting = Voting(query, key, known, rule, self.block_q)
        self.kind = (max(64, padded(head_dim), padded(value_dim)), query.element_size())
        self.dims = {
            "HEAD_DIM": head_dim,
            "PADDED_DIM": padded(head_dim),
            "VALUE_DIM": value_dim,
            "PADDED_VALUE": padded(value_dim),
            **arithmetic(query.dtype),
        }
        self.sizes = {
            "num_heads": self.num_heads,
            "groups": self.num_heads // self.num_shared,
            "length": self.length,
            "past": self.num_keys - self.length,
            "strip": self.voting.strip,
            "num_columns": self.voting.columns,
            "scale": rule.scale * LOG2_E.value,
        }

    def _launch(
        self, kernel, table: dict[tuple[int, int], Launch], first_row: int, grid: Callable, *tensors, **options
    ) -> None:
        """`grid` gives the grid for a `Launch`."""
        launch = table[self.kind]
        launch = launch._replace(rows=min(launch.rows, self.block_q))
        if not has_much_shared_memory(self.query.device):
            launch = launch._replace(num_stages=1)
        kernel[grid(launch)](
            *tensors,
            **self.sizes,
            **self.dims,
            **options,
            first_row=first_row,
            ROWS=launch.rows,
            COLUMNS=launch.columns,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    def forward(self, base: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`[batch, keys]` -> output, votes, memory rows, what makes rows sum to 1, and votes before each block."""
        voting = self.voting
        output = self.value.new_empty(self.batch, self.length, self.num_heads, self.value.shape[3])
        normalizer = base.new_empty(self.batch, self.num_heads, self.length)
        bases, memories = voting.bases(base), []
        selection = self._new_strip()
        is_pair = self.num_heads % 2 == 0 and self.kind == (64, 2)
        for row, num_rows in voting.strips():
            memories.append(voting.select(row, num_rows, bases, selection))
            self._launch(
                attend_kernel,
                ATTEND,
                row,
                lambda launch, rows=num_rows: (
                    self.num_heads // (1 + is_pair),
                    triton.cdiv(rows, launch.rows),
                    self.batch,
                ),
                self.query,
                self.key,
                self.value,
                selection,
                voting.first_keys,
                output,
                normalizer,
                IS_PAIR=is_pair,
                BLOCK_Q=self.block_q,
            )
        memory = base.new_empty(0) if self.rule.memory_tau is None else torch.cat(memories, dim=1)
        return output, bases[:, -1, : self.num_keys].clone(), memory, normalizer, bases

    def backward(
        self,
        output: Tensor,
        normalizer: Tensor,
        bases: Tensor,
        d_output: Tensor,
        d_votes: Tensor,
        d_memory: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of query, key, value and the base."""
        voting = self.voting
        delta, d_query = torch.empty_like(normalizer), torch.empty_like(self.query)
        d_key, d_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (self.key, self.value))
        grid = (triton.cdiv(self.length, 64), self.num_heads, self.batch)
        value_dims = {name: self.dims[name] for name in ("VALUE_DIM", "PADDED_VALUE")}
        delta_kernel[grid](output, d_output, delta, self.length, ROWS=64, **value_dims)
        remaining = pad(d_votes, (0, voting.columns - self.num_keys))
        selection, gradient = self._new_strip(), self._new_strip()
        for row, num_rows in reversed(voting.strips()):
            voting.select(row, num_rows, bases, selection)
            shared = (self.query, self.key, self.value, d_output, selection, normalizer, delta)
            remaining = self._give_back(row, num_rows, shared, d_memory, gradient, remaining)
            self._launch(
                query_gradient_kernel,
                QUERY_GRADIENT,
                row,
                lambda launch, rows=num_rows: (self.num_heads, triton.cdiv(rows, launch.rows), self.batch),
                *shared,
                gradient,
                voting.first_keys,
                d_query,
                selection_head=self.rule.selection_head,
                logit_scale=self.rule.scale,
                BLOCK_Q=self.block_q,
            )
            columns = voting.num_columns_of(row, num_rows)
            self._launch(
                key_gradient_kernel,
                KEY_GRADIENT,
                row,
                lambda launch, columns=columns: (self.num_shared, columns // launch.columns, self.batch),
                *shared,
                gradient,
                voting.last_queries,
                d_key,
                d_value,
                selection_head=self.rule.selection_head,
                logit_scale=self.rule.scale,
                last_row=row + num_rows,
                BLOCK_K=BLOCK_K,
            )
        d_key, d_value = d_key.to(self.key.dtype), d_value.to(self.value.dtype)
        return d_query, d_key, d_value, remaining[:, : self.num_keys].clone()

    def _give_back(self, row, num_rows, shared, d_memory, gradient, remaining) -> Tensor:
        """Write into `gradient` what the voting head's logits receive; return what comes to the votes before."""
        rows = min(SELECTION_GRADIENT[self.kind].rows, self.block_q)
        blocks = triton.cdiv(num_rows, rows)
        sums = remaining.new_zeros(self.batch, blocks, self.voting.columns)
        columns = self.voting.num_columns_of(row, num_rows)
        self._launch(
            selection_gradient_kernel,
            SELECTION_GRADIENT,
            row,
            lambda launch: (columns // launch.columns, blocks, self.batch),
            *shared,
            d_memory,
            self.voting.first_keys,
            gradient,
            sums,
            tau=self.rule.memory_tau or 1.0,
            BLOCK_Q=self.block_q,
            BLOCK_K=BLOCK_K,
        )
        return self.voting.give_back(row, num_rows, gradient, sums, remaining, rows)

    def _new_strip(self) -> Tensor:
        voting = self.voting
        return self.query.new_empty(self.batch, voting.strip, voting.columns, dtype=torch.float32)


def selective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    base: Tensor,
    is_real: Tensor | None,
    is_start: Tensor,
    document_ids: Tensor | None,
    positions: Tensor | None,
    sliding_window: int | None,
    scale: float,
    selection_head: int,
    strength: float,
    protect_start: bool,
    protect_self: bool,
    memory_tau: float | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """
    Selective attention with gradients, as `BlockedAttention` beside the operator in `modeling/selective_attn`.

    Args:
        query, key, value (`torch.Tensor`): `[batch, tokens, heads, dim]`, of up to 256 numbers per head, in float32,
            bfloat16 or float16; at least one query.
        base (`torch.Tensor`): `[batch, keys]`, float32, votes cast before against each key; inf for padding.
        is_real, is_start, document_ids, positions, sliding_window: the fields of `VisibleKeys`.
        scale, selection_head, strength, protect_start, protect_self, memory_tau, block_size: as for the operator;
            `block_size` is rounded up to a power of 2 from 16 to 128, or to 64 in float32.

    Returns:
        `(output, votes, memory)`: `[batch, queries, heads, value_dim]` in the dtype of `value`, `[batch, keys]` and,
        with `memory_tau`, `[batch, queries]`, in float32. Rows of padding are not zero.
    """
    output, votes, memory, _, _ = attend(
        query, key, value, base, is_real, is_start, document_ids, positions,
        sliding_window, scale, selection_head, strength, protect_start, protect_self, memory_tau, block_size,
    )  # fmt: skip
    return output, votes, None if memory_tau is None else memory


@torch.library.custom_op("leanformers::selective_attention", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    base: Tensor,
    is_real: Tensor | None,
    is_start: Tensor,
    document_ids: Tensor | None,
    positions: Tensor | None,
    sliding_window: int | None,
    scale: float,
    selection_head: int,
    strength: float,
    protect_start: bool,
    protect_self: bool,
    memory_tau: float | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rule = Rule(sliding_window, scale, selection_head, strength, protect_start, protect_self, memory_tau)
    known = (is_real, is_start, document_ids, positions)
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    with torch.cuda.device_of(query):
        return Attention(query, key, value, known, rule, block_size).forward(base)


@attend.register_fake
def _(query, key, value, base, *options):
    batch, length, num_heads, _ = query.shape
    *_, memory_tau, block_size = options
    num_blocks, columns = -(-length // block_of(block_size, query.dtype)), -(-key.shape[1] // BLOCK_K) * BLOCK_K
    return (
        value.new_empty(batch, length, num_heads, value.shape[3]),
        base.new_empty(batch, key.shape[1]),
        base.new_empty(0) if memory_tau is None else base.new_empty(batch, length),
        base.new_empty(batch, num_heads, length),
        base.new_empty(batch, num_blocks + 1, columns),
    )


@torch.library.custom_op("leanformers::selective_attention_backward", mutates_args=())
def attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_real: Tensor | None,
    is_start: Tensor,
    document_ids: Tensor | None,
    positions: Tensor | None,
    output: Tensor,
    normalizer: Tensor,
    bases: Tensor,
    d_output: Tensor,
    d_votes: Tensor,
    d_memory: Tensor | None,
    sliding_window: int | None,
    scale: float,
    selection_head: int,
    strength: float,
    protect_start: bool,
    protect_self: bool,
    memory_tau: float | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rule = Rule(sliding_window, scale, selection_head, strength, protect_start, protect_self, memory_tau)
    known = (is_real, is_start, document_ids, positions)
    query, key, value, d_output = (tensor.contiguous() for tensor in (query, key, value, d_output))
    d_memory = None if memory_tau is None else d_memory.contiguous()
    with torch.cuda.device_of(query):
        attention = Attention(query, key, value, known, rule, block_size)
        return attention.backward(output, normalizer, bases, d_output, d_votes, d_memory)


@attend_backward.register_fake
def _(query, key, value, is_real, is_start, *others):
    return *(tensor.new_empty(tensor.shape) for tensor in (query, key, value)), query.new_empty(
        query.shape[0], key.shape[1], dtype=torch.float32
    )


def _keep(ctx, inputs, output) -> None:
    query, key, value, _, is_real, is_start, document_ids, positions, *ctx.numbers = inputs
    output, _, _, normalizer, bases = output
    ctx.save_for_backward(query, key, value, is_real, is_start, document_ids, positions, output, normalizer, bases)
    ctx.mark_non_differentiable(normalizer, bases)


def _differentiate(ctx, d_output, d_votes, d_memory, d_normalizer, d_bases):
    gradients = attend_backward(*ctx.saved_tensors, d_output, d_votes, d_memory, *ctx.numbers)
    return *gradients, *[None] * (4 + len(ctx.numbers))


attend.register_autograd(_differentiate, setup_context=_keep)
