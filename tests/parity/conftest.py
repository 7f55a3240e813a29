# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Weights as an original checkpoint of any hyper-parameters would hold them."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from leanformers.conversion import anthe, delight
from leanformers.modeling.anthe import AntheForSeq2SeqLM
from leanformers.modeling.delight import DeLighTForCausalLM, DeLighTForConditionalGeneration


@pytest.fixture
def reference_weights() -> Callable[[Mapping], dict[str, np.ndarray]]:
    """A function from hyper-parameters of Anthe to random weights under the original's names, in its orientation."""

    def create(hparams: Mapping) -> dict[str, np.ndarray]:
        config = anthe.config_from_hparams(hparams, allow_noncausal_gate=True)
        weights = {}
        for name, parameter in AntheForSeq2SeqLM(config).named_parameters():
            original, array = anthe.reference_name(name, config), torch.rand(parameter.shape).sub(0.5).numpy()
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


@pytest.fixture
def delight_weights() -> Callable[..., dict[str, torch.Tensor]]:
    """A function from the options of a DeLighT checkpoint and its vocabularies to its random state dict."""

    def create(options: Mapping, vocab_size: int, source_vocab_size: int | None = None) -> dict[str, torch.Tensor]:
        has_encoder = source_vocab_size is not None
        options = delight.options_of({"args": options}, has_encoder)
        config = delight.config_from_options(options, vocab_size, source_vocab_size)
        model = (DeLighTForConditionalGeneration if has_encoder else DeLighTForCausalLM)(config)
        weights = {}
        for name, parameter in model.named_parameters():
            # Norms around 1, everything else around 0, and nothing exactly so.
            tensor = torch.randn(parameter.shape) * 0.2 + (1.0 if name.endswith("norm.weight") else 0.0)
            if "embed" in name and "dextra" not in name and len(tensor) > 1 and ".projections." not in name:
                tensor[config.pad_token_id if ".tables." not in name or ".tables.0." in name else []] = 0
            original = delight.reference_name(name)
            weights[original] = in_delight_layout(original, tensor)
        for other, name in delight.tied_names(options, has_encoder).items():
            weights[other] = weights[name] = weights.get(name, weights.get(other)).clone()
        for stack in ("encoder", "decoder") if has_encoder else ("decoder",):
            weights[f"{stack}.version"] = torch.tensor([3.0])
            weights[f"{stack}.embed_positions._float_tensor"] = torch.zeros(1)
        return weights

    return create


def in_delight_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    is_group_linear = "dextra_layers." in name and "normalization_fn" not in name
    if not is_group_linear:
        return tensor
    if len(tensor) == 1:  # one group is a full linear layer
        return tensor[0].T.contiguous() if name.endswith("weights") else tensor[0]
    return tensor if name.endswith("weights") else tensor[:, None]


@pytest.fixture
def fast_weight_weights() -> Callable[..., dict[str, torch.Tensor]]:
    """A function from the hyper-parameters of an original FastWeight model to a random state dict of it."""

    def create(hparams: Mapping) -> dict[str, torch.Tensor]:
        width, inner, vocab_size = hparams["d_model"], hparams["d_inner"], hparams["n_token"]
        shapes = {"word_emb.emb_layers.0.weight": (vocab_size, width), "crit.out_layers.0.bias": (vocab_size,)}
        if clusters := len(hparams.get("cutoffs", ())):
            shapes |= {"crit.cluster_weight": (clusters, width), "crit.cluster_bias": (clusters,)}
        for layer in range(hparams["n_layer"]):
            shapes |= {f"layers.{layer}.dec_attn.{name}": shape for name, shape in attention_shapes(hparams).items()}
            shapes |= {
                f"layers.{layer}.pos_ff.CoreNet.0.weight": (inner, width),
                f"layers.{layer}.pos_ff.CoreNet.0.bias": (inner,),
                f"layers.{layer}.pos_ff.CoreNet.3.weight": (width, inner),
                f"layers.{layer}.pos_ff.CoreNet.3.bias": (width,),
                f"layers.{layer}.pos_ff.layer_norm.weight": (width,),
                f"layers.{layer}.pos_ff.layer_norm.bias": (width,),
            }
        weights = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
        output = "crit.out_layers.0.weight"
        is_tied = not hparams.get("not_tied")
        weights[output] = weights["word_emb.emb_layers.0.weight"] if is_tied else torch.randn(vocab_size, width)
        return weights | {"pos_emb.inv_freq": 10000 ** -(torch.arange(0, width, 2) / width)}

    return create


def attention_shapes(hparams: Mapping) -> dict[str, tuple[int, ...]]:
    width, attn_type, heads = hparams["d_model"], hparams["attn_type"], hparams["n_head"] * hparams["d_head"]
    shapes = {"o_net.weight": (width, heads), "layer_norm.weight": (width,), "layer_norm.bias": (width,)}
    if attn_type < 10:
        shapes |= {"q_net.weight": (heads, width), "kv_net.weight": (2 * heads, width)}
    elif attn_type in (34, 35):
        shapes["qkv_net.weight"] = (3 * heads, width)
    else:
        shapes["qkvb_net.weight"] = (3 * heads + hparams["n_head"], width)
    if attn_type % 10 == 5:
        shapes["proj_matrix"] = (hparams["d_head"], hparams["proj_dim"])
    return shapes
