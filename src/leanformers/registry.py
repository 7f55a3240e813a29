# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One table of the families: config, classes, presets, card; and their registration with transformers and peft."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

# Trainer's label smoothing and `transformers serve` tell what a class does by its name in these tables, which
# `AutoModel*.register` does not fill. Without an entry a causal model's labels are smoothed unshifted.
NAME_TABLES: Mapping[str, dict[str, str]] = {
    "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """
    What the library has to know of one architecture.

    Args:
        name (`str`): Name of its folders, e.g. `modeling/<name>`.
        title (`str`): Name in prose.
        paper (`str`): arXiv number.
        model_type (`str`): `model_type` of its configuration.
        config (`str`): Name of its configuration class.
        models (`Mapping[str, str]`): Auto class -> model class.
        presets (`tuple[str, ...]`): Names of `configs/model/<name>/<preset>.json`.
        lora_targets (`tuple[str, ...]`): Modules that peft adapts when no `target_modules` are given.
    """

    name: str
    title: str
    paper: str
    model_type: str
    config: str
    models: Mapping[str, str]
    presets: tuple[str, ...]
    lora_targets: tuple[str, ...]

    @property
    def module(self) -> str:
        return f"leanformers.modeling.{self.name}"

    @property
    def card(self) -> str:
        return f"model_cards/{self.name}.md"

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        return getattr(importlib.import_module(self.module), self.config)

    def model_class(self, auto_class: str) -> type[PreTrainedModel]:
        """The class that `auto_class` loads, e.g. `AutoModel`."""
        if auto_class not in self.models:
            raise ValueError(f"{self.title} has no {auto_class}, only {', '.join(self.models)}.")
        return getattr(importlib.import_module(self.module), self.models[auto_class])

    def auto_classes(self, config: PreTrainedConfig) -> list[str]:
        """The Auto classes that take this configuration: those of an encoder-decoder, or those of a decoder alone."""
        return [
            auto_class
            for auto_class in self.models
            if auto_class == "AutoModel" or (auto_class == "AutoModelForSeq2SeqLM") == config.is_encoder_decoder
        ]

    def auto_map(self, config: PreTrainedConfig) -> dict[str, str]:
        """The `auto_map` of config.json with which every Auto class loads that a folder of this model serves."""
        models = {auto: f"modeling_{self.name}.{self.models[auto]}" for auto in self.auto_classes(config)}
        return {"AutoConfig": f"configuration_{self.name}.{self.config}", **models}


_ALL = (
    Family(
        name="anthe",
        title="Anthe",
        paper="2305.10991",
        model_type="anthe",
        config="AntheConfig",
        models={"AutoModel": "AntheModel", "AutoModelForSeq2SeqLM": "AntheForSeq2SeqLM"},
        presets=("tiny", "small", "anthe_base", "anthe_base_7x", "dense_gated_base", "transformer_base"),
        # The one projection that no preset makes a tensor chain, which LoRA cannot wrap.
        lora_targets=("o_proj",),
    ),
    Family(
        name="delight",
        title="DeLighT",
        paper="2008.00623",
        model_type="delight",
        config="DeLighTConfig",
        models={
            "AutoModel": "DeLighTModel",
            "AutoModelForSeq2SeqLM": "DeLighTForConditionalGeneration",
            "AutoModelForCausalLM": "DeLighTForCausalLM",
        },
        presets=(
            *("tiny", "small", "lm_tiny", "lm_small", "lm_100m"),
            *(f"wmt14_en_de_{width}" for width in (128, 256, 384, 512, 640)),
            *(f"wmt14_en_fr_{width}" for width in (128, 256, 384, 512, 640)),
            *(f"wmt16_en_ro_{width}" for width in (128, 256, 384, 512, 640)),
            *(f"wikitext103_{width}" for width in (128, 256, 384, 512, 1024)),
        ),
        lora_targets=("qkv_proj", "q_proj", "kv_proj", "o_proj", "fc1", "fc2"),
    ),
    Family(
        name="fast_weight",
        title="FastWeight",
        paper="2102.11174",
        model_type="fast_weight",
        config="FastWeightConfig",
        models={
            "AutoModel": "FastWeightModel",
            "AutoModelForCausalLM": "FastWeightForCausalLM",
            "AutoModelForSequenceClassification": "FastWeightForSequenceClassification",
        },
        presets=(
            *("tiny", "small", "small_sum", "small_softmax", "100m"),
            *("wikitext103_small", "wikitext103_small_sum", "wikitext103_small_dpfp"),
            *("wikitext103_medium", "wikitext103_medium_sum", "wikitext103_medium_dpfp"),
            "wikitext103_medium_full_context",
        ),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    ),
    Family(
        name="selective_attn",
        title="SelectiveAttn",
        paper="2410.02703",
        model_type="selective_attn",
        config="SelectiveAttnConfig",
        models={
            "AutoModel": "SelectiveAttnModel",
            "AutoModelForCausalLM": "SelectiveAttnForCausalLM",
            "AutoModelForSequenceClassification": "SelectiveAttnForSequenceClassification",
        },
        presets=("tiny", "small", "small_plain", "100m", *(f"c{size}" for size in range(6, 17))),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def get_family(name: str) -> Family:
    """The family of that name."""
    if name in FAMILIES:
        return FAMILIES[name]
    nearest = get_close_matches(name, FAMILIES, n=1, cutoff=0)
    raise ValueError(f"Unknown family {name!r}. Did you mean {nearest[0]!r}? There are: {', '.join(FAMILIES)}.")


def family_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Family:
    """The family of a model or configuration, told by its `model_type`: in remote code its class is another one."""
    config = getattr(model_or_config, "config", model_or_config)
    for family in FAMILIES.values():
        if family.model_type == config.model_type:
            return family
    raise ValueError(
        f"model_type {config.model_type!r} is none of leanformers' "
        f"({', '.join(family.model_type for family in FAMILIES.values())})."
    )


def language_model_class(config: PreTrainedConfig) -> str:
    """The Auto class that generates text with this configuration, of whatever family."""
    return "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"


def register_auto_classes() -> None:
    """Make the Auto classes, label smoothing and LoRA's defaults know every family."""
    for family in FAMILIES.values():
        AutoConfig.register(family.model_type, family.config_class, exist_ok=True)
        for auto_class, model in family.models.items():
            getattr(transformers, auto_class).register(
                family.config_class, family.model_class(auto_class), exist_ok=True
            )
            if auto_class != "AutoModel":
                NAME_TABLES[auto_class][family.model_type] = model
    if find_spec("peft"):
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        for family in FAMILIES.values():
            TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[family.model_type] = list(family.lora_targets)
