# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Triton's interpreter multiplies in float32 whatever precision is asked for; this gives it that of tensor cores."""

import numpy as np
import pytest
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def truncated(x: np.ndarray) -> np.ndarray:
    """As tensor cores read float32 for TF32: without its last 13 bits."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest TF32, as the PTX conversion does."""
    return truncated((x.view(np.uint32) + np.uint32(0x1000)).view(np.float32))


def multiply_as_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.data.dtype != np.float32 or input_precision == ir.INPUT_PRECISION.IEEE:
            return exact(self, a, b, d, input_precision, max_num_imprecise_acc)
        left, right = (np.ascontiguousarray(x.data) for x in (a, b))
        if input_precision == ir.INPUT_PRECISION.TF32:
            product = np.matmul(truncated(left), truncated(right))
        else:
            big_left, big_right = rounded(left), rounded(right)
            product = np.matmul(rounded(left - big_left), big_right) + np.matmul(big_left, rounded(right - big_right))
            product = product + np.matmul(big_left, big_right)
        return TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
