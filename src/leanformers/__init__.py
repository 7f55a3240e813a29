# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Four transformer architectures that do more with less, native to Hugging Face.

Importing this package registers every family with the Auto classes of transformers, so that
`AutoModelForSeq2SeqLM.from_pretrained(folder)` needs no `trust_remote_code=True`.
"""

from .registry import FAMILIES, Family, family_of, get_family, register_auto_classes

__version__ = "0.1.0"

__all__ = ["FAMILIES", "Family", "family_of", "get_family", "register_auto_classes"]

register_auto_classes()
