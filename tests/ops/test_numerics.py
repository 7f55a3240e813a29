# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The comparisons on which the other tests hang tell right from wrong."""

import pytest
import torch

from numerics import assert_at_most_twice, assert_close, assert_low_precision_close


def test_equal_tensors_are_close():
    values = torch.tensor([0.0, 1.0, -1e9, float("inf"), float("-inf")])
    assert_close("values", values.clone(), values)
    assert_close("nothing", torch.empty(0), torch.empty(0))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1.001])
def test_one_wrong_entry_is_found(wrong):
    expected = torch.ones(1000)
    actual = expected.clone()
    actual[500] = wrong
    with pytest.raises(AssertionError, match="values: error rms"):
        assert_close("values", actual, expected)


def test_nan_is_never_expected():
    with pytest.raises(AssertionError):
        assert_close("values", torch.tensor([float("nan")]), torch.tensor([float("nan")]))


def test_broadcasting_is_not_equality():
    with pytest.raises(AssertionError, match=r"shape \(1,\), expected \(3,\)"):
        assert_close("values", torch.ones(1), torch.ones(3))


def test_low_precision_bound_follows_the_precision():
    exact = torch.linspace(-3, 3, 101)
    naive = exact.bfloat16()
    assert_low_precision_close("values", naive, naive, exact)
    with pytest.raises(AssertionError, match=r"max error .* in torch.bfloat16, allowed"):
        assert_low_precision_close("values", naive + 0.1, naive, exact)


def test_unwritten_memory_is_poisoned_here():
    for tensor in (torch.empty(4), torch.empty_like(torch.ones(4)), torch.ones(1).new_empty(4)):
        assert tensor.isnan().all()
    assert torch.empty(4, dtype=torch.long).dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twice_the_usual_error_is_the_bound(dtype):
    exact = torch.randn(4000, dtype=torch.float64)
    usual = exact.to(dtype)
    error = usual.double() - exact
    assert_at_most_twice("values", (exact + 1.5 * error).to(torch.float32), usual.float(), exact)
    with pytest.raises(AssertionError, match="values: root_mean_square of the error"):
        assert_at_most_twice("values", usual + 8 * torch.finfo(dtype).eps, usual, exact)
    one_off = usual.clone()
    one_off[7] += 16 * torch.finfo(dtype).eps
    with pytest.raises(AssertionError, match="values: worst of the error"):
        assert_at_most_twice("values", one_off, usual, exact)
    with pytest.raises(AssertionError, match="values: torch.float64"):
        assert_at_most_twice("values", exact, usual, exact)


def test_nothing_may_be_left_of_what_cancels():
    exact, usual = torch.zeros(5, dtype=torch.float64), torch.zeros(5)
    assert_at_most_twice("values", usual + 1e-6, usual, exact, cancelling=40.0)
    with pytest.raises(AssertionError):
        assert_at_most_twice("values", usual + 1e-6, usual, exact)
    with pytest.raises(AssertionError):
        assert_at_most_twice("values", usual * float("nan"), usual, exact)
