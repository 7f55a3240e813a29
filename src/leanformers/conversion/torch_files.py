# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Files of `torch.save` (`.pt`), read as plain data: fairseq's checkpoints, state dicts, and whole FastWeight models.

Such a file is a pickle, which could run code. It is read as tensors, containers, `argparse.Namespace` and modules
without code (`pickled_model.py`); one that names anything else is refused before any of it runs.
"""

import pickle
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from .fairseq import read_fairseq
from .pickled_model import CLASSES, PickledModule, read_model

RESAVE = """
If you trust it, load and save it again in the original's src folder, with a newer torch:

    import torch
    model = torch.load("best_model.pt", map_location="cpu", weights_only=False)
    torch.save(model, "resaved.pt")"""
TAKE_APART = """
If you trust it, run this where its classes can be imported (for FastWeight in the original's src folder):

    import json, torch
    model = torch.load("best_model.pt", map_location="cpu", weights_only=False)
    torch.save(model.state_dict(), "weights.pt")
    options = dict(attn_type=24, n_layer=16, n_head=8, d_model=128, d_head=16, d_inner=2048)  # and all others given
    json.dump(options, open("config.json", "w"))

and convert the folder of weights.pt and config.json. With FAVOR+, add each layer's matrix to what is saved, as
"layers.0.dec_attn.proj_matrix" and so on."""


def read_torch_file(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and hyper-parameters; a state dict alone has none."""
    content = load_plain_data(source)
    if isinstance(content, PickledModule):
        try:
            return read_model(content)
        except ValueError as error:
            raise ValueError(f"{source} cannot be converted: {error}{TAKE_APART}") from error
    if isinstance(content, dict) and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content), {}
    return read_fairseq(source, content)


def load_plain_data(source: Path) -> Any:
    """What the file holds, if that is plain data."""
    try:
        with torch.serialization.safe_globals([Namespace, *CLASSES]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged pickle, any
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise ValueError(
                f"{source} names {foreign[1]}, which could run code on loading, so it was not loaded; a checkpoint "
                f"may hold tensors, containers, numbers, text and argparse.Namespace{_way_out(foreign[1])}"
            ) from error
        if isinstance(error, pickle.UnpicklingError) and "persistent_load of storage" in str(error):
            raise ValueError(
                f"{source} is a whole model in the format of torch before 1.6, which mixes it with source code, so it "
                f"was not loaded.{RESAVE}"
            ) from error
        raise ValueError(f"{source} is no checkpoint, or damaged or cut short; copy it again") from error


def _way_out(name: str) -> str:
    """For a class of a model there is one."""
    return f".{TAKE_APART}" if name.startswith(("model_main.", "utils.", "torch.nn.modules.")) else ""
