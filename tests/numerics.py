# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How close is close enough: the comparisons that the tests make."""

import torch


def assert_close(
    name: str, actual: torch.Tensor, expected: torch.Tensor, *, relative: float = 1e-5, absolute: float = 1e-5
) -> None:
    """Fail unless the error's root mean square is within `relative` of the expected one's, and no entry is off by
    more than `absolute` plus `relative` of the largest entry."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    # Two infinities or two equal entries leave no error, whatever their difference is in floating point.
    actual, expected = actual.detach().double(), expected.detach().double().to(actual.device)
    error = torch.where(actual == expected, 0.0, actual - expected).abs()
    if not error.numel():
        return
    finite = expected[expected.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    scale = finite.square().mean().sqrt().item() if finite.numel() else 0.0
    rms, worst = error.square().mean().sqrt().item(), error.max().item()
    # Written so that a NaN fails.
    if not (rms <= relative * scale + absolute and worst <= absolute + relative * largest):
        raise AssertionError(
            f"{name}: error rms {rms:.3g} (allowed {relative * scale + absolute:.3g}), "
            f"max {worst:.3g} (allowed {absolute + relative * largest:.3g})"
        )


def assert_low_precision_close(
    name: str, fast: torch.Tensor, naive: torch.Tensor, exact: torch.Tensor, *, absolute: float = 1e-5
) -> None:
    """Fail unless `fast` strays from `exact` (the naive form in float32) at most twice as far as `naive` does, which
    is the naive form in the precision of `fast`: the bound scales with the precision instead of being guessed."""
    exact = exact.detach().double()
    worst = (fast.detach().double() - exact).abs().max().item()
    allowed = 2 * (naive.detach().double() - exact).abs().max().item() + absolute
    if not worst <= allowed:
        raise AssertionError(f"{name}: max error {worst:.3g} in {fast.dtype}, allowed {allowed:.3g}")
