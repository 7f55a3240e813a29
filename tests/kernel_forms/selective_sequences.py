# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the kernels of selective attention must equal, on the interpreter's CPU as on a GPU."""

import torch
from ops.test_selective_attention import OPTIONS, build, results
from torch import Tensor

from leanformers.modeling.selective_attn.selective_attention import naive_selective_attention, selective_attention
from numerics import assert_at_most_twice


def check_sequence(
    device: str,
    dtype: torch.dtype,
    option: str = "plain",
    length: int = 40,
    past: int = 0,
    block_size: int | None = 16,
    **shape,
) -> dict[str, Tensor]:
    """Outputs, votes, memory rows and all gradients, from the naive form in float64."""
    query, key, value = (tensor.to(device) for tensor in build(length=length, past=past, dtype=dtype, **shape))
    before = torch.rand(2, past, device=device) * 3 if past else None
    options = OPTIONS[option](past + length) if option != "plain" else {}
    options = {name: it.to(device) if isinstance(it, Tensor) else it for name, it in options.items()}
    if "selection_head" in options:
        options["selection_head"] = query.shape[2] - 1
    inputs = (query, key, value)

    exact = [tensor.double() for tensor in inputs]
    right = results(naive_selective_attention, exact, None if before is None else before.double(), **options)
    usual = results(selective_attention, inputs, before, backend="torch", **options)
    found = results(selective_attention, inputs, before, backend="triton", block_size=block_size, **options)
    assert found.keys() == right.keys()
    for name, expected in right.items():
        # Where one key has all the weight, dO . v - D is nothing but rounding, of which torch has less, as it adds up
        # both in one order. Votes carry it to all earlier queries. One that sees itself alone has no gradient at all.
        cancelling = (value.abs().max() * torch.maximum(query.abs().max(), key.abs().max())).item()
        assert_at_most_twice(name, found[name], usual[name], expected, cancelling=cancelling, times=2.0)
    return found
