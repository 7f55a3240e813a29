# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Feature maps: equations, widths, what is drawn, and zeros."""

import math

import pytest
import torch

from leanformers.modeling.fast_weight.feature_maps import (
    FEATURE_MAPS,
    Favor,
    build_feature_map,
    dpfp,
    elu_plus_one,
    favor,
    favor_projection,
    naive_dpfp,
    normalize_features,
)


@pytest.mark.parametrize("nu", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_dpfp_is_its_products(nu, width):
    x = torch.randn(2, 5, width, dtype=torch.float64, requires_grad=True)
    fast, naive = dpfp(x, nu), naive_dpfp(x, nu)
    assert torch.equal(fast, naive) and fast.shape == (2, 5, 2 * nu * width)
    weights = torch.linspace(-1, 1, fast.numel(), dtype=torch.float64).view(fast.shape)
    grads = [torch.autograd.grad((features * weights).sum(), x)[0] for features in (fast, naive)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("nu", [0, -1])
def test_dpfp_needs_a_positive_nu(nu):
    with pytest.raises(ValueError, match=f"at least 1, got {nu}"):
        dpfp(torch.randn(3), nu)


def test_elu_plus_one_is_its_two_branches():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    torch.testing.assert_close(elu_plus_one(x), torch.where(x > 0, x + 1, x.exp()))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_table_tells_the_width(name):
    feature_map, width = build_feature_map(name, 8, nu=2, num_features=5)
    if name == "favor":
        feature_map.reset_parameters()
    features = feature_map(torch.randn(2, 3, 8))
    assert features.shape == (2, 3, width) and (name == "tanh" or (features >= 0).all())


def test_unknown_map_is_named():
    with pytest.raises(ValueError, match="'cosine'.*elu_plus_one, dpfp"):
        build_feature_map("cosine", 8)


@pytest.mark.parametrize(("head_dim", "num_features"), [(8, 8), (8, 20), (8, 5)])
def test_favor_directions_are_orthogonal_in_blocks(head_dim, num_features):
    columns = favor_projection(head_dim, num_features)
    assert columns.shape == (head_dim, num_features)
    for start in range(0, num_features, head_dim):
        block = columns[:, start : start + head_dim]
        product = block.T @ block
        torch.testing.assert_close(product, torch.diag(product.diagonal()), atol=1e-4, rtol=0)
    rows = favor_projection(head_dim, num_features, "rows")
    assert rows.shape == (head_dim, num_features) and rows.is_contiguous()
    if num_features >= head_dim:
        product = rows @ rows.T
        torch.testing.assert_close(product, torch.diag(product.diagonal()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [(8, 0), (8, -1), (0, 8)], ids=str)
@pytest.mark.parametrize("layout", ["columns", "rows"])
def test_favor_needs_positive_sizes(sizes, layout):
    with pytest.raises(ValueError, match="at least 1, got .*(0|-1)"):
        favor_projection(*sizes, layout)


def test_favor_layouts_are_named():
    with pytest.raises(ValueError, match="'columns' or 'rows', got 'row'"):
        favor_projection(8, 8, "row")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_favor_is_drawn_for_models_in_half_precision(dtype):
    torch.set_default_dtype(dtype)
    try:
        feature_map = Favor(8, 12)
        feature_map.reset_parameters()
    finally:
        torch.set_default_dtype(torch.float32)
    assert feature_map.projection.dtype == dtype and feature_map.projection.float().std() > 0.5


def test_favor_approximates_the_exponential():
    torch.manual_seed(0)
    query, key = (torch.randn(50, 8) * 0.3 for _ in range(2))
    estimates = []
    for _ in range(50):
        projection = favor_projection(8, 64)
        estimates.append((favor(query, projection, 0.0) * favor(key, projection, 0.0)).sum(-1))
    torch.testing.assert_close(torch.stack(estimates).mean(0), (query * key).sum(-1).exp(), atol=0.1, rtol=0.05)


def test_favor_is_its_equation():
    x, projection = torch.randn(4, 8, dtype=torch.float64), favor_projection(8, 3).double()
    features = favor(x, projection, 1e-4)
    for i in range(3):
        exponent = x @ projection[:, i] - x.square().sum(-1) / 2
        torch.testing.assert_close(features[:, i], (exponent.exp() + 1e-4) / math.sqrt(6))


def test_redraw_replaces_the_matrix_and_keeps_pending_gradients():
    feature_map = Favor(4, 6)
    feature_map.reset_parameters()
    before, x = feature_map.projection, torch.randn(3, 4, requires_grad=True)
    loss = feature_map(x).sum()
    feature_map.redraw()
    loss.backward()
    assert not torch.equal(before, feature_map.projection) and x.grad.abs().sum() > 0
    assert "projection" in feature_map.state_dict()


@pytest.mark.parametrize("x", [torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3)], ids=["alternating", "zero"])
def test_all_zero_features_stay_zero_without_nan(x):
    x = x.clone().requires_grad_()
    features = normalize_features(dpfp(x, 1))
    features.sum().backward()
    assert not features.any() and x.grad.isfinite().all()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_normalized_features_sum_to_one(eps):
    features = torch.rand(5, 7, dtype=torch.float64)
    expected = features / (features.sum(-1, keepdim=True) + eps)
    torch.testing.assert_close(normalize_features(features, eps), expected)
