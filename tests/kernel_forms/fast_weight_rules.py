# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the kernels of fast weight memories must equal, on the interpreter's CPU as on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leanformers.kernels import delta_rule as kernels
from leanformers.kernels.fast_weight_step import fast_weight_step
from leanformers.modeling.fast_weight import delta_rule as rules
from leanformers.modeling.fast_weight.feature_maps import dpfp, naive_dpfp, normalize_features
from leanformers.modeling.fast_weight.normalized_rules import naive_normalized_rule, normalized_rule
from numerics import assert_at_most_twice

NAIVE = {"delta": rules.naive_delta_rule, "sum": rules.naive_sum_rule}
TORCH = {"delta": rules.chunk_delta_rule, "sum": rules.chunk_sum_rule}
KERNEL = {"delta": kernels.chunk_delta_rule, "sum": kernels.chunk_sum_rule}


def draw(
    rule: str, batch: int, length: int, heads: int, width: int, value_dim: int, unit: bool = True
) -> list[Tensor]:
    """Query, key, value and, for the delta rule, beta. Keys of length 1 replace all of what they had stored."""
    query, key = torch.randn(2, batch, length, heads, width, dtype=torch.float64)
    value = torch.randn(batch, length, heads, value_dim, dtype=torch.float64)
    beta = [torch.rand(batch, length, heads, dtype=torch.float64)] if rule == "delta" else []
    return [query, normalize(key, dim=-1) if unit else key, value, *beta]


def mapped(form: Callable, nu: int, eps: float | None, exact: bool = False) -> Callable:
    """The rule behind DPFP, in float32 at least."""

    def rule(query: Tensor, key: Tensor, *others: Tensor, **options):
        if nu:
            dtype = torch.promote_types(query.dtype, torch.float32)
            query, key = ((naive_dpfp if exact else dpfp)(tensor.to(dtype), nu) for tensor in (query, key))
        if nu and eps is not None:
            query, key = normalize_features(query, eps), normalize_features(key, eps)
        return form(query, key, *others, **options)

    return rule


def one_by_one(form: Callable, steps: list[int]) -> Callable:
    """The rule for sequences side by side, by separate calls."""

    def rule(*tensors: Tensor, initial_state: Tensor | None, output_final_state: bool = True):
        outputs, states = [], []
        for i, (begin, end) in enumerate(zip(steps, steps[1:], strict=False)):
            first = None if initial_state is None else initial_state[i : i + 1]
            inside = [tensor[:, begin:end] for tensor in tensors]
            output, state = form(*inside, initial_state=first, output_final_state=True)
            outputs.append(output)
            states.append(state)
        return torch.cat(outputs, dim=1), torch.cat(states)

    return rule


def results(
    form: Callable, inputs: list[Tensor], state: Tensor | None, wants_state: bool = True, **options
) -> dict[str, Tensor]:
    """
    Output and the gradients of a loss that weighs every entry differently; if wanted, also the final memory, which is
    part of the loss then, and the gradient of the initial one.
    """
    leaves = dict(zip(("query", "key", "value", "beta"), (tensor.clone() for tensor in inputs), strict=False))
    if state is not None and wants_state:
        state = leaves["initial state"] = state.clone()
    for leaf in leaves.values():
        leaf.requires_grad_()
    inputs = list(leaves.values())[: len(inputs)]
    output, final = form(*inputs, initial_state=state, output_final_state=wants_state, **options)
    found = {"output": output} | ({"final state": final} if wants_state else {})
    loss = sum((tensor.double() * weights(tensor)).sum() for tensor in found.values())
    found |= dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return {name: tensor.detach() for name, tensor in found.items()}


def weights(tensor: Tensor) -> Tensor:
    """The same in every precision."""
    steps = torch.linspace(-1, 1, tensor.numel(), dtype=torch.float64, device=tensor.device)
    return (steps * 7).cos().view(tensor.shape).bfloat16().double()


def assert_all_within_twice(
    kernel: dict[str, Tensor], torch_form: dict[str, Tensor], exact: dict[str, Tensor]
) -> None:
    for name, expected in exact.items():
        assert_at_most_twice(name, kernel[name], torch_form[name], expected)


def check_rule(
    device: str,
    dtype: torch.dtype,
    rule: str,
    batch: int = 1,
    length: int = 70,
    heads: int = 1,
    width: int = 20,
    value_dim: int = 17,
    *,
    nu: int = 0,
    eps: float | None = None,
    carried: bool = True,
    share_of_starts: float = 0.0,
    steps: list[int] | None = None,
    wants_state: bool = True,
    chunk_size: int | None = None,
) -> None:
    """Outputs, memories and every gradient of the kernel beside those of torch, from the naive form in float64."""
    length = steps[-1] if steps else length
    inputs = [tensor.to(device, dtype) for tensor in draw(rule, batch, length, heads, width, value_dim, unit=not nu)]
    num_rows, key_dim = len(steps) - 1 if steps else batch, 2 * nu * width if nu else width
    state = torch.randn(num_rows, heads, key_dim, value_dim, device=device) if carried else None
    options, of_kernel = {"wants_state": wants_state}, {"dpfp_nu": nu, "key_norm_eps": eps, "chunk_size": chunk_size}
    if share_of_starts:
        options["document_ids"] = (torch.rand(batch, length) < share_of_starts).long().cumsum(-1).to(device) % 3
    naive, fast = mapped(NAIVE[rule], nu, eps, exact=True), mapped(TORCH[rule], nu, eps)
    if steps:
        naive, fast = one_by_one(naive, steps), one_by_one(fast, steps)
        of_kernel["cu_seqlens"] = torch.tensor(steps, device=device)
    doubled = [tensor.double() for tensor in inputs], None if state is None else state.double()
    assert_all_within_twice(
        results(KERNEL[rule], inputs, state, **options, **of_kernel),
        results(fast, inputs, state, **options),
        results(naive, *doubled, **options),
    )


def check_step(
    device: str,
    dtype: torch.dtype,
    rule: str,
    norm: str,
    *,
    batch: int = 2,
    heads: int = 2,
    width: int = 20,
    value_dim: int = 17,
    nu: int = 0,
    eps: float | None = None,
    carried: bool = True,
) -> None:
    """One token, with both states, from the naive form in float64."""
    query, key, *others = (
        tensor.to(device, dtype) for tensor in draw(rule, batch, 1, heads, width, value_dim, unit=False)
    )
    if not nu:
        query, key = query.abs(), key.abs()
    key_dim = 2 * nu * width if nu else width
    states = {}
    if carried:
        states["initial_state"] = torch.randn(batch, heads, key_dim, value_dim, device=device)
        if norm != "none":
            states["initial_normalizer"] = torch.rand(batch, heads, key_dim, device=device)
            states["initial_normalizer"][0] = 0  # as of a row that is all padding so far

    def named(found) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in zip(("output", "memory", "normalizer"), found, strict=True)
            if tensor is not None
        }

    def form(rule_of_features: Callable, precision: torch.dtype) -> dict[str, Tensor]:
        def with_states(*tensors, **options):
            cast = {name: state.to(precision) for name, state in states.items()}
            return rule_of_features(*tensors, **({"beta": None} if rule == "sum" else {}), **cast, **options)

        moved = [tensor.to(precision) for tensor in (query, key, *others)]
        return named(mapped(with_states, nu, eps)(*moved, attention_norm=norm))

    beta = others[1] if rule == "delta" else None
    kernel = named(
        fast_weight_step(query, key, others[0], beta, attention_norm=norm, **states, dpfp_nu=nu, key_norm_eps=eps)
    )
    torch_form = form(normalized_rule, torch.float32)
    torch_form["output"] = torch_form["output"].to(dtype)
    assert_all_within_twice(kernel, torch_form, form(naive_normalized_rule, torch.float64))
