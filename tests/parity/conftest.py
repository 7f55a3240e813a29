# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Weights as an original checkpoint of any hyper-parameters would hold them."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from leanformers.conversion.anthe import config_from_hparams, reference_name
from leanformers.modeling.anthe import AntheForSeq2SeqLM


@pytest.fixture
def reference_weights() -> Callable[[Mapping], dict[str, np.ndarray]]:
    """A function from hyper-parameters to random weights under the original's names and in its orientation."""

    def create(hparams: Mapping) -> dict[str, np.ndarray]:
        config = config_from_hparams(hparams, allow_noncausal_gate=True)
        weights = {}
        for name, parameter in AntheForSeq2SeqLM(config).named_parameters():
            original, array = reference_name(name, config), torch.rand(parameter.shape).sub(0.5).numpy()
            weights[original] = np.ascontiguousarray(in_reference_layout(original, array))
        return weights

    return create


def in_reference_layout(name: str, array: np.ndarray) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if leaf == "kernel":
        return array.T
    if leaf == "core0":
        return array.squeeze(-3)
    if leaf.startswith("core") and array.shape[-2] == 1:
        return array.squeeze(-2)
    return array[0] if leaf.startswith("spos") else array
