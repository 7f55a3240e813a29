# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Perplexity per real target token: every token counts once, padding never.

The mean of batch means that `Trainer` reports as evaluation loss weighs a token by how much padding its batch has.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed negative log-likelihood of each row's real tokens, and their number.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, target_length, vocab_size)`)
        labels (`torch.Tensor` of shape `(batch_size, target_length)`): -100 where there is padding.

    Returns:
        `torch.Tensor` of shape `(batch_size, 2)`, in float64, in which a long corpus still adds up exactly.
    """
    losses = functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return torch.stack([losses.double().sum(dim=1), labels.ne(-100).sum(dim=1).double()], dim=1)


def summarize(rows: Sequence[Tensor]) -> dict[str, float | int]:
    """Loss and perplexity per real target token of all `row_losses` together."""
    loss, num_tokens = torch.cat(list(rows)).sum(dim=0).tolist()
    if not num_tokens:
        raise ValueError("Perplexity needs at least one target token, but there is none.")
    mean = torch.tensor(loss / num_tokens, dtype=torch.float64)
    return {"loss": mean.item(), "perplexity": mean.exp().item(), "num_target_tokens": int(num_tokens)}


@torch.no_grad()
def seq2seq_perplexity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float | int]:
    """Loss, perplexity and number of tokens of batches as a `TranslationCollator` makes them.

    The model is left in the mode it was in.
    """
    training = model.training
    model.eval()
    rows = []
    for batch in batches:
        inputs = {key: value.to(model.device) for key, value in batch.items()}
        rows.append(row_losses(model(**inputs).logits, inputs["labels"]).cpu())
    model.train(training)
    return summarize(rows)
