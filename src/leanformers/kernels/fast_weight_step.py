# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
One token of a fast weight memory in one launch: map, normalise, read, correct, write, read out.

With features f and g of key and query (DPFP of what is given, or that itself), their normalisations a = 1 / (sum(f) +
eps) and c likewise, and S and z before the token, one pass over S finds

    S^T f,  S^T g,  f . g,  z . f,  z . g,  sum(f),  sum(g)

from which everything follows without reading S again:

    delta rule    u = beta (v - a S^T f),        S <- S + a f u^T,    o = c (S^T g + a (f . g) u)
    "full"        beta * kappa for beta, a / (kappa + eps) for a, where kappa = a z . f, or 1 while z is empty
    sum rule      u = v
    normalised    o / (c (z . g + a f . g) + eps),    z <- z + a f

A second pass writes S. What it reads is in the cache then: from memory, S comes once and goes once. All in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .delta_rule import launch
from .fast_weight_chunks import half_wave

NORMS = ("none", "output", "full")


@triton.jit
def mapped(x, place, lines, KEY_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr):
    """The features `lines` of one key or query, `[BK]`, without normalisation."""
    is_real = lines < KEY_DIM
    if NU == 0:
        return tl.load(x + place * KEY_DIM + lines, mask=is_real, other=0.0).to(tl.float32)
    moved = lines // (2 * WIDTH) + 1
    i = lines % (2 * WIDTH)
    j = (i + (2 * WIDTH - moved % (2 * WIDTH))) % (2 * WIDTH)
    return half_wave(x, place, is_real, i, WIDTH) * half_wave(x, place, is_real, j, WIDTH)


@triton.jit
def step_kernel(
    query, key, value, beta, memory, normalizer, output, new_memory, new_normalizer, key_eps, eps,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, NU: tl.constexpr, NORMALIZED: tl.constexpr,
    DELTA: tl.constexpr, NORM: tl.constexpr, CARRIED: tl.constexpr, Z_CARRIED: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One head of one row, and one block of values; NORM counts along `NORMS`."""
    place = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    columns = part * BV + tl.arange(0, BV)
    is_column = columns < VALUE_DIM
    of_head = place * KEY_DIM * VALUE_DIM

    old = tl.zeros((BV,), dtype=tl.float32)
    read = tl.zeros((BV,), dtype=tl.float32)
    f_sum, g_sum, f_g, z_f, z_g, z_any = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for first in range(0, KEY_DIM, BK):
        lines = first + tl.arange(0, BK)
        f = mapped(key, place, lines, KEY_DIM, WIDTH, NU)
        g = mapped(query, place, lines, KEY_DIM, WIDTH, NU)
        if CARRIED:
            is_cell = (lines < KEY_DIM)[:, None] & is_column[None, :]
            state = tl.load(memory + of_head + lines[:, None] * VALUE_DIM + columns[None, :], mask=is_cell, other=0.0)
            old += tl.sum(f[:, None] * state, axis=0)
            read += tl.sum(g[:, None] * state, axis=0)
        if Z_CARRIED:
            z = tl.load(normalizer + place * KEY_DIM + lines, mask=lines < KEY_DIM, other=0.0)
            z_f += tl.sum(z * f)
            z_g += tl.sum(z * g)
            z_any += tl.sum((z != 0).to(tl.float32))
        f_sum += tl.sum(f)
        g_sum += tl.sum(g)
        f_g += tl.sum(f * g)

    a = 1.0
    c = 1.0
    if NORMALIZED:
        a = 1.0 / tl.where(f_sum == 0, 1.0, f_sum + key_eps)
        c = 1.0 / tl.where(g_sum == 0, 1.0, g_sum + key_eps)
    write = a
    u = tl.load(value + place * VALUE_DIM + columns, mask=is_column, other=0.0).to(tl.float32)
    if DELTA:
        rate = tl.load(beta + place).to(tl.float32)
        if NORM == 2:
            kappa = tl.where(z_any == 0, 1.0, a * z_f)
            write = a / (kappa + eps)
            rate = rate * kappa
        u = rate * (u - write * old)
    answer = c * (read + write * f_g * u)
    if NORM > 0:
        answer = answer / (c * (z_g + a * f_g) + eps)
    tl.store(output + place * VALUE_DIM + columns, answer.to(output.dtype.element_ty), mask=is_column)

    for first in range(0, KEY_DIM, BK):
        lines = first + tl.arange(0, BK)
        f = mapped(key, place, lines, KEY_DIM, WIDTH, NU)
        is_cell = (lines < KEY_DIM)[:, None] & is_column[None, :]
        cells = of_head + lines[:, None] * VALUE_DIM + columns[None, :]
        state = (write * f)[:, None] * u[None, :]
        if CARRIED:
            state += tl.load(memory + cells, mask=is_cell, other=0.0)
        tl.store(new_memory + cells, state, mask=is_cell)
        if NORM > 0:
            z = a * f
            if Z_CARRIED:
                z += tl.load(normalizer + place * KEY_DIM + lines, mask=lines < KEY_DIM, other=0.0)
            tl.store(new_normalizer + place * KEY_DIM + lines, z, mask=(lines < KEY_DIM) & (part == 0))


def fast_weight_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    *,
    attention_norm: str = "none",
    eps: float = 1e-5,
    initial_state: Tensor | None = None,
    initial_normalizer: Tensor | None = None,
    dpfp_nu: int = 0,
    key_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """
    `normalized_rule` of `modeling/fast_weight` for one token, without gradients.

    Args:
        query, key (`torch.Tensor`): `[batch, 1, heads, key_dim]`, or with `dpfp_nu` what DPFP maps.
        value (`torch.Tensor`): `[batch, 1, heads, value_dim]`.
        beta (`torch.Tensor`, *optional*): `[batch, 1, heads]`; None means the sum rule.
        attention_norm, eps, initial_state, initial_normalizer: see `normalized_rule`.
        dpfp_nu, key_norm_eps: see `kernels.delta_rule.chunk_delta_rule`.

    Returns:
        `(output, final_state, final_normalizer)`: `[batch, 1, heads, value_dim]` in the dtype of the value, and new
        tensors in float32; the last is None for `"none"`.
    """
    output, state, normalizer = torch.ops.leanformers.fast_weight_step(
        *(query, key, value, beta, initial_state, initial_normalizer),
        *(NORMS.index(attention_norm), eps, dpfp_nu, key_norm_eps),
    )
    return output, state, None if attention_norm == "none" else normalizer


@torch.library.custom_op("leanformers::fast_weight_step", mutates_args=())
def _step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    memory: Tensor | None,
    normalizer: Tensor | None,
    norm: int,
    eps: float,
    nu: int,
    key_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, _, heads, width), value_dim = query.shape, value.shape[-1]
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    beta = None if beta is None else beta.contiguous()
    memory, normalizer = (None if state is None else state.float().contiguous() for state in (memory, normalizer))
    output, new_memory, new_normalizer = _new(query, value, norm, nu)
    block_v = min(32, triton.next_power_of_2(value_dim))
    with torch.cuda.device_of(value):
        launch(
            step_kernel,
            (batch * heads, triton.cdiv(value_dim, block_v)),
            *(query, key, value, beta, memory, normalizer, output, new_memory, new_normalizer, key_eps or 0.0, eps),
            KEY_DIM=new_memory.shape[2],
            VALUE_DIM=value_dim,
            WIDTH=width,
            NU=nu,
            NORMALIZED=nu > 0 and key_eps is not None,
            DELTA=beta is not None,
            NORM=norm,
            CARRIED=memory is not None,
            Z_CARRIED=norm > 0 and normalizer is not None,
            BK=min(128, triton.next_power_of_2(new_memory.shape[2])),
            BV=block_v,
            num_warps=4,
        )
    return output, new_memory, new_normalizer


@_step.register_fake
def _(query, key, value, beta, memory, normalizer, norm, eps, nu, key_eps):
    return _new(query, value, norm, nu)


def _new(query: Tensor, value: Tensor, norm: int, nu: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, width = query.shape
    key_dim = 2 * nu * width if nu else width
    memory = value.new_empty(batch, heads, key_dim, value.shape[-1], dtype=torch.float32)
    normalizer = value.new_empty((batch, heads, key_dim) if norm else (0,), dtype=torch.float32)
    return value.new_empty(value.shape), memory, normalizer
