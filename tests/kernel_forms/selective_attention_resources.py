# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Registers, spilled bytes and shared memory of the kernels of selective attention, compiled ahead of time: as JSON.

    python tests/kernel_forms/selective_attention_resources.py

What is compiled is what a forward and a backward pass launch. Needs no GPU, but TRITON_INTERPRET unset, which makes it
a program of its own.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
import triton
from selective_decode_resources import DIVISIBLE, TYPES, resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leanformers.kernels import selective_attention
from leanformers.kernels.selective_votes import Rule

POINTERS = TYPES | {torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1"}
# Options that are on and off together: all kinds of masks, and memory rows.
PLAIN, MASKED = Rule(None, 0.1, 0, 1.0, True, True, None), Rule(100, 0.1, 0, 1.0, True, True, 1.0)


def launches(dtype: torch.dtype, head_dim: int, rule: Rule, has_much_memory: bool) -> list[tuple[Any, dict]]:
    """Every kernel of both passes, with its arguments by name."""
    found: list[tuple[Any, dict]] = []

    def record(kernel, *args, grid, warmup, **options):
        found.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | options))

    triton.JITFunction.run = record
    selective_attention.has_much_shared_memory = lambda device: has_much_memory
    query, key, value = (torch.empty(1, 1024, heads, head_dim, dtype=dtype) for heads in (8, 4, 4))
    one = torch.zeros(1, 1024, dtype=torch.long)
    is_masked = rule.memory_tau is not None
    known = (one.bool(), one.bool(), one, one) if is_masked else (None, one.bool(), None, None)
    attention = selective_attention.Attention(query, key, value, known, rule, None)
    output, votes, memory, normalizer, bases = attention.forward(one.float())
    attention.backward(output, normalizer, bases, output, votes, memory if is_masked else None)
    return found


def compiled(kernel: Any, arguments: dict[str, Any], architecture: int) -> dict[str, int]:
    """As the kernel would be when it is launched with these arguments."""
    arguments = dict(arguments)
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages") if name in arguments}
    signature, values, divisible = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], values[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], divisible[index,] = POINTERS[value.dtype], DIVISIBLE
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if type(value) is int and value % 16 == 0:
                divisible[index,] = DIVISIBLE
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=divisible)
    program = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tile = {"rows": arguments["ROWS"], "columns": arguments.get("COLUMNS")}
    return {"architecture": f"sm_{architecture}", **tile, **options, **resources(program)}


def measured() -> Iterator[tuple[str, dict]]:
    cases = [(torch.bfloat16, dim, PLAIN) for dim in (64, 128, 256)]
    cases = [(architecture, *case) for case in cases for architecture in (90, 80)]
    cases += [(90, torch.bfloat16, 64, MASKED), (86, torch.bfloat16, 64, PLAIN), (90, torch.float32, 64, PLAIN)]
    cases += [(86, torch.float32, 128, PLAIN)]  # takes the most shared memory
    for architecture, dtype, head_dim, rule in cases:
        run = f"sm_{architecture}, {str(dtype)[6:]}, head_dim {head_dim}, {'plain' if rule is PLAIN else 'masked'}"
        for number, (kernel, arguments) in enumerate(launches(dtype, head_dim, rule, architecture != 86)):
            yield f"{run}, launch {number}, {kernel.__name__}", compiled(kernel, arguments, architecture)


if __name__ == "__main__":
    print(json.dumps(dict(measured()), indent=2))
