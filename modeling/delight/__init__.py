# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DeLighT (arXiv 2008.00623). Importing it makes `save_pretrained` write the model's code beside its weights."""

from .configuration_delight import DeLighTConfig
from .modeling_delight import (
    DeLighTForCausalLM,
    DeLighTForConditionalGeneration,
    DeLighTModel,
    DeLighTPreTrainedModel,
)

DeLighTConfig.register_for_auto_class()
DeLighTModel.register_for_auto_class("AutoModel")
DeLighTForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
DeLighTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "DeLighTConfig",
    "DeLighTForCausalLM",
    "DeLighTForConditionalGeneration",
    "DeLighTModel",
    "DeLighTPreTrainedModel",
]
