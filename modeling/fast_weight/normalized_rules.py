# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Attention normalisation around the update rules (arXiv 2102.11174, sections 3.2 and 4.2).

Beside the memory S stands z, the sum of all keys so far. A query's product with z is what the weights of an attention
without softmax sum to:

    z_t = z_{t-1} + k_t
    "output"   o_t / (z_t . q_t + eps)
    "full"     the same, and what the delta rule reads to remove it is divided, too: with kappa_t = z_{t-1} . k_t, or 1
               while z is empty, it runs with keys k_t / (kappa_t + eps) and with beta_t * kappa_t

The original has no paddings or documents: here a zero key leaves z as it is, and each document begins with an empty z.
"""

from typing import Any, cast

import torch
from torch.nn.functional import pad

from .delta_rule import chunk_delta_rule, chunk_sum_rule, takes_fla, takes_kernel
from .feature_maps import dpfp, normalize_features

try:
    from leanformers.kernels import delta_rule as kernels
    from leanformers.kernels.fast_weight_step import fast_weight_step
except ImportError:  # this code has come without leanformers, or without Triton
    pass


def naive_normalized_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    *,
    attention_norm: str = "none",
    eps: float = 1e-5,
    initial_state: torch.Tensor | None = None,
    initial_normalizer: torch.Tensor | None = None,
    document_ids: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`normalized_rule`, token by token."""
    (batch, length, num_heads, key_dim), value_dim = key.shape, value.shape[-1]
    memory = key.new_zeros(batch, num_heads, key_dim, value_dim) if initial_state is None else initial_state
    z = key.new_zeros(batch, num_heads, key_dim) if initial_normalizer is None else initial_normalizer
    outputs = []
    for t in range(length):
        if document_ids is not None and t > 0:
            goes_on = (document_ids[:, t] == document_ids[:, t - 1])[:, None, None]
            memory, z = memory * goes_on[..., None], z * goes_on
        k, q, written, write_key = key[:, t], query[:, t], value[:, t], key[:, t]
        if beta is not None:
            rate = beta[:, t, :, None]
            if attention_norm == "full":
                kappa = (z * k).sum(dim=-1, keepdim=True)
                kappa = torch.where((z == 0).all(dim=-1, keepdim=True), 1.0, kappa)
                rate, write_key = rate * kappa, k / (kappa + eps)
            written = rate * (written - torch.einsum("bhk,bhkv->bhv", write_key, memory))
        memory = memory + torch.einsum("bhk,bhv->bhkv", write_key, written)
        z = z + k
        output = torch.einsum("bhk,bhkv->bhv", q, memory)
        if attention_norm != "none":
            output = output / ((z * q).sum(dim=-1, keepdim=True) + eps)
        outputs.append(output)
    output = torch.stack(outputs, dim=1) if outputs else value.new_empty(value.shape)
    return output, memory, None if attention_norm == "none" else z


def normalized_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    *,
    attention_norm: str = "none",
    eps: float = 1e-5,
    initial_state: torch.Tensor | None = None,
    initial_normalizer: torch.Tensor | None = None,
    output_final_state: bool = True,
    document_ids: torch.LongTensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    The delta rule, or the sum rule if `beta` is None, with attention normalisation.

    Args:
        query, key (`torch.Tensor`): `[batch, length, heads, key_dim]`, in float32 or float64.
        value (`torch.Tensor`): `[batch, length, heads, value_dim]`.
        beta (`torch.Tensor`, *optional*): `[batch, length, heads]`.
        attention_norm (`str`): `"none"`, `"output"`, or for the delta rule `"full"`.
        eps (`float`): is added to what is divided by.
        initial_state (`torch.Tensor`, *optional*): `[batch, heads, key_dim, value_dim]`.
        initial_normalizer (`torch.Tensor`, *optional*): z before the first token, `[batch, heads, key_dim]`.
        output_final_state (`bool`): return what comes after the last token; what nobody wants need not be exact.
        document_ids (`torch.LongTensor`, *optional*): `[batch, length]`, see `chunk_delta_rule`.
        backend (`str`, *optional*): see `chunk_delta_rule`.

    Returns:
        `(output, final_state, final_normalizer)`: `[batch, length, heads, value_dim]` in the dtype of the query; the
        last is None for `"none"`, and where the state is not wanted, one or both are.
    """
    if _is_step(query, key, value, beta, initial_state) and takes_kernel(
        "A step of a fast weight memory", value, backend
    ):
        output, state, normalizer = fast_weight_step(
            *(query, key, value, beta),
            attention_norm=attention_norm,
            eps=eps,
            initial_state=initial_state,
            initial_normalizer=initial_normalizer,
        )
        return output.to(query.dtype), state, normalizer
    write_key, normalizer = key, None
    if attention_norm != "none":
        before, after, normalizer = key_sums(key, initial_normalizer, document_ids, backend)
    if attention_norm == "full":
        kappa = (before * key).sum(dim=-1, keepdim=True)
        kappa = torch.where((before == 0).all(dim=-1, keepdim=True), 1.0, kappa)
        write_key, beta = key / (kappa + eps), beta * kappa[..., 0]

    is_fla = beta is not None and document_ids is None and takes_fla(value, key.shape[-1], backend)
    dtype = value.dtype if is_fla else key.dtype
    q, k, v = query.to(dtype), write_key.to(dtype), value.to(dtype)
    options: dict[str, Any] = {"initial_state": initial_state, "output_final_state": output_final_state}
    options |= {"document_ids": document_ids, "backend": backend}
    if beta is None:
        output, state = chunk_sum_rule(q, k, v, **options)
    else:
        output, state = chunk_delta_rule(q, k, v, beta.to(dtype), **options)
    output = output.to(query.dtype)
    if attention_norm != "none":
        output = output / ((after * query).sum(dim=-1, keepdim=True) + eps)
    return output, state, normalizer


def dpfp_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor | None,
    *,
    nu: int,
    key_norm_eps: float | None = None,
    attention_norm: str = "none",
    eps: float = 1e-5,
    initial_state: torch.Tensor | None = None,
    initial_normalizer: torch.Tensor | None = None,
    output_final_state: bool = True,
    document_ids: torch.LongTensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    `normalized_rule` of what DPFP-nu has yet to map, in any precision; a zero key leaves no trace. As a kernel it
    stores no features, but those of `"full"`, whose keys are divided by what they read.

    Args:
        query, key (`torch.Tensor`): `[batch, length, heads, head_dim]`, and keys of width `2 * nu * head_dim`.
        nu (`int`): see `dpfp`.
        key_norm_eps (`float`, *optional*): features are divided by their sum plus this; None does not divide them.
        others: see `normalized_rule`.

    Returns:
        As `normalized_rule`; the output is in float32 at least.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    is_step = _is_step(query, key, value, beta, initial_state)
    name = "A step of a fast weight memory" if is_step else "DPFP inside a fast weight memory"
    if (is_step or attention_norm != "full") and takes_kernel(name, value, backend):
        options: dict[str, Any] = {"dpfp_nu": nu, "key_norm_eps": key_norm_eps, "initial_state": initial_state}
        if is_step:
            options.update(attention_norm=attention_norm, eps=eps, initial_normalizer=initial_normalizer)
            output, state, normalizer = fast_weight_step(query, key, value, beta, **options)
            return output.to(dtype), state, normalizer
        options.update(output_final_state=output_final_state, document_ids=document_ids)
        if beta is None:
            output, state = kernels.chunk_sum_rule(query, key, value, **options)
        else:
            output, state = kernels.chunk_delta_rule(query, key, value, beta, **options)
        if attention_norm == "none":
            return output.to(dtype), state, None
        # What weights sum to is what the sum rule reads where all values are 1.
        options["initial_state"] = None if initial_normalizer is None else initial_normalizer[..., None]
        ones = torch.ones(*value.shape[:3], 1, dtype=torch.float32, device=value.device)
        total, normalizer = kernels.chunk_sum_rule(query, key, ones, **options)
        return output.to(dtype) / (total + eps), state, None if normalizer is None else normalizer[..., 0]

    query, key = dpfp(query.to(dtype), nu), dpfp(key.to(dtype), nu)
    if key_norm_eps is not None:
        query, key = normalize_features(query, key_norm_eps), normalize_features(key, key_norm_eps)
    return normalized_rule(
        *(query, key, value, beta),
        attention_norm=attention_norm,
        eps=eps,
        initial_state=initial_state,
        initial_normalizer=initial_normalizer,
        output_final_state=output_final_state,
        document_ids=document_ids,
        backend=backend,
    )


def _is_step(*tensors: torch.Tensor | None) -> bool:
    """Whether this is one token, of which nobody asks for gradients."""
    wants_gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return tensors[0].shape[1] == 1 and not wants_gradients


def key_sums(
    key: torch.Tensor,
    initial: torch.Tensor | None,
    document_ids: torch.LongTensor | None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums z before and after each token, `[batch, length, heads, key_dim]`, and the last one."""
    first = key.new_zeros(key.shape[0], *key.shape[2:]) if initial is None else initial
    # The sum rule under a constant key: it knows where documents begin, and never subtracts.
    ones = torch.ones_like(key[..., :1])
    after, last = chunk_sum_rule(
        *(ones, ones, key),
        initial_state=first[:, :, None],
        output_final_state=True,
        document_ids=document_ids,
        backend=backend,
    )
    last = cast(torch.Tensor, last)
    before = torch.cat([first[:, None], after], dim=1)[:, :-1]
    if document_ids is not None:
        goes_on = pad(document_ids[:, 1:] == document_ids[:, :-1], (1, 0), value=True)
        before = before * goes_on[..., None, None]
    return before, after, last[:, :, 0]
