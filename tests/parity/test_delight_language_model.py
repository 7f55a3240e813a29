# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DeLighT as a language model against a second statement of it: the original's equations in numpy, double precision,
on a state dict with the original's names. There are no golden tensors of it."""

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from leanformers.conversion import convert_state_dict

VOCABULARY = 61
OPTIONS = {
    "delight_emb_map_dim": 32,
    "delight_emb_out_dim": 64,
    "delight_emb_depth": 3,
    "delight_emb_max_groups": 4,
    "delight_dec_layers": 3,
    "delight_dec_min_depth": 3,
    "delight_dec_max_depth": 6,
    "delight_dec_max_groups": 8,
    "tokens_per_sample": 16,
    "share_decoder_input_output_embed": True,
}
ADAPTIVE = {
    "adaptive_input": True,
    "adaptive_input_cutoff": "20,40",
    "adaptive_input_factor": 2,
    "adaptive_softmax_cutoff": "20,40",
    "adaptive_softmax_factor": 2.0,
    "share_decoder_input_output_embed": False,
    "no_decoder_final_norm": True,
}
PLAIN_HEADS = {
    "tied": {},
    "untied": {"share_decoder_input_output_embed": False, "no_scale_embedding": True, "act_type": "gelu"},
    "learned positions": {"decoder_learned_pos": True, "delight_dec_scaling": "uniform", "delight_dec_max_depth": 3},
    "no positions": {"no_token_positional_embeddings": True, "no_glt_shuffle": True, "act_type": "relu"},
    "no output projection": {"delight_emb_map_dim": 64, "delight_dec_ffn_red": 2, "act_type": "tanh"},
    "define": {"define_iclr": True, "delight_dec_width_mult": 1.5, "delight_dec_max_groups": 4},
}
ADAPTIVE_HEADS = {
    "tied": {"tie_adaptive_weights": True, "tie_adaptive_proj": True},
    "own projections": {"tie_adaptive_weights": True},
    "own tables and projections": {"tie_adaptive_proj": True},  # which ties nothing alone
    "four bands": {
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "adaptive_input_cutoff": [10, 30, 50, VOCABULARY],
        "adaptive_softmax_cutoff": [10, 30, 50],
    },
}


class Reference:
    """The original's decoder without an encoder, in evaluation.

    Args:
        weights: under the original's names.
        options: the original's.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], options: Mapping):
        self.weights = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self.options = options

    def act(self, x):
        name = self.options.get("act_type", "swish")
        if name == "swish":
            return x / (1 + np.exp(-x))
        if name == "gelu":
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return np.maximum(x, 0) if name == "relu" else np.tanh(x)

    def norm(self, name, x):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name, x):
        return np.einsum("oi,...i->...o", self.weights[f"{name}.weights"], x) + self.weights[f"{name}.bias"]

    def group_linear(self, name, x):
        weight, bias = self.weights[f"{name}.weights"], self.weights[f"{name}.bias"]
        if weight.ndim == 2:
            return self.act(self.norm(f"{name}.normalization_fn", x @ weight.T + bias))
        y = np.einsum("...gi,gio->...go", x.reshape(*x.shape[:-1], len(weight), -1), weight) + bias[:, 0]
        if not self.options.get("no_glt_shuffle") and not self.options.get("define_iclr"):
            y = y.swapaxes(-1, -2).reshape(y.shape)
        return self.act(self.norm(f"{name}.normalization_fn", y)).reshape(*x.shape[:-1], -1)

    def dextra(self, name, x):
        x0 = self.act(self.norm(f"{name}.input_layer.normalization_fn", self.linear(f"{name}.input_layer", x)))
        layers = sorted(key for key in self.weights if re.match(rf"{name}\.dextra_layers\.\d+\.weights$", key))
        groups = [len(self.weights[key]) if self.weights[key].ndim == 3 else 1 for key in layers] + [1]
        y = x0
        for key, next_groups in zip(layers, groups[1:], strict=True):
            y = self.group_linear(key.removesuffix(".weights"), y)
            chunks = [np.split(part, next_groups, axis=-1) for part in (x0, y)]
            y = np.concatenate([part for pair in zip(*chunks, strict=True) for part in pair], axis=-1)
        return self.act(self.norm(f"{name}.output_layer.normalization_fn", self.linear(f"{name}.output_layer", y)))

    def embed(self, tokens):
        name = "decoder.embed_tokens.map_layer"
        if not self.options.get("adaptive_input"):
            scale = 1 if self.options.get("no_scale_embedding") else np.sqrt(self.options["delight_emb_map_dim"])
            return self.weights[f"{name}.weight"][tokens] * scale
        rows = []
        for band, start in enumerate([0, *self.cutoffs]):
            table = self.weights[f"{name}.embeddings.{band}.weight"]
            projection = self.weights[f"{name}.projections.{band}.weight"]
            rows.append(table * np.sqrt(table.shape[1]) @ projection.T)
            assert start == sum(map(len, rows[:-1]))
        return np.concatenate(rows)[tokens]

    @property
    def cutoffs(self):
        cutoffs = self.options["adaptive_softmax_cutoff"]
        return list(map(int, cutoffs.split(","))) if isinstance(cutoffs, str) else cutoffs

    def positions(self, tokens):
        real = tokens != 1
        place = np.cumsum(real, axis=1) * real + 1
        if self.options.get("no_token_positional_embeddings"):
            return 0
        if self.options.get("decoder_learned_pos"):
            return self.weights["decoder.embed_positions.weight"][place]
        half = self.options["delight_emb_out_dim"] // 2
        angles = place[..., None] * np.exp(-np.arange(half) * np.log(10000) / (half - 1))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1) * real[..., None]

    def attend(self, name, x):
        query, key, value = np.split(self.linear(f"{name}.linear_kqv", x), 3, axis=-1)
        scores = np.einsum("bqh,bkh->bqk", query, key) / np.sqrt(query.shape[-1])
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        return self.linear(f"{name}.out_proj", np.einsum("bqk,bkh->bqh", np.exp(log_softmax(scores)), value))

    def features(self, tokens):
        """Hidden states of all blocks, and what goes into the output layer."""
        x = self.dextra("decoder.embed_tokens.dextra_layer", self.embed(tokens)) + self.positions(tokens)
        states = [x]
        for block in range(self.options["delight_dec_layers"]):
            name = f"decoder.layers.{block}"
            normed = self.norm(f"{name}.self_attn_layer_norm", x)
            x = x + self.attend(f"{name}.self_attn", self.dextra(f"{name}.dextra_layer_sa", normed))
            normed = self.norm(f"{name}.final_layer_norm", x)
            x = x + self.linear(f"{name}.fc2", self.act(self.linear(f"{name}.fc1", normed)))
            states.append(x)
        if not self.options.get("no_decoder_final_norm"):
            x = self.norm("decoder.layer_norm", x)
        if "decoder.project_out_dim.weights" in self.weights:
            x = x @ self.weights["decoder.project_out_dim.weights"].T
        return states, x

    def logits(self, features):
        tied = self.options["share_decoder_input_output_embed"]
        return (
            features @ self.weights["decoder.embed_tokens.map_layer.weight" if tied else "decoder.embed_out.weights"].T
        )

    def adaptive_scores(self, features):
        """Raw scores of the head, and of each tail."""
        own, inputs = "decoder.adaptive_softmax", "decoder.embed_tokens.map_layer"
        if not self.options.get("tie_adaptive_weights"):
            head = features @ self.weights[f"{own}.head.weight"].T
        else:
            words = features @ self.weights[f"{inputs}.embeddings.0.weight"].T
            head = np.concatenate([words, features @ self.weights[f"{own}.head.class_proj.weight"].T], axis=-1)
        tails = []
        for tail in range(len(self.cutoffs)):
            if self.options.get("tie_adaptive_weights") and self.options.get("tie_adaptive_proj"):
                projected = features @ self.weights[f"{inputs}.projections.{tail + 1}.weight"]
            else:
                projected = features @ self.weights[f"{own}.tail.{tail}.0.weight"].T
            is_tied = self.options.get("tie_adaptive_weights")
            table = f"{inputs}.embeddings.{tail + 1}.weight" if is_tied else f"{own}.tail.{tail}.2.weight"
            tails.append(projected @ self.weights[table].T)
        return head, tails

    def log_probabilities(self, head, tails):
        head = log_softmax(head)
        first = self.cutoffs[0]
        parts = [head[..., :first]]
        parts += [log_softmax(tail) + head[..., first + i, None] for i, tail in enumerate(tails)]
        return np.concatenate(parts, axis=-1)


def log_softmax(scores):
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def assert_near(actual: torch.Tensor, expected: np.ndarray, name: str) -> None:
    expected = torch.from_numpy(expected).float()
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0, msg=lambda text: f"{name}: {text}")


def tokens_of_every_band(batch: int = 2, length: int = 11) -> torch.Tensor:
    """All ids but padding, far apart next to each other."""
    return (torch.arange(batch * length) * 23 % (VOCABULARY - 2) + 2).view(batch, length)


def run(weights, options, tokens, **hparams):
    model = convert_state_dict("delight", weights, {"args": options, **hparams})
    with torch.no_grad():
        return model, model(tokens, attention_mask=(tokens != 1).long(), output_hidden_states=True)


@pytest.mark.parametrize("changes", PLAIN_HEADS.values(), ids=PLAIN_HEADS)
def test_plain_head(delight_weights, changes):
    options = OPTIONS | changes
    weights, tokens = delight_weights(options, VOCABULARY), tokens_of_every_band()
    model, output = run(weights, options, tokens)
    reference = Reference(weights, options)
    states, features = reference.features(tokens.numpy())
    for block, (ours, theirs) in enumerate(zip(output.hidden_states[:-1], states[:-1], strict=True)):
        assert_near(ours, theirs, f"input of block {block}")
    assert_near(output.logits, reference.logits(features), "logits")
    assert sum(map(torch.numel, model.parameters())) == sum(
        weight.numel() for name, weight in weights.items() if not name.endswith(("version", "_float_tensor"))
    )


@pytest.mark.parametrize("changes", ADAPTIVE_HEADS.values(), ids=ADAPTIVE_HEADS)
def test_adaptive_head(delight_weights, changes):
    options = OPTIONS | ADAPTIVE | changes
    weights, tokens = delight_weights(options, VOCABULARY), tokens_of_every_band()
    model, output = run(weights, options, tokens, tgt_vocab=VOCABULARY)
    reference = Reference(weights, options)
    states, features = reference.features(tokens.numpy())
    assert_near(output.hidden_states[-2], states[-2], "input of the last block")
    head, tails = reference.adaptive_scores(features)
    embedding, given = model.model.decoder.embeddings.embed_tokens, torch.from_numpy(features).float()
    assert_near(model.lm_head.head_scores(given, embedding).detach(), head, "head")
    for tail, scores in enumerate(tails):
        assert_near(model.lm_head.tail_scores(given, embedding, tail).detach(), scores, f"tail {tail}")
    expected = reference.log_probabilities(head, tails)
    assert_near(output.logits, expected, "log-probabilities")
    assert np.allclose(np.exp(expected).sum(-1), 1)


def test_padding_takes_no_position(delight_weights):
    weights, tokens = delight_weights(OPTIONS, VOCABULARY), tokens_of_every_band()
    tokens[1, 7:] = 1
    _, output = run(weights, OPTIONS, tokens)
    reference = Reference(weights, OPTIONS)
    expected = reference.logits(reference.features(tokens.numpy())[1])
    real = tokens != 1
    assert_near(output.logits[real], expected[real.numpy()], "logits")
