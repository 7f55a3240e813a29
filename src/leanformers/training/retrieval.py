# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How many pairs a fast weight memory holds, and whether it can forget: the study of arXiv 2102.11174, section 6.1.

One memory, one head, no layers around it: pairs of a key and a value are written one by one, then keys are asked for.
What is trained is how keys and queries are made, and how strongly is written; values are one-hot vectors and stay so.

Nothing but the memory's last state is read, and no value is more than a number, so the memory is never built: what is
read is a weight per written pair (`read_weights`), which is added up where its value is. The rules of
`leanformers.modeling.fast_weight` give the same, more slowly.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanformers.modeling.fast_weight.delta_rule import naive_fwm_rule
from leanformers.modeling.fast_weight.feature_maps import Favor, build_feature_map, normalize_features

EPS = 1e-6
CHUNK_SIZE = 32


class RetrievalModel(nn.Module):
    """
    The model of the study. Its parameters have the names and the initial values of the paper's code, which has three
    more that never reach the output: `W_v`, `W_f`, and `embeddingV`, the identity.

    Args:
        num_keys (`int`): S, how many keys there are, and values.
        update_rule (`str`): `"sum"`, `"delta"` (the paper's), `"fwm"`, or `"softmax"`: attention, without a memory.
        feature_map (`str`): a key of `FEATURE_MAPS`; attention has none. FAVOR+ is drawn anew at every call.
        nu (`int`): of DPFP.
        num_features (`int`): of FAVOR+.
        hidden_size (`int`): width of keys and queries before the feature map.
    """

    def __init__(
        self,
        num_keys: int,
        update_rule: str = "delta",
        feature_map: str = "dpfp",
        *,
        nu: int = 1,
        num_features: int = 64,
        hidden_size: int = 64,
    ):
        super().__init__()
        if update_rule not in ("softmax", "sum", "delta", "fwm"):
            raise ValueError(f"update_rule must be softmax, sum, delta or fwm, got {update_rule!r}.")
        self.num_keys, self.update_rule, self.hidden_size = num_keys, update_rule, hidden_size
        embedding_size = 2 * num_keys * 11 // 10
        # The paper's code counts keys and values in one vocabulary; the second half of the rows is never looked up.
        self.embeddingK = nn.Embedding(2 * num_keys, embedding_size)
        self.W_k = nn.Linear(num_keys + embedding_size, hidden_size)
        self.W_q = nn.Linear(embedding_size, hidden_size)
        if update_rule in ("delta", "fwm"):
            self.W_b = nn.Linear(num_keys + embedding_size, 1)
        if update_rule != "softmax":
            self.feature_map, _ = build_feature_map(feature_map, hidden_size, nu, num_features, eps=0.0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embeddingK.weight)
        for projection in (self.W_k, self.W_q):
            if self.update_rule == "softmax":
                nn.init.xavier_uniform_(projection.weight)
            else:
                bound = 1 / math.sqrt(self.hidden_size)
                nn.init.uniform_(projection.weight, -bound, bound)

    def forward(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        """What the memory gives for `queries` `(batch_size, num_queries)` after pairs `(batch_size, length)`, as
        `(batch_size, num_queries, num_keys)`, which should be one-hot."""
        table = self.embeddingK.weight[: self.num_keys]
        key_states = self._project(self.W_k, table, keys, values)
        query_states = functional.embedding(queries, self.W_q(table))
        if self.update_rule != "softmax":
            if isinstance(self.feature_map, Favor):
                self.feature_map.redraw()
            key_states, query_states = self.feature_map(key_states), self.feature_map(query_states)
        beta = None
        if self.update_rule in ("delta", "fwm"):
            beta = self._project(self.W_b, table, keys, values).sigmoid()[..., 0]
        if self.update_rule == "fwm":
            return fwm_read(query_states, key_states, functional.one_hot(values, self.num_keys), beta)
        weights = read_weights(query_states, key_states, beta, self.update_rule)
        places = values[:, None].expand_as(weights)
        return weights.new_zeros(*queries.shape, self.num_keys).scatter_add(-1, places, weights)

    def _project(self, projection: nn.Linear, table: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`projection([one_hot(value), embedding(key)])` of every pair by look-ups, each key projected once."""
        of_value, of_key = projection.weight.split([self.num_keys, table.shape[1]], dim=1)
        of_keys = functional.linear(table, of_key, projection.bias)
        return functional.embedding(keys, of_keys) + functional.embedding(values, of_value.T)


def read_weights(query: Tensor, key: Tensor, beta: Tensor | None, update_rule: str) -> Tensor:
    """
    By how much each written pair's value is in what is read after the last one.

    The sum rule reads `sum_t (q . k_t) v_t`, attention with its scores divided by their sum. With the delta rule a
    pair is read by what the later ones leave of the query: from the last pair to the first, `w_t = beta_t (q_t . k_t)`
    and `q_{t-1} = q_t - w_t k_t`. Within a chunk with keys K that is `w = q K^T (I + tril(B K K^T, -1))^-1 B`, with
    `B = diag(beta)`.

    Args:
        query (`torch.Tensor`): `(batch_size, num_queries, width)`, behind the feature map.
        key (`torch.Tensor`): `(batch_size, length, width)`, likewise.
        beta (`torch.Tensor`, *optional*): `(batch_size, length)`, of the delta rule.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, length)`.
    """
    if update_rule == "softmax":
        return (query @ key.mT / math.sqrt(key.shape[-1])).softmax(dim=-1)
    if update_rule == "sum":
        scores = query @ key.mT
        return scores / (scores.sum(dim=-1, keepdim=True) + EPS)
    return delta_read_weights(normalize_features(query, EPS), normalize_features(key), beta)


def delta_read_weights(query: Tensor, key: Tensor, beta: Tensor) -> Tensor:
    """`read_weights` of the delta rule, of normalised queries and keys."""
    weights = []
    chunks = zip(key.split(CHUNK_SIZE, dim=1), beta.split(CHUNK_SIZE, dim=1), strict=True)
    for keys, betas in reversed(list(chunks)):
        overlap = betas[..., None] * keys @ keys.mT  # the solve reads nothing but what is below its diagonal
        scores = torch.linalg.solve_triangular(overlap, query @ keys.mT, upper=False, left=False, unitriangular=True)
        weights.append(scores * betas[:, None])
        query = query - weights[-1] @ keys
    return torch.cat(weights[::-1], dim=-1)


def fwm_read(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """The reads of `naive_fwm_rule` after the last pair, of any number of queries."""
    key, value = key[:, :, None], value[:, :, None].to(key)
    _, state = naive_fwm_rule(torch.zeros_like(key), key, value, beta[..., None], output_final_state=True)
    output = query @ state[:, 0]
    return functional.layer_norm(output, output.shape[-1:])
