# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""SelectiveAttn (arXiv 2410.02703). Importing it makes `save_pretrained` write the model's code beside its weights."""

from .configuration_selective_attn import SelectiveAttnConfig
from .modeling_selective_attn import (
    SelectiveAttnForCausalLM,
    SelectiveAttnForSequenceClassification,
    SelectiveAttnModel,
    SelectiveAttnPreTrainedModel,
)

SelectiveAttnConfig.register_for_auto_class()
SelectiveAttnModel.register_for_auto_class("AutoModel")
SelectiveAttnForCausalLM.register_for_auto_class("AutoModelForCausalLM")
SelectiveAttnForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "SelectiveAttnConfig",
    "SelectiveAttnForCausalLM",
    "SelectiveAttnForSequenceClassification",
    "SelectiveAttnModel",
    "SelectiveAttnPreTrainedModel",
]
