# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Whole models of the original FastWeight, as `torch.save(model)` writes them, without running code of theirs.

torch's reader of plain data (`weights_only=True`) calls what it was told the names of, and refuses a file that names
anything else. The names told here are those of the original's classes and of the layers of torch that they are made
of, each for an empty class without code: it holds the attributes of a module, which are tensors, numbers and further
modules, and nothing is computed. So the attributes also give the hyper-parameters, and the matrices of FAVOR+, which
the original's `state_dict()` lacks.
"""

from collections.abc import Iterator
from typing import Any

import torch

CLASS_NAMES = {
    "model_main": (
        *("MemTransformerLM", "AdaptiveEmbedding", "DecoderLayer", "PerformerDecoderLayer"),
        *("MultiHeadAttn", "LinearMultiHeadAttn", "DPFPMultiHeadAttn", "PerformerMultiHeadAttn"),
    ),
    "utils.cuda_fast_weight_layer": (
        *("CudaFastWeightLinearTransformerLayer", "CudaNormFastWeightLinearTransformerLayer"),
        *("CudaFastWeightDPFPTransformerLayer", "CudaNormFastWeightDPFPTransformerLayer"),
        *("CudaFastWeightPerformerLayer", "CudaNormFastWeightPerformerLayer"),
        *("CudaFastWeightSumLinearTransformerLayer", "CudaFastWeightSumPerformerLayer"),
    ),
    "utils.model_utils": ("PositionalEmbedding", "PositionwiseFF"),
    "utils.proj_adaptive_softmax": ("ProjectedAdaptiveLogSoftmax",),
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.container": ("ModuleList", "ParameterList", "Sequential"),
    "torch.nn.modules.dropout": ("Dropout",),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.normalization": ("LayerNorm",),
    "torch.nn.modules.sparse": ("Embedding",),
}
# Attributes that are options of the original under the same name, of the whole model and of an attention layer.
MODEL_OPTIONS = (
    *("attn_type", "n_layer", "n_head", "d_model", "d_head", "n_token", "d_embed", "d_res"),
    *("no_pos", "clamp_len", "tgt_len", "mem_len", "same_length", "sample_softmax"),
)
ATTENTION_OPTIONS = ("pre_lnorm", "n_roll", "proj_dim", "use_sum_norm")


class PickledModule:
    """A module as a file describes it: attributes, and no code."""


# torch tells a class by its module and name.
CLASSES = [
    type(name, (PickledModule,), {"__module__": module}) for module, names in CLASS_NAMES.items() for name in names
]


def read_model(model: PickledModule) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and options of a whole model, which must be one of the original's."""
    if type(model).__name__ != "MemTransformerLM":
        raise ValueError(f"the file holds a {type(model).__name__}, not a whole model (MemTransformerLM)")
    try:
        tensors = dict(_tensors(model))
        return tensors, _options(model, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file's model lacks attributes that the original's have ({error!r})") from error


def _tensors(module: PickledModule, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """What `state_dict()` would give, and the matrices of FAVOR+."""
    attributes = vars(module)
    matrix = {name: tensor for name, tensor in attributes.items() if name == "proj_matrix"}
    for name, tensor in (attributes["_parameters"] | attributes["_buffers"] | matrix).items():
        if tensor is not None:
            yield prefix + name, tensor.detach()
    for name, child in attributes["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _options(model: PickledModule, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    attention = _child(model, "layers.0.dec_attn")
    embedding, output = _child(model, "word_emb.emb_layers.0"), _child(model, "crit.out_layers.0")
    options = {name: vars(model)[name] for name in MODEL_OPTIONS if name in vars(model)}
    options |= {name: vars(attention)[name] for name in ATTENTION_OPTIONS if name in vars(attention)}
    # The attribute says what the layers do, whatever the command line was.
    if "normalize_attn_scores" in vars(attention):
        options["skip_attn_normalization"] = not vars(attention)["normalize_attn_scores"]
    return options | {
        "d_inner": len(tensors["layers.0.pos_ff.CoreNet.0.weight"]),
        "div_val": vars(_child(model, "word_emb"))["div_val"],
        "cutoffs": vars(_child(model, "word_emb"))["cutoffs"],
        "not_tied": vars(embedding)["_parameters"]["weight"] is not vars(output)["_parameters"]["weight"],
        "dropout": vars(_child(attention, "drop"))["p"],
        "dropatt": vars(_child(attention, "dropatt"))["p"],
    }


def _child(module: PickledModule, path: str) -> PickledModule:
    for name in path.split("."):
        module = vars(module)["_modules"][name]
    return module
