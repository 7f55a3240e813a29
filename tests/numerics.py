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


def assert_at_most_twice(
    name: str,
    actual: torch.Tensor,
    usual: torch.Tensor,
    exact: torch.Tensor,
    *,
    cancelling: float = 1.0,
    times: float = 1.0,
) -> None:
    """
    Fail unless `actual` strays from `exact` at most twice as far as `usual`, torch's form in the same dtype, does: in
    root mean square and in the worst entry.

    Torch's own error is next to none where few numbers are summed up, while rounding the result alone may cost half a
    unit in the last place, 0.29 in the mean. So there are allowed besides, in units of the largest entry: a quarter in
    the mean and two at worst of float32, in which both forms compute, or at worst half a unit of a shorter dtype.

    Args:
        cancelling (`float`): how large the numbers are that leave nothing, where all of `exact` is 0.
        times (`float`): factor of what is allowed besides in units of float32.
    """
    assert actual.dtype == usual.dtype and actual.shape == exact.shape, f"{name}: {actual.dtype}, {actual.shape}"
    exact = exact.detach().double()
    largest = exact.abs().max().item() or cancelling
    unit, of_dtype = (torch.finfo(dtype).eps * largest for dtype in (torch.float32, actual.dtype))
    errors, allowed = ((tensor.detach().double() - exact).flatten() for tensor in (actual, usual))
    for norm, slack in ((root_mean_square, times * unit / 4), (worst, max(times * unit * 2, of_dtype / 2))):
        error, bound = norm(errors).item(), 2 * norm(allowed).item() + slack
        # Written so that a NaN fails.
        if not error <= bound:
            raise AssertionError(f"{name}: {norm.__name__} of the error is {error:.3g}, allowed is {bound:.3g}")


def root_mean_square(errors: torch.Tensor) -> torch.Tensor:
    return errors.square().mean().sqrt()


def worst(errors: torch.Tensor) -> torch.Tensor:
    return errors.abs().max()
