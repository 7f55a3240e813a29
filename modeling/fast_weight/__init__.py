# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""FastWeight (arXiv 2102.11174). Importing it makes `save_pretrained` write the model's code beside its weights."""

from .configuration_fast_weight import FastWeightConfig
from .modeling_fast_weight import (
    FastWeightForCausalLM,
    FastWeightForSequenceClassification,
    FastWeightModel,
    FastWeightPreTrainedModel,
)

FastWeightConfig.register_for_auto_class()
FastWeightModel.register_for_auto_class("AutoModel")
FastWeightForCausalLM.register_for_auto_class("AutoModelForCausalLM")
FastWeightForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "FastWeightConfig",
    "FastWeightForCausalLM",
    "FastWeightForSequenceClassification",
    "FastWeightModel",
    "FastWeightPreTrainedModel",
]
