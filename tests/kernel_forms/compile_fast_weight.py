# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Compile the kernels of fast weight memories for a GPU that need not be there, and write what each one takes.

    python compile_fast_weight.py ARCH REPORT.json '[["bfloat16", 64, 64, 2], ...]'

The list has dtype, width of queries and keys, that of values, and nu of DPFP (0: queries and keys as they are). Apart
from the tests, as the interpreter that they run under replaces the compiler.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leanformers.kernels import delta_rule, fast_weight_step

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


def compiled(kernel, arguments: tuple, constants: dict, arch: int):
    """As a launch with these arguments would have it."""
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    signature, known, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        argument = arguments[i] if i < len(arguments) else None
        if isinstance(argument, torch.Tensor):
            signature[name], attributes[(i,)] = POINTERS[argument.dtype], [["tt.divisibility", 16]]
        elif argument is None:
            signature[name], known[(i,)] = "constexpr", constants.get(name)
        else:
            signature[name] = "fp32" if isinstance(argument, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes per thread that are spilled."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(found[1]), "spilled": int(found[2])}


def main(arch: str, report: str, cases: str) -> None:
    rows = []
    case = None

    def compile_only(kernel, grid, *arguments, **constants) -> None:
        sizes = {name: constants.get(name) for name in ("MEMORY", "C", "BK", "BV", "num_warps")}
        built = compiled(kernel, arguments, dict(constants), int(arch))
        taken = {"shared": built.metadata.shared, **usage(built.asm["cubin"])}
        rows.append({"case": case, "kernel": kernel.fn.__name__, **sizes, **taken})
        print(rows[-1], flush=True)

    delta_rule.launch = fast_weight_step.launch = compile_only
    for case in json.loads(cases):
        dtype, width, value_dim, nu = getattr(torch, case[0]), *case[1:]
        tokens = (1, 128, 2)
        query, key = torch.zeros(2, *tokens, width, dtype=dtype)
        value, beta = torch.zeros(*tokens, value_dim, dtype=dtype), torch.zeros(*tokens)
        inputs = [tensor.requires_grad_() for tensor in (query, key, value, beta)]
        options = {"dpfp_nu": nu, "key_norm_eps": 0.0}
        memory = torch.zeros(1, 2, width * (2 * nu or 1), value_dim)
        for states in ({}, {"initial_state": memory.clone().requires_grad_(), "output_final_state": True}):
            output, _ = delta_rule.chunk_delta_rule(*inputs, **options, **states)
            output.sum().backward()
        first = [tensor.detach()[:, :1] for tensor in inputs]
        for states in ({}, {"initial_state": memory, "initial_normalizer": memory[..., 0]}):
            fast_weight_step.fast_weight_step(*first, attention_norm="full", **options, **states)
    Path(report).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
