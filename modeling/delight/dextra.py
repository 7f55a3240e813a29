# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
DExTra, the deep and light transformation of DeLighT (arXiv 2008.00623, section 3.1), and block-wise scaling (3.3).

A unit projects its input to a vector `x0`, sends that through N group linear transforms (GLTs) that first widen and
then narrow, and projects the result. After each GLT, `x0` is mixed in again, group by group:

    x0      = act(LN(W_in x + b))
    y_l     = GLT_l(h_l),    h_1 = x0,    h_{l+1} = [x0 chunk 1, y_l chunk 1, x0 chunk 2, y_l chunk 2, ...]
    output  = act(LN(W_out [x0, y_N] + b))

A GLT with g groups multiplies g chunks of its input with g small matrices, interleaves the results (feature shuffle),
and normalises each chunk of what comes out, with one gain and bias for all chunks. `naive_dextra` is this, line by
line. The paper's own description differs in several points from the code behind its published parameter counts; here
the code is followed (see README.md).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_delight import DeLighTConfig

# From here on it pays to write gradients of group linear transforms in the order in which they are read.
MANY_TOKENS = 64
SILU = type(ACT2FN["silu"])


class GroupLinearShape(NamedTuple):
    in_features: int
    out_features: int
    num_groups: int


def interpolate(start: float, stop: float, num: int) -> list[float]:
    """`num` equidistant values in double precision, both ends included; only `start` if `num` is 1."""
    step = (stop - start) / max(num - 1, 1)
    return [start + i * step for i in range(num - 1)] + ([stop] if num > 1 else [start])


def blockwise_depths(num_blocks: int, min_depth: int, max_depth: int) -> list[int]:
    """Number of GLTs of each block, truncated from the line between `min_depth` and `max_depth` (equation 4)."""
    return [int(depth) for depth in interpolate(min_depth, max_depth, num_blocks)]


def blockwise_widths(num_blocks: int, width_multiplier: float, min_depth: int, max_depth: int) -> list[float]:
    """Width multiplier of each block, rounded to three decimals (equation 4)."""
    widest = width_multiplier + max_depth / min_depth - 1
    return [round(width, 3) for width in interpolate(width_multiplier, widest, num_blocks)]


def dextra_shapes(
    in_features: int,
    projected_features: int,
    out_features: int,
    width_multiplier: float,
    depth: int,
    max_groups: int,
    layout: str = "dextra",
) -> list[GroupLinearShape]:
    """
    The GLTs of a unit. "dextra" widens to `in_features * width_multiplier` and narrows again, with 2, 4, ... groups up
    to `max_groups` and back; "define" only widens, with groups counted down from a cycle of 1, 2, ..., `max_groups`.

    Raises:
        `ValueError`: if `depth` is below 2 or a width does not divide into its groups.
    """
    if depth < 2:
        raise ValueError(f"The depth of a DExTra unit must be at least 2, got {depth}.")
    if in_features % 2 or in_features % max_groups:
        raise ValueError(
            f"The input width of a DExTra unit ({in_features}) must be even and a multiple of its max_groups "
            f"({max_groups})."
        )
    widest = in_features * width_multiplier
    if layout == "define":
        cycle = max_groups.bit_length()
        groups = [2 ** (i % cycle) for i in range(depth)][::-1]
        widths = [int(width) for width in interpolate(projected_features, widest, depth)][1:]
    else:
        half = (depth + 1) // 2
        rising = [min(2 ** (i + 1), max_groups) for i in range(half)]
        groups = rising + rising[::-1][depth % 2 :]
        widening = [int(width) for width in interpolate(projected_features, widest, half)]
        widths = (widening + widening[::-1][depth % 2 :])[:-1]

    # Each width is rounded up so that this layer's groups and the next one's divide it.
    quanta = [max(groups[i], groups[i + 1], 8) for i in range(depth - 1)]
    outs = [math.ceil(width / quantum) * quantum for width, quantum in zip(widths, quanta, strict=True)]
    ins = [projected_features] + [out + projected_features for out in outs]
    shapes = [GroupLinearShape(*shape) for shape in zip(ins, [*outs, out_features], groups, strict=True)]
    for shape in shapes:
        if shape.in_features % shape.num_groups or shape.out_features % shape.num_groups:
            raise ValueError(
                f"A group linear transform of {shape.in_features} to {shape.out_features} features cannot have "
                f"{shape.num_groups} groups, which must divide both widths: change max_groups or the hidden size."
            )
    return shapes


def feature_shuffle(hidden_states: torch.Tensor) -> torch.Tensor:
    """`[..., num_groups, n]`: element i of group k moves to place `i * num_groups + k` of the flat features."""
    return hidden_states.transpose(-1, -2).reshape(hidden_states.shape)


def naive_group_linear(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shuffle: bool = True
) -> torch.Tensor:
    """
    A group linear transform without its norm and activation, one group after the other.

    Args:
        hidden_states (`torch.Tensor`): `[..., in_features]`.
        weight (`torch.Tensor`): `[num_groups, in_features / num_groups, out_features / num_groups]`.
        bias (`torch.Tensor`): `[num_groups, out_features / num_groups]`.
        shuffle (`bool`): interleave the groups' outputs.

    Returns:
        `torch.Tensor`: `[..., num_groups, out_features / num_groups]`, the chunks that are normalised.
    """
    groups = []
    for chunk, matrix, offset in zip(hidden_states.chunk(len(weight), dim=-1), weight, bias, strict=True):
        groups.append(chunk @ matrix + offset)
    outputs = torch.stack(groups, dim=-2)
    return feature_shuffle(outputs) if shuffle else outputs


class PermutedSum(torch.autograd.Function):
    """
    `(inputs + bias).permute(dims)` of 3-D tensors, in one pass and contiguous, and so is its gradient: as a view it
    would be copied by both products of `group_linear`'s backward pass.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, bias: torch.Tensor, dims: tuple[int, int, int]) -> torch.Tensor:
        ctx.inverse = tuple(dims.index(axis) for axis in range(3))
        permuted = inputs.permute(dims)
        return torch.add(permuted, bias.to(inputs.dtype).permute(dims), out=inputs.new_empty(permuted.shape))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_bias = gradient.sum(dim=0, keepdim=True).permute(ctx.inverse)  # tokens come first after `dims`
        return gradient.permute(ctx.inverse).contiguous(), of_bias, None


def group_linear(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shuffle: bool = True
) -> torch.Tensor:
    """`naive_group_linear` as one batched product that reads the groups through strides; the shuffle is one copy."""
    batch, (num_groups, group_in, group_out) = hidden_states.shape[:-1], weight.shape
    chunks = hidden_states.reshape(-1, num_groups, group_in).transpose(0, 1)
    bias = bias.unsqueeze(1)
    dims = (1, 2, 0) if shuffle else (1, 0, 2)
    # A compiler fuses the plain form.
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and chunks.shape[1] >= MANY_TOKENS:
        outputs = PermutedSum.apply(torch.bmm(chunks, weight), bias, dims)
    else:
        outputs = torch.baddbmm(bias, chunks, weight).permute(dims)  # from [num_groups, tokens, group_out]
    return outputs.reshape(*batch, num_groups, group_out)


def activate(activation: nn.Module, fresh: torch.Tensor) -> torch.Tensor:
    """`activation(fresh)`; without gradients SiLU overwrites `fresh`, which nothing else may need."""
    if isinstance(activation, SILU) and not torch.is_grad_enabled():
        return nn.functional.silu(fresh, inplace=True)
    return activation(fresh)


def mix(projected: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
    """`[tokens, x]` and `[tokens, num_groups, n]` -> `[tokens, x + num_groups * n]`: a chunk of `x0` before each."""
    num_tokens, num_groups, size = chunks.shape
    x0_size = projected.shape[1] // num_groups
    mixed = torch.cat([projected.view(num_tokens, num_groups, x0_size), chunks], dim=2)
    return mixed.view(num_tokens, num_groups * (x0_size + size))


class GroupLinear(nn.Module):
    """
    A group linear transform with its norm and activation: `[tokens, in_features]` -> `[tokens, out_chunks, n]`, whose
    chunks side by side are the `out_features`.

    Args:
        shape (`GroupLinearShape`): widths and number of groups.
        out_chunks (`int`): how many chunks the next layer reads, or 1.
        shuffle (`bool`): interleave the groups' outputs. One group has nothing to interleave.
        activation (`str`): name of the activation.
        layer_norm_eps (`float`): epsilon of the norm.
        dropout (`float`): dropout of the output.
    """

    def __init__(
        self,
        shape: GroupLinearShape,
        out_chunks: int,
        shuffle: bool,
        activation: str,
        layer_norm_eps: float,
        dropout: float,
    ):
        super().__init__()
        self.in_features, self.out_features, self.num_groups = shape
        self.out_chunks = out_chunks
        group_in, group_out = self.in_features // self.num_groups, self.out_features // self.num_groups
        self.weight = nn.Parameter(torch.empty(self.num_groups, group_in, group_out))
        self.bias = nn.Parameter(torch.empty(self.num_groups, group_out))
        self.norm = nn.LayerNorm(group_out, eps=layer_norm_eps)
        self.shuffle = shuffle and self.num_groups > 1
        self.activation = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, num_groups={self.num_groups}, shuffle={self.shuffle}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Glorot over the whole 3-D tensor, as the original has it: far below Glorot per group, but a norm follows."""
        num_groups, group_in, group_out = self.weight.shape
        fan_in, fan_out = group_in * group_out, num_groups * group_out
        if num_groups == 1:
            fan_in, fan_out = group_in, group_out
        bound = math.sqrt(6 / (fan_in + fan_out))
        init.uniform_(self.weight, -bound, bound)
        init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        outputs = self.norm(group_linear(hidden_states, self.weight, self.bias, self.shuffle))
        # Cut for the next layer before the activation: its gradient then comes as one piece, and is not copied.
        size = self.out_features // self.out_chunks
        outputs = activate(self.activation, outputs.view(outputs.shape[0], self.out_chunks, size))
        return self.dropout(outputs) if self.training else outputs


class DExTra(nn.Module):
    """
    The DExTra unit: `[..., in_features]` -> `[..., out_features]`, token by token.

    Args:
        in_features, projected_features, out_features (`int`): widths of the input, of `x0`, and of the output.
        width_multiplier (`float`): the widest GLT has `in_features * width_multiplier` features, rounded up.
        depth (`int`): number of GLTs, at least 2.
        max_groups (`int`): most groups of a GLT, a power of two.
        layout (`str`): `"dextra"` or `"define"`, see `dextra_shapes`. The latter never shuffles.
        shuffle, activation, layer_norm_eps, dropout: see `GroupLinear`.
    """

    def __init__(
        self,
        in_features: int,
        projected_features: int,
        out_features: int,
        width_multiplier: float,
        depth: int,
        max_groups: int,
        layout: str = "dextra",
        shuffle: bool = True,
        activation: str = "silu",
        layer_norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ):
        super().__init__()
        shapes = dextra_shapes(
            in_features, projected_features, out_features, width_multiplier, depth, max_groups, layout
        )
        shuffle = shuffle and layout == "dextra"
        self.in_proj = nn.Linear(in_features, projected_features)
        self.in_norm = nn.LayerNorm(projected_features, eps=layer_norm_eps)
        out_chunks = [shape.num_groups for shape in shapes[1:]] + [1]
        self.layers = nn.ModuleList(
            [
                GroupLinear(shape, chunks, shuffle, activation, layer_norm_eps, dropout)
                for shape, chunks in zip(shapes, out_chunks, strict=True)
            ]
        )
        self.out_proj = nn.Linear(out_features + projected_features, out_features)
        self.out_norm = nn.LayerNorm(out_features, eps=layer_norm_eps)
        self.activation = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch = hidden_states.shape[:-1]
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        projected = self._activated(self.in_norm(self.in_proj(hidden_states)))
        hidden_states = projected
        for layer in self.layers:
            hidden_states = mix(projected, layer(hidden_states))
        outputs = self._activated(self.out_norm(self.out_proj(hidden_states)))
        return outputs.view(*batch, outputs.shape[-1])

    def _activated(self, fresh: torch.Tensor) -> torch.Tensor:
        outputs = activate(self.activation, fresh)
        return self.dropout(outputs) if self.training else outputs


def build_unit(
    config: DeLighTConfig,
    in_features: int,
    out_features: int,
    width_multiplier: float,
    depth: int,
    max_groups: int | None,
) -> DExTra:
    """A DExTra unit with the settings that all those of a model share."""
    return DExTra(
        in_features,
        config.hidden_size // 2,
        out_features,
        width_multiplier,
        depth,
        config.groups(max_groups),
        layout=config.dextra_layout,
        shuffle=config.feature_shuffle,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        dropout=config.dextra_dropout,
    )


def naive_layer_norm(hidden_states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last axis."""
    centered = hidden_states - hidden_states.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def naive_dextra(hidden_states: torch.Tensor, unit: DExTra) -> torch.Tensor:
    """`unit(hidden_states)` in evaluation, line by line."""
    activation: Callable = unit.activation
    projected = hidden_states @ unit.in_proj.weight.T + unit.in_proj.bias
    projected = activation(naive_layer_norm(projected, unit.in_norm))
    hidden_states = projected
    for layer in unit.layers:
        outputs = naive_group_linear(hidden_states, layer.weight, layer.bias, layer.shuffle)
        outputs = activation(naive_layer_norm(outputs, layer.norm)).flatten(-2)
        chunks = []
        for x0_chunk, chunk in zip(
            projected.chunk(layer.out_chunks, -1), outputs.chunk(layer.out_chunks, -1), strict=True
        ):
            chunks += [x0_chunk, chunk]
        hidden_states = torch.cat(chunks, dim=-1)
    outputs = hidden_states @ unit.out_proj.weight.T + unit.out_proj.bias
    return activation(naive_layer_norm(outputs, unit.out_norm))
