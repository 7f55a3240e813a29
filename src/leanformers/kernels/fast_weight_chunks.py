# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Device code of the delta rule and the sum rule in chunks (`delta_rule.py` launches it).

One chunk of C tokens has rows Q, K, V of queries, keys and values, rates b, and finds the memory S. With L the part of
K K^T below the diagonal, M that of Q K^T with the diagonal, and Y = (I + L diag(b))^-1,

    prepare     Y, M                                                        all chunks at once
    scan        X = Y (V - K S),  D = b X,  O = Q S + M D,  S <- S + K^T D     chunk after chunk

where D is what is written. The sum rule has D = V. Nothing is as wide as the keys but S: with DPFP their features are
computed a tile at a time from what is mapped, in each of these kernels anew.

Backward, the first two run again, now to keep S before and X of each chunk. A tilde marks the gradient of the loss,
and Z = (I + diag(b) L)^-1 = I - diag(b) Y L:

    reverse     D~ = M^T O~ + K S~',  G = Z^T D~,  H = b G,  S~ = S~' + Q^T O~ - K^T H     last chunk to first
    gradients   V~ = H,  b~ = sum(G X),  Q~ = O~ S^T + P K,  K~ = D S~'^T - H S^T + P^T Q - (N + N^T) K

with P = lower(O~ D^T), N = strictly lower(H D^T), and S~' the gradient of the memory after the chunk. The sum rule
has V~ = D~ and H = N = 0. Gradients of DPFP gather two products per feature: r[i] r[i-j] gives to r[i] and to r[i-j].
Those of the normalisation f / (sum(f) + eps) need w = K~ . K alone, and DPFP being quadratic in x, w is half the
product of x with the gradient that lacks the normalisation's.

Where documents begin (numbers that rise along a row), what crosses a border is masked: pairs of L and M, rows of K S
and Q S whose document is not that of the token before the chunk, rows of K^T D whose document is not the chunk's last.

Products are computed in PRECISION, but those that end in the memory, which is float32 whatever the inputs are, as
MEMORY says. Of bfloat16, where PRECISION is "tf32", that is one of

    split       delta rule of keys as they come: three products in bfloat16, each at half the cost, of the keys with
                three parts of S or D of 8 bits each
    tf32x3      features of DPFP, which have more bits: three products in TF32 of two parts of both factors
    tf32        nobody wants the memory; or TF32 holds both factors, as in the sum rule of keys as they come
"""

import triton
import triton.language as tl


@triton.jit
def locate(chunk, length, cu_seqlens, chunk_rows, first_chunks, VARLEN: tl.constexpr, C: tl.constexpr):
    """Row or sequence of a chunk, its number there, and its first token, that of its row, and the row's end."""
    if VARLEN:
        row = tl.load(chunk_rows + chunk)
        number = chunk - tl.load(first_chunks + row)
        start = tl.load(cu_seqlens + row).to(tl.int64)
        end = tl.load(cu_seqlens + row + 1).to(tl.int64)
    else:
        per_row = tl.cdiv(length, C)
        row = chunk // per_row
        number = chunk % per_row
        start = row.to(tl.int64) * length
        end = start + length
    return row, start + number * C, start, end


@triton.jit
def locate_row(row, length, cu_seqlens, first_chunks, VARLEN: tl.constexpr, C: tl.constexpr):
    """First token and end of a row or sequence, and the number of its first chunk."""
    if VARLEN:
        start = tl.load(cu_seqlens + row).to(tl.int64)
        end = tl.load(cu_seqlens + row + 1).to(tl.int64)
        first_chunk = tl.load(first_chunks + row)
    else:
        start = row.to(tl.int64) * length
        end = start + length
        first_chunk = row * tl.cdiv(length, C)
    return start, end, first_chunk


@triton.jit
def half_wave(x, places, is_real, i, WIDTH: tl.constexpr):
    """`[relu(x), relu(-x)]` at entries i: those of the second half are negated."""
    entry = tl.load(x + places * WIDTH + i % WIDTH, mask=is_real, other=0.0).to(tl.float32)
    entry = tl.where(i < WIDTH, entry, -entry)
    return tl.where(entry < 0, 0.0, entry)  # NaN stays


@triton.jit
def features(
    x, scale, places, is_token, columns, KEY_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr,
    NORMALIZED: tl.constexpr,
):  # fmt: skip
    """A tile of keys or queries, `[tokens, columns]` in float32. `places` number tokens times heads."""
    is_real = is_token[:, None] & (columns < KEY_DIM)[None, :]
    if NU == 0:
        return tl.load(x + places[:, None] * KEY_DIM + columns[None, :], mask=is_real, other=0.0).to(tl.float32)
    moved = columns // (2 * WIDTH) + 1
    i = columns % (2 * WIDTH)
    j = (i + (2 * WIDTH - moved % (2 * WIDTH))) % (2 * WIDTH)
    tile = half_wave(x, places[:, None], is_real, i[None, :], WIDTH)
    tile = tile * half_wave(x, places[:, None], is_real, j[None, :], WIDTH)
    if NORMALIZED:
        tile = tile * tl.load(scale + places, mask=is_token, other=0.0)[:, None]
    return tile


@triton.jit
def multiply_into_memory(left, right, sums, MEMORY: tl.constexpr):
    """`sums + left right`, as exact as in float32; for "split", `left` is of bfloat16 numbers."""
    if MEMORY == "split":
        left = left.to(tl.bfloat16)
        part = right.to(tl.bfloat16)
        sums = tl.dot(left, part, sums)
        right -= part.to(tl.float32)
        part = right.to(tl.bfloat16)
        sums = tl.dot(left, part, sums)
        sums = tl.dot(left, (right - part.to(tl.float32)).to(tl.bfloat16), sums)
    else:
        sums = tl.dot(left, right, sums, input_precision=MEMORY)
    return sums


@triton.jit
def borders(documents, tokens, is_token, begin, start, end, PACKED: tl.constexpr, C: tl.constexpr):
    """
    Whose document is that of the last token before the chunk, and whose that of the chunk's own last, `[C]`; and
    whether these two are one, so that the memory goes on. A row's first document goes on from the initial memory.
    """
    if PACKED:
        document = tl.load(documents + tokens, mask=is_token, other=-1)
        before = tl.load(documents + tl.maximum(begin - 1, start))
        last = tl.load(documents + tl.minimum(begin + C, end) - 1)
        return (document == before).to(tl.float32), (document == last).to(tl.float32), (before == last).to(tl.float32)
    every = is_token.to(tl.float32)
    return every, every, 1.0


@triton.jit
def inverse_of_unit_lower(n, C: tl.constexpr):
    """
    `(I + n)^-1` for n strictly lower `[C, C]`: blocks of up to 32 by substitution, as powers of n may overflow, and
    two blocks merged, `[[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]`.
    """
    LEAF: tl.constexpr = 32 if C >= 32 else 16
    BLOCKS: tl.constexpr = C // LEAF
    blocks = tl.reshape(n, (BLOCKS, LEAF, BLOCKS, LEAF))
    block = tl.arange(0, BLOCKS)
    on_diagonal = block[:, None, None, None] == block[None, None, :, None]
    leaves = tl.sum(tl.where(on_diagonal, blocks, 0.0), axis=2)
    row = tl.arange(0, LEAF)
    unit = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    inverse = tl.broadcast_to(unit[None, :, :], (BLOCKS, LEAF, LEAF))
    for i in range(1, LEAF):
        is_row = (row == i)[None, :, None]
        line = tl.sum(tl.where(is_row, leaves, 0.0), axis=1)
        inverse -= tl.where(is_row, tl.sum(line[:, :, None] * inverse, axis=1)[:, None, :], 0.0)
    placed = tl.where(on_diagonal, inverse[:, :, None, :], 0.0)
    if BLOCKS == 2:
        in_corner = block[:, None, None, None] > block[None, None, :, None]
        corner = tl.sum(tl.sum(tl.where(in_corner, blocks, 0.0), axis=2), axis=0)
        upper = tl.sum(tl.where((block == 0)[:, None, None], inverse, 0.0), axis=0)
        lower = tl.sum(tl.where((block == 1)[:, None, None], inverse, 0.0), axis=0)
        corner = tl.dot(lower, tl.dot(corner, upper, input_precision="tf32x3"), input_precision="tf32x3")
        placed = tl.where(in_corner, -corner[None, :, None, :], placed)
    return tl.reshape(placed, (C, C))


@triton.jit(do_not_specialize=["length"])
def prepare_kernel(
    query, key, beta, documents, cu_seqlens, chunk_rows, first_chunks,
    inverse, transposed, within, query_scale, key_scale, length, heads, eps,
    KEY_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr, DELTA: tl.constexpr,
    BACKWARD: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, MEMORY: tl.constexpr,
):  # fmt: skip
    """Y, M and, for the backward pass, Z of one chunk and head; and 1 / sums of the features of its tokens."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    _, begin, start, end = locate(chunk, length, cu_seqlens, chunk_rows, first_chunks, VARLEN, C)
    if begin >= end:  # sequences have fewer chunks than there can be
        return
    row = tl.arange(0, C)
    tokens = begin + row
    is_token = tokens < end
    places = tokens * heads + head

    AMONG_KEYS: tl.constexpr = PRECISION if MEMORY == "split" else MEMORY
    among_keys = tl.zeros((C, C), dtype=tl.float32)
    of_query = tl.zeros((C, C), dtype=tl.float32)
    query_sum = tl.zeros((C,), dtype=tl.float32)
    key_sum = tl.zeros((C,), dtype=tl.float32)
    for first in range(0, KEY_DIM, BK):
        columns = first + tl.arange(0, BK)
        q = features(query, query_scale, places, is_token, columns, KEY_DIM, WIDTH, NU, False)
        k = features(key, key_scale, places, is_token, columns, KEY_DIM, WIDTH, NU, False)
        of_query = tl.dot(q, tl.trans(k), of_query, input_precision=PRECISION)
        if DELTA:
            among_keys = tl.dot(k, tl.trans(k), among_keys, input_precision=AMONG_KEYS)
        if NORMALIZED:
            query_sum += tl.sum(q, axis=1)
            key_sum += tl.sum(k, axis=1)
    if NORMALIZED:
        query_sum = 1.0 / tl.where(query_sum == 0, 1.0, query_sum + eps)
        key_sum = 1.0 / tl.where(key_sum == 0, 1.0, key_sum + eps)
        tl.store(query_scale + places, query_sum, mask=is_token)
        tl.store(key_scale + places, key_sum, mask=is_token)
        of_query = of_query * query_sum[:, None] * key_sum[None, :]
        among_keys = among_keys * key_sum[:, None] * key_sum[None, :]

    seen = row[:, None] >= row[None, :]
    if PACKED:
        document = tl.load(documents + tokens, mask=is_token, other=-1)
        seen = seen & (document[:, None] == document[None, :])
    square = (chunk.to(tl.int64) * heads + head) * C * C + row[:, None] * C + row[None, :]
    tl.store(within + square, tl.where(seen, of_query, 0.0))
    if DELTA:
        among_keys = tl.where(seen & (row[:, None] > row[None, :]), among_keys, 0.0)
        b = tl.load(beta + places, mask=is_token, other=0.0).to(tl.float32)
        y = inverse_of_unit_lower(among_keys * b[None, :], C)
        tl.store(inverse + square, y)
        if BACKWARD:
            unit = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
            z = unit - b[:, None] * tl.dot(y, among_keys, input_precision=PRECISION)
            tl.store(transposed + square, z)


@triton.jit(do_not_specialize=["length"])
def scan_kernel(
    query, key, value, beta, documents, cu_seqlens, first_chunks,
    inverse, within, query_scale, key_scale, initial, output, corrected, memories, length, heads,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr,
    DELTA: tl.constexpr, CARRIED: tl.constexpr, KEEP: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr,
    RESIDENT: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
    MEMORY: tl.constexpr,
):  # fmt: skip
    """
    The memory's columns of one block along one row. RESIDENT has it in registers, else each chunk reads and writes it
    tile by tile. KEEP writes the memory before each chunk and X, and no output; else `memories` has the last alone.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start, end, first_chunk = locate_row(row, length, cu_seqlens, first_chunks, VARLEN, C)
    num_chunks = tl.cdiv(end - start, C).to(tl.int32)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    is_column = columns < VALUE_DIM
    lines = tl.arange(0, BK)
    of_row = (row.to(tl.int64) * heads + head) * KEY_DIM * VALUE_DIM
    step = tl.cast(heads, tl.int64) * KEY_DIM * VALUE_DIM if KEEP else 0
    slot = memories + (((first_chunk.to(tl.int64)) * heads + head) * KEY_DIM * VALUE_DIM if KEEP else of_row)
    cells = lines[:, None] * VALUE_DIM + columns[None, :]

    state = tl.zeros((BK, BV), dtype=tl.float32)
    if RESIDENT:
        is_cell = (lines < KEY_DIM)[:, None] & is_column[None, :]
        if CARRIED:
            state = tl.load(initial + of_row + cells, mask=is_cell, other=0.0)
    else:
        for first in range(0, KEY_DIM, BK):
            is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
            if CARRIED:
                state = tl.load(initial + of_row + first * VALUE_DIM + cells, mask=is_cell, other=0.0)
            if KEEP:
                is_cell = is_cell & (num_chunks > 0)
            tl.store(slot + first * VALUE_DIM + cells, state, mask=is_cell)
        tl.debug_barrier()

    rows = tl.arange(0, C)
    for n in range(0, num_chunks):
        begin = start + n * C
        tokens = begin + rows
        is_token = tokens < end
        places = tokens * heads + head
        is_entry = is_token[:, None] & is_column[None, :]
        entries = places[:, None] * VALUE_DIM + columns[None, :]
        square = ((first_chunk + n).to(tl.int64) * heads + head) * C * C + rows[:, None] * C + rows[None, :]
        carried, leaving, goes_on = borders(documents, tokens, is_token, begin, start, end, PACKED, C)
        written = tl.load(value + entries, mask=is_entry, other=0.0).to(tl.float32)
        k = tl.zeros((C, BK), dtype=tl.float32)
        if RESIDENT:
            k = features(key, key_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
            if KEEP:
                tl.store(slot + n * step + cells, state, mask=(lines < KEY_DIM)[:, None] & is_column[None, :])

        if DELTA:
            read = tl.zeros((C, BV), dtype=tl.float32)
            if RESIDENT:
                read = multiply_into_memory(k, state, read, MEMORY)
            else:
                for first in range(0, KEY_DIM, BK):
                    is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
                    state = tl.load(slot + n * step + first * VALUE_DIM + cells, mask=is_cell, other=0.0)
                    k = features(key, key_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                    read = multiply_into_memory(k, state, read, MEMORY)
            if PACKED:
                read = read * carried[:, None]
            y = tl.load(inverse + square)
            written = tl.dot(y, written - read, input_precision="tf32x3" if MEMORY == "split" else MEMORY)
            if KEEP:
                tl.store(corrected + entries, written, mask=is_entry)
            written = written * tl.load(beta + places, mask=is_token, other=0.0).to(tl.float32)[:, None]

        leaves = written * leaving[:, None] if PACKED else written
        answer = tl.zeros((C, BV), dtype=tl.float32)
        if RESIDENT:
            if not KEEP:
                q = features(query, query_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                answer = tl.dot(q, state, input_precision=PRECISION)
            if PACKED:
                state = state * goes_on
            state = multiply_into_memory(tl.trans(k), leaves, state, MEMORY)
        else:
            for first in range(0, KEY_DIM, BK):
                is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
                place = slot + n * step + first * VALUE_DIM + cells
                state = tl.load(place, mask=is_cell, other=0.0)
                if not KEEP:
                    q = features(query, query_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                    answer = tl.dot(q, state, answer, input_precision=PRECISION)
                if PACKED:
                    state = state * goes_on
                k = features(key, key_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                state = multiply_into_memory(tl.trans(k), leaves, state, MEMORY)
                if KEEP:
                    is_cell = is_cell & (n + 1 < num_chunks)
                tl.store(place + step, state, mask=is_cell)
            tl.debug_barrier()
        if not KEEP:
            if PACKED:
                answer = answer * carried[:, None]
            answer = tl.dot(tl.load(within + square), written, answer, input_precision=PRECISION)
            tl.store(output + entries, answer.to(output.dtype.element_ty), mask=is_entry)
    if RESIDENT and not KEEP:
        tl.store(slot + cells, state, mask=(lines < KEY_DIM)[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["length"])
def reverse_kernel(
    query, key, beta, documents, cu_seqlens, first_chunks,
    transposed, within, query_scale, key_scale, d_output, d_final, d_value, d_memories, d_initial, length, heads,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr,
    DELTA: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr, RESIDENT: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    `scan_kernel` backwards: writes the gradient of the memory after each chunk, and G, or D~ for the sum rule, to
    `d_value`.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start, end, first_chunk = locate_row(row, length, cu_seqlens, first_chunks, VARLEN, C)
    num_chunks = tl.cdiv(end - start, C).to(tl.int32)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    is_column = columns < VALUE_DIM
    lines = tl.arange(0, BK)
    of_row = (row.to(tl.int64) * heads + head) * KEY_DIM * VALUE_DIM
    step = tl.cast(heads, tl.int64) * KEY_DIM * VALUE_DIM
    slot = d_memories + (first_chunk.to(tl.int64) * heads + head) * KEY_DIM * VALUE_DIM
    cells = lines[:, None] * VALUE_DIM + columns[None, :]

    state = tl.zeros((BK, BV), dtype=tl.float32)
    if RESIDENT:
        state = tl.load(d_final + of_row + cells, mask=(lines < KEY_DIM)[:, None] & is_column[None, :], other=0.0)
    else:
        for first in range(0, KEY_DIM, BK):
            is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
            state = tl.load(d_final + of_row + first * VALUE_DIM + cells, mask=is_cell, other=0.0)
            if num_chunks > 0:
                tl.store(slot + (num_chunks - 1) * step + first * VALUE_DIM + cells, state, mask=is_cell)
            else:
                tl.store(d_initial + of_row + first * VALUE_DIM + cells, state, mask=is_cell)
        tl.debug_barrier()

    rows = tl.arange(0, C)
    for m in range(0, num_chunks):
        n = num_chunks - 1 - m
        begin = start + n * C
        tokens = begin + rows
        is_token = tokens < end
        places = tokens * heads + head
        is_entry = is_token[:, None] & is_column[None, :]
        entries = places[:, None] * VALUE_DIM + columns[None, :]
        turned = ((first_chunk + n).to(tl.int64) * heads + head) * C * C + rows[None, :] * C + rows[:, None]
        carried, leaving, goes_on = borders(documents, tokens, is_token, begin, start, end, PACKED, C)
        d_out = tl.load(d_output + entries, mask=is_entry, other=0.0).to(tl.float32)
        k = tl.zeros((C, BK), dtype=tl.float32)

        of_memory = tl.zeros((C, BV), dtype=tl.float32)
        if RESIDENT:
            tl.store(slot + n * step + cells, state, mask=(lines < KEY_DIM)[:, None] & is_column[None, :])
            k = features(key, key_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
            of_memory = tl.dot(k, state, input_precision=PRECISION)
        else:
            for first in range(0, KEY_DIM, BK):
                is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
                state = tl.load(slot + n * step + first * VALUE_DIM + cells, mask=is_cell, other=0.0)
                k = features(key, key_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                of_memory = tl.dot(k, state, of_memory, input_precision=PRECISION)
        if PACKED:
            of_memory = of_memory * leaving[:, None]
        d_written = tl.dot(tl.load(within + turned), d_out, of_memory, input_precision=PRECISION)
        if DELTA:
            d_written = tl.dot(tl.load(transposed + turned), d_written, input_precision=PRECISION)
        tl.store(d_value + entries, d_written, mask=is_entry)

        taken = tl.zeros((C, BV), dtype=tl.float32)
        if DELTA:
            taken = -d_written * tl.load(beta + places, mask=is_token, other=0.0).to(tl.float32)[:, None]
        if PACKED:
            taken = taken * carried[:, None]
            d_out = d_out * carried[:, None]
        if RESIDENT:
            if PACKED:
                state = state * goes_on
            q = features(query, query_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
            state = tl.dot(tl.trans(q), d_out, state, input_precision=PRECISION)
            if DELTA:
                state = tl.dot(tl.trans(k), taken, state, input_precision=PRECISION)
        else:
            for first in range(0, KEY_DIM, BK):
                is_cell = (first + lines < KEY_DIM)[:, None] & is_column[None, :]
                place = slot + n * step + first * VALUE_DIM + cells
                state = tl.load(place, mask=is_cell, other=0.0)
                if PACKED:
                    state = state * goes_on
                q = features(query, query_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                state = tl.dot(tl.trans(q), d_out, state, input_precision=PRECISION)
                if DELTA:
                    k = features(key, key_scale, places, is_token, first + lines, KEY_DIM, WIDTH, NU, NORMALIZED)
                    state = tl.dot(tl.trans(k), taken, state, input_precision=PRECISION)
                if n > 0:
                    tl.store(place - step, state, mask=is_cell)
                else:
                    tl.store(d_initial + of_row + first * VALUE_DIM + cells, state, mask=is_cell)
            tl.debug_barrier()
    if RESIDENT:
        tl.store(d_initial + of_row + cells, state, mask=(lines < KEY_DIM)[:, None] & is_column[None, :])


@triton.jit
def feature_gradients(
    query, key, query_scale, key_scale, d_output, corrected, d_value, memories, d_memories, slot, places, is_token,
    lines, b, carried, leaving, pairs, overlaps,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr,
    DELTA: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the features `lines` of queries and keys, `[C, BK]`; `pairs` is P and `overlaps` N + N^T."""
    d_query = tl.zeros((C, BK), dtype=tl.float32)
    d_key = tl.zeros((C, BK), dtype=tl.float32)
    d_read = tl.zeros((C, BK), dtype=tl.float32)
    for first in range(0, VALUE_DIM, BV):
        columns = first + tl.arange(0, BV)
        is_entry = is_token[:, None] & (columns < VALUE_DIM)[None, :]
        entries = places[:, None] * VALUE_DIM + columns[None, :]
        turned = slot + lines[None, :] * VALUE_DIM + columns[:, None]
        is_cell = (lines < KEY_DIM)[None, :] & (columns < VALUE_DIM)[:, None]
        state = tl.load(memories + turned, mask=is_cell, other=0.0)
        d_out = tl.load(d_output + entries, mask=is_entry, other=0.0).to(tl.float32)
        d_query = tl.dot(d_out, state, d_query, input_precision=PRECISION)
        if DELTA:
            taken = tl.load(d_value + entries, mask=is_entry, other=0.0) * b[:, None]
            d_read = tl.dot(taken, state, d_read, input_precision=PRECISION)
        d_state = tl.load(d_memories + turned, mask=is_cell, other=0.0)
        written = tl.load(corrected + entries, mask=is_entry, other=0.0).to(tl.float32) * b[:, None]
        d_key = tl.dot(written, d_state, d_key, input_precision=PRECISION)
    k = features(key, key_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
    q = features(query, query_scale, places, is_token, lines, KEY_DIM, WIDTH, NU, NORMALIZED)
    d_query = tl.dot(pairs, k, d_query * carried[:, None], input_precision=PRECISION)
    d_key = tl.dot(tl.trans(pairs), q, d_key * leaving[:, None], input_precision=PRECISION)
    if DELTA:
        d_key -= tl.dot(overlaps, k, d_read * carried[:, None], input_precision=PRECISION)
    return d_query, d_key


@triton.jit(do_not_specialize=["length"])
def gradients_kernel(
    query, key, beta, documents, cu_seqlens, chunk_rows, first_chunks, query_scale, key_scale,
    d_output, corrected, d_value, memories, d_memories, d_query_out, d_key_out, d_value_out, d_beta_out, length, heads,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr,
    DELTA: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    The gradients of one chunk, head, and tile of what queries and keys are made of. `corrected` is X, or for the sum
    rule V. For normalised DPFP, those of queries and keys still lack the normalisation's, see `normalization_kernel`.
    """
    chunk, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, begin, start, end = locate(chunk, length, cu_seqlens, chunk_rows, first_chunks, VARLEN, C)
    if begin >= end:  # sequences have fewer chunks than there can be
        return
    rows = tl.arange(0, C)
    tokens = begin + rows
    is_token = tokens < end
    places = tokens * heads + head
    slot = (chunk.to(tl.int64) * heads + head) * KEY_DIM * VALUE_DIM
    carried, leaving, _ = borders(documents, tokens, is_token, begin, start, end, PACKED, C)
    b = is_token.to(tl.float32)
    if DELTA:
        b = tl.load(beta + places, mask=is_token, other=0.0).to(tl.float32)

    pairs = tl.zeros((C, C), dtype=tl.float32)
    overlaps = tl.zeros((C, C), dtype=tl.float32)
    d_beta = tl.zeros((C,), dtype=tl.float32)
    for first in range(0, VALUE_DIM, BV):
        columns = first + tl.arange(0, BV)
        is_entry = is_token[:, None] & (columns < VALUE_DIM)[None, :]
        entries = places[:, None] * VALUE_DIM + columns[None, :]
        d_out = tl.load(d_output + entries, mask=is_entry, other=0.0).to(tl.float32)
        x = tl.load(corrected + entries, mask=is_entry, other=0.0).to(tl.float32)
        g = tl.load(d_value + entries, mask=is_entry, other=0.0)
        written = tl.trans(x * b[:, None])
        pairs = tl.dot(d_out, written, pairs, input_precision=PRECISION)
        if DELTA:
            overlaps = tl.dot(g * b[:, None], written, overlaps, input_precision=PRECISION)
            d_beta += tl.sum(g * x, axis=1)
        d_v = (g * b[:, None]).to(d_value_out.dtype.element_ty)
        tl.store(d_value_out + entries, d_v, mask=is_entry & (part == 0))
    seen = rows[:, None] >= rows[None, :]
    if PACKED:
        document = tl.load(documents + tokens, mask=is_token, other=-1)
        seen = seen & (document[:, None] == document[None, :])
    pairs = tl.where(seen, pairs, 0.0)
    if DELTA:
        tl.store(d_beta_out + places, d_beta.to(d_beta_out.dtype.element_ty), mask=is_token & (part == 0))
        overlaps = tl.where(seen & (rows[:, None] > rows[None, :]), overlaps, 0.0)
        overlaps += tl.trans(overlaps)

    columns = part * BK + tl.arange(0, BK)
    is_real = is_token[:, None] & (columns < WIDTH)[None, :]
    entries = places[:, None] * WIDTH + columns[None, :]
    if NU == 0:
        d_query, d_key = feature_gradients(
            query, key, query_scale, key_scale, d_output, corrected, d_value, memories, d_memories, slot, places,
            is_token, columns, b, carried, leaving, pairs, overlaps,
            KEY_DIM, VALUE_DIM, WIDTH, NU, NORMALIZED, DELTA, C, BK, BV, PRECISION,
        )  # fmt: skip
    else:
        d_query = tl.zeros((C, BK), dtype=tl.float32)
        d_key = tl.zeros((C, BK), dtype=tl.float32)
        for case in range(0, 4 * NU):
            moved, is_second, is_negative = case // 4 + 1, (case // 2) % 2, case % 2
            # With entry i of [relu(x), relu(-x)], feature i of its block has i - moved beside it, i + moved has i.
            i = columns + is_negative * WIDTH
            ahead = (i + moved) % (2 * WIDTH)
            behind = (i + (2 * WIDTH - moved % (2 * WIDTH))) % (2 * WIDTH)
            line = tl.where(is_second == 1, ahead, i) + (moved - 1) * (2 * WIDTH)
            line = tl.where(columns < WIDTH, line, KEY_DIM)
            beside = tl.where(is_second == 1, ahead, behind)[None, :]
            d_q, d_k = feature_gradients(
                query, key, query_scale, key_scale, d_output, corrected, d_value, memories, d_memories, slot, places,
                is_token, line, b, carried, leaving, pairs, overlaps,
                KEY_DIM, VALUE_DIM, WIDTH, NU, NORMALIZED, DELTA, C, BK, BV, PRECISION,
            )  # fmt: skip
            sign = 1.0 - 2.0 * is_negative
            x = tl.load(query + entries, mask=is_real, other=0.0).to(tl.float32) * sign
            d_query += tl.where(x > 0, sign * d_q * half_wave(query, places[:, None], is_real, beside, WIDTH), 0.0)
            x = tl.load(key + entries, mask=is_real, other=0.0).to(tl.float32) * sign
            d_key += tl.where(x > 0, sign * d_k * half_wave(key, places[:, None], is_real, beside, WIDTH), 0.0)
    tl.store(d_query_out + entries, d_query.to(d_query_out.dtype.element_ty), mask=is_real)
    tl.store(d_key_out + entries, d_key.to(d_key_out.dtype.element_ty), mask=is_real)


@triton.jit(do_not_specialize=["num_rows"])
def normalization_kernel(
    x, scale, d_features, d_x, num_rows, WIDTH: tl.constexpr, NU: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr
):
    """From the gradient that took the features' sum as given, `d_features`, to that of x, both `[rows, WIDTH]`."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BW)
    is_row = rows < num_rows
    is_real = is_row[:, None] & (columns < WIDTH)[None, :]
    entries = rows[:, None] * WIDTH + columns[None, :]
    given = tl.load(d_features + entries, mask=is_real, other=0.0)
    entry = tl.load(x + entries, mask=is_real, other=0.0).to(tl.float32)
    factor = tl.load(scale + rows, mask=is_row, other=0.0)
    i = tl.where(entry > 0, columns[None, :], columns[None, :] + WIDTH)
    d_sum = tl.zeros((ROWS, BW), dtype=tl.float32)
    for moved in range(1, NU + 1):
        d_sum += half_wave(x, rows[:, None], is_real, (i + moved) % (2 * WIDTH), WIDTH)
        behind = (i + (2 * WIDTH - moved % (2 * WIDTH))) % (2 * WIDTH)
        d_sum += half_wave(x, rows[:, None], is_real, behind, WIDTH)
    d_sum = tl.where(entry > 0, d_sum, tl.where(entry < 0, -d_sum, 0.0))
    # d_features is J^T K~ without 1 / (sum + eps), and w = K~ . K = x . J^T K~ / 2 (sum + eps).
    w = 0.5 * factor * tl.sum(given * entry, axis=1)
    tl.store(d_x + entries, (factor[:, None] * (given - w[:, None] * d_sum)).to(d_x.dtype.element_ty), mask=is_real)
