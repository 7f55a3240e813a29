# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Runs benchmarks, ours and its peer in turns, prints a table and writes JSON.

    python scripts/benchmarks/run.py --bench anthe_training anthe_generation --threads 2 --json out.json
    python scripts/benchmarks/run.py --bench anthe_training --base main   # the same on another commit, and the ratio
    python scripts/benchmarks/run.py --bench fast_weight_training fast_weight_decoding --longest 4096
    python scripts/benchmarks/run.py --bench delight_dextra --preset configs/model/delight/wmt14_en_de_640.json
    python scripts/benchmarks/run.py --suite gpu --device cuda --json out.json    # all that needs a GPU, in 8 minutes

Each sample of a contender is followed by one of the other, so that a noisy machine hits both. Reported are medians
with quartiles. A cost ratio is ours over the peer's, in time or memory: below 1 is better.

A suite first runs the tests of the kernels, in half of its time at most, as they compile many kernels: several at once
where pytest-xdist is installed. Then come benchmarks as long as its time lasts, the most important ones first.
What was measured is written after each case, so that a run that is cut short has lost nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from registry import BENCHMARKS, SUITES, Case, Settings, cases, family_of, presets_of

import leanformers.modeling

# Of the library that is measured, which is another commit's when --base puts one first on the path.
ROOT = Path(leanformers.__file__).resolve().parents[2]
QUICK = {
    "batch_size": 2,
    "source_length": 5,
    "target_length": 4,
    "new_tokens": 3,
    "longest": 128,
    "repeats": 2,
    "warmup": 1,
}
FULL = {
    "batch_size": 16,
    "source_length": 32,
    "target_length": 32,
    "new_tokens": 64,
    "longest": 16384,
    "repeats": 10,
    "warmup": 3,
}
SUITE_SIZES = FULL | {"longest": 32768}

NOT_SIZES = ("repeats", "warmup")
MOST_WORKERS = 8  # of the kernels' tests, each with a context on the GPU


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bench", nargs="+", choices=sorted(BENCHMARKS), default=sorted(BENCHMARKS))
    what.add_argument("--suite", choices=sorted(SUITES), help="benchmarks with the presets and dtypes they are for")
    parser.add_argument(
        "--time-limit", type=int, default=440, metavar="SECONDS", help="after which a suite begins no new case (440)"
    )
    parser.add_argument(
        "--preset",
        type=Path,
        help="configuration JSON of our model (default: PRESETS in registry.py; with --quick, tiny)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that the benchmark runs, no figures")
    for name, default in FULL.items():
        option = "--" + name.replace("_", "-")
        in_suite = f", in a suite {SUITE_SIZES[name]}" if SUITE_SIZES[name] != default else ""
        parser.add_argument(option, type=int, help=f"default: {default}{in_suite}, with --quick {QUICK[name]}")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--base", metavar="REF", help="also run that commit, in a worktree, and print the ratio")
    arguments = parser.parse_args(argv)
    defaults = QUICK if arguments.quick else SUITE_SIZES if arguments.suite else FULL
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    if arguments.suite and (arguments.preset or arguments.base):
        parser.error("--suite has presets of its own, and takes neither --preset nor --base")
    if arguments.suite and not arguments.device.startswith("cuda") and not arguments.quick:
        parser.error("--suite gpu needs --device cuda; --quick shows on a CPU that it runs")
    if arguments.preset is not None:
        check_preset(parser, arguments)
    return arguments


def check_preset(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.preset.is_file():
        parser.error(f"--preset {arguments.preset} is not a file")
    model_type = json.loads(arguments.preset.read_text()).get("model_type")
    others = [name for name in arguments.bench if family_of(name) != model_type]
    if others:
        parser.error(f"--preset {arguments.preset} is of {model_type}, which {', '.join(others)} do not measure")


class Entry(NamedTuple):
    """One benchmark of a run, on one model."""

    bench: str
    preset: Path
    dtype: str


def entries(arguments: argparse.Namespace) -> list[Entry]:
    """All that is to run: of each benchmark every preset, or what the suite names."""

    def path(bench: str, preset: str) -> Path:
        return ROOT / "configs" / "model" / family_of(bench) / f"{preset}.json"

    if arguments.preset is not None:
        return [Entry(name, arguments.preset.resolve(), arguments.dtype) for name in arguments.bench]
    chosen = (
        SUITES[arguments.suite] if arguments.suite else [(name, None, arguments.dtype) for name in arguments.bench]
    )
    return [
        Entry(name, path(name, one), dtype)
        for name, preset, dtype in chosen
        for one in ([preset] if preset and not arguments.quick else presets_of(name, arguments.quick))
    ]


def measure(case: Case, warmup: int, repeats: int, device: str) -> dict:
    """Samples of all contenders in turns, summarised."""
    if case.tokens is not None:
        for call in case.contenders.values():
            for _ in range(warmup):
                call()
    samples: dict[str, list[float]] = {name: [] for name in case.contenders}
    repeats = min(repeats, case.most_repeats or repeats)
    gc.collect()
    for _ in range(repeats):
        for name, call in case.contenders.items():
            samples[name].append(call() if case.tokens is None else seconds(call, device))
    contenders = {name: summary(values, case.tokens) for name, values in samples.items()}
    ours, *peers = samples
    return {
        "case": case.name,
        "unit": case.unit,
        "shapes": case.shapes,
        "tokens_per_call": case.tokens,
        "repeats": repeats,
        "contenders": contenders,
        **({} if case.errors is None else {"errors": case.errors()}),
        "cost_ratios": {peer: contenders[ours]["cost"] / contenders[peer]["cost"] for peer in peers},
        "models": case.models,
    }


def seconds(call, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def summary(samples: list[float], tokens: int | None) -> dict:
    """Median and quartiles in the case's unit; `cost` is the median in seconds or, untimed, in that unit."""
    values = sorted(samples if tokens is None else [tokens / sample for sample in samples])
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    cost = statistics.median(samples)
    return {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]], "cost": cost, "samples": samples}


def environment(arguments: argparse.Namespace) -> dict:
    on_gpu = arguments.device.startswith("cuda")
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("leanformers", "torch", "transformers")},
        },
        "git": {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))},
        "machine": {
            "system": platform.system(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(arguments.device) if on_gpu else "cpu",
        },
    }


def processor() -> str:
    """Make and model, without the name of the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git(*command: str) -> str | None:
    """Output of a git command in the measured library's checkout; None where there is none."""
    result = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def run(arguments: argparse.Namespace) -> dict:
    """Measures everything, and writes the report after each case."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    start, sizes = time.monotonic(), {name: getattr(arguments, name) for name in FULL if name not in NOT_SIZES}
    report = {**environment(arguments), "quick": arguments.quick, "warmup": arguments.warmup, "results": []}
    if arguments.suite:
        report |= {"suite": arguments.suite, "tests": kernel_tests(arguments), "left_out": []}
    for name, preset, dtype in entries(arguments):
        settings = Settings(str(preset), arguments.device, dtype, arguments.threads, **sizes)
        about = {"bench": name, "preset": preset.stem, "dtype": dtype}
        for case in cases(name, settings):
            if arguments.suite and time.monotonic() - start > arguments.time_limit:
                report["left_out"].append({**about, "from": case.name})
                break
            report["results"].append({**about, **measure(case, arguments.warmup, arguments.repeats, arguments.device)})
            print(table_row(report["results"][-1]), flush=True)
            write(report, arguments.json)
    return report


def kernel_tests(arguments: argparse.Namespace) -> dict:
    """
    The tests of the kernels on this device, which must pass before a time means anything. `passed` is None where time
    did not suffice for all; the benchmarks have the errors of their own cases.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    if arguments.quick:
        command.append("--collect-only")
    elif find_spec("xdist"):
        command += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1))]
    passed, limit = None, max(arguments.time_limit // 2, 60)
    with tempfile.TemporaryFile("w+") as written:
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=written, stderr=subprocess.STDOUT, timeout=limit)
            passed = done.returncode == 0
        except subprocess.TimeoutExpired:
            written.write(f"\nstopped after {limit} s\n")
        written.seek(0)
        output = written.read()
    print(output[-2000:], flush=True)
    return {"passed": passed, "output": output.strip().splitlines()[-1:]}


def write(report: dict, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


def table_row(result: dict) -> str:
    shapes = " ".join(f"{name}={size}" for name, size in result["shapes"].items())
    lines = [f"{result['case']} ({result['preset']}, {result['dtype']}, {shapes})"]
    for name, contender in result["contenders"].items():
        low, high = contender["quartiles"]
        lines.append(f"  {name:<12}{contender['median']:>12,.1f} {result['unit']}  [{low:,.1f} .. {high:,.1f}]")
    what = "memory" if result["tokens_per_call"] is None else "time"
    lines += [f"  {what} over {peer}'s: {ratio:.3f}" for peer, ratio in result["cost_ratios"].items()]
    for name, found in result.get("errors", {}).items():
        lines.append(f"  error of {name}: " + ", ".join(f"{what} {error:.1e}" for what, error in found.items()))
    return "\n".join(lines)


def run_base(arguments: argparse.Namespace) -> dict:
    """The same benchmarks by this file on the library of another commit, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree, output = Path(folder) / "tree", Path(folder) / "base.json"
        added = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), arguments.base],
            capture_output=True,
            text=True,
        )
        if added.returncode:
            raise SystemExit(f"--base {arguments.base}: git cannot check that out: {added.stderr.strip()}")
        try:
            # setup.cfg maps modeling/ into the package only when it is installed; an unpacked tree needs the link.
            (tree / "src" / "leanformers" / "modeling").symlink_to(tree / "modeling")
            command = [sys.executable, __file__, *base_options(arguments), "--json", str(output)]
            child = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree / "src")})
            if child.returncode:
                raise SystemExit(f"--base {arguments.base}: the benchmark failed on that commit, see above")
            return json.loads(output.read_text())
        finally:
            git("worktree", "remove", "--force", str(tree))


def base_options(arguments: argparse.Namespace) -> list[str]:
    options = ["--bench", *arguments.bench, *(["--quick"] if arguments.quick else [])]
    for name in ("preset", "device", "dtype", "threads", *FULL):
        if getattr(arguments, name) is not None:
            options += ["--" + name.replace("_", "-"), str(getattr(arguments, name))]
    return options


def compare(report: dict, base: dict) -> dict:
    """Cost of this commit over the base's for every contender; the peer's ratio shows how noisy the machine was."""
    key = ("bench", "preset", "case")
    before = {tuple(result[name] for name in key): result["contenders"] for result in base["results"]}
    ratios = []
    for result in report["results"]:
        contenders = before[tuple(result[name] for name in key)]
        costs = {name: now["cost"] / contenders[name]["cost"] for name, now in result["contenders"].items()}
        ratios.append({**{name: result[name] for name in key}, "cost_over_base": costs})
    return {"git": base["git"], "ratios": ratios, "results": base["results"]}


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    if Path(next(iter(leanformers.modeling.__path__))).resolve() != ROOT / "modeling":
        raise SystemExit("leanformers and leanformers.modeling come from different trees; install one with pip -e")
    base = run_base(arguments) if arguments.base else None
    report = run(arguments)
    if base is not None:
        report["base"] = {"ref": arguments.base, **compare(report, base)}
        for entry in report["base"]["ratios"]:
            ratios = ", ".join(f"{name} {ratio:.3f}" for name, ratio in entry["cost_over_base"].items())
            print(f"{entry['case']}: cost over {arguments.base}'s: {ratios}")
    write(report, arguments.json)


if __name__ == "__main__":
    main()
