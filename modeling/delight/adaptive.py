# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Adaptive input (arXiv 1809.10853) and adaptive softmax (arXiv 1609.04309), as DeLighT's language model has them.

The vocabulary, sorted by frequency, is cut into bands. Band i has tables of width `m / factor^i` and a projection
between that and `m`. The head scores the words of band 0 and one class for each other band:

    log p(word j of band 0)      = logsoftmax(head)[j]
    log p(word j of band i >= 1) = logsoftmax(head)[c_1 + i - 1] + logsoftmax(tail_i)[j]
"""

import math

import torch
from torch import nn


class AdaptiveEmbedding(nn.Module):
    """
    Token ids `[...]` -> `[..., embedding_size]`, each row scaled by the square root of its band's width.

    Args:
        cutoffs (`list[int]`): first id of band 1, of band 2, ..., and the size of the vocabulary.
        embedding_size (`int`): width `m` of the output and of band 0.
        factor (`int`): each band is so many times narrower than the one before.
        padding_idx (`int`, *optional*): id of padding, whose row is zero.
    """

    def __init__(self, cutoffs: list[int], embedding_size: int, factor: int, padding_idx: int | None = None):
        super().__init__()
        self.cutoffs, self.embedding_dim, self.num_embeddings = list(cutoffs), embedding_size, cutoffs[-1]
        self.starts = [0, *cutoffs[:-1]]
        tables, projections = [], []
        for band, (start, end) in enumerate(zip(self.starts, self.cutoffs, strict=True)):
            width = embedding_size // factor**band
            padding_row = None if padding_idx is None or not start <= padding_idx < end else padding_idx - start
            tables.append(nn.Embedding(end - start, width, padding_row))
            projections.append(nn.Linear(width, embedding_size, bias=False))
        self.tables, self.projections = nn.ModuleList(tables), nn.ModuleList(projections)

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        # Every band embeds every token, and the tokens choose: narrow products whose shapes do not depend on the data.
        output = None
        for start, table, projection in zip(self.starts, self.tables, self.projections, strict=True):
            rows = table((input_ids - start).clamp(0, table.num_embeddings - 1)) * math.sqrt(table.embedding_dim)
            rows = projection(rows)
            output = rows if output is None else torch.where((input_ids >= start)[..., None], rows, output)
        return output


class AdaptiveLogSoftmax(nn.Module):
    """
    The output layer. What is tied is read from the `AdaptiveEmbedding` that each call is given.

    Args:
        cutoffs, embedding_size, factor: as for `AdaptiveEmbedding`.
        tie_weights (`bool`): tables are those of the input. The class scores of the head are the only new parameter.
        tie_projections (`bool`): projections of the tails are those of the input, used transposed.
        dropout (`float`): dropout of the input in training, and between a tail's projection and table.
    """

    def __init__(
        self,
        cutoffs: list[int],
        embedding_size: int,
        factor: int,
        tie_weights: bool = True,
        tie_projections: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.starts, self.cutoffs = [0, *cutoffs[:-1]], list(cutoffs)
        self.tie_weights, self.tie_projections = tie_weights, tie_projections
        sizes = [end - start for start, end in zip(self.starts, self.cutoffs, strict=True)][1:]
        widths = [embedding_size // factor ** (tail + 1) for tail in range(len(sizes))]
        if tie_weights:
            self.class_proj = nn.Linear(embedding_size, len(sizes), bias=False)
        else:
            self.head = nn.Linear(embedding_size, cutoffs[0] + len(sizes), bias=False)
            self.tail_tables = nn.ModuleList(
                [nn.Linear(width, size, bias=False) for width, size in zip(widths, sizes, strict=True)]
            )
        if not tie_projections:
            self.tail_projections = nn.ModuleList([nn.Linear(embedding_size, width, bias=False) for width in widths])
        self.dropout = nn.Dropout(dropout)

    def head_scores(self, hidden_states: torch.Tensor, embedding: AdaptiveEmbedding) -> torch.Tensor:
        """Scores `[..., c_1 + number of tails]` of the words of band 0 and of the other bands as classes."""
        if not self.tie_weights:
            return self.head(hidden_states)
        words = nn.functional.linear(hidden_states, embedding.tables[0].weight)
        return torch.cat([words, self.class_proj(hidden_states)], dim=-1)

    def tail_scores(self, hidden_states: torch.Tensor, embedding: AdaptiveEmbedding, tail: int) -> torch.Tensor:
        """Scores `[..., size of band tail + 1]` of the words of one other band."""
        if self.tie_projections:
            projected = project_back(hidden_states, embedding.projections[tail + 1])
        else:
            projected = self.tail_projections[tail](hidden_states)
        projected = self.dropout(projected)
        if self.tie_weights:
            return nn.functional.linear(projected, embedding.tables[tail + 1].weight)
        return self.tail_tables[tail](projected)

    def forward(self, hidden_states: torch.Tensor, embedding: AdaptiveEmbedding) -> torch.Tensor:
        """Log-probabilities `[..., vocab_size]` of `hidden_states` `[..., embedding_size]`."""
        head = _log_softmax(self.head_scores(hidden_states, embedding))
        first, classes = head.split([self.cutoffs[0], len(self.cutoffs) - 1], dim=-1)
        tails = [
            _log_softmax(self.tail_scores(hidden_states, embedding, tail)) + classes[..., tail : tail + 1]
            for tail in range(len(self.cutoffs) - 1)
        ]
        return torch.cat([first, *tails], dim=-1)

    def loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor,
        embedding: AdaptiveEmbedding,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Mean negative log-likelihood. A tail is scored only for the tokens whose labels lie in it, which is what makes
        this loss cheap, and what gives it shapes that depend on the data.

        Args:
            hidden_states (`torch.Tensor`): `[num_tokens, embedding_size]`.
            labels (`torch.LongTensor`): `[num_tokens]`, -100 to leave a token out.
            embedding (`AdaptiveEmbedding`): the input layer.
            num_items_in_batch (`int`, *optional*): divisor in place of the number of labels, for a mean over several
                calls.
        """
        real = labels != -100
        hidden_states, labels = self.dropout(hidden_states[real]), labels[real]
        targets, losses = labels.clone(), []
        for tail, (start, end) in enumerate(zip(self.starts[1:], self.cutoffs[1:], strict=True)):
            inside = (labels >= start) & (labels < end)
            targets[inside] = self.cutoffs[0] + tail
            scores = self.tail_scores(hidden_states[inside], embedding, tail)
            losses.append(_negative_log_likelihood(scores, labels[inside] - start))
        losses.append(_negative_log_likelihood(self.head_scores(hidden_states, embedding), targets))
        return sum(losses) / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def project_back(hidden_states: torch.Tensor, projection: nn.Module) -> torch.Tensor:
    """`hidden_states` `[..., out_features]` times the matrix of `projection`, adapters and quantisation included."""
    if type(projection) is nn.Linear and type(projection.weight) is nn.Parameter:
        return hidden_states @ projection.weight
    rows = torch.eye(projection.in_features, dtype=hidden_states.dtype, device=hidden_states.device)
    return hidden_states @ projection(rows).T


def _log_softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.log_softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _negative_log_likelihood(scores: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return nn.functional.cross_entropy(scores, targets, reduction="sum")
