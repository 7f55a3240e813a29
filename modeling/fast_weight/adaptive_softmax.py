# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
The adaptive softmax (arXiv 1609.04309) of the original language models, whose clusters all have the model's width.

The head scores the words of cluster 0 and one class for each other cluster; a cluster scores its own words:

    log p(word j of cluster 0)      = logsoftmax(head)[j]
    log p(word j of cluster i >= 1) = logsoftmax(head)[-i] + logsoftmax(cluster i)[j]

The classes stand in reversed order, the last column for cluster 1: published weights depend on it.
"""

import torch
from torch import nn
from torch.nn.functional import linear


class AdaptiveSoftmax(nn.Module):
    """
    Hidden states `[..., hidden_size]` -> log-probabilities `[..., vocab_size]`.

    Args:
        hidden_size (`int`): width of the hidden states.
        cutoffs (`list[int]`): first id of cluster 1, of cluster 2, ..., and the size of the vocabulary.
        bias (`bool`): whether words have a bias. The classes of the clusters always do.
    """

    def __init__(self, hidden_size: int, cutoffs: list[int], bias: bool = True):
        super().__init__()
        self.cutoffs, self.num_clusters = list(cutoffs), len(cutoffs) - 1
        self.weight = nn.Parameter(torch.empty(cutoffs[-1], hidden_size))
        self.bias = nn.Parameter(torch.empty(cutoffs[-1])) if bias else None
        self.cluster_weight = nn.Parameter(torch.empty(self.num_clusters, hidden_size))
        self.cluster_bias = nn.Parameter(torch.empty(self.num_clusters))

    def head_scores(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Scores `[..., cutoffs[0] + num_clusters]` of cluster 0's words, then of the other clusters reversed."""
        words = self.word_scores(hidden_states, 0)
        return torch.cat([words, linear(hidden_states, self.cluster_weight, self.cluster_bias)], dim=-1)

    def word_scores(self, hidden_states: torch.Tensor, cluster: int) -> torch.Tensor:
        """Scores of one cluster's words."""
        words = slice(([0, *self.cutoffs])[cluster], self.cutoffs[cluster])
        return linear(hidden_states, self.weight[words], None if self.bias is None else self.bias[words])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        head = _log_softmax(self.head_scores(hidden_states))
        parts = [head[..., : self.cutoffs[0]]]
        for cluster in range(1, self.num_clusters + 1):
            words = _log_softmax(self.word_scores(hidden_states, cluster))
            parts.append(words + head[..., -cluster, None])
        return torch.cat(parts, dim=-1)

    def loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Mean negative log-likelihood. A cluster scores only the tokens whose labels lie in it, which makes this loss
        cheap and its shapes depend on the data.

        Args:
            hidden_states (`torch.Tensor`): `[num_tokens, hidden_size]`.
            labels (`torch.LongTensor`): `[num_tokens]`, -100 to leave a token out.
            num_items_in_batch (`int`, *optional*): divisor in place of the number of labels, for a mean over several
                calls.
        """
        real = labels != -100
        hidden_states, labels = hidden_states[real], labels[real]
        targets, losses = labels.clone(), []
        for cluster in range(1, self.num_clusters + 1):
            start, end = self.cutoffs[cluster - 1], self.cutoffs[cluster]
            inside = (labels >= start) & (labels < end)
            targets[inside] = self.cutoffs[0] + self.num_clusters - cluster
            losses.append(
                _negative_log_likelihood(self.word_scores(hidden_states[inside], cluster), labels[inside] - start)
            )
        losses.append(_negative_log_likelihood(self.head_scores(hidden_states), targets))
        return sum(losses) / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _log_softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.log_softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _negative_log_likelihood(scores: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return nn.functional.cross_entropy(scores, targets, reduction="sum")
