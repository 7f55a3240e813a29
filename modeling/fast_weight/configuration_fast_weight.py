# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of FastWeight."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

CHOICES = {
    "update_rule": ("delta", "sum", "softmax"),
    "feature_map": ("elu_plus_one", "dpfp", "favor", "relu", "tanh"),
    "favor_layout": ("columns", "rows"),
    "key_norm": ("none", "sum"),
    "attention_norm": ("none", "output", "full"),
    "position_embedding_type": ("none", "sinusoidal", "sinusoidal_reversed"),
    "norm_position": ("pre", "post", "pre_quirk"),
}


@strict
class FastWeightConfig(PreTrainedConfig):
    r"""
    Configuration of `FastWeightModel`, `FastWeightForCausalLM` and `FastWeightForSequenceClassification`. The defaults
    are those of a new model; the original's are in the presets `wikitext103_*`.

    Args:
        vocab_size (`int`, defaults to 32000):
            Size of the vocabulary.
        hidden_size (`int`, defaults to 512):
            Width of the residual stream.
        num_hidden_layers (`int`, defaults to 8):
            Number of blocks.
        num_attention_heads (`int`, defaults to 8):
            Number of memories per block.
        head_dim (`int`, *optional*):
            Width of queries, keys and values before the feature map. `None` means `hidden_size / num_attention_heads`.
        intermediate_size (`int`, defaults to 2048):
            Width of the feed-forward layer.
        hidden_act (`str`, defaults to `"relu"`):
            Activation of the feed-forward layer.
        update_rule (`str`, defaults to `"delta"`):
            How a token is written: `"delta"`, `"sum"`, or `"softmax"` for ordinary attention as a baseline, which has
            a key-value cache in place of memories and reads none of the options of memories.
        feature_map (`str`, defaults to `"dpfp"`):
            What makes keys and queries of a memory: `"dpfp"`, `"elu_plus_one"`, `"favor"`, `"relu"` or `"tanh"`.
        dpfp_nu (`int`, defaults to 1):
            DPFP has `2 * dpfp_nu * head_dim` features.
        favor_features (`int`, defaults to 16):
            FAVOR+ has twice as many features.
        favor_layout (`str`, defaults to `"columns"`):
            `"columns"` as in the paper of FAVOR+, `"rows"` as in the original language models.
        favor_redraw (`bool`, defaults to `True`):
            Draw a new random matrix at each forward pass in training. In evaluation the last one stays.
        favor_eps (`float`, defaults to 1e-4):
            Is added to each exponential of FAVOR+.
        key_norm (`str`, defaults to `"sum"`):
            `"sum"` divides the features of each key and query by their sum, `"none"` does not.
        key_norm_eps (`float`, defaults to 0.0):
            Is added to that sum. Features that are all zero stay zero with any value.
        attention_norm (`str`, defaults to `"none"`):
            `"output"` divides each read by the query's product with the sum of all keys so far, `"full"` also what
            the delta rule reads to remove it, `"none"` neither.
        attention_norm_eps (`float`, defaults to 1e-5):
            Is added to those products.
        output_scale (`float`, *optional*):
            Factor of each read. `None` means `head_dim ** -0.5`.
        position_embedding_type (`str`, defaults to `"none"`):
            `"none"`, `"sinusoidal"`, or `"sinusoidal_reversed"`, which counts down to 0 at the last token as the
            original does, so that `generate` has to compute everything anew at each token.
        max_position_embeddings (`int`, defaults to 2048):
            Length that the model is meant for; training scripts read it. Nothing limits it.
        norm_position (`str`, defaults to `"pre"`):
            Layer norm `"pre"`: before each sub-layer; `"post"`: after each residual sum, as published; `"pre_quirk"`:
            as the original's `--pre_lnorm`, where attention adds to its normalised input.
        final_norm (`bool`, defaults to `True`):
            Whether there is a layer norm after the last block, unless `norm_position` is `"post"`.
        scale_embedding (`bool`, defaults to `True`):
            Multiply token embeddings by the square root of `hidden_size`.
        output_bias (`bool`, defaults to `False`):
            Whether the output layer has a bias.
        adaptive_cutoffs (`list[int]`, *optional*):
            First id of each cluster of the vocabulary but the first, for the original's adaptive softmax.
        tie_word_embeddings (`bool`, defaults to `True`):
            The output matrix is the token table.
        dropout (`float`, defaults to 0.1):
            Dropout of the embeddings, after each sub-layer, and of the last hidden state.
        activation_dropout (`float`, defaults to 0.1):
            Dropout inside the feed-forward layer.
        attention_dropout (`float`, defaults to 0.0):
            Dropout of attention weights. Memories have none: it needs `update_rule="softmax"`.
        layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of new weights.
        norm_initializer_range (`float`, defaults to 0.0):
            The same of new layer norms' gains around 1.

    Raises:
        `ValueError`: if a value is impossible; the message names the field, the value and the way out.
    """

    model_type = "fast_weight"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"d_model": "hidden_size"}
    base_model_fsdp_plan = {"layers.*": "free_full_weight"}

    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    head_dim: int | None = None
    intermediate_size: int = 2048
    hidden_act: str = "relu"
    update_rule: str = "delta"
    feature_map: str = "dpfp"
    dpfp_nu: int = 1
    favor_features: int = 16
    favor_layout: str = "columns"
    favor_redraw: bool = True
    favor_eps: float | int = 1e-4
    key_norm: str = "sum"
    key_norm_eps: float | int = 0.0
    attention_norm: str = "none"
    attention_norm_eps: float | int = 1e-5
    output_scale: float | int | None = None
    position_embedding_type: str = "none"
    max_position_embeddings: int = 2048
    norm_position: str = "pre"
    final_norm: bool = True
    scale_embedding: bool = True
    output_bias: bool = False
    adaptive_cutoffs: list[int] | None = None
    tie_word_embeddings: bool = True
    dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float | int = 0.02
    norm_initializer_range: float | int = 0.0
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    def __post_init__(self, **kwargs):
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` "
                    f"({self.hidden_size}), or `head_dim` must be set."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self.base_model_tp_plan = self._tp_plan()

    def _tp_plan(self) -> dict[str, str] | None:
        """How tensor parallelism splits the blocks: by heads. With an adaptive softmax there is none."""
        if self.adaptive_cutoffs is not None:
            return None
        beta = {"layers.*.attention.beta_proj": "colwise"} if self.update_rule == "delta" else {}
        return {
            "embed_tokens": "embedding_rowwise",
            "layers.*.attention.q_proj": "colwise",
            "layers.*.attention.k_proj": "colwise",
            "layers.*.attention.v_proj": "colwise",
            "layers.*.attention.o_proj": "rowwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
            **beta,
        }

    @property
    def layer_types(self) -> list[str]:
        """What `DynamicCache(config=...)` keeps of each layer."""
        kind = "full_attention" if self.update_rule == "softmax" else "fast_weight"
        return [kind] * self.num_hidden_layers

    def validate_layer_type(self):
        """`layer_types` is derived above and names a cache layer of this family's own."""

    def validate_architecture(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}.")
        self._validate_sizes()
        self._validate_norms()
        if self.adaptive_cutoffs is not None:
            self._validate_clusters()

    def _validate_sizes(self):
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        for name in (*sizes, "intermediate_size", "max_position_embeddings", "dpfp_nu", "favor_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.position_embedding_type != "none" and self.hidden_size % 2:
            raise ValueError(f"Sinusoidal positions need an even `hidden_size`, got {self.hidden_size}.")
        for name in ("dropout", "activation_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        for name in ("layer_norm_eps", "attention_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("favor_eps", "key_norm_eps", "initializer_range", "norm_initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

    def _validate_norms(self):
        if self.attention_dropout and self.update_rule != "softmax":
            raise ValueError(
                f"`attention_dropout` ({self.attention_dropout}) needs `update_rule='softmax'`: a memory has no "
                "attention weights to drop."
            )
        if self.attention_norm == "full" and self.update_rule == "sum":
            raise ValueError(
                "`attention_norm='full'` is for the delta rule: the sum rule removes nothing. Use 'output'."
            )
        if self.feature_map == "tanh" and (self.key_norm, self.attention_norm) != ("none", "none"):
            raise ValueError(
                "`feature_map='tanh'` has negative features, whose sums may be zero: set `key_norm` and "
                "`attention_norm` to 'none'."
            )

    def _validate_clusters(self):
        cutoffs = self.adaptive_cutoffs
        if not cutoffs or any(a >= b for a, b in zip([0, *cutoffs], [*cutoffs, self.vocab_size], strict=True)):
            raise ValueError(
                f"`adaptive_cutoffs` must rise and lie between 0 and `vocab_size` ({self.vocab_size}), got {cutoffs}."
            )


__all__ = ["FastWeightConfig"]
