# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One seed, one thread, no network and a Hugging Face home of its own for every test."""

import gc
import os
import tempfile
from pathlib import Path

# Read when huggingface_hub is imported, so set before that. The folder goes when this process ends.
_HF_HOME = tempfile.TemporaryDirectory(prefix="leanformers-tests-")
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_MODULES_CACHE"] = str(Path(_HF_HOME.name, "modules"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
import transformers

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read when triton is imported

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # accelerate and Trainer collect garbage often, and what was imported takes them most of that time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden tensors, real text and transformers' test harness that developers keep beside the
    repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.fixture(autouse=True)
def seed() -> None:
    transformers.set_seed(0)


@pytest.fixture(autouse=True)
def poison_unwritten_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests of operators and kernels, `torch.empty` and its kin hold NaN, so that an operator that reads what it
    never wrote fails."""
    if not {"ops", "kernel_forms", "gpu"} & set(request.path.relative_to(ROOT).parts):
        return

    def poisoned(create):
        def wrapper(*args, **kwargs):
            tensor = create(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
