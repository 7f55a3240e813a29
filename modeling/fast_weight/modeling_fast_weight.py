# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
FastWeight: language models whose attention is a fast weight memory (arXiv 2102.11174), linear in the length.

What is unusual, in the order of the dataflow:

- each head keeps one matrix, the memory, in place of all keys and values. A token writes its value under its key into
  it and reads with its query (`delta_rule.py`), which keys and queries a feature map has made positive
  (`feature_maps.py`); how much of what a key had stored is replaced, the token decides itself, with beta;
- reads may be divided by what the keys sum to (`normalized_rules.py`);
- there are no positions, as the memory is written in order;
- the cache is the memory (`memory_cache.py`), and does not grow.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adaptive_softmax import AdaptiveSoftmax
from .configuration_fast_weight import FastWeightConfig
from .delta_rule import takes_fla, takes_kernel
from .feature_maps import Favor, build_feature_map, normalize_features
from .memory_cache import CACHE_NAME, FastWeightLayer, accept_cache
from .normalized_rules import dpfp_rule, normalized_rule
from .positions import (
    documents_of,
    forward_positions,
    last_columns,
    packed_positions,
    reversed_positions,
    sinusoidal_positions,
)
from .softmax_attention import SoftmaxAttention

logger = logging.get_logger(__name__)


class FastWeightMemory(nn.Module):
    """
    One memory per head: `[batch, length, hidden_size]` -> the same shape.

    Args:
        config (`FastWeightConfig`): sizes and rules.
        layer_idx (`int`): index in the cache.
    """

    def __init__(self, config: FastWeightConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, cast(int, config.head_dim)
        self.output_scale = self.head_dim**-0.5 if config.output_scale is None else config.output_scale
        width = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        if config.update_rule == "delta":
            self.beta_proj = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)
        self.feature_map, self.key_dim = build_feature_map(
            config.feature_map,
            self.head_dim,
            nu=config.dpfp_nu,
            num_features=config.favor_features,
            layout=config.favor_layout,
            eps=config.favor_eps,
        )
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, None]:
        """
        Args:
            hidden_states (`torch.Tensor`): `[batch, length, hidden_size]`.
            attention_mask (`torch.Tensor`, *optional*): `[batch, length]`, 0 for tokens that leave no trace.
            document_ids (`torch.LongTensor`, *optional*): `[batch, length]`; each document has a memory of its own.
            past_key_values (`Cache`, *optional*): updated in place.

        Returns:
            `(output, None)`: `[batch, length, hidden_size]`; there are no attention weights.
        """
        query, key, value = (self._heads(proj(hidden_states)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        beta = None
        if self.config.update_rule == "delta":
            beta = self.beta_proj(hidden_states).to(torch.promote_types(key.dtype, torch.float32)).sigmoid()
        self._tell_path(value, document_ids)

        layer = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        memory, normalizer = (None, None) if layer is None else layer.read()
        output, memory, normalizer = self._rule(
            query,
            key,
            value,
            beta,
            attention_mask,
            attention_norm=self.config.attention_norm,
            eps=self.config.attention_norm_eps,
            initial_state=memory,
            initial_normalizer=normalizer,
            output_final_state=layer is not None,
            document_ids=document_ids,
        )
        if layer is not None:
            layer.write(memory, normalizer, hidden_states.shape[1])
        output = (output * self.output_scale).to(value.dtype)
        self._check_range(output)
        return self.o_proj(output.flatten(2)), None

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (projected.shape[-1] // self.head_dim, self.head_dim))

    def _rule(self, query, key, value, beta, attention_mask, **options):
        """`normalized_rule` behind the feature map, which a kernel may have inside."""
        eps = self.config.key_norm_eps if self.config.key_norm == "sum" else None
        mask = None if attention_mask is None else attention_mask[..., None, None].to(key.dtype)
        if self.config.feature_map == "dpfp":
            key = key if mask is None else key * mask
            return dpfp_rule(query, key, value, beta, nu=self.config.dpfp_nu, key_norm_eps=eps, **options)
        # In float32 at least, as their sums are.
        dtype = torch.promote_types(key.dtype, torch.float32)
        query, key = self.feature_map(query.to(dtype)), self.feature_map(key.to(dtype))
        if eps is not None:
            query, key = normalize_features(query, eps), normalize_features(key, eps)
        return normalized_rule(query, key if mask is None else key * mask, value, beta, **options)

    def _tell_path(self, value: torch.Tensor, document_ids: torch.LongTensor | None) -> None:
        # A single token is the recurrence's on any device, which says nothing about a text.
        if torch.compiler.is_compiling() or self.layer_idx > 0 or value.shape[1] == 1:
            return
        is_fla = self.config.update_rule == "delta" and document_ids is None and takes_fla(value, self.key_dim)
        if not (is_fla and self.config.feature_map != "dpfp") and takes_kernel("FastWeight's update rule", value):
            return  # which has told it
        if is_fla:
            logger.info_once("FastWeight runs the delta rule through flash-linear-attention's kernel.")
        elif value.is_cuda:
            logger.warning_once(
                f"FastWeight runs its update rule in plain PyTorch: no kernel takes {value.dtype}, or none is there "
                "(`pip install leanformers[kernels]`)."
            )
        else:
            logger.info_once("FastWeight runs its update rule in plain PyTorch, in chunks.")

    def _check_range(self, output: torch.Tensor) -> None:
        if output.dtype == torch.float16 and not torch.compiler.is_compiling() and output.isinf().any():
            raise ValueError(
                "A read from the memory is above 65,504, the largest float16: use bfloat16 or float32, or "
                f"`attention_norm='output'` (now {self.config.attention_norm!r})."
            )


class FastWeightMLP(nn.Module):
    """Feed-forward layer: `W_2 act(W_1 x + b_1) + b_2`."""

    def __init__(self, config: FastWeightConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.activation(self.up_proj(hidden_states))))


class FastWeightBlock(GradientCheckpointingLayer):
    """Memory and feed-forward layer, each with dropout, residual and layer norm."""

    def __init__(self, config: FastWeightConfig, layer_idx: int):
        super().__init__()
        self.norm_position = config.norm_position
        attention = SoftmaxAttention if config.update_rule == "softmax" else FastWeightMemory
        self.attention = attention(config, layer_idx)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FastWeightMLP(config)
        self.mlp_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    @accept_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        if self.norm_position != "post":
            hidden_states = self.attention_layer_norm(hidden_states)
        if self.norm_position == "pre_quirk":
            residual = hidden_states
        attended, _ = self.attention(
            hidden_states, attention_mask, document_ids, past_key_values=past_key_values, **kwargs
        )
        hidden_states = residual + self.dropout(attended)
        if self.norm_position == "post":
            hidden_states = self.attention_layer_norm(hidden_states)
            return self.mlp_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))
        return hidden_states + self.dropout(self.mlp(self.mlp_layer_norm(hidden_states)))


class FastWeightPreTrainedModel(PreTrainedModel):
    config: FastWeightConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FastWeightBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_stateful = True
    _can_record_outputs = {"hidden_states": FastWeightBlock, "attentions": SoftmaxAttention}

    def __init__(self, config: FastWeightConfig):
        super().__init__(config)
        if config.update_rule == "softmax":  # keys and values can be cropped, and have static caches
            self._is_stateful, self._can_compile_fullgraph = False, True

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, *args):
        if distributed_config is not None and distributed_config.pp_size > 1:
            raise ValueError(
                f"FastWeight has no stages of a pipeline (pp_size={distributed_config.pp_size}): each would scale and "
                "normalise what the one before it leaves. Split it with tp_size or fsdp_size."
            )
        return super().maybe_distribute_model(model, distributed_config, *args)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.normal_(module.weight, mean=1.0, std=self.config.norm_initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, AdaptiveSoftmax):
            # First what is never tied, so that it does not depend on whether the table is drawn here, too.
            init.normal_(module.cluster_weight, mean=0.0, std=std)
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.cluster_bias)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Favor):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        if self.config.adaptive_cutoffs is not None:
            raise ValueError(
                "An adaptive softmax (`adaptive_cutoffs`) is cut for one vocabulary size and cannot be resized: build "
                "a new model from a changed config instead."
            )
        return super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)


class FastWeightModel(FastWeightPreTrainedModel):
    """Embeddings and blocks, without a head."""

    def __init__(self, config: FastWeightConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embedding_scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.layers = nn.ModuleList([FastWeightBlock(config, i) for i in range(config.num_hidden_layers)])
        self.layer_norm = None
        if config.final_norm and config.norm_position != "post":
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
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
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, length]`, without those already in the cache.
            attention_mask (`torch.Tensor`, *optional*): `[batch, past_length + length]`, 1 for tokens and 0 for
                padding, on either side.
            position_ids (`torch.LongTensor`, *optional*): `[batch, length]`. Where they restart, without a mask and
                without a cache, another document begins, with an empty memory. Reversed positions are always counted
                anew.
            past_key_values (`Cache`, *optional*): a `DynamicCache(config=model.config)`, or what an earlier call left.
            inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token table instead of `input_ids`,
                `[batch, length, hidden_size]`.
            use_cache (`bool`, *optional*): return `past_key_values`.
            seq_idx, cu_seq_lens_q (`torch.Tensor`, *optional*): see `packed_positions`; in place of `position_ids`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`, and not both.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        self._check_cache(past_key_values)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_mask(attention_mask, inputs_embeds.shape[1], past_length)
        if position_ids is None:
            position_ids = packed_positions(inputs_embeds, **kwargs)
        document_ids = documents_of(position_ids, attention_mask, past_key_values, inputs_embeds.shape[0])
        mask = self._mask(inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:  # after the mask: documents are told apart only without a cache
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds * self.embedding_scale
        if self.config.position_embedding_type != "none":
            if self.config.position_embedding_type == "sinusoidal_reversed":
                position_ids = reversed_positions(attention_mask, inputs_embeds, document_ids)
            elif position_ids is None:
                position_ids = forward_positions(attention_mask, inputs_embeds, past_length)
            precision = torch.promote_types(hidden_states.dtype, torch.float32)
            positions = sinusoidal_positions(position_ids, hidden_states.shape[-1], precision)
            hidden_states = hidden_states + positions.to(hidden_states.dtype)
        hidden_states = self.dropout(hidden_states)

        self._redraw_features()
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, mask, document_ids, use_cache=use_cache, **{CACHE_NAME: past_key_values}, **kwargs
            )
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=self.dropout(hidden_states), **{CACHE_NAME: past_key_values})

    def _mask(self, inputs_embeds, attention_mask, past_key_values, position_ids) -> torch.Tensor | None:
        """The mask of this call's tokens, as the rule needs it."""
        if self.config.update_rule != "softmax":
            return None if attention_mask is None else last_columns(attention_mask, inputs_embeds.shape[1])
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values},
        )

    def _redraw_features(self) -> None:
        # Here and not in the feature map, as gradient checkpointing runs that one twice.
        if self.training and self.config.favor_redraw and self.config.feature_map == "favor":
            for module in self.layers.modules():
                if isinstance(module, Favor):
                    module.redraw()

    def _check_cache(self, past_key_values) -> None:
        if past_key_values is None:
            return
        if not isinstance(past_key_values, Cache):
            raise ValueError(
                "`past_key_values` must be a `DynamicCache(config=model.config)`, got "
                f"{type(past_key_values).__name__}."
            )
        # By what its layers can do, as another copy of this family's code may have made them.
        num_memories = sum(hasattr(layer, "write") for layer in getattr(past_key_values, "layers", ()))
        expected = 0 if self.config.update_rule == "softmax" else self.config.num_hidden_layers
        if num_memories != expected:
            raise ValueError(
                f"`past_key_values` ({type(past_key_values).__name__}) holds {num_memories} fast weight memories, "
                f"update_rule={self.config.update_rule!r} needs {expected}, as in `DynamicCache(config=model.config)`."
            )
        if self.training and self.gradient_checkpointing:
            raise ValueError(
                "Gradient checkpointing runs every block twice and cannot carry `past_key_values`: switch it off, or "
                "leave them out."
            )

    def _check_mask(self, attention_mask, length: int, past_length: int) -> None:
        if attention_mask is None or torch.compiler.is_compiling():
            return
        if self.config.update_rule == "softmax" and attention_mask.dim() == 4:
            return
        # Positions are counted over the tokens that are cached, too.
        needed = length + past_length if self.config.position_embedding_type == "sinusoidal" else length
        if attention_mask.dim() != 2 or attention_mask.shape[1] < needed:
            raise ValueError(
                f"`attention_mask` must be [batch, past_length + length] and cover all {needed} tokens, got "
                f"{list(attention_mask.shape)}."
            )


class FastWeightForCausalLM(FastWeightPreTrainedModel, GenerationMixin):
    """A language model. With `adaptive_cutoffs`, its logits are log-probabilities."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: FastWeightConfig):
        super().__init__(config)
        self.model = FastWeightModel(config)
        if config.adaptive_cutoffs is None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        else:
            cutoffs = [*config.adaptive_cutoffs, config.vocab_size]
            self.lm_head = AdaptiveSoftmax(config.hidden_size, cutoffs, bias=config.output_bias)
        self.post_init()
        if config.adaptive_cutoffs is not None:
            self._tp_plan = {}  # its clusters are no columns to split, and the table is tied to them

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if self.config.position_embedding_type == "sinusoidal_reversed":
            # A new token moves the position of every one before it.
            if any(model_kwargs.get(name) is not None for name in ("past_key_values", "cache", "inputs_embeds")):
                raise ValueError(
                    "With reversed positions each step computes all tokens anew: pass `input_ids`, and neither "
                    "`past_key_values` nor `inputs_embeds`."
                )
            generation_config.use_cache = False
        elif self.config.update_rule != "softmax" and generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is for keys and values. A fast "
                "weight memory has a fixed size anyway: leave it out."
            )
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(
            "Continuous batching (`generate_batch`) keeps keys and values in pages, and a memory is neither: use "
            "`generate` with a padded batch, whose rows do not change each other."
        )

    @staticmethod
    @accept_cache
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values=None, position_ids=None, **kwargs
    ):
        """`generate` calls this ahead of a compiled step of the softmax rule, whose inputs must not grow."""
        return create_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values},
        )

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
        The arguments of `FastWeightModel`, and

        Args:
            labels (`torch.LongTensor`, *optional*): `[batch, length]`, the tokens themselves, -100 to leave one out of
                the loss. With an adaptive softmax there are then no logits, which would cost what it saves.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute only the last so many logits, or those at
                these positions. 0 computes all.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if labels is not None and inputs is not None and labels.shape != inputs.shape[:2]:
            raise ValueError(
                f"`labels` {list(labels.shape)} must have the shape of the input {list(inputs.shape[:2])}."
            )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        logits = loss = None
        if labels is None or self.config.adaptive_cutoffs is None:
            logits = self.lm_head(hidden_states)
        if labels is not None and self.config.adaptive_cutoffs is None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        elif labels is not None:
            loss = self._adaptive_loss(hidden_states, labels, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _adaptive_loss(self, hidden_states, labels, num_items_in_batch=None, shift_labels=None, **kwargs):
        if shift_labels is None:
            shift_labels = pad(labels, (0, 1), value=-100)[:, 1:]
        return self.lm_head.loss(hidden_states.flatten(0, 1), shift_labels.flatten(), num_items_in_batch)


class FastWeightForSequenceClassification(FastWeightPreTrainedModel):
    """Classifies a text by the hidden state of its last token. Without a mask, `pad_token_id` tells the padding."""

    def __init__(self, config: FastWeightConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FastWeightModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """
        The arguments of `FastWeightModel`, and

        Args:
            labels (`torch.LongTensor` or `torch.FloatTensor`, *optional*): `[batch]` class ids, or as
                `config.problem_type` wants them.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is not None and inputs.shape[1] == 0:
            raise ValueError(
                f"A text is classified by its last token, and these {len(inputs)} have none: pass tokens."
            )
        if attention_mask is None and input_ids is not None:
            attention_mask = self._mask_of_padding(input_ids)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state)
        places = torch.arange(logits.shape[1], device=logits.device)
        if attention_mask is not None:
            places = places * last_columns(attention_mask, logits.shape[1])
        last = places.expand(logits.shape[:2]).argmax(dim=-1)
        pooled_logits = logits[torch.arange(len(logits), device=logits.device), last]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=pooled_logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=pooled_logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _mask_of_padding(self, input_ids: torch.LongTensor) -> torch.LongTensor | None:
        if self.config.pad_token_id is not None:
            return (input_ids != self.config.pad_token_id).long()
        if len(input_ids) > 1:
            raise ValueError("Rows of a batch may be padded: pass an `attention_mask`, or set `pad_token_id`.")
        return None


__all__ = [
    "FastWeightForCausalLM",
    "FastWeightForSequenceClassification",
    "FastWeightLayer",
    "FastWeightModel",
    "FastWeightPreTrainedModel",
]
