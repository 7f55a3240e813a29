# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenized rows to padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, DataCollatorForSeq2Seq


@dataclass
class TranslationCollator(DataCollatorForSeq2Seq):
    """Pads `input_ids` with the source tokenizer's padding and `labels` with -100, and leaves text and lengths out.

    Given a model, it adds `decoder_input_ids`, which `Trainer` needs for label smoothing.
    """

    def __call__(self, features: list[dict], return_tensors: str | None = None) -> BatchEncoding:
        tokens = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in features]
        return super().__call__(tokens, return_tensors)


@dataclass
class BlockCollator:
    """Pads blocks and windows on the right, where a causal model needs no mask for it.

    Packed documents are told apart by `position_ids` that start again, and only without an `attention_mask`; so does
    the padding, as one more document.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        fill = {"input_ids": self.pad_token_id}
        batch = {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill.get(name, -100))
            for name in rows[0]
        }
        if "position_ids" in batch:
            positions = torch.arange(batch["position_ids"].shape[1])
            lengths = torch.tensor([[len(row["position_ids"])] for row in rows])
            batch["position_ids"] = torch.where(positions < lengths, batch["position_ids"], positions - lengths)
        return batch
