# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenized sentence pairs to padded batches."""

from dataclasses import dataclass

from transformers import BatchEncoding, DataCollatorForSeq2Seq


@dataclass
class TranslationCollator(DataCollatorForSeq2Seq):
    """Pads `input_ids` with the source tokenizer's padding and `labels` with -100, and leaves text and lengths out.

    Given a model, it adds `decoder_input_ids`, which `Trainer` needs for label smoothing.
    """

    def __call__(self, features: list[dict], return_tensors: str | None = None) -> BatchEncoding:
        tokens = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in features]
        return super().__call__(tokens, return_tensors)
