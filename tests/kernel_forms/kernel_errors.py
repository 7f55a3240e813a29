# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
How far the kernels and torch stray from the naive forms in float64, by the interpreter with the products of tensor
cores: as JSON.

    TRITON_INTERPRET=1 python tests/kernel_forms/kernel_errors.py > scripts/benchmarks/results/kernel_errors.json

Errors are `[kernel's, torch's]` in root mean square and of the worst entry, in units of float32's last place of the
largest entry. The cases are those of the tests.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel_forms import fast_weight_rules, selective_sequences
from kernel_forms.tensor_cores import multiply_as_tensor_cores
from kernel_forms.test_delta_rule_kernel import OPTIONS, SLOW_OPTIONS
from kernel_forms.test_selective_attention_kernel import DIFFERENT, TINY

from numerics import root_mean_square, worst

EVERY = DIFFERENT + ["plain", "left_padding"]
SEQUENCES = {f"{option}, float32": (torch.float32, option, 20, 9) for option in EVERY}
SEQUENCES |= {
    f"left_padding, {str(dtype)[6:]}": (dtype, "left_padding", 33, 9) for dtype in (torch.bfloat16, torch.float16)
}


def main() -> None:
    found: dict[str, dict] = {}
    case: dict[str, dict] = {}

    def record(name: str, actual: Tensor, usual: Tensor, exact: Tensor, **_) -> None:
        unit = torch.finfo(torch.float32).eps * exact.abs().max()
        errors = [(tensor.double() - exact).flatten() / unit for tensor in (actual, usual)]
        case[name] = {
            norm.__name__: [float(f"{norm(error):.3g}") for error in errors] for norm in (root_mean_square, worst)
        }

    fast_weight_rules.assert_at_most_twice = selective_sequences.assert_at_most_twice = record
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        tqdm(total=len(OPTIONS | SLOW_OPTIONS) + len(SEQUENCES)) as progress,
    ):
        multiply_as_tensor_cores(monkeypatch)
        for name, (rule, dtype, options) in (OPTIONS | SLOW_OPTIONS).items():
            torch.manual_seed(0)
            case = found[f"{rule} rule, {name}, {str(dtype)[6:]}"] = {}
            fast_weight_rules.check_rule("cpu", dtype, rule, **options)
            progress.update()
        for name, (dtype, option, length, past) in SEQUENCES.items():
            torch.manual_seed(0)
            case = found[f"selective attention, {name}"] = {}
            selective_sequences.check_sequence("cpu", dtype, option, length, past, head_dim=16, **TINY)
            progress.update()
    print("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(errors)}" for name, errors in found.items()) + "\n}")


if __name__ == "__main__":
    main()
