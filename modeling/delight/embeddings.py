# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of DeLighT: narrow token tables, widened by a DExTra unit, and positions."""

import math

import torch
from torch import nn

from .adaptive import AdaptiveEmbedding
from .configuration_delight import DeLighTConfig
from .dextra import build_unit

ROWS_AT_ONCE = 4096
# The largest table of embeddings that is kept, half a gigabyte; 0 keeps none.
MOST_BYTES_KEPT = 2**29
# Embedding one token costs about as long as sixteen at once, all of it overhead.
TOKENS_PER_CALL = 16


def sinusoidal_positions(position_ids: torch.LongTensor, offset: int, width: int) -> torch.Tensor:
    """
    Sines, then cosines, of `p * 10000^(-k / (width / 2 - 1))` at `p = position + offset`, in float32; zero at -1.

    Args:
        position_ids (`torch.LongTensor`): `[batch, length]`, -1 for padding.
        offset (`int`): place of the first token; fairseq's is 2, behind the padding id.
        width (`int`): even, at least 4.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=position_ids.device)
    angles = (position_ids + offset)[..., None].float() * torch.exp(exponents * -(math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=-1) * (position_ids >= 0)[..., None]


class DeLighTEmbeddings(nn.Module):
    """
    Token table, DExTra unit and positions: `[batch, length]` -> `[batch, length, hidden_size]`.

    What the DExTra unit makes of a token depends on nothing but the token. In evaluation without gradients, once as
    many tokens were embedded as the vocabulary has, it is computed for the whole vocabulary and looked up from then
    on, as long as the weights stay what they are. Tables above `MOST_BYTES_KEPT` are not kept.
    """

    def __init__(self, config: DeLighTConfig, is_encoder: bool):
        super().__init__()
        size, vocab_size, padding_idx = config.embedding_size, config.vocab_size, config.pad_token_id
        if is_encoder:
            vocab_size = config.source_vocab_size or vocab_size
        self.scale = math.sqrt(size) if config.scale_embedding else 1.0
        if config.adaptive_cutoffs is None:
            self.embed_tokens = nn.Embedding(vocab_size, size, padding_idx)
        else:
            cutoffs = [*config.adaptive_cutoffs, vocab_size]
            self.embed_tokens = AdaptiveEmbedding(cutoffs, size, config.adaptive_factor, padding_idx)
            self.scale = 1.0  # each band has its own
        self.dextra = build_unit(
            config,
            size,
            config.hidden_size,
            config.embedding_width_multiplier,
            config.embedding_depth,
            config.embedding_max_groups,
        )
        self.offset, self.hidden_size = 1 + (padding_idx or 0), config.hidden_size
        self.position_embedding_type = config.of_stack("position_embedding_type", is_encoder)
        self.embed_positions, self.num_positions = None, config.of_stack("max_position_embeddings", is_encoder)
        if self.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(self.num_positions + self.offset, config.hidden_size, self.offset - 1)
        self.token_dropout = config.embedding_dropout
        has_positions = self.position_embedding_type != "none"
        self.position_dropout = config.position_dropout if has_positions else config.dropout
        self._kept_table: torch.Tensor | None = None
        self._kept_versions: list[tuple] = []
        self._num_embedded = 0
        self._built_of = [type(module) for module in self._all_modules()]

    def forward(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.LongTensor,
    ) -> torch.Tensor:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, length]`.
            inputs_embeds (`torch.Tensor`, *optional*): rows of `embed_tokens` instead,
                `[batch, length, embedding_size]`.
            position_ids (`torch.LongTensor`): `[batch or 1, length]`, -1 for padding.
        """
        if inputs_embeds is not None:
            hidden_states = self._widen(inputs_embeds)
        elif self._may_keep():
            hidden_states = self._looked_up(input_ids)
        else:
            hidden_states = self._widen(self.embed_tokens(input_ids))
        if self.position_embedding_type == "none":
            return nn.functional.dropout(hidden_states, self.position_dropout, self.training)
        hidden_states = hidden_states + self._positions(position_ids).to(hidden_states.dtype)
        return self._time_shared_dropout(hidden_states, self.position_dropout)

    def check_length(self, length: int) -> None:
        # A static cache counts in a tensor, an export in a symbol, and a compiled graph cannot branch on these.
        is_known = isinstance(length, int) or not torch.compiler.is_compiling()
        if self.embed_positions is not None and is_known and length > self.num_positions:
            raise ValueError(
                f"{length} tokens are more than the {self.num_positions} positions that were learned "
                "(`max_position_embeddings`): shorten the input."
            )

    def _widen(self, rows: torch.Tensor) -> torch.Tensor:
        return self.dextra(self._time_shared_dropout(rows * self.scale, self.token_dropout))

    def _time_shared_dropout(self, hidden_states: torch.Tensor, p: float) -> torch.Tensor:
        """One mask `[batch, 1, width]` for all positions."""
        if not self.training or p == 0:
            return hidden_states
        return nn.functional.dropout1d(hidden_states.transpose(1, 2), p).transpose(1, 2)

    def _positions(self, position_ids: torch.LongTensor) -> torch.Tensor:
        if self.embed_positions is None:
            return sinusoidal_positions(position_ids, self.offset, self.hidden_size)
        return self.embed_positions(position_ids + self.offset)

    def _all_modules(self) -> list[nn.Module]:
        """As `modules()`, several times faster: this is asked for every token that is generated."""
        found: list[nn.Module] = [self]
        for module in found:
            found.extend(child for child in module._modules.values() if child is not None)
        return found

    def _may_keep(self) -> bool:
        like = self.dextra.out_norm.bias
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if like.is_meta or torch.is_autocast_enabled(like.device.type):  # weights that come for each forward anew
            return False
        if self.embed_tokens.num_embeddings * like.numel() * like.element_size() > MOST_BYTES_KEPT:
            return False
        # Adapters stand in place of our modules, and are switched on and off without a change of any weight.
        return [type(module) for module in self._all_modules()] == self._built_of

    def _looked_up(self, input_ids: torch.LongTensor) -> torch.Tensor:
        weights = [p for module in self._all_modules() for p in module._parameters.values() if p is not None]
        # Frozen or not, as merging adapters writes through `.data`, but wrapping a model in them has frozen it.
        versions = [(p.data_ptr(), None if p.is_inference() else p._version, p.requires_grad) for p in weights]
        if versions != self._kept_versions:
            self._kept_table, self._kept_versions, self._num_embedded = None, versions, 0
        if self._kept_table is None:
            self._num_embedded += max(input_ids.numel(), TOKENS_PER_CALL)
            if self._num_embedded < self.embed_tokens.num_embeddings:
                return self._widen(self.embed_tokens(input_ids))
            ids = torch.arange(self.embed_tokens.num_embeddings, device=input_ids.device)
            self._kept_table = torch.cat([self._widen(self.embed_tokens(some)) for some in ids.split(ROWS_AT_ONCE)])
        return nn.functional.embedding(input_ids, self._kept_table)

    def train(self, mode: bool = True):
        # Writes through `.data` leave the versions alone.
        self._kept_table, self._kept_versions = None, []
        return super().train(mode)
