# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
DeLighT: a deep and light-weight transformer (arXiv 2008.00623), for translation and as a language model.

What is unusual, in the order of the dataflow:

- token tables are narrow, and a DExTra unit (`dextra.py`) widens each row to the model's width (`embeddings.py`);
- each block begins with a DExTra unit, deeper and wider from block to block, that halves the width;
- so attention has one head of half the model's width, over queries, keys and values from one packed product;
- the feed-forward layer narrows, d -> d / 4 -> d, where others widen;
- the output layer goes back to the tables' width, and the tables are tied to it; the language model may have adaptive
  tables and an adaptive softmax (`adaptive.py`);
- dropout of the embeddings drops a feature at all positions at once.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithPast,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adaptive import AdaptiveLogSoftmax
from .configuration_delight import DeLighTConfig
from .dextra import DExTra, GroupLinear, blockwise_depths, blockwise_widths, build_unit
from .embeddings import DeLighTEmbeddings

# transformers 5.24 renamed `past_key_values`.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def accept_cache(forward: Callable) -> Callable:
    """Let `forward` take `past_key_values` under the name `cache` as well."""

    @functools.wraps(forward)
    def forward_with_cache(*args, **kwargs):
        if CACHE_NAME != "cache" and isinstance(kwargs.get("cache"), PagedAttentionCache):
            return forward(*args, **kwargs)  # continuous batching once had its own name, for attention functions alone
        cache = kwargs.pop("cache", None)
        if cache is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them.")
            kwargs["past_key_values"] = cache
        return forward(*args, **kwargs)

    return forward_with_cache


def positions_of(attention_mask: torch.Tensor | None, inputs: torch.Tensor, past_length: int = 0) -> torch.LongTensor:
    """
    Position ids `[batch or 1, length]` of `inputs` `[batch, length, ...]`, counted over the tokens that are no
    padding; padding has -1. A mask `[batch, past_length + length]` says which; without one (or a 4D one) none is.
    """
    length = inputs.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(length, device=inputs.device)[None] + past_length
    position_ids = attention_mask.long().cumsum(-1) - 1
    return position_ids.masked_fill(attention_mask == 0, -1)[:, -length:]


def packed_positions(
    inputs: torch.Tensor, seq_idx: torch.Tensor | None = None, cu_seq_lens_q: torch.Tensor | None = None, **kwargs
) -> torch.LongTensor | None:
    """
    Position ids `[batch, length]` of packed documents, told otherwise than by positions: by their numbers `seq_idx`
    `[batch, length]`, which rise, or by where they begin and end, `cu_seq_lens_q` `[documents + 1]`. Without, None.
    """
    if seq_idx is None and cu_seq_lens_q is None:
        return None
    places = torch.arange(inputs.shape[1], device=inputs.device)
    if seq_idx is None:
        seq_idx = torch.searchsorted(cu_seq_lens_q, places.to(cu_seq_lens_q.dtype), right=True)[None]
    numbers = seq_idx.contiguous()
    return places - torch.searchsorted(numbers, numbers)


def decoder_masks(
    config: DeLighTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.LongTensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """All that the decoder reads off its mask `[batch, past_length + length]`, for inputs `[batch, length, ...]`."""
    cache = getattr(past_key_values, "self_attention_cache", past_key_values)
    causal_mask = create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,  # where they restart, another document begins
        **{CACHE_NAME: cache},
    )
    if position_ids is None:
        past_length = 0 if cache is None else cache.get_seq_length()
        position_ids = positions_of(attention_mask, inputs_embeds, past_length)
    return {"position_ids": position_ids, "causal_mask": causal_mask}


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


def block_units(config: DeLighTConfig, is_encoder: bool) -> list[DExTra]:
    """The DExTra units of a stack's blocks, by block-wise scaling."""
    low, high = config.depth_bounds(is_encoder)
    num_layers = config.num_encoder_layers if is_encoder else config.num_decoder_layers
    depths = blockwise_depths(num_layers, low, high)
    widths = blockwise_widths(num_layers, config.of_stack("width_multiplier", is_encoder), low, high)
    size, max_groups = config.hidden_size, config.of_stack("max_groups", is_encoder)
    return [
        build_unit(config, size, size // 2, width, depth, max_groups)
        for width, depth in zip(widths, depths, strict=True)
    ]


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
    """softmax(q k^T / sqrt(h)) v on `[batch, 1, length, h]`; gives `[batch, length, 1, h]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DeLighTAttention(nn.Module):
    """
    Attention with one head of width `h = hidden_size / 2`, and an output of width `hidden_size`.

    Self-attention reads the output of a DExTra unit, `h` wide, and makes query, key and value of it in one packed
    product. Cross-attention reads the residual stream and the encoder's output, both `hidden_size` wide.

    Args:
        config (`DeLighTConfig`): sizes and dropout.
        layer_idx (`int`, *optional*): index in the cache; None for an encoder.
        is_causal (`bool`): for the attention backends.
        is_cross_attention (`bool`): which of the two.
    """

    def __init__(
        self,
        config: DeLighTConfig,
        layer_idx: int | None = None,
        is_causal: bool = False,
        is_cross_attention: bool = False,
    ):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        if is_cross_attention:
            self.q_proj = nn.Linear(config.hidden_size, self.head_dim)
            self.kv_proj = nn.Linear(config.hidden_size, 2 * self.head_dim)
        else:
            self.qkv_proj = nn.Linear(self.head_dim, 3 * self.head_dim)
        self.o_proj = nn.Linear(self.head_dim, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor`): `[batch, query_length, h]`, or `hidden_size` wide for cross-attention.
            attention_mask (`torch.Tensor`, *optional*): as the attention backend wants it.
            key_value_states (`torch.Tensor`, *optional*): encoder output, `[batch, source_length, hidden_size]`.
            past_key_values (`Cache`, *optional*): updated in place.

        Returns:
            `[batch, query_length, hidden_size]`, and the attention weights where the backend has them.
        """
        if key_value_states is None:
            query, key, value = self.qkv_proj(hidden_states)[:, None].chunk(3, dim=-1)
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            if cache is not None:
                # A paged cache reads its places there, and writes what the attention needs.
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)
        else:
            query = self.q_proj(hidden_states)[:, None]
            key, value = self._cross_states(key_value_states, past_key_values)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.o_proj(output.flatten(2)), weights

    def _cross_states(self, key_value_states: torch.Tensor, past_key_values: EncoderDecoderCache | None):
        """Keys and values of cross-attention `[batch, 1, source_length, h]`, computed at the first step."""
        cache = None if past_key_values is None else past_key_values.cross_attention_cache
        if cache is not None and past_key_values.is_updated.get(self.layer_idx):
            return cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        key, value = self.kv_proj(key_value_states)[:, None].chunk(2, dim=-1)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return key, value


class DeLighTFeedForward(nn.Module):
    """`W_2 act(W_1 x)`, narrower inside than outside."""

    def __init__(self, config: DeLighTConfig, is_encoder: bool):
        super().__init__()
        inner_size = config.hidden_size // config.of_stack("ffn_reduction", is_encoder)
        self.fc1 = nn.Linear(config.hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


class DeLighTLayer(GradientCheckpointingLayer):
    """
    A block: DExTra and self-attention, cross-attention (in the decoder of an encoder-decoder), light feed-forward
    layer. Each sub-layer f is `LN(x + f(x))`, or `x + f(LN(x))` under `normalize_before`.
    """

    def __init__(self, config: DeLighTConfig, dextra: DExTra, layer_idx: int | None = None):
        super().__init__()
        is_encoder = layer_idx is None
        self.normalize_before = config.of_stack("normalize_before", is_encoder)
        self.dextra = dextra
        self.self_attn = DeLighTAttention(config, layer_idx, is_causal=not is_encoder)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = None
        if config.is_encoder_decoder and not is_encoder:
            self.cross_attn = DeLighTAttention(config, layer_idx, is_cross_attention=True)
            self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DeLighTFeedForward(config, is_encoder)
        self.mlp_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.ffn_dropout)

    @accept_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual, hidden_states = hidden_states, self._before(hidden_states, self.self_attn_layer_norm)
        attended, _ = self.self_attn(
            self.dextra(hidden_states), attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states = self._after(residual + self.dropout(attended), self.self_attn_layer_norm)

        if self.cross_attn is not None:
            residual, hidden_states = hidden_states, self._before(hidden_states, self.cross_attn_layer_norm)
            attended, _ = self.cross_attn(
                hidden_states, encoder_attention_mask, encoder_hidden_states, past_key_values, **kwargs
            )
            hidden_states = self._after(residual + self.dropout(attended), self.cross_attn_layer_norm)

        residual, hidden_states = hidden_states, self._before(hidden_states, self.mlp_layer_norm)
        return self._after(residual + self.mlp_dropout(self.mlp(hidden_states)), self.mlp_layer_norm)

    def _before(self, hidden_states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return norm(hidden_states) if self.normalize_before else hidden_states

    def _after(self, hidden_states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return hidden_states if self.normalize_before else norm(hidden_states)


class DeLighTPreTrainedModel(PreTrainedModel):
    config: DeLighTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DeLighTLayer", "DeLighTEmbeddings"]
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
                    f"DeLighT is shared out with fsdp_size alone ({name}={getattr(distributed_config, name)}): its "
                    "attention has one head, its group linear transforms exchange features after each of their many "
                    "layers, and pipelines know other names of layers."
                )
        return super().maybe_distribute_model(model, distributed_config, *args)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, GroupLinear):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        else:
            super()._init_weights(module)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        """Source and target tables grow together, as `resize_token_embeddings` has room for one size only."""
        config = self.config
        if config.adaptive_cutoffs is not None:
            raise ValueError(
                "Adaptive tables (`adaptive_cutoffs`) are cut for one vocabulary size and cannot be resized: build a "
                "new model from a changed config instead."
            )
        if config.is_encoder_decoder and config.source_vocab_size not in (None, config.vocab_size):
            raise ValueError(
                f"The source vocabulary ({config.source_vocab_size}) and the target vocabulary ({config.vocab_size}) "
                "differ, so that they cannot be resized to one size: build a new model from a changed config instead."
            )
        if config.is_encoder_decoder and not config.share_embeddings:
            embeddings = self.base_model.decoder.embeddings
            embeddings.embed_tokens = self._get_resized_embeddings(
                embeddings.embed_tokens, new_num_tokens, pad_to_multiple_of, mean_resizing
            )
        table = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        config.source_vocab_size = None
        return table


class DeLighTEncoder(DeLighTPreTrainedModel):
    _can_record_outputs = {"hidden_states": DeLighTLayer, "attentions": DeLighTAttention}

    def __init__(self, config: DeLighTConfig):
        super().__init__(config)
        self.embeddings = DeLighTEmbeddings(config, is_encoder=True)
        self.layers = nn.ModuleList([DeLighTLayer(config, unit) for unit in block_units(config, is_encoder=True)])
        self.layer_norm = None
        if config.of_stack("normalize_before", is_encoder=True):
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        self.embeddings.check_length(inputs.shape[1])
        hidden_states = self.embeddings(input_ids, inputs_embeds, positions_of(attention_mask, inputs))
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)


class DeLighTDecoder(DeLighTPreTrainedModel):
    _can_record_outputs = {
        "hidden_states": DeLighTLayer,
        "attentions": OutputRecorder(DeLighTAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(DeLighTAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: DeLighTConfig):
        super().__init__(config)
        self.embeddings = DeLighTEmbeddings(config, is_encoder=False)
        units = block_units(config, is_encoder=False)
        self.layers = nn.ModuleList([DeLighTLayer(config, unit, i) for i, unit in enumerate(units)])
        self.layer_norm = None
        if config.normalize_before and config.final_norm:
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @accept_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, target_length]`, without those already in the cache.
            attention_mask (`torch.Tensor` or `dict`, *optional*): `[batch, past_length + target_length]`, or what
                `decoder_masks` makes of it.
            position_ids (`torch.LongTensor`, *optional*): `[batch, target_length]`, from 0; where they restart without
                a mask, another document begins. None counts the tokens of the mask.
            encoder_hidden_states (`torch.FloatTensor`): `[batch, source_length, hidden_size]`; of an encoder-decoder.
            encoder_attention_mask (`torch.Tensor`, *optional*): `[batch, source_length]`.
            past_key_values (`Cache`, *optional*): an `EncoderDecoderCache` of two `DynamicCache(config=model.config)`,
                or a `DynamicCache` of a decoder-only model.
            inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token table instead of `input_ids`,
                `[batch, target_length, embedding_size]`.
            use_cache (`bool`, *optional*): return `past_key_values`.
        """
        self._check_inputs(input_ids, inputs_embeds, encoder_hidden_states, past_key_values)
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        self.embeddings.check_length(self._text_length(inputs, position_ids, past_key_values))
        if position_ids is None:
            position_ids = packed_positions(inputs, **kwargs)
        masks = attention_mask
        if not isinstance(masks, dict):
            # Only shape, dtype and device of the embeddings matter to the mask; they are not computed yet.
            dtype = self.embeddings.dextra.out_norm.bias.dtype
            like = torch.empty((*inputs.shape[:2], 0), dtype=dtype, device=inputs.device)
            masks = decoder_masks(self.config, like, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:  # after the masks: documents are told apart only without a cache
            past_key_values = DynamicCache(config=self.config)
            if self.config.is_encoder_decoder:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache(config=self.config))
        hidden_states = self.embeddings(input_ids, inputs_embeds, masks["position_ids"])
        encoder_mask = None
        if encoder_hidden_states is not None:
            check_source_mask(encoder_attention_mask, encoder_hidden_states)
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
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, **{CACHE_NAME: past_key_values}
        )

    def _text_length(self, inputs, position_ids, past_key_values) -> int:
        if past_key_values is None:
            return inputs.shape[1]
        if isinstance(past_key_values, PagedAttentionCache):  # holds many texts
            return int(position_ids.max()) + 1
        return past_key_values.get_seq_length() + inputs.shape[1]

    def _check_inputs(self, input_ids, inputs_embeds, encoder_hidden_states, past_key_values) -> None:
        prefix = "decoder_" if self.config.is_encoder_decoder else ""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(f"Pass either `{prefix}input_ids` or `{prefix}inputs_embeds`, and not both.")
        if (encoder_hidden_states is None) == self.config.is_encoder_decoder:
            need = "needs" if self.config.is_encoder_decoder else "takes no"
            raise ValueError(f"A decoder with is_encoder_decoder={bool(prefix)} {need} `encoder_hidden_states`.")
        kind, name = (
            (EncoderDecoderCache, "an EncoderDecoderCache") if prefix else ((Cache, PagedAttentionCache), "a Cache")
        )
        if past_key_values is not None and not isinstance(past_key_values, kind):
            raise ValueError(
                f"`past_key_values` must be {name}, got {type(past_key_values).__name__}: build it of "
                "`DynamicCache(config=model.config)`, two for an encoder-decoder."
            )


class DeLighTModel(DeLighTPreTrainedModel):
    """Encoder and decoder, or with `is_encoder_decoder=False` the decoder alone."""

    def __init__(self, config: DeLighTConfig):
        super().__init__(config)
        if config.is_encoder_decoder:
            self.encoder = DeLighTEncoder(config)
        self.decoder = DeLighTDecoder(config)
        if config.is_encoder_decoder and config.share_embeddings:
            self._tied_weights_keys = {
                "encoder.embeddings.embed_tokens.weight": "decoder.embeddings.embed_tokens.weight"
            }
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        first = self.encoder if self.config.is_encoder_decoder else self.decoder
        return first.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self.config.is_encoder_decoder:
            self.encoder.embeddings.embed_tokens = value
        if self.config.share_embeddings or not self.config.is_encoder_decoder:
            self.decoder.embeddings.embed_tokens = value

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
        position_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput | BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): tokens `[batch, length]`, of the source if there is an encoder.
            attention_mask (`torch.Tensor`, *optional*): `[batch, length]`, 1 for tokens and 0 for padding. A
                decoder-only model has what is in the cache in front.
            decoder_input_ids (`torch.LongTensor`, *optional*): target tokens `[batch, target_length]`.
            decoder_attention_mask (`torch.Tensor`, *optional*): `[batch, past_length + target_length]`.
            encoder_outputs (`BaseModelOutput`, *optional*): instead of the source.
            past_key_values (`Cache`, *optional*): what earlier steps left.
            inputs_embeds, decoder_inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token tables instead of
                ids, `[batch, length, embedding_size]`.
            position_ids (`torch.LongTensor`, *optional*): `[batch, length]`, of a decoder-only model; where they
                restart, another document begins.
            use_cache (`bool`, *optional*): return `past_key_values`.
            seq_idx, cu_seq_lens_q (`torch.Tensor`, *optional*): see `packed_positions`; in place of `position_ids`.
        """
        if not self.config.is_encoder_decoder:
            return self.decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        check_not_packed(position_ids=position_ids, **kwargs)
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


def build_output_proj(config: DeLighTConfig) -> nn.Linear | None:
    """From the model's width to that of the token tables, where they differ."""
    if config.hidden_size == config.embedding_size:
        return None
    return nn.Linear(config.hidden_size, config.embedding_size, bias=False)


def keep_and_project(
    hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor, output_proj: nn.Linear | None
) -> torch.Tensor:
    """The positions whose logits are asked for, as wide as the token tables."""
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    hidden_states = hidden_states[:, kept]
    return hidden_states if output_proj is None else output_proj(hidden_states)


class DeLighTForConditionalGeneration(DeLighTPreTrainedModel, GenerationMixin):
    def __init__(self, config: DeLighTConfig):
        if not config.is_encoder_decoder:
            raise ValueError("This config is of a language model: load it with DeLighTForCausalLM.")
        super().__init__(config)
        self.model = DeLighTModel(config)
        self.output_proj = build_output_proj(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"lm_head.weight": "model.decoder.embeddings.embed_tokens.weight"}
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
        The arguments of `DeLighTModel`, and

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
        logits = self.lm_head(keep_and_project(outputs.last_hidden_state, logits_to_keep, self.output_proj))
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


class DeLighTForCausalLM(DeLighTPreTrainedModel, GenerationMixin):
    """A language model. With `adaptive_cutoffs`, its logits are log-probabilities."""

    def __init__(self, config: DeLighTConfig):
        if config.is_encoder_decoder:
            raise ValueError(
                "This config is of an encoder-decoder: load it with DeLighTForConditionalGeneration, or set "
                "`is_encoder_decoder=False`."
            )
        super().__init__(config)
        self.model = DeLighTModel(config)
        self.output_proj = build_output_proj(config)
        if config.adaptive_cutoffs is not None:
            self.lm_head = AdaptiveLogSoftmax(
                [*config.adaptive_cutoffs, config.vocab_size],
                config.embedding_size,
                config.adaptive_factor,
                tie_weights=config.tie_word_embeddings,
                tie_projections=config.tie_word_embeddings and config.tie_adaptive_projections,
                dropout=config.adaptive_softmax_dropout,
            )
        else:
            self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
            if config.tie_word_embeddings:
                self._tied_weights_keys = {"lm_head.weight": "model.decoder.embeddings.embed_tokens.weight"}
        self.post_init()

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        The arguments of a decoder-only `DeLighTModel`, and

        Args:
            labels (`torch.LongTensor`, *optional*): `[batch, length]`, the tokens themselves, -100 to leave one out of
                the loss. With an adaptive softmax there are then no logits, which would cost what it saves.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute only the last so many logits, or those at
                these positions. 0 computes all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = keep_and_project(outputs.last_hidden_state, logits_to_keep, self.output_proj)
        logits = loss = None
        if self.config.adaptive_cutoffs is not None:
            embedding = self.model.decoder.embeddings.embed_tokens
            if labels is None:
                logits = self.lm_head(hidden_states, embedding)
            else:
                loss = self._adaptive_loss(hidden_states, labels, embedding, **kwargs)
        else:
            logits = self.lm_head(hidden_states)
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _adaptive_loss(self, hidden_states, labels, embedding, num_items_in_batch=None, shift_labels=None, **kwargs):
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        return self.lm_head.loss(hidden_states.flatten(0, 1), shift_labels.flatten(), embedding, num_items_in_batch)


__all__ = [
    "DeLighTForCausalLM",
    "DeLighTForConditionalGeneration",
    "DeLighTModel",
    "DeLighTPreTrainedModel",
]
