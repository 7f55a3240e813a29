# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
For how many kinds of arguments each kernel would be compiled, over many lengths of texts and of caches: as JSON.

    python tests/kernel_forms/specializations.py

Triton compiles a kernel anew where an integer is 1, or becomes a multiple of 16 or ceases to be one. Needs no GPU, but
TRITON_INTERPRET unset, which makes it a program of its own.
"""

import json
from collections import defaultdict

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from leanformers.kernels import delta_rule, fast_weight_step, selective_attention, selective_decode, selective_eviction
from leanformers.kernels.selective_votes import Rule

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
found = defaultdict(set)


def record(kernel, *args, grid, warmup, **options) -> None:
    bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
    _, kinds, others = bind(*args, **options)
    found[f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"].add(str((kinds, others)))


def attend(length: int, past: int) -> None:
    query, key = (torch.empty(2, tokens, 4, 64, dtype=torch.bfloat16) for tokens in (length, past + length))
    one = torch.zeros(2, past + length, dtype=torch.long)
    rule = Rule(100, 0.1, 0, 1.0, True, True, 1.0)
    attention = selective_attention.Attention(query, key, key, (one.bool(), one.bool(), one, one), rule, None)
    output, votes, memory, normalizer, bases = attention.forward(one.float())
    attention.backward(output, normalizer, bases, output, votes, memory)


def decode(slots: int) -> None:
    keys = torch.empty(2, 4, slots + 1, 64, dtype=torch.bfloat16)
    known = torch.zeros(2, slots + 1, dtype=torch.long), torch.zeros(2, slots + 1, dtype=torch.bool)
    state = selective_decode.Slots(keys, keys.clone(), torch.zeros(2, slots), *known, torch.zeros(2, dtype=torch.long))
    token = [torch.empty(2, 4, 1, 64, dtype=torch.bfloat16) for _ in range(3)]
    rule = selective_decode.Rule(0.1, 0, 1.0)
    selective_decode.append_and_attend_(token[0].transpose(1, 2), *token[1:], state, None, rule, 2)
    known = [torch.zeros(2, 512 + slots, dtype=torch.bool) for _ in range(3)]
    selective_eviction.prune_(torch.zeros(2, 16, 512), *known, 32)


def update(length: int) -> None:
    query, key, value = torch.zeros(3, 1, length, 2, 64, dtype=torch.bfloat16)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, torch.zeros(1, length, 2))]
    delta_rule.chunk_delta_rule(*inputs, dpfp_nu=1, key_norm_eps=0.0)[0].sum().backward()
    fast_weight_step.fast_weight_step(*(tensor[:, :1].detach() for tensor in inputs))


if __name__ == "__main__":
    triton.JITFunction.run = record
    for number in (65, 80, 97):
        attend(number, 0)
        attend(1, number)
        attend(number, 1)
        decode(number)
        update(number)
    print(json.dumps({name: len(kinds) for name, kinds in found.items()}))
