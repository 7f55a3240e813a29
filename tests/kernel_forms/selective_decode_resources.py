# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Registers, spilled bytes and shared memory of the kernels of decoding and pruning, compiled ahead of time: as JSON.

    python tests/kernel_forms/selective_decode_resources.py [--rejected]

With --rejected also what takes more than there is, and was given up for that.
Needs no GPU, but TRITON_INTERPRET unset, which makes it a program of its own.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leanformers.kernels import selective_decode, selective_eviction

ARCHITECTURES = (80, 90)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
DIVISIBLE = [["tt.divisibility", 16]]
CACHE = {"positions": "*i64", "is_start": "*i1", "num_real": "*i64", "is_real": "*i1"}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], num_warps: int, num_stages: int) -> dict:
    """What a kernel takes on each architecture; arguments that are named in neither are 32-bit integers or None."""
    signature, values, divisible = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = types.get(name, "constexpr" if name in constants else "i32")
        if signature[name] == "constexpr":
            values[name] = constants[name]
        elif signature[name].startswith("*") or name.endswith(("_batch", "_head", "_slot", "_row")):
            divisible[index,] = DIVISIBLE
    found = {}
    for architecture in ARCHITECTURES:
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=divisible)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        program = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        found[f"sm_{architecture}"] = resources(program)
    return found


def resources(program: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"registers": int(registers), "spilled bytes": int(stack), "shared bytes": program.metadata.shared}


def step(
    dtype: torch.dtype, head_dim: int, group: int, replaces: bool, splits: bool, has_cache: bool = True, **changes
) -> dict:
    """One configuration of `attend_kernel`, with a window and padding where there is a cache, but for `changes`."""
    pointer = TYPES[dtype]
    types = dict.fromkeys(("query", "key", "value", "output"), pointer)
    types |= {"votes": "*fp32", "new_votes": "*fp32", "scale": "fp32", "vote_scale": "fp32"}
    absent = {"new_key", "new_value", "new_num_real", "maxima", "sums", "visible", "votable", *CACHE}
    types |= CACHE if has_cache else {"visible": "*i1", "votable": "*i1"}
    if has_cache:
        types |= {"new_key": pointer, "new_value": pointer} | ({} if replaces else {"new_num_real": "*i64"})
    if splits:
        types |= {"maxima": "*fp32", "sums": "*fp32", "output": "*fp32"}
    constants = selective_decode.constants(dtype, group, head_dim, head_dim, 4096 if replaces else 0)
    constants |= changes
    options = constants.pop("num_warps"), constants.pop("num_stages")
    constants |= {"SELECTION_HEAD": 0, "PROTECT_START": True, "PROTECT_SELF": True, "HAS_WINDOW": has_cache}
    constants |= dict.fromkeys(absent - types.keys())
    return compiled(selective_decode.attend_kernel, types, constants, *options)


def weigh(head_dim: int) -> dict:
    types = {"parts": "*fp32", "maxima": "*fp32", "sums": "*fp32", "output": "*bf16"}
    return compiled(selective_decode.weigh_kernel, types, {"BLOCK": head_dim}, 4, 3)


def walk(num_keys: int, num_warps: int | None = None) -> dict:
    types = {"selection": "*fp32", "held": "*i1", "is_start": "*i1", "is_real": "*i1"}
    constants = {"PROTECT_START": True, "HAS_PADDING": True, "BLOCK": num_keys}
    constants |= dict.fromkeys(("selection_key", "held_key", "start_key", "real_key"), 1)
    num_warps = num_warps or selective_eviction.num_warps(num_keys)
    return {"warps": num_warps} | compiled(selective_eviction.walk_kernel, types, constants, num_warps, 3)


def measured() -> Iterator[tuple[str, dict]]:
    for dtype in (torch.bfloat16, torch.float32):
        for head_dim, group in ((64, 1), (128, 4), (256, 8)):
            described = f"{str(dtype)[6:]}, head_dim {head_dim}, {group} heads share keys"
            yield f"step in a full cache, {described}", step(dtype, head_dim, group, replaces=True, splits=False)
            yield (
                f"step in splits of a growing cache, {described}",
                step(dtype, head_dim, group, replaces=False, splits=True),
            )
    yield "step in a full cache in splits, float16, head_dim 128", step(torch.float16, 128, 4, True, True)
    yield "step with masks, bfloat16, head_dim 128", step(torch.bfloat16, 128, 4, False, False, has_cache=False)
    for head_dim in (64, 256):
        yield f"weighing of splits, head_dim {head_dim}", weigh(head_dim)
    for num_keys in (256, 512, 1024, 4096, 8192, 16384):
        yield f"eviction, {num_keys} keys", walk(num_keys)


def rejected() -> Iterator[tuple[str, dict]]:
    for head_dim, group in ((128, 4), (256, 8)):
        name = f"rejected: step in a full cache, float32, head_dim {head_dim}, 64 slots and 4 warps"
        yield name, step(torch.float32, head_dim, group, True, False, SLOTS=64, num_warps=4)
    yield "rejected: eviction, 8192 keys, 32 for each thread", walk(8192, num_warps=8)
    yield "rejected: eviction, 32768 keys, 32 for each thread", walk(32768, num_warps=32)


if __name__ == "__main__":
    found = dict(measured()) | (dict(rejected()) if "--rejected" in sys.argv else {})
    print(json.dumps(found, indent=2))
