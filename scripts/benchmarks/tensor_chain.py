# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One tensor-chain linear layer, contracted core by core, beside its materialised kernel and a dense layer.

This is what `tc_forward="auto"` decides by: see `THIN_PRODUCT_COST` in modeling/anthe/tensor_chain.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from registry import Case, Settings
from torch import nn

from leanformers.modeling.anthe.tensor_chain import TensorChainLinear, chain_costs, factorize

SIZES = ((256, 682), (512, 512), (512, 1365), (1365, 512))
BONDS = (2, 4, 8)


def build(in_features: int, out_features: int, bond: int, mode: str) -> TensorChainLinear:
    """A chain of two cores with that bond."""
    (first_in, last_in), (first_out, last_out) = factorize(in_features, 2), factorize(out_features, 2)
    # Half a bond more than asked for, as the bond is rounded down from the ratio.
    ratio = (bond + 0.5) * (first_in * first_out + last_in * last_out) / (in_features * out_features)
    layer = TensorChainLinear(in_features, out_features, ratio, mode=mode)
    layer.reset_parameters()
    return layer


def forward_and_backward(layer: nn.Module, settings: Settings, num_tokens: int) -> Callable[[], None]:
    dtype = getattr(torch, settings.dtype)
    layer = layer.to(settings.device, dtype)
    inputs = torch.randn(num_tokens, layer.in_features, device=settings.device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(num_tokens, layer.out_features, device=settings.device, dtype=dtype)
    return lambda: layer(inputs).backward(gradient)


def contraction(settings: Settings) -> list[Case]:
    """Tokens per second through one layer, forward and backward."""
    num_tokens = settings.batch_size * settings.source_length
    torch.manual_seed(0)
    found = []
    for in_features, out_features in SIZES:
        for bond in BONDS:
            layers = {
                "chain": build(in_features, out_features, bond, "chain"),
                "materialized": build(in_features, out_features, bond, "materialize"),
                "dense": nn.Linear(in_features, out_features),
            }
            saved = in_features * out_features / min(chain_costs(layers["chain"].core_shapes))
            shapes = {"in_features": in_features, "out_features": out_features, "bond": bond, "tokens": num_tokens}
            found.append(
                Case(
                    name=f"chain with {saved:.2f} times fewer multiplications",
                    unit="tokens/s",
                    shapes=shapes,
                    contenders={
                        name: forward_and_backward(layer, settings, num_tokens) for name, layer in layers.items()
                    },
                    tokens=num_tokens,
                )
            )
    return found
