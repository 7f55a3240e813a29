# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
What can be counted of kernels, and of the need for one, without a GPU:

    python scripts/benchmarks/kernel_counts.py --json scripts/benchmarks/results/kernel_counts.json

- bytes that autograd keeps per token and head between forward and backward of the delta rule behind DPFP, in torch and
  as a kernel (only its launches are left out, which change none of that);
- operations of the kernel's products per token and head, padding included, as if all were in TF32: one in bfloat16, of
  twice the rate, counts half, and one of float32 as the three that "tf32x3" makes of it;
- of one DExTra unit: operations of its products, bytes that the eager form reads and writes in bfloat16, those of them
  outside products, and launches.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

import argparse
import json
from pathlib import Path
from unittest.mock import patch

import torch
import triton.language as tl
from dextra import DEPTHS, build
from registry import Settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder

from leanformers.kernels import delta_rule as kernels
from leanformers.modeling.fast_weight.normalized_rules import dpfp_rule

WIDTH, LENGTH, HEADS = 64, 2048, 2
FEW_TOKENS = 128  # are enough to count products, which the interpreter computes
TOKENS = (32, 1024, 16384)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
PRESET = Path(__file__).parents[2] / "configs" / "model" / "delight" / "wmt14_en_de_640.json"


class Traffic(TorchDispatchMode):
    """Bytes in bfloat16 of what operators read and write, views left out."""

    def __init__(self):
        super().__init__()
        self.launches = self.all_bytes = self.product_bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        if not function.is_view and function.overloadpacket.__name__ not in ("_unsafe_view", "detach"):
            tensors = [leaf for leaf in tree_leaves((arguments, options, output)) if isinstance(leaf, torch.Tensor)]
            moved = sum(tensor.numel() * 2 for tensor in tensors)
            self.launches += 1
            self.all_bytes += moved
            self.product_bytes += moved if function.overloadpacket.__name__ in PRODUCTS else 0
        return output


def kept_bytes(backend: str, nu: int, dtype: torch.dtype) -> float:
    tensors = [torch.randn(1, LENGTH, HEADS, WIDTH, dtype=dtype).requires_grad_() for _ in range(3)]
    tensors.append(torch.rand(1, LENGTH, HEADS).requires_grad_())
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with patch.object(kernels, "launch"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = dpfp_rule(*tensors, nu=nu, key_norm_eps=0.0, backend=backend)  # noqa: F841  (keeps what is saved)
        return sum(storages.values()) / LENGTH / HEADS


def product_operations(width: int, nu: int, dtype: torch.dtype, wants_state: bool) -> dict[str, int]:
    counts = dict.fromkeys(("forward", "backward"), 0.0)
    direction = "forward"
    multiply = InterpreterBuilder.create_dot

    def counted(builder, left, right, sums, precision, *others):
        of_one = 0.5 if left.dtype.scalar == tl.bfloat16 else 3 if precision == ir.INPUT_PRECISION.TF32x3 else 1
        counts[direction] += 2 * left.data.shape[-2] * left.data.shape[-1] * right.data.shape[-1] * of_one
        return multiply(builder, left, right, sums, precision, *others)

    tensors = [torch.randn(1, FEW_TOKENS, 1, width, dtype=dtype).requires_grad_() for _ in range(3)]
    beta = torch.rand(1, FEW_TOKENS, 1, dtype=dtype).requires_grad_()
    state = torch.zeros(1, 1, width * (2 * nu or 1), width, requires_grad=wants_state)
    options = {"dpfp_nu": nu, "key_norm_eps": 0.0, "initial_state": state, "output_final_state": wants_state}
    with patch.object(InterpreterBuilder, "create_dot", counted):
        output, _ = kernels.chunk_delta_rule(*tensors, beta, **options)
        direction = "backward"
        output.sum().backward()
    return {name: round(count / FEW_TOKENS) for name, count in counts.items()}


def dextra_counts(depth: int, num_tokens: int) -> dict[str, int]:
    unit = build(depth, Settings(str(PRESET), "cpu", "float32", 1, 1, 1, 1, 1, 1))
    hidden_states = torch.randn(num_tokens, unit.in_proj.in_features)
    with torch.no_grad(), FlopCounterMode(display=False) as operations, Traffic() as traffic:
        unit(hidden_states)
    return {
        "depth": depth,
        "tokens": num_tokens,
        "operations": operations.get_total_flops(),
        "bytes": traffic.all_bytes,
        "bytes_outside_products": traffic.all_bytes - traffic.product_bytes,
        "launches": traffic.launches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    output = parser.parse_args().json
    kept = [
        {
            "width": WIDTH,
            "nu": nu,
            "dtype": str(dtype).removeprefix("torch."),
            **{backend: kept_bytes(backend, nu, dtype) for backend in ("torch", "triton")},
        }
        for nu in (1, 2, 3)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    operations = [
        {
            "width": width,
            "nu": nu,
            "dtype": str(dtype).removeprefix("torch."),
            "memory_and_its_gradient_wanted": wants_state,
            **product_operations(width, nu, dtype, wants_state),
        }
        for width, nu in ((64, 0), (128, 0), (64, 2))
        for dtype, wants_state in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True))
    ]
    dextra = [dextra_counts(depth, num_tokens) for depth in DEPTHS for num_tokens in TOKENS]
    found = {
        "kept_bytes_per_token_and_head": kept,
        "product_operations_per_token_and_head": operations,
        "dextra": dextra,
    }
    output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
