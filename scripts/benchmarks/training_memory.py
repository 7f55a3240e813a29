# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Memory of training: estimates of `leanformers.accounting.training_memory`, checked, and as the tables of
docs/scaling.md.

    python scripts/benchmarks/training_memory.py --check --json scripts/benchmarks/results/scaling_memory_cpu.json
    python scripts/benchmarks/training_memory.py --tables

A check trains a new model for two steps in a process of its own, and compares the peak of its resident memory with the
estimate; what the process held before it made the model does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from peak_memory import added_memory, in_subprocess
from tqdm import tqdm
from transformers import AutoConfig, set_seed

import leanformers  # noqa: F401  registers the families
from leanformers.accounting import cache_bytes, count_parameters, training_memory
from leanformers.registry import language_model_class

CONFIGS = Path(__file__).resolve().parents[2] / "configs/model"
RESULTS = Path(__file__).with_name("results") / "scaling_memory_cpu.json"
# Rows of a step, and tokens of a source and a target, or of a text.
CHECKED = {
    "anthe/small": (32, 64, 64),
    "anthe/anthe_base": (8, 64, 64),
    "delight/small": (32, 64, 64),
    "delight/lm_small": (8, 256),
    "fast_weight/small": (8, 256),
    "selective_attn/small": (8, 256),
}
TABLED = {
    "anthe/anthe_base": (1, 128, 128),
    "delight/wmt14_en_de_640": (1, 128, 128),
    "delight/lm_100m": (1, 512),
    "fast_weight/100m": (1, 512),
    "selective_attn/100m": (1, 512),
}
MIB = 2**20


def build(preset: str):
    set_seed(0)
    config = AutoConfig.from_pretrained(CONFIGS / f"{preset}.json")
    return getattr(transformers, language_model_class(config)).from_config(config)


def train(preset: str, batch_size: int, *lengths: int) -> None:
    """Two steps: the second one has the optimizer's states when its backward pass begins."""
    model = build(preset).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    names = ("input_ids", "decoder_input_ids")[: len(lengths)]
    for _ in range(2):
        inputs = {
            name: torch.randint(4, model.config.vocab_size, (batch_size, length))
            for name, length in zip(names, lengths, strict=True)
        }
        model(**inputs, labels=inputs[names[-1]], use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def check() -> dict:
    # Memory that is given back is given back to the system, so that the peak is of what is held.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    cases = []
    for preset, (batch_size, *lengths) in tqdm(CHECKED.items(), desc="checking"):
        model = build(preset)
        table = training_memory(model, *lengths, batch_size=batch_size)
        measured = in_subprocess(__file__, preset=preset, sizes=[batch_size, *lengths])
        case = {
            "preset": preset,
            "batch_size": batch_size,
            "lengths": lengths,
            "parameters": count_parameters(model),
            "estimated_mib": {name: round(amount / MIB, 2) for name, amount in table.rows.items()},
            "estimated_total_mib": round(table.total / MIB, 2),
            "measured_peak_mib": round(measured, 2),
            "error_percent": round(100 * (table.total / MIB / measured - 1), 1),
        }
        tqdm.write(f"{preset}: {case['estimated_total_mib']} MiB, measured {case['measured_peak_mib']} MiB")
        cases.append(case)
    return {
        "device": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        "what": "peak of resident memory over two steps of AdamW in float32",
        "cases": cases,
    }


def tables() -> str:
    """Markdown: what does not depend on the batch, what a row of it adds, and the cache."""
    lines = ["| preset | parameters | one GPU or DDP | ZeRO-2, 8 GPUs | FSDP2, 8 GPUs | a row adds |"]
    lines.append("|---|---|---|---|---|---|")
    for preset, (_, *lengths) in tqdm(TABLED.items(), desc="counting"):
        model = build(preset)
        fixed = []
        for sharding, num_processes in (("ddp", 1), ("zero2", 8), ("fsdp2", 8)):
            table = training_memory(
                model, *lengths, dtype=torch.bfloat16, sharding=sharding, num_processes=num_processes
            )
            of_row = table.rows["kept for the backward pass"] + table.rows["gradients of the logits"]
            fixed.append(f"{(table.total - of_row) / MIB:,.0f} MiB")
        tokens = " + ".join(map(str, lengths))
        lines.append(
            f"| `{preset}` | {count_parameters(model) / 1e6:.1f} M | {' | '.join(fixed)} | {of_row / MIB:,.0f} MiB of "
            f"{tokens} tokens |"
        )
    return "\n".join([*lines, "", *check_table(json.loads(RESULTS.read_text())["cases"]), "", *cache_table()])


def check_table(cases: list[dict]) -> list[str]:
    lines = ["| preset | rows of tokens | estimate | measured | error |", "|---|---|---|---|---|"]
    for case in cases:
        tokens = " + ".join(map(str, case["lengths"]))
        lines.append(
            f"| `{case['preset']}` | {case['batch_size']} of {tokens} | {case['estimated_total_mib']:.0f} MiB | "
            f"{case['measured_peak_mib']:.0f} MiB | {case['error_percent']:+.1f} % |"
        )
    return lines


@torch.no_grad()
def cache_table() -> list[str]:
    lengths = (512, 1024, 2048)
    lines = ["| preset | " + " | ".join(f"{length:,} tokens" for length in lengths) + " |", "|---|---|---|---|"]
    for preset in ("delight/lm_100m", "fast_weight/100m", "selective_attn/100m"):
        model = build(preset).eval()
        held = []
        for length in lengths:
            output = model(torch.ones(1, length, dtype=torch.long), use_cache=True, logits_to_keep=1)
            cache = output.get("cache", output.get("past_key_values"))
            held.append(f"{cache_bytes(cache) / MIB:,.1f} MiB")
        lines.append(f"| `{preset}` | {' | '.join(held)} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare estimates with measured peaks")
    parser.add_argument(
        "--tables", action="store_true", help="print the tables of docs/scaling.md, that of the last check included"
    )
    parser.add_argument("--json", type=Path, help="where to write what --check finds")
    arguments = parser.parse_args(argv)
    if arguments.json and not arguments.check:
        parser.error("--json has what --check finds: give both.")
    if arguments.check:
        text = json.dumps(check(), indent=2) + "\n"
        print(text) if arguments.json is None else arguments.json.write_text(text, encoding="utf-8")
    if arguments.tables:
        print(tables())


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # from `check`
        request = json.loads(sys.argv[1])
        work = lambda: train(request["preset"], *request["sizes"])  # noqa: E731
        print(added_memory(work, SimpleNamespace(threads=1, device="cpu")))
    else:
        main()
