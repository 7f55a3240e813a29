# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Anthe: a translation transformer with a third of the weights (arXiv 2305.10991).

What is unusual, in the order of the dataflow:

- H-SoftPOS embeddings: a narrow token table, widened by causal convolutions and by positions that tokens choose;
- KgV attention: keys are the raw inputs, and the values are gated by them,

      q' = W_q Q,    k' = K,    v' = W_v (V * sigmoid(W_g K)),    out = W_o softmax(q' k'^T / sqrt(d_h)) v'

  so that the keys of cross-attention are the encoder's output itself, the same for all layers, and are never stored;
- tensor-chain projections and feed-forward matrices (`tensor_chain.py`);
- post-norm blocks without a final norm, and a feed-forward layer called "geglu" in the original that is a SwiGLU.

The original's default gate (QgV) lets a target token see the ones after it; README.md has the evidence. Here that is
refused in cross-attention, unless asked for with `allow_noncausal_gate`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_anthe import AntheConfig
from .soft_positions import (
    ConvolutionInputs,
    HierarchicalSoftPositions,
    SoftPositions,
    SoftPositionsLayer,
    sinusoidal_positions,
)
from .tensor_chain import TensorChainConv1d, TensorChainEmbedding, TensorChainLinear

# transformers 5.24 renamed `past_key_values`.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def accept_cache(forward: Callable) -> Callable:
    """Let `forward` take `past_key_values` under the name `cache` as well."""

    @functools.wraps(forward)
    def forward_with_cache(*args, **kwargs):
        cache = kwargs.pop("cache", None)
        if cache is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them.")
            kwargs["past_key_values"] = cache
        return forward(*args, **kwargs)

    return forward_with_cache


def build_linear(config: AntheConfig, in_features: int, out_features: int, ratio: float | None) -> nn.Module:
    """A linear layer with bias: a tensor chain of `ratio`, or dense if there is none."""
    if ratio is None:
        return nn.Linear(in_features, out_features)
    return TensorChainLinear(
        in_features,
        out_features,
        ratio,
        length=config.tc_length,
        mode=config.tc_forward,
        reference_bond=config.tc_reference_bond,
    )


def real_tokens(attention_mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    """
    `[batch, num_tokens]`, False for the padding before the first token of each row, of the last `num_tokens` columns
    of a mask `[batch, length]`. None (also for 4D masks, which say nothing about padding) means that all are real.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return (attention_mask.cumsum(-1) > 0)[:, -num_tokens:]


def positions_of(attention_mask: torch.Tensor | None, inputs: torch.Tensor, past_length: int = 0) -> torch.LongTensor:
    """Position ids `[batch or 1, length]` of `inputs` `[batch, length, ...]`, counted from each row's first token."""
    position_ids = torch.arange(inputs.shape[1], device=inputs.device)[None] + past_length
    if attention_mask is None or attention_mask.dim() != 2:
        return position_ids
    num_left_pads = (attention_mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    return (position_ids - num_left_pads).clamp(min=0)


def decoder_masks(
    config: AntheConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: EncoderDecoderCache | None,
) -> dict[str, torch.Tensor | None]:
    """All that the decoder reads off its mask `[batch, past_length + length]`, for inputs `[batch, length, ...]`."""
    cache = None if past_key_values is None else past_key_values.self_attention_cache
    return {
        "position_ids": positions_of(attention_mask, inputs_embeds, 0 if cache is None else cache.get_seq_length()),
        "is_real": real_tokens(attention_mask, inputs_embeds.shape[1]),
        "causal_mask": create_causal_mask(
            config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **{CACHE_NAME: cache}
        ),
    }


def check_source_mask(encoder_attention_mask: torch.Tensor | None, encoder_hidden_states: torch.Tensor) -> None:
    """A mask of one column, as `generate(prefill_chunk_size=...)` cuts it, would hold for every source token."""
    if encoder_attention_mask is None or encoder_attention_mask.dim() != 2 or torch.compiler.is_compiling():
        return
    if encoder_attention_mask.shape[1] != encoder_hidden_states.shape[1]:
        raise ValueError(
            f"`attention_mask` is of the source and must be as long, {encoder_hidden_states.shape[1]} tokens, got "
            f"{list(encoder_attention_mask.shape)}. `prefill_chunk_size` is for decoder-only models: leave it out."
        )


def check_not_packed(position_ids=None, seq_idx=None, cu_seq_lens_q=None, **kwargs) -> None:
    """What tells packed documents apart would be ignored here, and they would read each other."""
    for name, value in (("position_ids", position_ids), ("seq_idx", seq_idx), ("cu_seq_lens_q", cu_seq_lens_q)):
        if value is not None:
            raise ValueError(
                f"An encoder-decoder counts its positions itself, for one text a row: it takes no `{name}`. Pad "
                "instead of packing, as DataCollatorForSeq2Seq does."
            )


class AntheEmbeddings(nn.Module):
    """Token table, positions and soft positions: `[batch, length]` -> `[batch, length, hidden_size]`."""

    def __init__(self, config: AntheConfig, vocab_size: int):
        super().__init__()
        size, ratio = config.embedding_size, config.tc_embedding_ratio
        length, bond = config.tc_embedding_length or config.tc_length, config.tc_reference_bond
        if ratio is None:
            self.embed_tokens = nn.Embedding(vocab_size, size)
        else:
            self.embed_tokens = TensorChainEmbedding(vocab_size, size, ratio, length, bond)
        self.has_sinusoids = ratio is None or config.tc_embedding_positions
        self.soft_positions = None
        if config.position_embedding_type == "h_softpos":
            self.soft_positions = HierarchicalSoftPositions(
                size, config.soft_position_width, config.soft_position_levels, config.tc_conv_ratio, length, bond
            )
        elif config.position_embedding_type == "softpos":
            self.soft_positions = SoftPositions(
                config.softpos_num_subpositions, config.softpos_width, config.softpos_repeats
            )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        token_embeddings: torch.Tensor,
        position_ids: torch.LongTensor,
        is_real: torch.Tensor | None = None,
        past_inputs: ConvolutionInputs | None = None,
    ) -> torch.Tensor:
        """`token_embeddings` are rows of `embed_tokens`, `[batch, length, embedding_size]`, as they stand there."""
        hidden_states = token_embeddings
        if self.has_sinusoids:
            width = token_embeddings.shape[-1]
            positions = sinusoidal_positions(position_ids, width).to(token_embeddings.dtype)
            hidden_states = token_embeddings * math.sqrt(width) + positions
        if isinstance(self.soft_positions, HierarchicalSoftPositions):
            hidden_states = self.soft_positions(hidden_states, is_real, past_inputs)
        elif self.soft_positions is not None:
            hidden_states = self.soft_positions(hidden_states)
        return self.dropout(hidden_states)


def naive_gated_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: str,
    projections: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    num_heads: int,
    blocked: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Gated attention, line by line, one head after the other; `AntheAttention` is the fast form.

    Args:
        query (`torch.Tensor`): `[batch, query_length, hidden_size]`.
        key, value (`torch.Tensor`): `[batch, source_length, hidden_size]`.
        gate (`str`): one of `ATTENTION_GATES`.
        projections (mapping of `str` to callable): `gate_proj`, those of `q_proj`, `k_proj`, `v_proj` that the gate
            leaves, and `o_proj`.
        num_heads (`int`): number of heads.
        blocked (`torch.Tensor`, *optional*): `[batch, query_length, source_length]`, True where not to attend.

    Returns:
        `torch.Tensor`: `[batch, query_length, hidden_size]`.
    """
    streams = {"q": query, "k": key, "v": value}
    reads, gated = ("", "") if gate == "none" else (gate[0].lower(), gate[2].lower())
    if gate != "none":
        streams[gated] = streams[gated] * torch.sigmoid(projections["gate_proj"](streams[reads]))
    q, k, v = (x if name == reads else projections[f"{name}_proj"](x) for name, x in streams.items())
    head_dim, outputs = q.shape[-1] // num_heads, []
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(head_dim)
        if blocked is not None:
            scores = scores.masked_fill(blocked, -torch.inf)
        outputs.append(scores.softmax(dim=-1) @ v[..., part])
    return projections["o_proj"](torch.cat(outputs, dim=-1))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(d_h)) v on `[batch, heads, length, head_dim]`; gives `[batch, length, heads, head_dim]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AntheAttention(nn.Module):
    """
    Multi-head attention in which one of the streams query, key and value may gate another.

    Under the gate "YgX", stream Y is used raw, X becomes `W_x (X * sigmoid(W_g Y))`, and the third one is projected as
    usual. Without a gate all three are projected.

    Args:
        config (`AntheConfig`): sizes, and the ratio of tensor-chain projections.
        gate (`str`): one of `ATTENTION_GATES`.
        layer_idx (`int`, *optional*): index in the cache; None for an encoder.
        is_causal (`bool`): for the attention backends.
    """

    def __init__(self, config: AntheConfig, gate: str, layer_idx: int | None = None, is_causal: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.gating, self.gated = ("", "") if gate == "none" else (gate[0].lower(), gate[2].lower())
        projections = [f"{stream}_proj" for stream in "qkv" if stream != self.gating]
        for name in ["gate_proj", *projections] if self.gating else projections:
            setattr(self, name, build_linear(config, config.hidden_size, config.hidden_size, config.tc_attn_ratio))
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor`): `[batch, query_length, hidden_size]`.
            attention_mask (`torch.Tensor`, *optional*): as the attention backend wants it.
            key_value_states (`torch.Tensor`, *optional*): encoder output, `[batch, source_length, hidden_size]`.
            past_key_values (`EncoderDecoderCache`, *optional*): updated in place.

        Returns:
            `[batch, query_length, hidden_size]`, and the attention weights where the backend has them.
        """
        source = hidden_states if key_value_states is None else key_value_states
        streams = {"q": hidden_states, "k": source, "v": source}
        if key_value_states is None:
            query, key, value = (self._split(self._stream(name, streams)) for name in "qkv")
            if past_key_values is not None:
                key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        else:
            self._check_cross_gate(streams, past_key_values)
            query = self._split(self._stream("q", streams))
            key, value = self._cross_states(streams, past_key_values)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape)), weights

    def _stream(self, name: str, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        """One of query, key and value, `[batch, length, hidden_size]`: raw, gated and projected, or projected."""
        inputs = streams[name]
        if name == self.gating:
            return inputs
        if name == self.gated:
            inputs = inputs * self.gate_proj(streams[self.gating]).sigmoid()
        return getattr(self, f"{name}_proj")(inputs)

    def _cross_states(self, streams: dict[str, torch.Tensor], past_key_values: EncoderDecoderCache | None):
        """
        Keys and values of cross-attention, computed at the first step. The raw stream of a gate is the encoder
        output, which every step is given and all layers share: in its place the cache holds one number a head, so that
        its layer knows how long it is.
        """
        raw = self._split(streams["k"])
        cache = None if past_key_values is None else past_key_values.cross_attention_cache
        if cache is not None and past_key_values.is_updated.get(self.layer_idx):
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            key, value = (
                raw[..., :1] if name == self.gating else self._split(self._stream(name, streams)) for name in "kv"
            )
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        return raw if self.gating == "k" else key, raw if self.gating == "v" else value

    def _check_cross_gate(self, streams: dict[str, torch.Tensor], past_key_values: EncoderDecoderCache | None) -> None:
        if "q" not in (self.gating, self.gated):
            return
        if past_key_values is not None:
            raise ValueError(
                f"The cross-attention gate {self.gating.upper()}g{self.gated.upper()} pairs target and source "
                "positions and cannot be cached: pass `use_cache=False`."
            )
        if streams["q"].shape[1] != streams["k"].shape[1]:
            raise ValueError(
                f"The cross-attention gate {self.gating.upper()}g{self.gated.upper()} needs sources and targets of "
                f"equal length, got {streams['k'].shape[1]} and {streams['q'].shape[1]}: pad both to one length."
            )

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)


class AntheFeedForward(nn.Module):
    """SwiGLU, `W_down (silu(W_gate x) * W_up x)`, or `W_down relu(W_up x)`; all with biases."""

    def __init__(self, config: AntheConfig):
        super().__init__()
        size, inner_size, ratio = config.hidden_size, config.ffn_hidden_size, config.tc_ffn_ratio
        self.gate_proj = build_linear(config, size, inner_size, ratio) if config.ffn_type == "swiglu" else None
        self.up_proj = build_linear(config, size, inner_size, ratio)
        self.down_proj = build_linear(config, inner_size, size, ratio)
        self.activation = ACT2FN["silu" if config.ffn_type == "swiglu" else "relu"]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.up_proj(hidden_states)
        inner = (
            self.activation(inner)
            if self.gate_proj is None
            else self.activation(self.gate_proj(hidden_states)) * inner
        )
        return self.down_proj(inner)


class AntheEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AntheConfig):
        super().__init__()
        self.self_attn = AntheAttention(config, config.attention_gate)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AntheFeedForward(config)
        self.mlp_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states, attention_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.mlp_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class AntheDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AntheConfig, layer_idx: int):
        super().__init__()
        cross_gate = config.cross_attention_gate or config.attention_gate
        self.self_attn = AntheAttention(config, config.attention_gate, layer_idx, is_causal=True)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = AntheAttention(config, cross_gate, layer_idx)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AntheFeedForward(config)
        self.mlp_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    @accept_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        attended, _ = self.cross_attn(
            hidden_states, encoder_attention_mask, encoder_hidden_states, past_key_values=past_key_values, **kwargs
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.mlp_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class AnthePreTrainedModel(PreTrainedModel):
    config: AntheConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AntheEncoderLayer", "AntheDecoderLayer", "AntheEmbeddings"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, *args):
        for name in ("tp_size", "pp_size"):
            if distributed_config is not None and getattr(distributed_config, name) > 1:
                raise ValueError(
                    f"Anthe is shared out with fsdp_size alone ({name}={getattr(distributed_config, name)}): the "
                    "small cores of tensor chains have no rows or columns to split, and pipelines are for decoders."
                )
        return super().maybe_distribute_model(model, distributed_config, *args)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        scheme, limit = self.config.tc_init, self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -limit, limit)
        elif isinstance(module, TensorChainLinear | TensorChainConv1d):
            module.reset_parameters(scheme)
        elif isinstance(module, TensorChainEmbedding):
            module.reset_parameters(scheme, limit)
        elif isinstance(module, SoftPositions):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        """Source and target tables grow together, as `resize_token_embeddings` has room for one size only."""
        config = self.config
        if config.source_vocab_size not in (None, config.vocab_size):
            raise ValueError(
                f"The source vocabulary ({config.source_vocab_size}) and the target vocabulary ({config.vocab_size}) "
                "differ, so that they cannot be resized to one size: build a new model from a changed config instead."
            )
        if config.tc_embedding_ratio is not None or config.tc_output_ratio is not None:
            raise ValueError(
                "Tensor-chain tables and output layers (`tc_embedding_ratio`, `tc_output_ratio`) are factored for one "
                "vocabulary size and cannot be resized: build a new model from a changed config instead."
            )
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None and not config.share_embeddings:
            decoder.embeddings.embed_tokens = self._get_resized_embeddings(
                decoder.embeddings.embed_tokens, new_num_tokens, pad_to_multiple_of, mean_resizing
            )
        table = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        config.source_vocab_size = None
        return table


class AntheEncoder(AnthePreTrainedModel):
    _can_record_outputs = {"hidden_states": AntheEncoderLayer, "attentions": AntheAttention}

    def __init__(self, config: AntheConfig):
        super().__init__(config)
        self.embeddings = AntheEmbeddings(config, config.source_vocab_size or config.vocab_size)
        self.layers = nn.ModuleList([AntheEncoderLayer(config) for _ in range(config.num_encoder_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, source_length]`.
            attention_mask (`torch.Tensor`, *optional*): `[batch, source_length]`, 1 for tokens and 0 for padding, on
                either side.
            inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token table instead of `input_ids`,
                `[batch, source_length, embedding_size]`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds` to the encoder, and not both.")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.embed_tokens(input_ids)
        hidden_states = self.embeddings(
            inputs_embeds,
            positions_of(attention_mask, inputs_embeds),
            real_tokens(attention_mask, inputs_embeds.shape[1]),
        )
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class AntheDecoder(AnthePreTrainedModel):
    _can_record_outputs = {
        "hidden_states": AntheDecoderLayer,
        "attentions": OutputRecorder(AntheAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(AntheAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: AntheConfig, shared_embeddings: AntheEmbeddings | None = None):
        super().__init__(config)
        if shared_embeddings is None:
            self.embeddings = AntheEmbeddings(config, config.vocab_size)
        else:
            # Owned by the encoder and kept out of this module's tree: parameters under two names would have to be
            # declared as tied, which works only together with `tie_word_embeddings`.
            self.__dict__["embeddings"] = shared_embeddings
        self.layers = nn.ModuleList([AntheDecoderLayer(config, i) for i in range(config.num_decoder_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @accept_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, target_length]`, without those already in the cache.
            attention_mask (`torch.Tensor` or `dict`, *optional*): `[batch, past_length + target_length]`, or what
                `decoder_masks` makes of it.
            encoder_hidden_states (`torch.FloatTensor`): `[batch, source_length, hidden_size]`.
            encoder_attention_mask (`torch.Tensor`, *optional*): `[batch, source_length]`.
            past_key_values (`EncoderDecoderCache`, *optional*): of two `DynamicCache(config=model.config)`.
            inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token table instead of `input_ids`,
                `[batch, target_length, embedding_size]`.
            use_cache (`bool`, *optional*): return `past_key_values`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `decoder_input_ids` or `decoder_inputs_embeds`, and not both.")
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs `encoder_hidden_states` to attend to.")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        check_source_mask(encoder_attention_mask, encoder_hidden_states)
        past_inputs = self._convolution_inputs(past_key_values)
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = decoder_masks(self.config, inputs_embeds, attention_mask, past_key_values)

        hidden_states = self.embeddings(inputs_embeds, masks["position_ids"], masks["is_real"], past_inputs)
        encoder_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                masks["causal_mask"],
                encoder_hidden_states,
                encoder_attention_mask=encoder_mask,
                use_cache=use_cache,
                **{CACHE_NAME: past_key_values},
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, **{CACHE_NAME: past_key_values}
        )

    def _convolution_inputs(self, past_key_values: EncoderDecoderCache | None) -> ConvolutionInputs | None:
        """What the cache keeps for the soft positions' convolutions, if there are any."""
        if past_key_values is None:
            return None
        if not isinstance(past_key_values, EncoderDecoderCache):
            raise ValueError(
                f"`past_key_values` must be an EncoderDecoderCache, got {type(past_key_values).__name__}: "
                "build it as EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))."
            )
        if self.config.layer_types[0] != SoftPositionsLayer._layer_type:
            return None
        layers = past_key_values.self_attention_cache.layers
        if not layers:  # a DynamicCache without a config, whose layers come with their first use
            layers.append(SoftPositionsLayer())
        # By what it has: a second copy of this file, loaded from another repository, registers a class of its own.
        if not hasattr(layers[0], "convolutions"):
            raise ValueError(
                f"The first layer of the cache is a {type(layers[0]).__name__}, which cannot keep the inputs of the "
                "soft positions' convolutions: build the cache with `config=model.config`."
            )
        return layers[0].convolutions


class AntheModel(AnthePreTrainedModel):
    def __init__(self, config: AntheConfig):
        super().__init__(config)
        self.encoder = AntheEncoder(config)
        self.decoder = AntheDecoder(config, self.encoder.embeddings if config.share_embeddings else None)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embeddings.embed_tokens = value

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): source tokens `[batch, source_length]`.
            attention_mask (`torch.Tensor`, *optional*): `[batch, source_length]`, 1 for tokens and 0 for padding.
            decoder_input_ids (`torch.LongTensor`, *optional*): target tokens `[batch, target_length]`.
            decoder_attention_mask (`torch.Tensor`, *optional*): `[batch, past_length + target_length]`.
            encoder_outputs (`BaseModelOutput`, *optional*): instead of the source.
            past_key_values (`EncoderDecoderCache`, *optional*): what earlier steps left.
            inputs_embeds, decoder_inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token tables instead of
                ids, `[batch, length, embedding_size]`.
            use_cache (`bool`, *optional*): return `past_key_values`.
        """
        check_not_packed(**kwargs)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            **{CACHE_NAME: getattr(decoder_outputs, CACHE_NAME)},
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class AntheForSeq2SeqLM(AnthePreTrainedModel, GenerationMixin):
    def __init__(self, config: AntheConfig):
        super().__init__(config)
        # The class name has no entry among transformers' losses; the labels are aligned with the logits in `forward`.
        self.loss_type = "ForConditionalGeneration"
        self.model = AntheModel(config)
        size = config.hidden_size
        self.output_proj = None
        if config.tie_word_embeddings:
            if config.embedding_size != size:
                self.output_proj = nn.Linear(size, config.embedding_size)
            self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
            side = "encoder" if config.share_embeddings else "decoder"
            self._tied_weights_keys = {"lm_head.weight": f"model.{side}.embeddings.embed_tokens.weight"}
        else:
            self.lm_head = build_linear(config, size, config.vocab_size, config.tc_output_ratio)
        self.post_init()

    @staticmethod
    @accept_cache
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values=None, **kwargs):
        """`generate` calls this ahead of a compiled step, whose inputs must not grow as a 2D mask does."""
        return decoder_masks(config, inputs_embeds, attention_mask, past_key_values)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(
            "Continuous batching (`generate_batch`) is for decoder-only models: use `generate` with a padded batch, "
            "whose rows do not change each other."
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Labels `[batch, length]` one step later, behind `decoder_start_token_id`; -100 becomes padding."""
        start_id, pad_id = self.config.decoder_start_token_id, self.config.pad_token_id
        if start_id is None or pad_id is None:
            raise ValueError(
                f"Labels alone need `decoder_start_token_id` (now {start_id}) and `pad_token_id` (now {pad_id}) in "
                "the config: set them, or pass `decoder_input_ids`."
            )
        shifted = torch.cat([labels.new_full((labels.shape[0], 1), start_id), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, pad_id)

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """
        The arguments of `AntheModel`, and

        Args:
            labels (`torch.LongTensor`, *optional*): target tokens `[batch, target_length]`, -100 to leave one out of
                the loss. Without decoder inputs they are also these, shifted by one.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute only the last so many logits, or those at
                these positions. 0 computes all.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        if self.output_proj is not None:
            hidden_states = self.output_proj(hidden_states)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            # `labels=labels` would be shifted a second time.
            loss = self.loss_function(
                logits=logits, labels=None, shift_labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


__all__ = ["AntheForSeq2SeqLM", "AntheModel", "AnthePreTrainedModel"]
