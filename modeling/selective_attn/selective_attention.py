# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Selective attention (arXiv 2410.02703, section 3): tokens vote on which earlier tokens later ones no longer need.

    L^h_ij = scale q^h_i . k_j               logits
    S_kj   = relu(L^0_kj)                    vote of token k against the earlier token j, by one head
    F_ij   = sum_{k<i} S_kj                  all votes against j that were cast before i
    O^h_i  = sum_j softmax_j(L^h_ij - F_ij) v_j

One matrix F serves all heads of a layer. Nobody votes against the first token of a document, nor against itself;
padding neither votes nor receives votes. `naive_selective_attention` is these equations, `selective_attention`
computes the same in blocks (`blocked_attention.py`), and `selective_attention_step` the next token.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention

from .blocked_attention import BlockedAttention, Settings, attend_in_blocks, attention_bias, initial_base, latest_votes
from .context_pruning import Held
from .visible_keys import describe_keys

try:
    from leanformers.kernels import use_kernel
except ImportError:  # this code has come without leanformers
    use_kernel = None  # type: ignore[assignment]
try:
    from leanformers.kernels import selective_attention as selective_kernels
    from leanformers.kernels import selective_decode
except ImportError:  # without Triton
    selective_kernels = selective_decode = None  # type: ignore[assignment]


class SelectionDetails(NamedTuple):
    """What is inside selective attention, float32 at least; None is what was not asked for, or has no such form."""

    votes: Tensor | None = None  # S, [batch, queries, keys], of the naive form, or of the last queries
    selection: Tensor | None = None  # F, [batch, queries, keys], of the naive form, 0 where a key is not visible
    probabilities: Tensor | None = None  # [batch, heads, queries, keys], of the naive form
    memory: Tensor | None = None  # M, [batch, queries], with `memory_tau`
    held: Tensor | None = None  # [batch, keys], with `memory_budget`: which tokens are held after the last query


def naive_selective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    sliding_window: int | None = None,
    is_start: Tensor | None = None,
    positions: Tensor | None = None,
    initial_selection: Tensor | None = None,
    scale: float | None = None,
    selection_head: int = 0,
    strength: float = 1.0,
    protect_start: bool = True,
    protect_self: bool = True,
    memory_tau: float | None = None,
    memory_budget: int | None = None,
    dropout: float = 0.0,
    output_details: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, SelectionDetails]:
    """
    The paper's equations, one line each. Arguments and results as for `selective_attention`, and

    Args:
        dropout (`float`, defaults to 0.0): rate at which probabilities are dropped.
    """
    check_shapes(query, key, value, selection_head)
    (batch, length, num_heads, head_dim), num_keys = query.shape, key.shape[1]
    past, groups = num_keys - length, num_heads // key.shape[2]
    precision = torch.promote_types(query.dtype, torch.float32)
    keys = describe_keys(
        (batch, num_keys), key.device, attention_mask, document_ids, sliding_window, is_start, positions
    )
    rows = slice(past, num_keys)
    is_self = torch.eye(num_keys, dtype=torch.bool, device=key.device)[rows]
    visible = torch.ones(batch, length, num_keys, dtype=torch.bool, device=key.device).tril(past)
    if (hidden := keys.hidden_from(rows, num_keys)) is not None:
        visible = visible & ~hidden
    if keys.is_real is not None:
        visible = visible & keys.is_real[:, None] & keys.is_real[:, rows, None]

    repeated_key, repeated_value = (tensor.repeat_interleave(groups, dim=2).to(precision) for tensor in (key, value))
    scale = head_dim**-0.5 if scale is None else scale
    logits = torch.einsum("bihd,bjhd->bhij", query.to(precision), repeated_key) * scale

    votable = visible & ~is_self if protect_self else visible
    votable = votable & ~keys.is_start[:, None] if protect_start else votable
    votes = strength * logits[:, selection_head].relu().masked_fill(~votable, 0.0)
    before = votes.new_zeros(batch, num_keys) if initial_selection is None else pad(initial_selection, (0, length))
    selection = before[:, None] + (votes.cumsum(dim=1) - votes)

    held, seen = None, visible
    if memory_budget is not None:
        held = Held(keys, past, memory_budget, protect_start, backend="torch")
        pruned = held.prune_(selection.detach().masked_fill(~(visible | is_self), float("inf")))
        seen = visible & (pruned < float("inf"))

    # Padding sees itself, lest a row has nothing to sum to 1; what it reads is dropped.
    logits = (logits - selection[:, None]).masked_fill(~(seen | is_self)[:, None], float("-inf"))
    probabilities = logits.softmax(dim=-1) * visible.any(-1)[:, None, :, None]
    output = torch.einsum("bhij,bjhd->bihd", drop(probabilities, p=dropout), repeated_value).to(value.dtype)
    accumulated_selection = before + votes.sum(dim=1)
    if not output_details:
        return output, accumulated_selection
    memory = None
    if memory_tau is not None:  # of the earlier tokens that are seen
        memory = (1 - selection.clamp(max=memory_tau) / memory_tau).masked_fill(~seen | is_self, 0.0).sum(-1)
    details = SelectionDetails(
        votes, selection.masked_fill(~visible, 0.0), probabilities, memory, None if held is None else held.held
    )
    return output, accumulated_selection, details


def selective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    sliding_window: int | None = None,
    is_start: Tensor | None = None,
    positions: Tensor | None = None,
    initial_selection: Tensor | None = None,
    scale: float | None = None,
    selection_head: int = 0,
    strength: float = 1.0,
    protect_start: bool = True,
    protect_self: bool = True,
    memory_tau: float | None = None,
    memory_budget: int | None = None,
    block_size: int | None = None,
    num_votes: int = 0,
    output_details: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, SelectionDetails]:
    """
    Causal selective attention of the last `queries` of `keys` tokens, in blocks of queries.

    Args:
        query (`torch.Tensor`): `[batch, queries, heads, head_dim]`.
        key (`torch.Tensor`): `[batch, keys, key_value_heads, head_dim]`.
        value (`torch.Tensor`): `[batch, keys, key_value_heads, value_dim]`.
        attention_mask (`torch.Tensor`, *optional*): `[batch, keys]`, 0 for padding. Its output is 0.
        document_ids (`torch.Tensor`, *optional*): `[batch, keys]`; tokens see only their own document.
        sliding_window (`int`, *optional*): how many tokens a query sees, itself included.
        is_start (`torch.Tensor`, *optional*): `[batch, keys]`, which tokens nobody votes against. By default the first
            of each document.
        positions (`torch.Tensor`, *optional*): `[batch, keys]`, for the window. By default tokens are counted.
        initial_selection (`torch.Tensor`, *optional*): `[batch, keys - queries]`, votes cast against the earlier keys.
        scale (`float`, *optional*): of the logits, `head_dim ** -0.5` by default.
        selection_head (`int`, defaults to 0): the head that votes.
        strength (`float`, defaults to 1.0): factor of all votes; 0 is attention without selection.
        protect_start, protect_self (`bool`, defaults to `True`): no votes against the first token, or against oneself.
        memory_tau (`float`, *optional*): give, in the details, the memory rows with this tau (section 5): how many
            earlier tokens each query still has in mind, `M_i = sum_{j<i} (1 - min(F_ij, tau) / tau)`.
        memory_budget (`int`, *optional*): prune, so that no query sees more tokens, itself included, as if they came
            one by one. Earlier keys must be in the order they came in, and no more than the budget. Only the naive
            form has gradients then.
        block_size (`int`, *optional*): queries of a block.
        num_votes (`int`, defaults to 0): give, in the details, the votes of the last so many queries.
        output_details (`bool`, defaults to `False`): also return `SelectionDetails`.
        backend (`str`, *optional*): "triton" for the kernels, "torch", or "auto", see `leanformers.kernels`. Under a
            budget the kernel drops tokens, and torch attends.

    Returns:
        `(output, accumulated_selection)`: `[batch, queries, heads, value_dim]` in the dtype of `value`, and all votes
        against each key after the last query, `[batch, keys]`, in float32 or float64. Both have gradients, and so have
        the memory rows.

    Raises:
        `ValueError`: if shapes do not fit, a budget is below 2, gradients are asked for with a budget, or the backend
            is "triton" and the kernels do not apply.
    """
    check_shapes(query, key, value, selection_head)
    (batch, length), num_keys = query.shape[:2], key.shape[1]
    keys = describe_keys(
        (batch, num_keys), key.device, attention_mask, document_ids, sliding_window, is_start, positions
    )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    settings = Settings(scale, selection_head, strength, protect_start, protect_self, memory_tau, block_size)
    is_kernel = memory_budget is None and attends_as_kernel(query, value, backend)
    held = None if memory_budget is None else Held(keys, num_keys - length, memory_budget, protect_start, backend)
    with torch.autocast(query.device.type, enabled=False):
        base = initial_base(keys, initial_selection, query, num_keys)
        if is_kernel:
            output, accumulated, memory = selective_kernels.selective_attention(
                *(query, key, value, base),
                *(*keys, *settings),  # type: ignore[arg-type]
            )
        elif not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (query, key, value, base)):
            output, accumulated, memory = attend_in_blocks(query, key, value, base, keys, settings, held)
        elif held is None:
            output, accumulated, memory = BlockedAttention.apply(query, key, value, base, *keys, settings)
            memory = None if memory_tau is None else memory
        else:
            raise ValueError("`memory_budget` is for inference: use torch.no_grad(), or the naive form for gradients.")
    if keys.is_real is not None:
        is_query = keys.is_real[:, num_keys - length :]
        output = output.masked_fill(~is_query[..., None, None], 0.0)
        accumulated = accumulated.masked_fill(~keys.is_real, 0.0)
        memory = None if memory is None else memory.masked_fill(~is_query, 0.0)
    if not output_details:
        return output, accumulated
    votes = latest_votes(query, key, keys, settings, num_votes) if num_votes else None
    return output, accumulated, SelectionDetails(votes, memory=memory, held=None if held is None else held.held)


def attends_as_kernel(query: Tensor, value: Tensor, backend: str | None) -> bool:
    """Whether the kernels take these inputs."""
    if use_kernel is None:
        return False
    obstacle, width = None, max(query.shape[-1], value.shape[-1])
    widest = 128 if query.dtype == torch.float32 else 256
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        obstacle = f"the query is {query.dtype}, not torch.float32, bfloat16 or float16"
    elif width > widest:
        obstacle = f"heads of {width} in {query.dtype} are wider than {widest}"
    elif not query.numel():
        obstacle = "there are no queries"
    elif query.shape[0] > 65535:
        obstacle = f"a batch of {query.shape[0]} rows has more than the 65535 that a launch takes"
    return use_kernel("selective_attention", query, backend, obstacle)


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
    naive: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """
    One token more: attention with the votes cast so far, then the token's own votes. Keys may be in any order.

    Args:
        query (`torch.Tensor`): `[batch, 1, heads, head_dim]`.
        key, value (`torch.Tensor`): `[batch, keys, key_value_heads, dim]`, with those of the token itself.
        selection (`torch.Tensor`): `[batch, keys]`, votes against each key so far, 0 against the token itself.
        visible (`torch.Tensor`, *optional*): `[batch, keys]`, False where a slot holds nothing to see.
        votable (`torch.Tensor`): `[batch, keys]`, True where the token may vote.
        scale, selection_head, strength: as for `selective_attention`.
        naive (`bool`, defaults to `False`): compute probabilities instead of PyTorch's fused attention.
        backend (`str`, *optional*): "triton" for the kernel, which has no gradients, "torch", or "auto", see
            `leanformers.kernels`. The naive form is always torch.

    Returns:
        `(output, accumulated_selection, probabilities)`: `[batch, 1, heads, value_dim]`, `[batch, keys]`, and, of the
        naive form, `[batch, heads, 1, keys]`.

    Raises:
        `ValueError`: if shapes do not fit, or the backend is "triton" and the kernel does not apply.
    """
    check_shapes(query, key, value, selection_head)
    if not naive and steps_as_kernel(query, key, value, selection, backend=backend):
        return selective_decode.selective_attention_step(
            query,
            key,
            value,
            selection,
            visible=visible,
            votable=votable,
            scale=scale,
            selection_head=selection_head,
            strength=strength,
        )
    (batch, _, num_heads, head_dim), num_shared = query.shape, key.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        # Heads that share keys see the same of them: they are queries of one head.
        queries = query.reshape(batch, num_shared, num_heads // num_shared, head_dim)
        hidden_selection = selection if visible is None else torch.where(visible, selection, float("inf"))
        attend = _attend_naively if naive else _attend_fused
        output, probabilities = attend(
            queries, key.transpose(1, 2), value.transpose(1, 2), hidden_selection[:, None], scale
        )
        voter, voted = query[:, :, selection_head], key[:, :, selection_head // (num_heads // num_shared)]
        logits = torch.bmm(voted.to(selection.dtype), voter.to(selection.dtype).mT)[..., 0] * (scale * strength)
        votes = torch.where(votable, logits.relu(), 0.0)
    if probabilities is not None:
        probabilities = probabilities.reshape(batch, num_heads, 1, -1)
    return output.reshape(batch, 1, num_heads, -1), selection + votes, probabilities


def steps_as_kernel(
    query: Tensor, key: Tensor, value: Tensor, *others: Tensor, backend: str | None = None, obstacle: str | None = None
) -> bool:
    """Whether the kernel takes this step, if there is no other obstacle."""
    if use_kernel is None:
        return False
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        obstacle = f"the query is {query.dtype}, not torch.float32, bfloat16 or float16"
    elif (width := max(query.shape[-1], value.shape[-1])) > 256:
        obstacle = f"heads of {width} are wider than 256"
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, *others)):
        obstacle = "gradients are asked for (without them, use torch.no_grad())"
    return use_kernel("selective_attention_step", query, backend, obstacle)


def _attend_fused(query, key, value, selection, scale):
    bias = attention_bias(selection, query)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale), None


def _attend_naively(query, key, value, selection, scale):
    query, key = query.to(selection.dtype), key.to(selection.dtype)
    probabilities = (query @ key.mT * scale - selection[:, None]).softmax(dim=-1)
    return (probabilities @ value.to(selection.dtype)).to(value.dtype), probabilities


def check_shapes(query: Tensor, key: Tensor, value: Tensor, selection_head: int) -> None:
    """Refuse what does not fit together."""
    is_wide = query.dim() == key.dim() == 4 and query.shape[::3] == key.shape[::3]
    if not is_wide or value.dim() != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            "Needed are query [batch, queries, heads, head_dim], key [batch, keys, key_value_heads, head_dim] and "
            f"value [batch, keys, key_value_heads, value_dim]; got {list(query.shape)}, {list(key.shape)}, "
            f"{list(value.shape)}."
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value must have one dtype, got {query.dtype}, {key.dtype}, {value.dtype}.")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{key.shape[2]} key-value heads cannot be shared evenly by {query.shape[2]} heads.")
    if key.shape[1] < query.shape[1]:
        raise ValueError(f"The {query.shape[1]} queries must be among the {key.shape[1]} keys, as their last ones.")
    if not 0 <= selection_head < query.shape[2]:
        raise ValueError(f"`selection_head` must be one of {query.shape[2]} heads, 0 first, got {selection_head}.")
