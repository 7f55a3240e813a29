# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory, in a process of its own for each measurement: a process's peak never falls again."""

from __future__ import annotations

import gc
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from registry import Settings


def in_subprocess(script: str, **request) -> float:
    """The last number that a script prints, given `request` as JSON."""
    command = [sys.executable, str(Path(script).resolve()), json.dumps(request)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


def added_memory(work: Callable[[], None], settings: Settings) -> float:
    """MiB that work adds to this process: of the device's allocator on CUDA, else of resident memory."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    gc.collect()
    before = resident("VmRSS")
    work()
    if settings.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Resident memory in MiB from /proc, now ("VmRSS") or at most so far ("VmHWM"); without /proc, at most so far.

    `ru_maxrss` is second choice because a child starts with its parent's, which may exceed all that it needs itself.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
