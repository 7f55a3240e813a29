# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
SelectiveAttn: language models whose tokens vote on what is no longer needed (arXiv 2410.02703), and forget it.

A decoder of Llama's kind. What is unusual, in the order of the dataflow:

- the positive logits of one head are votes against earlier tokens; the votes against a token so far are subtracted
  from its logits in all heads (`selective_attention.py`). There are no further parameters;
- a layer with a memory budget drops the token with the most votes before the next one enters (`context_pruning.py`),
  and its cache has as many slots as the budget says (`pruning_cache.py`);
- in training, a memory loss may ask for more votes.

Layers that do not select are Llama's, bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_layer import SelectiveAttnAttention, SelectiveAttnRMSNorm, SelectiveAttnRotaryEmbedding
from .configuration_selective_attn import SelectiveAttnConfig
from .pruning_cache import CACHE_NAME, SelectiveAttentionLayer, accept_cache
from .visible_keys import documents_of, packed_positions


@dataclass
class SelectiveAttnModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast`, and

    Args:
        selections (`tuple[torch.Tensor]`, *optional*): with `output_selections`, F of each selective layer, `[batch,
            length, keys]`: the votes against each key when each token came.
        memories (`tuple[torch.Tensor]`, *optional*): with `output_memories`, for each selective layer how many earlier
            tokens each token still has in mind, `[batch, length]`.
    """

    selections: tuple[torch.Tensor, ...] | None = None
    memories: tuple[torch.Tensor, ...] | None = None


@dataclass
class SelectiveAttnCausalLMOutput(CausalLMOutputWithPast):
    """
    `CausalLMOutputWithPast`, `selections` and `memories` as in `SelectiveAttnModelOutput`, and

    Args:
        memory_loss (`torch.Tensor`, *optional*): in training with a coefficient, what it multiplies: the share of the
            context that is kept in mind, at the worst token, a mean over layers and rows.
    """

    selections: tuple[torch.Tensor, ...] | None = None
    memories: tuple[torch.Tensor, ...] | None = None
    memory_loss: torch.Tensor | None = None


class SelectiveAttnMLP(nn.Module):
    """Feed-forward layer: `W_down (act(W_gate x) * W_up x)`."""

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class SelectiveAttnDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward layer, each behind a norm and with a residual."""

    def __init__(self, config: SelectiveAttnConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SelectiveAttnAttention(config, layer_idx)
        self.mlp = SelectiveAttnMLP(config)
        self.input_layernorm = SelectiveAttnRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SelectiveAttnRMSNorm(config.hidden_size, config.rms_norm_eps)

    @accept_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, *_ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask,
            position_embeddings,
            document_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class SelectiveAttnPreTrainedModel(PreTrainedModel):
    config: SelectiveAttnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SelectiveAttnDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": SelectiveAttnDecoderLayer,
        "attentions": SelectiveAttnAttention,
        "selections": OutputRecorder(SelectiveAttnAttention, index=2),
        "memories": OutputRecorder(SelectiveAttnAttention, index=3),
    }

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__(config)
        if not any(config.selective_layers):
            self._can_compile_fullgraph = True

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, *args):
        num_stages = 1 if distributed_config is None else distributed_config.pp_size
        if num_stages > 1 and model.config.position_embedding_type == "learned":
            raise ValueError(
                f"pp_size={num_stages} is for rotary positions: each stage of a pipeline would add learned ones to "
                "what the one before it leaves. Split the model with tp_size or fsdp_size."
            )
        return super().maybe_distribute_model(model, distributed_config, *args)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        name = attn_implementation or "sdpa"
        is_known = name in ALL_ATTENTION_FUNCTIONS or "/" in name  # a kernel on the Hub
        if is_known and name not in ("eager", "sdpa") and any(self.config.selective_layers):
            raise ValueError(
                f"attn_implementation={attn_implementation!r} keeps its logits to itself, and selective attention "
                "subtracts votes from them: use 'sdpa' or 'eager', or set use_selective_attention=False."
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)


class SelectiveAttnModel(SelectiveAttnPreTrainedModel):
    """Embeddings and blocks, without a head."""

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = SelectiveAttnRotaryEmbedding(config)
        self.layers = nn.ModuleList([SelectiveAttnDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = SelectiveAttnRMSNorm(config.hidden_size, config.rms_norm_eps)
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
    ) -> SelectiveAttnModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor`, *optional*): `[batch, length]`, without those already in the cache.
            attention_mask (`torch.Tensor`, *optional*): `[batch, past_length + length]`, 1 for tokens and 0 for
                padding, on either side.
            position_ids (`torch.LongTensor`, *optional*): `[batch, length]`; counted over the mask if not given. Where
                they restart, without a mask and without a cache, another document begins.
            past_key_values (`Cache`, *optional*): a `DynamicCache(config=model.config)`, or what an earlier call left.
            inputs_embeds (`torch.FloatTensor`, *optional*): rows of the token table instead of `input_ids`,
                `[batch, length, hidden_size]`.
            use_cache (`bool`, *optional*): return `past_key_values`.
            seq_idx, cu_seq_lens_q (`torch.Tensor`, *optional*): see `packed_positions`; in place of `position_ids`.
            output_selections, output_memories (`bool`, *optional*): see `SelectiveAttnModelOutput`. The former needs
                `attn_implementation="eager"`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`, and not both.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        self._check_cache(past_key_values)
        self._check_mask(attention_mask, inputs_embeds.shape[1])
        self._check_outputs(kwargs)
        if position_ids is None:
            position_ids = packed_positions(inputs_embeds, **kwargs)
        if position_ids is None:
            position_ids = positions_of(attention_mask, inputs_embeds, past_key_values)
            document_ids = None
        else:
            document_ids = documents_of(position_ids, attention_mask, past_key_values, inputs_embeds.shape[0])
        masks = self._masks(inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:  # after the masks: documents are told apart only without a cache
            past_key_values = DynamicCache(config=self.config)

        hidden_states, position_embeddings = inputs_embeds, None
        if self.config.position_embedding_type == "rotary":
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        else:
            self._check_positions(position_ids)
            hidden_states = hidden_states + self.embed_positions(position_ids)
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                document_ids=document_ids,
                position_ids=position_ids,
                use_cache=use_cache,
                **{CACHE_NAME: past_key_values},
                **kwargs,
            )
        return SelectiveAttnModelOutput(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: past_key_values})

    def _masks(self, inputs_embeds, attention_mask, past_key_values, position_ids) -> dict[str, torch.Tensor | None]:
        """The mask of each type of layer: for selective ones which of this call's tokens are no padding."""
        if isinstance(attention_mask, dict):  # made ahead of a compiled step
            return attention_mask
        masks: dict[str, torch.Tensor | None] = {}
        for layer_type in set(self.config.layer_types):
            if layer_type == "selective_attention":
                masks[layer_type] = None if attention_mask is None else last_columns(attention_mask, inputs_embeds)
            else:
                create = create_causal_mask if layer_type == "full_attention" else create_sliding_window_causal_mask
                masks[layer_type] = create(
                    config=self.config,
                    inputs_embeds=inputs_embeds,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    **{CACHE_NAME: past_key_values},
                )
        return masks

    def _check_cache(self, past_key_values) -> None:
        if past_key_values is None:
            return
        if not isinstance(past_key_values, Cache):
            raise ValueError(
                "`past_key_values` must be a `DynamicCache(config=model.config)`, got "
                f"{type(past_key_values).__name__}."
            )
        # By what its layers can do, as another copy of this family's code may have made them.
        num_selective = sum(hasattr(layer, "settle") for layer in getattr(past_key_values, "layers", ()))
        if num_selective != sum(self.config.selective_layers):
            raise ValueError(
                f"`past_key_values` ({type(past_key_values).__name__}) keeps votes for {num_selective} layers, "
                f"{sum(self.config.selective_layers)} select: make it as `DynamicCache(config=model.config)`."
            )
        if self.training and self.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError(
                "Gradient checkpointing runs every block twice and cannot carry `past_key_values`: switch it off, or "
                "leave them out."
            )

    def _check_mask(self, attention_mask, length: int) -> None:
        if attention_mask is None or not any(self.config.selective_layers):
            return
        if (
            not isinstance(attention_mask, torch.Tensor)
            or attention_mask.dim() != 2
            or attention_mask.shape[1] < length
        ):
            raise ValueError(
                f"`attention_mask` must be [batch, past_length + length] and cover all {length} tokens, as selective "
                f"layers make their own masks; got {getattr(attention_mask, 'shape', type(attention_mask).__name__)}."
            )

    def _check_outputs(self, kwargs) -> None:
        if kwargs.get("output_selections") and self.config._attn_implementation != "eager":
            raise ValueError(
                "`output_selections=True` needs the form that has F as a whole: load the model with "
                f"attn_implementation='eager' (now {self.config._attn_implementation!r})."
            )

    def _check_positions(self, position_ids) -> None:
        limit = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and position_ids.numel() and position_ids.max() >= limit:
            raise ValueError(
                f"The text has {position_ids.max() + 1} tokens, the model has learned positions for {limit} "
                "(`max_position_embeddings`): shorten it."
            )


def last_columns(attention_mask: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """`[batch, at least length]` -> `[batch, length]`, for the tokens of this call."""
    return attention_mask[:, attention_mask.shape[1] - inputs.shape[1] :]


def positions_of(
    attention_mask: torch.Tensor | None, inputs: torch.Tensor, past_key_values: Cache | None
) -> torch.LongTensor:
    """How many tokens, padding aside, come before each one, those in the cache among them: `[batch or 1, length]`."""
    counted = [] if past_key_values is None else [getattr(layer, "num_real", None) for layer in past_key_values.layers]
    num_before = next((count[:, None] for count in counted if count is not None), None)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        if num_before is None:
            return last_columns((attention_mask.long().cumsum(-1) - 1).clamp(min=0), inputs)
        is_real = last_columns(attention_mask, inputs).long()
        return num_before + (is_real.cumsum(-1) - 1).clamp(min=0)
    if num_before is None:
        num_before = 0 if past_key_values is None else past_key_values.get_seq_length()
    return torch.arange(inputs.shape[1], device=inputs.device)[None] + num_before


class SelectiveAttnForCausalLM(SelectiveAttnPreTrainedModel, GenerationMixin):
    """A language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__(config)
        self.model = SelectiveAttnModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, *args, **kwargs):
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "offloaded") and any(self.config.selective_layers):
            raise ValueError(
                f"cache_implementation={kind!r} has no place for votes: leave it out. With `memory_budgets` the cache "
                "has a fixed size."
            )
        return super()._prepare_cache_for_generation(generation_config, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(
            "Continuous batching (`generate_batch`) keeps keys and values in pages, without a place for votes: use "
            "`generate` with a padded batch, whose rows do not change each other."
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
    ) -> SelectiveAttnCausalLMOutput:
        """
        The arguments of `SelectiveAttnModel`, and

        Args:
            labels (`torch.LongTensor`, *optional*): `[batch, length]`, the tokens themselves, -100 to leave one out of
                the loss. In training the memory loss is added, with its coefficient.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute only the last so many logits, or those at
                these positions. 0 computes all.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if labels is not None and inputs is not None and labels.shape != inputs.shape[:2]:
            raise ValueError(
                f"`labels` {list(labels.shape)} must have the shape of the input {list(inputs.shape[:2])}."
            )
        has_memory_loss = self.training and labels is not None and self.config.memory_loss_coef > 0
        if has_memory_loss:
            kwargs["output_memories"] = True
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
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = memory_loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if has_memory_loss:
            memory_loss = memory_loss_of(outputs.memories, attention_mask)
            loss = loss + self.config.memory_loss_coef * memory_loss * share_of_batch(labels, **kwargs)
        return SelectiveAttnCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selections=outputs.selections,
            memories=outputs.memories,
            memory_loss=memory_loss,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )


def memory_loss_of(memories: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None) -> torch.Tensor:
    """
    `(sum_l max_i M^l_i) / (L T)`, a mean over rows (arXiv 2410.02703, section 5), of T tokens without padding.

    Args:
        memories: M of each of the L selective layers, `[batch, length]`.
        attention_mask (`torch.Tensor`, *optional*): `[batch, length]`, 0 for padding.
    """
    worst = torch.stack(memories).amax(dim=-1).mean(dim=0)
    length = memories[0].shape[1] if attention_mask is None else attention_mask.sum(-1).clamp(min=1)
    return (worst / length).mean()


def share_of_batch(labels: torch.Tensor, num_items_in_batch=None, shift_labels=None, **kwargs) -> torch.Tensor | float:
    """What part of the step's predictions are in this call, so that accumulated gradients add up to a mean."""
    if num_items_in_batch is None:
        return 1.0
    predicted = labels[:, 1:] if shift_labels is None else shift_labels
    return (predicted != -100).sum() / num_items_in_batch


class SelectiveAttnForSequenceClassification(SelectiveAttnPreTrainedModel):
    """Classifies a text by the hidden state of its last token. Without a mask, `pad_token_id` tells the padding."""

    def __init__(self, config: SelectiveAttnConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SelectiveAttnModel(config)
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
        The arguments of `SelectiveAttnModel`, and

        Args:
            labels (`torch.LongTensor` or `torch.FloatTensor`, *optional*): `[batch]` class ids, or as
                `config.problem_type` wants them.
        """
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
            places = places * last_columns(attention_mask, logits)
        last = places.expand(logits.shape[:2]).argmax(dim=-1)
        pooled_logits = logits[torch.arange(len(logits), device=logits.device), last]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=pooled_logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=pooled_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def _mask_of_padding(self, input_ids: torch.LongTensor) -> torch.LongTensor | None:
        if self.config.pad_token_id is not None:
            return (input_ids != self.config.pad_token_id).long()
        if len(input_ids) > 1:
            raise ValueError("Rows of a batch may be padded: pass an `attention_mask`, or set `pad_token_id`.")
        return None


__all__ = [
    "SelectiveAttentionLayer",
    "SelectiveAttnForCausalLM",
    "SelectiveAttnForSequenceClassification",
    "SelectiveAttnModel",
    "SelectiveAttnPreTrainedModel",
]
