# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of SelectiveAttn."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

CHOICES = {
    "position_embedding_type": ("rotary", "learned"),
    "prune_prompt": ("strict", "lazy"),
}


@strict
class SelectiveAttnConfig(PreTrainedConfig):
    r"""
    Configuration of `SelectiveAttnModel`, `SelectiveAttnForCausalLM` and `SelectiveAttnForSequenceClassification`: a
    decoder of Llama's kind whose attention is selective.

    Args:
        vocab_size (`int`, defaults to 32000):
            Size of the vocabulary.
        hidden_size (`int`, defaults to 512):
            Width of the residual stream.
        intermediate_size (`int`, *optional*):
            Width of the gated feed-forward layer. `None` means `4 * hidden_size`.
        num_hidden_layers (`int`, defaults to 8):
            Number of blocks.
        num_attention_heads (`int`, defaults to 8):
            Number of attention heads.
        num_key_value_heads (`int`, *optional*):
            Number of heads that keys and values have. `None` means `num_attention_heads`.
        head_dim (`int`, *optional*):
            Width of queries, keys and values. `None` means `hidden_size / num_attention_heads`.
        hidden_act (`str`, defaults to `"silu"`):
            Activation of the gate of the feed-forward layer.
        use_selective_attention (`bool` or `list[bool]`, defaults to `True`):
            Which layers select: all, none, or each as said. The others are those of Llama.
        selection_head (`int`, defaults to 0):
            The head whose positive logits are votes.
        protect_start (`bool`, defaults to `True`):
            Nobody votes against the first token, and pruning never drops it.
        protect_self (`bool`, defaults to `True`):
            No token votes against itself.
        selection_strength (`float`, defaults to 1.0):
            Factor of all votes: 0 is attention without selection. Training can raise it step by step.
        memory_budgets (`int` or `list[int]`, *optional*):
            How many tokens each layer holds, the current one included: the same for all, or one for each layer. `None`
            prunes nothing. Nothing is pruned in training.
        prune_prompt (`str`, defaults to `"strict"`):
            Of a prompt, `"strict"` holds what would be held token by token; `"lazy"` reads it in full and prunes
            behind it, which is better and needs more memory meanwhile.
        memory_loss_coef (`float`, defaults to 0.0):
            Coefficient of the memory loss, which is added to the loss in training. The paper has 0.1.
        memory_loss_tau (`float`, defaults to 1.0):
            Votes with which a token counts as forgotten in the memory loss.
        position_embedding_type (`str`, defaults to `"rotary"`):
            `"rotary"`, or `"learned"` as in the paper's models.
        rope_parameters (`dict`, *optional*):
            Of rotary positions, as in transformers. `None` means `{"rope_type": "default", "rope_theta": 10000.0}`.
        max_position_embeddings (`int`, defaults to 2048):
            Length that the model is meant for, and the number of learned positions.
        sliding_window (`int`, *optional*):
            How many tokens each one sees, itself included. `None` means all.
        qk_norm (`bool`, defaults to `False`):
            Whether an RMS norm stands between the projections and the positions of queries and keys, one of `head_dim`
            gains for all heads, as in Qwen3 and in the paper.
        attention_bias (`bool`, defaults to `False`):
            Whether the projections to queries, keys and values have biases.
        attention_output_bias (`bool`, defaults to `False`):
            Whether the output projection of attention has a bias.
        mlp_bias (`bool`, defaults to `False`):
            Whether the feed-forward layer has biases.
        attention_dropout (`float`, defaults to 0.0):
            Dropout of attention weights. With it, selective layers train in the naive form, which is slower.
        rms_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the norms.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of new weights.
        tie_word_embeddings (`bool`, defaults to `True`):
            The output matrix is the token table.

    Raises:
        `ValueError`: if a value is impossible; the message names the field, the value and the way out.
    """

    model_type = "selective_attn"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "memory_loss"]
    base_model_fsdp_plan = {"layers.*": "free_full_weight"}
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    use_selective_attention: bool | list[bool] = True
    selection_head: int = 0
    protect_start: bool = True
    protect_self: bool = True
    selection_strength: float | int = 1.0
    memory_budgets: int | list[int] | None = None
    prune_prompt: str = "strict"
    memory_loss_coef: float | int = 0.0
    memory_loss_tau: float | int = 1.0
    position_embedding_type: str = "rotary"
    rope_parameters: dict | None = None
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    qk_norm: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` "
                    f"({self.hidden_size}), or `head_dim` must be set."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self.base_model_tp_plan = self._tp_plan()

    def _tp_plan(self) -> dict[str, str]:
        """How tensor parallelism splits the blocks. Every process needs the votes of one head: where a layer selects,
        attention is not split."""
        plan = {
            "embed_tokens": "embedding_rowwise",
            "layers.*.mlp.gate_proj": "colwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
        }
        if not any(self.selective_layers):
            for name in ("q_proj", "k_proj", "v_proj"):
                plan[f"layers.*.self_attn.{name}"] = "colwise"
            plan["layers.*.self_attn.o_proj"] = "rowwise"
            for name in ("q_norm", "k_norm") if self.qk_norm else ():
                plan[f"layers.*.self_attn.{name}"] = "replicated_with_grad_allreduce"
        return plan

    @property
    def selective_layers(self) -> list[bool]:
        """For each layer whether it selects."""
        chosen = self.use_selective_attention
        return [chosen] * self.num_hidden_layers if isinstance(chosen, bool) else chosen

    @property
    def layer_types(self) -> list[str]:
        """What `DynamicCache(config=...)` keeps of each layer."""
        plain = "full_attention" if self.sliding_window is None else "sliding_attention"
        return ["selective_attention" if is_selective else plain for is_selective in self.selective_layers]

    def memory_budget(self, layer_idx: int) -> int | None:
        """How many tokens that layer holds, or None for all."""
        budgets = self.memory_budgets
        return budgets[layer_idx] if isinstance(budgets, list) else budgets

    def validate_layer_type(self):
        """`layer_types` is derived above and names a cache layer of this family's own."""

    def validate_architecture(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}.")
        self._validate_sizes()
        self._validate_selection()
        if self.memory_budgets is not None:
            self._validate_budgets()

    def _validate_sizes(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_key_value_heads` ({self.num_key_value_heads}) must divide `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.position_embedding_type == "rotary" and self.head_dim % 2:
            raise ValueError(f"Rotary positions need an even `head_dim`, got {self.head_dim}.")
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(
                f"`sliding_window` must be at least 2, the token and the one before, got {self.sliding_window}."
            )
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be in [0, 1), got {self.attention_dropout}.")
        if self.rms_norm_eps <= 0:
            raise ValueError(f"`rms_norm_eps` must be positive, got {self.rms_norm_eps}.")

    def _validate_selection(self):
        chosen = self.use_selective_attention
        if isinstance(chosen, list) and len(chosen) != self.num_hidden_layers:
            raise ValueError(
                f"`use_selective_attention` must have {self.num_hidden_layers} entries, one for each layer, got "
                f"{chosen}."
            )
        if not 0 <= self.selection_head < self.num_attention_heads:
            raise ValueError(
                f"`selection_head` must be one of the {self.num_attention_heads} heads, 0 first, got "
                f"{self.selection_head}."
            )
        for name in ("selection_strength", "memory_loss_coef", "initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.memory_loss_tau <= 0:
            raise ValueError(f"`memory_loss_tau` must be positive, got {self.memory_loss_tau}.")
        if self.memory_loss_coef and not any(self.selective_layers):
            raise ValueError(
                f"`memory_loss_coef` ({self.memory_loss_coef}) needs a layer that selects: set "
                "`use_selective_attention`."
            )

    def _validate_budgets(self):
        budgets = self.memory_budgets
        if isinstance(budgets, list) and len(budgets) != self.num_hidden_layers:
            raise ValueError(
                f"`memory_budgets` must be one number, or {self.num_hidden_layers}, one for each layer, got {budgets}."
            )
        if min(budgets if isinstance(budgets, list) else [budgets]) < 2:
            raise ValueError(
                f"`memory_budgets` must be at least 2, the first token and the current one, got {budgets}."
            )
        if not all(self.selective_layers):
            raise ValueError(
                "`memory_budgets` prunes by the votes of selective layers; layers without would hold all tokens "
                f"(use_selective_attention={self.use_selective_attention})."
            )


__all__ = ["SelectiveAttnConfig"]
