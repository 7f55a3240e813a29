# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Llama, Mistral, Qwen2 and Qwen3 of transformers -> `SelectiveAttnForCausalLM` with the same weights.

Hyper-parameters: their configuration, as an object or as their config.json holds it, of transformers 4 or 5. Selection
has no parameters (arXiv 2410.02703), so each of these models is one of ours:

- with `use_selective_attention=False`, or `selection_strength=0`, it computes what it did before;
- with the default strength of 1 its loss is higher at once, as its weights never learned to vote. Training gets them
  there from 0, by raising `config.selection_strength` step by step.

What the originals hide: Llama's and Qwen3's `attention_bias` is that of the output projection too, Qwen2 always has
biases, but not there, and Qwen's `sliding_window` is only that of the layers that `layer_types` says.
"""

import copy
from collections.abc import Mapping
from dataclasses import fields
from functools import reduce
from reprlib import repr as shortened
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM
from .weights import load_weights

ORIGINALS: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
}
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAME = (
    *REQUIRED,
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
)
# What the originals read without having it as a field, and what files say that no model reads.
OTHER_NAMES = {"model_type", "torch_dtype", "num_labels", "rope_theta", "rope_scaling", "head_dim"}
REMARKS = {"tokenizer_class", "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version"}
OPTIONS = (
    "use_selective_attention",
    "selection_head",
    "protect_start",
    "protect_self",
    "selection_strength",
    "memory_budgets",
    "prune_prompt",
    "memory_loss_coef",
    "memory_loss_tau",
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TABLE, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def convert(
    state_dict: Mapping[str, Any], hparams: Mapping[str, Any] | PreTrainedConfig, **options: Any
) -> SelectiveAttnForCausalLM:
    """See `leanformers.conversion.convert_state_dict`. The model has the precision of the tensors.

    Args:
        options: of selection, named as in `SelectiveAttnConfig`, which has their defaults: `selection_strength` is 1,
            which raises the loss of a model that was trained without.
    """
    config = config_from_hparams(hparams, **options)
    tensors = tensors_of(state_dict, config)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype_of(tensors))
    load_weights(model, tensors, lambda name: name, lambda _, tensor: tensor)
    return model.eval()


def config_from_hparams(hparams: Mapping[str, Any] | PreTrainedConfig, **options: Any) -> SelectiveAttnConfig:
    """The configuration that computes what the original did, with these options of selection."""
    foreign = [name for name in options if name not in OPTIONS]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: conversion has no such option; there are {', '.join(OPTIONS)}")
    original = read_original(hparams.to_dict() if isinstance(hparams, PreTrainedConfig) else hparams)
    try:
        return SelectiveAttnConfig(
            **{name: getattr(original, name) for name in SAME},
            head_dim=getattr(original, "head_dim", None),
            attention_dropout=original.attention_dropout or 0.0,
            rope_parameters=rope_of(original),
            sliding_window=window_of(original),
            qk_norm=original.model_type == "qwen3",
            pad_token_id=padding_of(original),
            **biases_of(original),
            **options,
        )
    except StrictDataclassError as error:
        raise ValueError(
            f"the hyper-parameters describe no possible SelectiveAttn: {error.__cause__ or error}"
        ) from error


def read_original(hparams: Mapping[str, Any]) -> PreTrainedConfig:
    """The original's own configuration: with its defaults, and what transformers 4 wrote under its present names."""
    model_type = hparams.get("model_type")
    if model_type not in ORIGINALS:
        raise ValueError(
            f"the hyper-parameters are those of model_type {model_type!r}; what can be converted is "
            f"{', '.join(ORIGINALS)}"
        )
    missing = [name for name in REQUIRED if hparams.get(name) is None]
    if missing:
        raise ValueError(f"the hyper-parameters lack {', '.join(missing)}; needed are {', '.join(REQUIRED)}")
    refuse_unsupported(hparams)
    try:
        # Copied, as the configuration completes the rotary parameters in place.
        return ORIGINALS[model_type](**copy.deepcopy(dict(hparams)))
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the hyper-parameters describe no possible {model_type}: {error}") from error


def refuse_unsupported(hparams: Mapping[str, Any]) -> None:
    """Also names that the original does not read, unless they are settings of generation, remarks, or switched off."""
    if hparams.get("quantization_config"):
        raise ValueError(
            "the weights are quantized (quantization_config); load the model with transformers, call "
            "dequantize() and save it, or take the original weights"
        )
    for name in ("rope_parameters", "rope_scaling"):
        rope = hparams.get(name)
        if isinstance(rope, Mapping) and any(isinstance(value, Mapping) for value in rope.values()):
            raise ValueError(f"{name} {rope} differ by type of layer, which is not supported")
    original = ORIGINALS[hparams["model_type"]]
    known = {field.name for field in fields(original)} | OTHER_NAMES | REMARKS | GenerationConfig().to_dict().keys()
    unknown = [
        f"{name}={shortened(value)}"
        for name, value in hparams.items()
        if value and name not in known and not name.startswith("_")
    ]
    if unknown:
        raise ValueError(
            f"the hyper-parameters hold what {hparams['model_type']} of transformers does not read: "
            f"{', '.join(unknown)}. If it changes what the model computes, the model cannot be converted; if not, "
            "leave it out"
        )


def rope_of(original: PreTrainedConfig) -> dict[str, Any]:
    """Parameters of rotary positions."""
    parameters = {name: value for name, value in original.rope_parameters.items() if name != "type"}
    kinds = ("default", *ROPE_INIT_FUNCTIONS)
    if parameters["rope_type"] not in kinds:
        raise ValueError(f"rope_type must be one of {', '.join(kinds)}, not {parameters['rope_type']!r}")
    if parameters.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(
            f"partial_rotary_factor {parameters['partial_rotary_factor']} is not supported: positions turn whole heads"
        )
    return parameters


def window_of(original: PreTrainedConfig) -> int | None:
    """How many tokens each one sees, in all layers alike."""
    window = getattr(original, "sliding_window", None)
    layer_types = getattr(original, "layer_types", None)
    if layer_types is None:  # Llama and Mistral
        return window
    kinds = set(layer_types)
    if kinds != {"full_attention"} and (kinds != {"sliding_attention"} or window is None):
        raise ValueError(
            f"layers of different kinds cannot be converted, as sliding_window ({window}) is that of all layers or "
            f"none, and layer_types are {layer_types}. For texts no longer than the window, set use_sliding_window to "
            "false and leave out layer_types: that computes the same"
        )
    return window if kinds == {"sliding_attention"} else None


def padding_of(original: PreTrainedConfig) -> int | None:
    """The padding id; -1, as some files have it, is none."""
    pad_token_id = original.pad_token_id
    if pad_token_id is not None and pad_token_id >= original.vocab_size:
        raise ValueError(f"pad_token_id {pad_token_id} is not in the vocabulary of {original.vocab_size} tokens")
    return None if pad_token_id == -1 else pad_token_id


def biases_of(original: PreTrainedConfig) -> dict[str, bool]:
    if original.model_type == "qwen2":
        return {"attention_bias": True}
    has_bias = getattr(original, "attention_bias", False)
    has_mlp_bias = getattr(original, "mlp_bias", False)
    return {"attention_bias": has_bias, "attention_output_bias": has_bias, "mlp_bias": has_mlp_bias}


def tensors_of(state_dict: Mapping[str, Any], config: SelectiveAttnConfig) -> dict[str, torch.Tensor]:
    """The tensors without an output matrix that is tied, and without the frequencies that old files hold."""
    tensors = {
        name: torch.as_tensor(value) for name, value in state_dict.items() if not name.endswith("rotary_emb.inv_freq")
    }
    if config.tie_word_embeddings and TABLE in tensors:
        output = tensors.pop(OUTPUT, tensors[TABLE])
        if not torch.equal(output, tensors[TABLE]):
            raise ValueError(f"{OUTPUT} and {TABLE} are tied by the hyper-parameters (tie_word_embeddings) but differ")
    return tensors


def dtype_of(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The precision of the tensors; of several, one that holds them all."""
    foreign = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if foreign:
        raise ValueError(f"weights must be floating point numbers of 16 bits or more: {'; '.join(foreign)}")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32
