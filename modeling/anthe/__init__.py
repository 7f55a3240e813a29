# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Anthe (arXiv 2305.10991). Importing it makes `save_pretrained` write the model's code beside its weights."""

from .configuration_anthe import AntheConfig
from .modeling_anthe import AntheForSeq2SeqLM, AntheModel, AnthePreTrainedModel

AntheConfig.register_for_auto_class()
AntheModel.register_for_auto_class("AutoModel")
AntheForSeq2SeqLM.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = ["AntheConfig", "AntheForSeq2SeqLM", "AntheModel", "AnthePreTrainedModel"]
