# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Feature maps of linear attention: what makes keys and queries of a softmax-free memory (arXiv 2102.11174, section 5).

A map takes `[..., d]` and gives `[..., p]`, the width `p` of the memory's keys. The paper's own, DPFP, has no random
numbers and gives `2 * nu * d` features, most of them zero, so that more keys fit side by side into one memory.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import initialization as init


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    """`elu(x) + 1`, positive everywhere (arXiv 2006.16236, equation 7)."""
    return nn.functional.elu(x) + 1


def naive_dpfp(x: torch.Tensor, nu: int) -> torch.Tensor:
    """Deterministic parameter-free projection, product by product: `r = [relu(x), relu(-x)]`, `r[i] * r[i - j]`."""
    r = torch.cat([x.relu(), (-x).relu()], dim=-1)
    width = r.shape[-1]
    features = [r[..., i] * r[..., (i - j) % width] for j in range(1, nu + 1) for i in range(width)]
    return torch.stack(features, dim=-1)


def dpfp(x: torch.Tensor, nu: int) -> torch.Tensor:
    """
    DPFP-nu (section 5.3): `[..., d]` -> `[..., 2 * nu * d]`, block j the products of `[relu(x), relu(-x)]` with itself
    moved by j. The paper moves the other way, which orders the same products differently; here as in its code.

    Raises:
        `ValueError`: if `nu` is below 1.
    """
    if nu < 1:
        raise ValueError(f"DPFP needs a `nu` of at least 1, got {nu}.")
    r = torch.cat([x.relu(), (-x).relu()], dim=-1)
    return torch.cat([r * r.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)


def favor_projection(head_dim: int, num_features: int, layout: str = "columns") -> torch.Tensor:
    """
    The random matrix of FAVOR+, `[head_dim, num_features]`, fresh at each call, float32.

    Args:
        head_dim (`int`): width `d` of keys and queries.
        num_features (`int`): `m`; the map has twice as many features.
        layout (`str`): `"columns"` draws orthogonal directions of width d, as long as Gaussian ones
            (arXiv 2009.14794, section 2.4). `"rows"` is what the original language models use: that function called
            with its arguments exchanged, so that the rows are orthogonal.

    Raises:
        `ValueError`: if a size is below 1, or there is no such layout.
    """
    if head_dim < 1 or num_features < 1:
        raise ValueError(f"FAVOR+ needs a width and features of at least 1, got {head_dim} and {num_features}.")
    if layout not in ("columns", "rows"):
        raise ValueError(f"The layout of FAVOR+ must be 'columns' or 'rows', got {layout!r}.")
    if layout == "rows":
        return favor_projection(num_features, head_dim).T.contiguous()
    blocks = []
    for start in range(0, num_features, head_dim):
        # Not in the default dtype, which is that of a model being built: QR knows no half precision.
        directions = torch.linalg.qr(torch.randn(head_dim, head_dim, dtype=torch.float32)).Q
        lengths = torch.randn(head_dim, head_dim, dtype=torch.float32).norm(dim=0)
        blocks.append((directions * lengths)[:, : num_features - start])
    return torch.cat(blocks, dim=-1)


def favor(x: torch.Tensor, projection: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """
    FAVOR+ (arXiv 2009.14794, equation 8): `[..., d]` -> `[..., 2m]`, positive, for `exp(q . k)`.

    Args:
        x (`torch.Tensor`): keys or queries.
        projection (`torch.Tensor`): `[d, m]`.
        eps (`float`): is added to each exponential.
    """
    projected = x @ projection.to(x.dtype)
    offset = x.square().sum(dim=-1, keepdim=True) / 2
    features = torch.cat([projected - offset, -projected - offset], dim=-1).exp()
    return (features + eps) / math.sqrt(features.shape[-1])


class Favor(nn.Module):
    """
    FAVOR+ with its random matrix, a persistent buffer: a saved model has the features it was trained with.

    Args:
        head_dim, num_features, layout: see `favor_projection`.
        eps (`float`): see `favor`.
    """

    projection: torch.Tensor

    def __init__(self, head_dim: int, num_features: int, layout: str = "columns", eps: float = 1e-4):
        super().__init__()
        self.head_dim, self.num_features, self.layout, self.eps = head_dim, num_features, layout, eps
        self.register_buffer("projection", torch.empty(head_dim, num_features))

    def extra_repr(self) -> str:
        return f"{self.head_dim}, {self.num_features}, layout={self.layout!r}, eps={self.eps}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.copy_(self.projection, self._draw())

    @torch.no_grad()
    def redraw(self) -> None:
        """A new matrix in place of the old one, which a pending backward pass still needs as it is."""
        self.projection = self._draw().to(self.projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return favor(x, self.projection, self.eps)

    def _draw(self) -> torch.Tensor:
        return favor_projection(self.head_dim, self.num_features, self.layout)


class FeatureMap(nn.Module):
    """A feature map without weights."""

    def __init__(self, name: str, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


FEATURE_MAPS: dict[str, Callable] = {
    "elu_plus_one": elu_plus_one,
    "dpfp": dpfp,
    "favor": favor,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def build_feature_map(
    name: str, head_dim: int, nu: int = 1, num_features: int = 16, layout: str = "columns", eps: float = 1e-4
) -> tuple[nn.Module, int]:
    """
    The feature map of that name and the number of its features.

    Args:
        name (`str`): a key of `FEATURE_MAPS`.
        head_dim (`int`): width of what it is given.
        nu (`int`): of DPFP.
        num_features, layout, eps: of FAVOR+, see `Favor`.

    Raises:
        `ValueError`: if there is no such map.
    """
    if name == "favor":
        return Favor(head_dim, num_features, layout, eps), 2 * num_features
    if name == "dpfp":
        return FeatureMap(f"dpfp, nu={nu}", partial(dpfp, nu=nu)), 2 * nu * head_dim
    if name not in FEATURE_MAPS:
        raise ValueError(f"Unknown feature map {name!r}. There are: {', '.join(FEATURE_MAPS)}.")
    return FeatureMap(name, FEATURE_MAPS[name]), head_dim


def normalize_features(features: torch.Tensor, eps: float = 0.0) -> torch.Tensor:
    """Features divided by their sum + `eps`, so that a key's weights sum to 1 (section 4.2). Zeros stay zeros."""
    total = features.sum(dim=-1, keepdim=True)
    return features / torch.where(total == 0, 1.0, total + eps)
