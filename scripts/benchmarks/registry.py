# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks by name. A benchmark is a function from `Settings` to its cases, in a module beside this one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

BENCHMARKS = {
    "anthe_training": "anthe:training",
    "anthe_generation": "anthe:generation",
    "anthe_memory": "anthe:memory",
    "anthe_tensor_chain": "tensor_chain:contraction",
    "delight_training": "delight:training",
    "delight_generation": "delight:generation",
    "delight_memory": "delight:memory",
    "delight_dextra": "dextra:depths",
    "delight_dextra_compiled": "dextra:compiled",
    "delight_lm_training": "language_models:training",
    "fast_weight_delta_rule": "delta_rule:lengths",
    "fast_weight_training": "fast_weight:training",
    "fast_weight_prefill": "fast_weight:prefill",
    "fast_weight_decoding": "fast_weight:decoding",
    "fast_weight_memory": "fast_weight:memory",
    "fast_weight_kernel": "gpu_kernels:delta_rule",
    "fast_weight_kernel_dpfp": "gpu_kernels:dpfp",
    "fast_weight_lm_training": "language_models:training",
    "selective_attn_operator": "selective_attn:operator",
    "selective_attn_training": "selective_attn:training",
    "selective_attn_prefill": "selective_attn:prefill",
    "selective_attn_decoding": "selective_attn:decoding",
    "selective_attn_generation": "selective_attn:generation",
    "selective_attn_kernel": "gpu_kernels:selective_attention",
    "selective_attn_lm_training": "language_models:training",
    "selective_attn_lm_decoding": "language_models:decoding",
}
# What is measured of a family, or in one benchmark, unless --preset says otherwise; with --quick the second.
PRESETS = {
    "anthe": ("anthe_base",),
    "delight": ("wmt14_en_de_640", "wmt14_en_de_512"),
    "delight_lm_training": ("lm_100m",),
    "fast_weight": ("small",),
    "selective_attn": ("small",),
}
QUICK_PRESETS = {"delight_lm_training": "lm_tiny"}
# All that needs a GPU, the most important first: benchmark, preset, dtype.
SUITES = {
    "gpu": (
        ("selective_attn_kernel", None, "bfloat16"),
        ("fast_weight_kernel", None, "bfloat16"),
        ("fast_weight_kernel_dpfp", None, "bfloat16"),
        ("fast_weight_kernel_dpfp", None, "float32"),
        ("selective_attn_lm_training", "100m", "bfloat16"),
        ("fast_weight_lm_training", "100m", "bfloat16"),
        ("selective_attn_lm_decoding", "100m", "bfloat16"),
        ("delight_lm_training", "lm_100m", "bfloat16"),
        ("delight_dextra_compiled", "wmt14_en_de_640", "bfloat16"),
    ),
}


@dataclass(frozen=True)
class Settings:
    """What the command line decides for every benchmark."""

    preset: str
    device: str
    dtype: str
    threads: int | None
    batch_size: int
    source_length: int
    target_length: int
    new_tokens: int
    longest: int


@dataclass(frozen=True)
class Case:
    """One quantity measured for several contenders under equal conditions; the first contender is ours.

    Args:
        contenders: zero-argument callables. With `tokens` they are timed; without, a call returns the measured value
            in `unit` and the lower value is the better one.
        tokens: what one call gets done, for tokens per second.
        models: what each contender is, for the record.
        most_repeats: a limit for measurements that hardly vary and cost a process each.
        errors: computes the errors of those contenders that are forms of one operator.
    """

    name: str
    unit: str
    shapes: dict[str, int]
    contenders: dict[str, Callable[[], float | None]]
    tokens: int | None = None
    models: dict[str, dict] = field(default_factory=dict)
    most_repeats: int | None = None
    errors: Callable[[], dict[str, dict[str, float]]] | None = None


def family_of(name: str) -> str:
    """The family that a benchmark measures, which its name begins with."""
    return next(family for family in PRESETS if name.startswith(f"{family}_"))


def presets_of(name: str, quick: bool) -> tuple[str, ...]:
    """Names of the presets that a benchmark measures by default."""
    if quick:
        return (QUICK_PRESETS.get(name, "tiny"),)
    return PRESETS.get(name) or PRESETS[family_of(name)]


def cases(name: str, settings: Settings) -> Iterable[Case]:
    """Builds the cases of one benchmark, maybe one by one."""
    module, _, function = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(module), function)(settings)
