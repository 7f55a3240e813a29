# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Perplexity per real target token: every token counts once, padding never.

The mean of batch means that `Trainer` reports as evaluation loss weighs a token by how much padding its batch has.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

# Logits that are turned into float32 at a time: 64 MiB.
SLICE_ELEMENTS = 2**24


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed negative log-likelihood of each row's real tokens, and their number.

    Computed in slices of positions: a whole batch of logits over a large vocabulary may fit into memory just once. An
    adaptive softmax' log-probabilities are logits, too, as the softmax leaves them as they are.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, target_length, vocab_size)`)
        labels (`torch.Tensor` of shape `(batch_size, target_length)`): -100 where there is padding.

    Returns:
        `torch.Tensor` of shape `(batch_size, 2)`, in float64, in which a long corpus still adds up exactly.
    """
    width = max(1, SLICE_ELEMENTS // (logits.shape[0] * logits.shape[2]))
    losses = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for some, targets in zip(logits.split(width, dim=1), labels.split(width, dim=1), strict=True):
        token_losses = functional.cross_entropy(
            some.float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        losses += token_losses.double().sum(dim=1)
    return torch.stack([losses, labels.ne(-100).sum(dim=1).double()], dim=1)


def summarize(rows: Sequence[Tensor]) -> dict[str, float | int]:
    """Loss and perplexity per real target token of all `row_losses` together."""
    loss, num_tokens = total_loss(rows)
    return {
        "loss": loss / num_tokens,
        "perplexity": perplexity(loss, num_tokens),
        "num_target_tokens": num_tokens,
    }


def total_loss(rows: Sequence[Tensor]) -> tuple[float, int]:
    """The summed negative log-likelihood of all real tokens, and their number."""
    loss, num_tokens = torch.cat(list(rows)).sum(dim=0).tolist()
    if not num_tokens:
        raise ValueError("Perplexity needs at least one target token, but there is none.")
    return loss, int(num_tokens)


def perplexity(loss: float, count: int) -> float:
    """Of a summed loss, per each of `count`; infinite where it is too large to write."""
    return torch.tensor(loss / count, dtype=torch.float64).exp().item()


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
