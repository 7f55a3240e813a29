# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Selective attention in blocks of queries, which keeps nothing of the size of all queries times all keys.

What block I needs of the blocks before it is how many votes each key has, one row. With T, ones below the diagonal:

    F_I = 1 base_I^T + T S_I                 base_{I+1} = base_I + S_I^T 1

The backward pass goes through the blocks in reverse. With A = L - F and P = softmax(A), dA is that of attention, and

    dF = -sum_h dA^h                         dS_I = 1 r_I^T + T^T dF_I
    r_{I-1} = r_I + dF_I^T 1                 dL^0 += dS [S > 0]

What a query does not see has F = inf: one matrix says both how far a key is pushed down and whether it is there.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from .context_pruning import Held
from .visible_keys import VisibleKeys

# exp of less is 0 or a denormal number, with which processors are slow.
LOWEST_EXPONENT = -80.0
STRIP = 16  # rows that one small product with T sums up


class Settings(NamedTuple):
    """The numbers of `selective_attention`."""

    scale: float
    selection_head: int
    strength: float
    protect_start: bool
    protect_self: bool
    memory_tau: float | None
    block_size: int | None


def initial_base(keys: VisibleKeys, initial_selection: Tensor | None, query: Tensor, num_keys: int) -> Tensor:
    """Votes against each key before the first query, `[batch, keys]`; padding is never seen."""
    precision = torch.promote_types(query.dtype, torch.float32)
    if initial_selection is None:
        base = query.new_zeros(query.shape[0], num_keys, dtype=precision)
    else:
        base = pad(initial_selection.to(precision), (0, num_keys - initial_selection.shape[1]))
    return base if keys.is_real is None else base.masked_fill(~keys.is_real, float("inf"))


def memory_rows(selection: Tensor, tau: float = 1.0) -> Tensor:
    """
    How many earlier tokens each query still has in mind, `M_i = sum_{j<i} (1 - min(F_ij, tau) / tau)`.

    Args:
        selection (`torch.Tensor`): `[batch, queries, keys]`, inf where a key is not visible.
    """
    return (1 - selection.clamp(max=tau) / tau).sum(-1) - 1  # the token itself has F = 0


class Selector:
    """Votes and selection of one block of queries after another."""

    def __init__(self, query: Tensor, key: Tensor, keys: VisibleKeys, settings: Settings):
        (_, self.length, num_heads, _), self.num_keys = query.shape, key.shape[1]
        self.past, self.keys, self.settings = self.num_keys - self.length, keys, settings
        self.block_size = settings.block_size or (128 if self.num_keys <= 2048 else 256)
        precision = torch.promote_types(query.dtype, torch.float32)
        head = settings.selection_head
        self.query = query[:, :, head].to(precision) * (settings.scale * settings.strength)
        self.key = key[:, :, head // (num_heads // key.shape[2])].to(precision)
        # A logit of 0 is no vote.
        if keys.is_real is not None:
            self.query = self.query.masked_fill(~keys.is_real[:, self.past :, None], 0.0)
            self.key = self.key.masked_fill(~keys.is_real[..., None], 0.0)
        if settings.protect_start:
            self.key = self.key.masked_fill(keys.is_start[..., None], 0.0)
        ones = torch.ones(self.block_size, self.block_size, dtype=torch.bool, device=query.device)
        self.later = ones.triu(1)

    def blocks(self) -> Iterator[tuple[slice, int]]:
        """The queries of each block, and how many keys there are up to its last one."""
        for start in range(0, max(self.length, 1), self.block_size):  # no queries are a block, too
            stop = min(start + self.block_size, self.length)
            yield slice(start, stop), self.past + stop

    def select(self, rows: slice, end: int, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        S and F of the queries `rows`, `[batch, rows, end]`, and `base` of the next ones. F is inf where a key is not
        visible.
        """
        size = rows.stop - rows.start
        votes = torch.bmm(self.query[:, rows], self.key[:, :end].mT).relu_()
        votes[..., end - size :].tril_(-1 if self.settings.protect_self else 0)
        hidden = self.keys.hidden_from(slice(self.past + rows.start, end), end)
        if hidden is not None:
            votes.masked_fill_(hidden, 0.0)
        selection, total = running_sums(votes, base[:, :end])
        if hidden is not None:
            selection.masked_fill_(hidden, float("inf"))
        among = selection[..., end - size :]
        among.masked_fill_(self.later[:size, :size], float("inf"))
        among.diagonal(dim1=-2, dim2=-1).zero_()  # everybody sees itself, padding too, so that no row is empty
        return votes, selection, torch.cat([total, base[:, end:]], dim=1)


def running_sums(rows: Tensor, start: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """
    Running sums of rows: `1 start^T + T rows` `[batch, rows, keys]`, or with T^T, and what comes after them.

    Args:
        rows (`torch.Tensor`): `[batch, rows, keys]`.
        start (`torch.Tensor`): `[batch, keys]`.
        reverse (`bool`, defaults to `False`): sum up what follows a row instead, from the last one on.
    """
    size = rows.shape[1]
    if size % STRIP:
        rows = pad(rows, (0, 0, 0, -size % STRIP))
    strips = rows.unflatten(1, (-(-size // STRIP), STRIP))
    earlier = rows.new_ones(STRIP, STRIP).tril_(-1)
    sums = strips.sum(2)
    totals = torch.cat([start[:, None], sums.flip(1) if reverse else sums], dim=1).cumsum(1)
    before = totals[:, :-1].flip(1) if reverse else totals[:, :-1]
    within = torch.matmul(earlier.mT if reverse else earlier, strips)
    return within.add_(before[:, :, None]).flatten(1, 2)[:, :size], totals[:, -1]


def latest_votes(query: Tensor, key: Tensor, keys: VisibleKeys, settings: Settings, number: int) -> Tensor:
    """S of the last `number` queries, or of all if they are fewer, `[batch, queries, keys]`."""
    query = query[:, -number:]
    with torch.autocast(query.device.type, enabled=False):
        selector = Selector(query, key, keys, settings._replace(block_size=query.shape[1]))
        nothing = selector.query.new_zeros(query.shape[0], key.shape[1])
        return selector.select(slice(0, query.shape[1]), key.shape[1], nothing)[0]


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    base: Tensor,
    keys: VisibleKeys,
    settings: Settings,
    held: Held | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Without gradients: attention of each block by PyTorch's fused kernel, with -F as its bias. `held` is pruned."""
    selector, outputs, memories = Selector(query, key, keys, settings), [], []
    heads_first = heads_before_tokens(query, key, value)
    for rows, end in selector.blocks():
        _, selection, base = selector.select(rows, end, base)
        if held is not None:
            held.prune_(selection)
        outputs.append(attend(*heads_first, rows, end, selection, settings.scale).transpose(1, 2))
        if settings.memory_tau is not None:
            memories.append(memory_rows(selection, settings.memory_tau))
    return torch.cat(outputs, dim=1), base, torch.cat(memories, dim=1) if memories else None


def heads_before_tokens(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[batch, heads, tokens, dim]` of all three, keys and values repeated for every head that shares them."""
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
    # The kernel below reads the numbers of a head as if they were side by side.
    dense = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    query, key, value = (tensor.transpose(1, 2) for tensor in dense)
    return query, key, value


def attend(
    query: Tensor, key: Tensor, value: Tensor, rows: slice, end: int, selection: Tensor, scale: float
) -> Tensor:
    """Outputs `[batch, heads, rows, value_dim]` of one block, of tensors `[batch, heads, tokens, dim]`."""
    bias = attention_bias(selection, query)
    return scaled_dot_product_attention(
        query[:, :, rows], key[:, :, :end], value[:, :, :end], attn_mask=bias, scale=scale
    )


def attention_bias(selection: Tensor, query: Tensor) -> Tensor:
    """-F for all heads; kernels of accelerators want it in the dtype of the query."""
    bias = selection[:, None].neg()
    return bias if query.device.type == "cpu" else bias.to(query.dtype)


class BlockedAttention(torch.autograd.Function):
    """`attend_in_blocks` with gradients. It keeps `base` of each block and computes everything else again."""

    @staticmethod
    def forward(ctx, query, key, value, base, is_real, is_start, document_ids, positions, window, settings):
        keys = VisibleKeys(is_real, is_start, document_ids, positions, window)
        selector, heads_first = Selector(query, key, keys, settings), heads_before_tokens(query, key, value)
        outputs, normalizers, bases, memories = [], [], [], []
        for rows, end in selector.blocks():
            bases.append(base)
            _, selection, base = selector.select(rows, end, base)
            output, normalizer = attend_and_normalize(*heads_first, rows, end, selection, settings.scale)
            outputs.append(output.transpose(1, 2))
            normalizers.append(normalizer)
            if settings.memory_tau is not None:
                memories.append(memory_rows(selection, settings.memory_tau))
        output = torch.cat(outputs, dim=1)
        ctx.save_for_backward(
            query, key, value, is_real, is_start, document_ids, positions, output, torch.cat(normalizers, -1), *bases
        )
        ctx.window, ctx.settings = window, settings
        return output, base, torch.cat(memories, dim=1) if memories else base.new_empty(0)  # compilers want tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output, d_base, d_memory):
        query, key, value, is_real, is_start, document_ids, positions, output, normalizer, *bases = ctx.saved_tensors
        keys = VisibleKeys(is_real, is_start, document_ids, positions, ctx.window)
        with torch.autocast(query.device.type, enabled=False):
            gradients = _backward(
                query, key, value, keys, ctx.settings, output, normalizer, bases, d_output, d_base, d_memory
            )
        return *gradients, None, None, None, None, None, None


def attend_and_normalize(
    query: Tensor, key: Tensor, value: Tensor, rows: slice, end: int, selection: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`attend`, and the logarithm of each row's sum, `[batch, heads, rows]`."""
    query, key, value = query[:, :, rows], key[:, :, :end], value[:, :, :end]
    if query.device.type == "cpu" and query.numel() and value.shape[-1] == key.shape[-1]:
        bias = attention_bias(selection, query)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
    precision = selection.dtype
    logits = torch.matmul(query.to(precision) * scale, key.to(precision).mT).sub_(selection[:, None])
    normalizer = logits.logsumexp(dim=-1)
    probabilities = exp_(logits.sub_(normalizer[..., None]))
    return torch.matmul(probabilities, value.to(precision)).to(value.dtype), normalizer


def exp_(exponents: Tensor) -> Tensor:
    """exp in place. Processors' exp, but not exp2, takes four times as long where it is 0."""
    return torch.threshold_(exponents, LOWEST_EXPONENT, -torch.inf).mul_(math.log2(math.e)).exp2_()


def _backward(query, key, value, keys, settings, output, normalizer, bases, d_output, d_base, d_memory):
    precision = bases[0].dtype
    selector, scale = Selector(query, key, keys, settings), settings.scale
    q, k, v = (tensor.to(precision).contiguous() for tensor in heads_before_tokens(query, key, value))
    d_o = d_output.transpose(1, 2).to(precision)
    delta = (d_o * output.transpose(1, 2)).sum(-1, keepdim=True)
    # A column more, and a product subtracts what belongs to its row: the normaliser from L, delta from dP.
    ones = q.new_ones(*k.shape[:-1], 1)
    q_of_logits, k_of_logits = torch.cat([q * scale, -normalizer[..., None]], -1), torch.cat([k, ones], -1)
    d_o_of_p, v_of_p = torch.cat([d_o, -delta], -1), torch.cat([v, ones], -1)
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    remaining = torch.zeros_like(bases[0]) if d_base is None else d_base.to(precision, copy=True)
    for (rows, end), base in reversed(list(zip(selector.blocks(), bases, strict=True))):
        votes, selection, _ = selector.select(rows, end, base)
        logits = torch.matmul(q_of_logits[:, :, rows], k_of_logits[:, :, :end].mT).sub_(selection[:, None])
        p = exp_(logits)
        d_v[:, :, :end] += torch.matmul(p.mT, d_o[:, :, rows])
        d_a = torch.matmul(d_o_of_p[:, :, rows], v_of_p[:, :, :end].mT).mul_(p)
        d_selection = d_a.sum(1).neg_()
        if settings.memory_tau is not None:
            counted = selection < settings.memory_tau
            d_selection -= counted * (d_memory[:, rows, None] / settings.memory_tau)
        d_votes, remaining[:, :end] = running_sums(d_selection, remaining[:, :end], reverse=True)
        d_a[:, settings.selection_head] += d_votes.mul_(votes > 0).mul_(settings.strength)
        d_q[:, :, rows] = torch.matmul(d_a, k[:, :, :end])
        d_k[:, :, :end] += torch.matmul(d_a.mT, q[:, :, rows])
    groups = query.shape[2] // key.shape[2]
    d_k, d_v = (tensor.unflatten(1, (-1, groups)).sum(2) if groups > 1 else tensor for tensor in (d_k, d_v))
    d_q, d_k, d_v = ((d_q * scale).to(query.dtype), (d_k * scale).to(key.dtype), d_v.to(value.dtype))
    return d_q.transpose(1, 2), d_k.transpose(1, 2), d_v.transpose(1, 2), remaining
