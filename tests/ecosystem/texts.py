# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Inputs of the models of subjects.py, whether they translate or continue a text."""

import torch
from ecosystem.subjects import TOKENS, Subject
from models.suite import FIRST_WORD


def words(rows: int = 2, length: int = 7, seed: int = 1) -> torch.LongTensor:
    """Tokens `[rows, length]` other than the special ones, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, TOKENS["vocab_size"], (rows, length), generator=generator)


def inputs(subject: Subject, **sizes) -> dict[str, torch.Tensor]:
    """What a forward takes, without labels and without padding."""
    ids = words(**sizes)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch if subject.is_decoder else {**batch, "decoder_input_ids": words(**sizes | {"seed": 2})}


def labelled(subject: Subject, **sizes) -> dict[str, torch.Tensor]:
    """The same with labels, from which a translator makes its decoder's inputs."""
    batch = inputs(subject, **sizes)
    return {**batch, "labels": batch.pop("decoder_input_ids", batch["input_ids"])}
