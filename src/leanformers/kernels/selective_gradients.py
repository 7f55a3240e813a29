# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
The way back through selective attention (arXiv 2410.02703). In the order of the dataflow, with F of a strip of queries
in memory and log Z from the forward pass:

    D^h_i = dO^h_i . O^h_i
    P^h = exp(scale q^h k^T - F - log Z^h)                  dA^h = P^h (dO^h v^T - D^h)
    dF = -sum_h dA^h                                        one program per tile, which goes through the heads
    dA^0 += what the votes give back                        `selective_votes.py`, from dF
    dq_i = scale sum_j dA_ij k_j                            one program per head and block of queries
    dk_j = scale sum_i dA_ij q_i     dv_j = sum_i P_ij dO_i             one per shared head and block of keys

P and dA are computed three times. To add dA of every head to dF where it is computed anyhow would take atomic
operations on all of F, as often as there are heads.
"""

import triton
import triton.language as tl

from .selective_votes import LOG2_E, load_rows, matrix_of, multiply, store_rows, tile


@triton.jit(do_not_specialize=["length"])
def delta_kernel(
    output,  # [batch, queries, heads, value_dim]
    d_output,
    delta,  # [batch, heads, queries]
    length,
    ROWS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
):
    row, head, batch, num_heads = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    output = matrix_of(output, batch, length, num_heads, head, VALUE_DIM)
    d_output = matrix_of(d_output, batch, length, num_heads, head, VALUE_DIM)
    o = load_rows(output, row, length, num_heads * VALUE_DIM, ROWS, VALUE_DIM, PADDED_VALUE).to(tl.float32)
    d_o = load_rows(d_output, row, length, num_heads * VALUE_DIM, ROWS, VALUE_DIM, PADDED_VALUE).to(tl.float32)
    rows = row + tl.arange(0, ROWS)
    place = (tl.cast(batch, tl.int64) * num_heads + head) * length
    tl.store(delta + place + rows, tl.sum(o * d_o, axis=1), mask=rows < length)


@triton.jit
def logits_gradient(q, k, v, d_o, f, normalizer, delta, place, rows, length, scale, TYPE: tl.constexpr, PRECISION):
    """P and dA of a tile of one head; both are 0 in rows beyond the last query."""
    is_query = rows < length
    z = tl.load(normalizer + place + rows, mask=is_query, other=float("inf"))
    d = tl.load(delta + place + rows, mask=is_query, other=0.0)
    p = tl.exp2(multiply(q, tl.trans(k), TYPE, PRECISION) * scale - f - z[:, None])
    return p, p * (multiply(d_o, tl.trans(v), TYPE, PRECISION) - d[:, None])


@triton.jit(do_not_specialize=["length", "past"])
def selection_gradient_kernel(
    query,
    key,
    value,
    d_output,
    selection,
    normalizer,
    delta,
    d_memory,  # [batch, queries], or None
    first_keys,
    gradient,  # [batch, strip, columns], dF
    sums,  # [batch, blocks of the strip, columns], of its columns
    num_heads,
    groups,
    length,
    past,
    first_row,
    strip,
    num_columns,
    scale,
    tau,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    column, block, batch = tl.program_id(0) * COLUMNS, tl.program_id(1), tl.program_id(2)
    row, num_keys, num_shared = first_row + block * ROWS, past + length, num_heads // groups
    if column // BLOCK_K * BLOCK_K >= past + row + ROWS:
        return
    if first_keys is not None:  # noqa: SIM102  (decided when the kernel is compiled)
        if column < tl.load(first_keys + batch * tl.cdiv(length, BLOCK_Q) + row // BLOCK_Q):
            return
    rows = row + tl.arange(0, ROWS)
    f = tl.load(tile(selection, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS))
    d_f = tl.zeros([ROWS, COLUMNS], tl.float32)
    for head in range(0, num_heads):
        q = matrix_of(query, batch, length, num_heads, head, HEAD_DIM)
        k = matrix_of(key, batch, num_keys, num_shared, head // groups, HEAD_DIM)
        v = matrix_of(value, batch, num_keys, num_shared, head // groups, VALUE_DIM)
        d_o = matrix_of(d_output, batch, length, num_heads, head, VALUE_DIM)
        q = load_rows(q, row, length, num_heads * HEAD_DIM, ROWS, HEAD_DIM, PADDED_DIM)
        k = load_rows(k, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
        v = load_rows(v, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
        d_o = load_rows(d_o, row, length, num_heads * VALUE_DIM, ROWS, VALUE_DIM, PADDED_VALUE)
        place = (tl.cast(batch, tl.int64) * num_heads + head) * length
        _, d_a = logits_gradient(q, k, v, d_o, f, normalizer, delta, place, rows, length, scale, TYPE, PRECISION)
        d_f -= d_a
    if d_memory is not None:
        d_m = tl.load(d_memory + tl.cast(batch, tl.int64) * length + rows, mask=rows < length, other=0.0)
        d_f -= tl.where(f < tau * LOG2_E, d_m[:, None] / tau, 0.0)
    tl.store(tile(gradient, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS), d_f)
    place = (tl.cast(batch, tl.int64) * tl.num_programs(1) + block) * num_columns + column
    tl.store(sums + place + tl.arange(0, COLUMNS), tl.sum(d_f, axis=0))


@triton.jit(do_not_specialize=["length", "past"])
def query_gradient_kernel(
    query,
    key,
    value,
    d_output,
    selection,
    normalizer,
    delta,
    given_back,  # [batch, strip, columns], for the voting head
    first_keys,
    d_query,  # [batch, queries, heads, head_dim]
    num_heads,
    groups,
    selection_head,
    length,
    past,
    first_row,
    strip,
    num_columns,
    scale,
    logit_scale,
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
    head, batch = tl.program_id(0), tl.program_id(2)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    row, num_keys, num_shared = first_row + block * ROWS, past + length, num_heads // groups
    first_key = 0
    if first_keys is not None:
        first_key = tl.load(first_keys + batch * tl.cdiv(length, BLOCK_Q) + row // BLOCK_Q)
        first_key = tl.multiple_of(first_key, COLUMNS)  # so that F is read in vectors
    rows = row + tl.arange(0, ROWS)
    query = matrix_of(query, batch, length, num_heads, head, HEAD_DIM)
    key = matrix_of(key, batch, num_keys, num_shared, head // groups, HEAD_DIM)
    value = matrix_of(value, batch, num_keys, num_shared, head // groups, VALUE_DIM)
    d_output = matrix_of(d_output, batch, length, num_heads, head, VALUE_DIM)
    place = (tl.cast(batch, tl.int64) * num_heads + head) * length
    q = load_rows(query, row, length, num_heads * HEAD_DIM, ROWS, HEAD_DIM, PADDED_DIM)
    d_o = load_rows(d_output, row, length, num_heads * VALUE_DIM, ROWS, VALUE_DIM, PADDED_VALUE)
    d_q = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for column in range(first_key, tl.minimum(past + row + ROWS, num_keys), COLUMNS):
        k = load_rows(key, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
        v = load_rows(value, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
        f = tl.load(tile(selection, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS))
        _, d_a = logits_gradient(q, k, v, d_o, f, normalizer, delta, place, rows, length, scale, TYPE, PRECISION)
        if head == selection_head:
            d_a += tl.load(tile(given_back, batch, strip, num_columns, block * ROWS, column, ROWS, COLUMNS))
        d_q += multiply(d_a.to(k.dtype), k, TYPE, PRECISION)
    d_query = matrix_of(d_query, batch, length, num_heads, head, HEAD_DIM)
    store_rows(d_query, d_q * logit_scale, row, length, num_heads * HEAD_DIM, ROWS, HEAD_DIM, PADDED_DIM)


@triton.jit(do_not_specialize=["length", "past", "last_row"])
def key_gradient_kernel(
    query,
    key,
    value,
    d_output,
    selection,
    normalizer,
    delta,
    given_back,
    last_queries,  # [batch, tiles], after which no query sees a key of the tile, or None
    d_key,  # [batch, keys, key_value_heads, head_dim], float32, to be added to
    d_value,  # [batch, keys, key_value_heads, value_dim], float32, to be added to
    num_heads,
    groups,
    selection_head,
    length,
    past,
    first_row,
    last_row,
    strip,
    num_columns,
    scale,
    logit_scale,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    shared, column, batch = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    num_keys, num_shared = past + length, num_heads // groups
    start, end = tl.maximum(first_row, tl.maximum(column - past, 0) // ROWS * ROWS), last_row
    if last_queries is not None:
        end = tl.minimum(end, tl.load(last_queries + batch * (num_columns // BLOCK_K) + column // BLOCK_K))
    key = matrix_of(key, batch, num_keys, num_shared, shared, HEAD_DIM)
    value = matrix_of(value, batch, num_keys, num_shared, shared, VALUE_DIM)
    k = load_rows(key, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
    v = load_rows(value, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
    d_k = tl.zeros([COLUMNS, PADDED_DIM], tl.float32)
    d_v = tl.zeros([COLUMNS, PADDED_VALUE], tl.float32)
    for head in range(shared * groups, shared * groups + groups):
        queries = matrix_of(query, batch, length, num_heads, head, HEAD_DIM)
        d_outputs = matrix_of(d_output, batch, length, num_heads, head, VALUE_DIM)
        place = (tl.cast(batch, tl.int64) * num_heads + head) * length
        for row in range(start, end, ROWS):
            rows = row + tl.arange(0, ROWS)
            q = load_rows(queries, row, length, num_heads * HEAD_DIM, ROWS, HEAD_DIM, PADDED_DIM)
            d_o = load_rows(d_outputs, row, length, num_heads * VALUE_DIM, ROWS, VALUE_DIM, PADDED_VALUE)
            f = tl.load(tile(selection, batch, strip, num_columns, row - first_row, column, ROWS, COLUMNS))
            p, d_a = logits_gradient(q, k, v, d_o, f, normalizer, delta, place, rows, length, scale, TYPE, PRECISION)
            d_v += multiply(tl.trans(p.to(d_o.dtype)), d_o, TYPE, PRECISION)
            if head == selection_head:
                d_a += tl.load(tile(given_back, batch, strip, num_columns, row - first_row, column, ROWS, COLUMNS))
            d_k += multiply(tl.trans(d_a.to(q.dtype)), q, TYPE, PRECISION)
    d_key = matrix_of(d_key, batch, num_keys, num_shared, shared, HEAD_DIM)
    d_value = matrix_of(d_value, batch, num_keys, num_shared, shared, VALUE_DIM)
    d_k = d_k * logit_scale + load_rows(d_key, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
    d_v += load_rows(d_value, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
    store_rows(d_key, d_k, column, num_keys, num_shared * HEAD_DIM, COLUMNS, HEAD_DIM, PADDED_DIM)
    store_rows(d_value, d_v, column, num_keys, num_shared * VALUE_DIM, COLUMNS, VALUE_DIM, PADDED_VALUE)
