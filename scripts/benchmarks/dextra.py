# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One DExTra unit by depth: ours, the published design run directly, and one small product per group.

The published design transposes the chunks of its input for the batched product, adds the bias afterwards, shuffles by
transposing and copying, and goes through norm, activation (a sigmoid and a product) and concatenation one after
the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from registry import Case, Settings
from torch import nn
from transformers import AutoConfig

from leanformers.modeling.delight.dextra import DExTra, naive_dextra

DEPTHS = (2, 4, 6, 8, 12)
WIDTH_MULTIPLIER = 2.0
# One step of 32 rows, and their prompts.
TOKENS = (32, 1024)


def direct_silu(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states * torch.sigmoid(hidden_states)


def direct_group_linear(hidden_states: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """`[tokens, in_features]` -> `[tokens, out_features]`."""
    num_tokens, num_groups = len(hidden_states), len(layer.weight)
    chunks = hidden_states.contiguous().view(num_tokens, num_groups, -1).transpose(0, 1)
    outputs = torch.bmm(chunks, layer.weight)
    outputs = torch.add(outputs, layer.bias[:, None]).transpose(0, 1)
    if layer.shuffle:
        outputs = outputs.transpose(1, 2).contiguous().view(num_tokens, num_groups, -1)
    return direct_silu(layer.norm(outputs)).contiguous().view(num_tokens, -1)


def direct_mix(projected: torch.Tensor, hidden_states: torch.Tensor, num_groups: int) -> torch.Tensor:
    if num_groups == 1:
        return torch.cat([projected, hidden_states], dim=-1)
    num_tokens = len(projected)
    chunks = [states.contiguous().view(num_tokens, num_groups, -1) for states in (projected, hidden_states)]
    return torch.cat(chunks, dim=-1).contiguous().view(num_tokens, -1)


def direct_dextra(hidden_states: torch.Tensor, unit: DExTra) -> torch.Tensor:
    """The unit as published, on its own parameters."""
    projected = direct_silu(unit.in_norm(unit.in_proj(hidden_states)))
    hidden_states, layers = projected, list(unit.layers)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        outputs = direct_group_linear(hidden_states, layer)
        hidden_states = direct_mix(projected, outputs, 1 if following is None else following.num_groups)
    return direct_silu(unit.out_norm(unit.out_proj(hidden_states)))


def build(depth: int, settings: Settings) -> DExTra:
    """The unit of a block of that depth."""
    config = AutoConfig.from_pretrained(settings.preset)
    size = config.hidden_size
    unit = DExTra(size, size // 2, size // 2, WIDTH_MULTIPLIER, depth, config.groups(config.max_groups))
    for layer in unit.layers:
        layer.reset_parameters()
    return unit.to(settings.device, getattr(torch, settings.dtype))


def forms(unit: DExTra) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "ours": unit,
        "direct": lambda hidden_states: direct_dextra(hidden_states, unit),
        "per_group": lambda hidden_states: naive_dextra(hidden_states, unit),
    }


def compiled_forms(unit: DExTra) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    compiled = None

    def call(hidden_states: torch.Tensor) -> torch.Tensor:
        nonlocal compiled
        if compiled is None:
            torch.compiler.reset()  # so many units are more than one function may have variants
            compiled = torch.compile(unit, dynamic=False)
        return compiled(hidden_states)

    return {"compiled": call, **forms(unit)}


def forward(form: Callable, hidden_states: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def call() -> None:
        form(hidden_states)

    return call


def forward_and_backward(form: Callable, hidden_states: torch.Tensor) -> Callable[[], None]:
    hidden_states = hidden_states.clone().requires_grad_()
    gradient = torch.randn_like(hidden_states).chunk(2, dim=-1)[0]

    def call() -> None:
        form(hidden_states).backward(gradient)

    return call


def by_depth(settings: Settings, choose: Callable[[DExTra], dict[str, Callable]]) -> list[Case]:
    torch.manual_seed(0)
    found = []
    for depth in DEPTHS:
        unit = build(depth, settings)
        for num_tokens in TOKENS:
            hidden_states = torch.randn(num_tokens, unit.in_proj.in_features).to(unit.in_proj.weight)
            for name, measure in (("forward", forward), ("forward and backward", forward_and_backward)):
                contenders = {form: measure(run, hidden_states) for form, run in choose(unit).items()}
                shapes = {"width": unit.in_proj.in_features, "depth": depth, "tokens": num_tokens}
                case = Case(f"{name}, depth {depth}, {num_tokens} tokens", "tokens/s", shapes, contenders, num_tokens)
                found.append(case)
    return found


def depths(settings: Settings) -> list[Case]:
    """Tokens per second through one unit."""
    return by_depth(settings, forms)


def compiled(settings: Settings) -> list[Case]:
    """The same with the unit under `torch.compile`, which takes its time to begin."""
    return by_depth(settings, compiled_forms)
