# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From reference tensors into the parameters of a module: all of them, or an error that lists what does not fit."""

from collections.abc import Callable, Mapping

import torch
from torch import nn


def load_weights(
    module: nn.Module,
    reference: Mapping[str, torch.Tensor],
    reference_name: Callable[[str], str],
    oriented: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    """Copies reference tensors into all parameters of `module`, or tells everything that does not fit.

    Args:
        reference_name: from the name of a parameter of `module` to that of the reference.
        oriented: from a reference name and its tensor to that tensor in our layout.
    """
    ready, problems, unused = [], [], dict(reference)
    for name, parameter in module.named_parameters():
        source = reference_name(name)
        if source not in unused:
            problems.append(f"{source} is missing")
            continue
        given = unused.pop(source)
        tensor = oriented(source, given)
        ready.append((parameter, tensor))
        if tensor.shape != parameter.shape:
            shapes = f"{list(given.shape)}, which gives {list(tensor.shape)} instead of {list(parameter.shape)}"
            problems.append(f"{source} is {shapes} for {name}")
    problems += [f"{name} has no place" for name in unused]
    if problems:
        raise ValueError(f"the tensors do not fit the hyper-parameters: {'; '.join(problems)}")
    with torch.no_grad():
        for parameter, tensor in ready:
            parameter.copy_(tensor)
