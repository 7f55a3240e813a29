# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of DeLighT, the deep and light-weight transformer of arXiv 2008.00623."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

POSITION_EMBEDDING_TYPES = ("sinusoidal", "learned", "none")


@strict
class DeLighTConfig(PreTrainedConfig):
    r"""
    Configuration of a DeLighT encoder-decoder, or of a decoder-only language model with `is_encoder_decoder=False`.
    The defaults are the paper's model of width 512 for WMT14 English-German (36,763,788 parameters).

    Fields without a prefix hold for both stacks. An `encoder_*` field changes one for the encoder; `None`, its
    default, means the same as for the decoder.

    Args:
        vocab_size (`int`, defaults to 43736):
            Size of the target vocabulary: what the decoder reads and what the model predicts.
        source_vocab_size (`int`, *optional*):
            Size of the source vocabulary. `None` means `vocab_size`.
        hidden_size (`int`, defaults to 512):
            Width of the residual stream. Attention is half as wide and has one head.
        embedding_size (`int`, defaults to 128):
            Width of the token tables, which a DExTra unit widens to `hidden_size`.
        num_encoder_layers (`int`, defaults to 8):
            Number of encoder blocks.
        num_decoder_layers (`int`, defaults to 8):
            Number of decoder blocks.
        min_depth (`int`, defaults to 4):
            Number of group linear transforms in the DExTra unit of the first block, at least 2.
        max_depth (`int`, *optional*, defaults to 8):
            The same for the last block; depths and widths of the blocks between are interpolated (block-wise scaling).
            `None` or `min_depth` makes all blocks alike (uniform scaling).
        width_multiplier (`float`, defaults to 2.0):
            Widest layer of the first block's DExTra unit as a multiple of `hidden_size`. Under block-wise scaling it
            grows by `max_depth / min_depth - 1` up to the last block.
        max_groups (`int`, *optional*):
            Most groups of a group linear transform, a power of two. `None` means `hidden_size / 32` rounded up to one.
        ffn_reduction (`int`, defaults to 4):
            The feed-forward layer is so many times narrower inside than `hidden_size`.
        normalize_before (`bool`, defaults to `False`):
            Layer norm before each sub-layer and after the last block, in place of after each sub-layer.
        final_norm (`bool`, defaults to `True`):
            Whether the decoder has that norm after its last block, if `normalize_before`.
        position_embedding_type (`str`, defaults to `"sinusoidal"`):
            `"sinusoidal"`, `"learned"` or `"none"`.
        max_position_embeddings (`int`, defaults to 1024):
            Number of learned positions. Sinusoidal ones have no limit, but `generate` and training read this one.
        encoder_min_depth (`int`, *optional*):
            `min_depth` of the encoder.
        encoder_max_depth (`int`, *optional*):
            `max_depth` of the encoder. With `encoder_min_depth` given, `None` makes its blocks alike.
        encoder_width_multiplier (`float`, *optional*):
            `width_multiplier` of the encoder.
        encoder_max_groups (`int`, *optional*):
            `max_groups` of the encoder.
        encoder_ffn_reduction (`int`, *optional*):
            `ffn_reduction` of the encoder.
        encoder_normalize_before (`bool`, *optional*):
            `normalize_before` of the encoder.
        encoder_position_embedding_type (`str`, *optional*):
            `position_embedding_type` of the encoder.
        encoder_max_position_embeddings (`int`, *optional*):
            `max_position_embeddings` of the encoder.
        embedding_depth (`int`, defaults to 4):
            Number of group linear transforms in the DExTra unit of the embeddings.
        embedding_width_multiplier (`float`, defaults to 2.0):
            Its widest layer as a multiple of `embedding_size`.
        embedding_max_groups (`int`, *optional*):
            Its most groups. `None` is computed as for `max_groups`.
        dextra_layout (`str`, defaults to `"dextra"`):
            `"dextra"`, or `"define"` for units that only widen.
        feature_shuffle (`bool`, defaults to `True`):
            Interleave the outputs of the groups of `"dextra"` units.
        hidden_act (`str`, defaults to `"silu"`):
            Activation of DExTra units and of the feed-forward layers.
        scale_embedding (`bool`, defaults to `True`):
            Multiply the rows of the token tables by the square root of `embedding_size`. Adaptive tables always are,
            by the square root of their own width.
        share_embeddings (`bool`, defaults to `True`):
            One token table for encoder and decoder, whose DExTra units stay separate. Needs one vocabulary and
            `tie_word_embeddings`. Without an encoder it has no effect.
        tie_word_embeddings (`bool`, defaults to `True`):
            The output matrix is the decoder's token table (with adaptive tables: theirs).
        adaptive_cutoffs (`list[int]`, *optional*):
            First id of each band of the vocabulary but the first, for adaptive input and softmax. Decoder-only models.
        adaptive_factor (`int`, defaults to 2):
            Each band's table is so many times narrower than the one before.
        tie_adaptive_projections (`bool`, defaults to `True`):
            With adaptive, tied tables: the tails of the softmax project with the transposed matrices of the input.
        dropout (`float`, defaults to 0.1):
            Dropout after each attention layer.
        attention_dropout (`float`, defaults to 0.1):
            Dropout of the attention weights.
        activation_dropout (`float`, defaults to 0.0):
            Dropout inside the feed-forward layer.
        ffn_dropout (`float`, defaults to 0.1):
            Dropout after the feed-forward layer.
        embedding_dropout (`float`, defaults to 0.1):
            Dropout of the token tables' rows; like `position_dropout` it drops a feature at all positions of a row.
        position_dropout (`float`, defaults to 0.1):
            Dropout after the positions are added. Without positions, `dropout` takes its place, element by element.
        dextra_dropout (`float`, defaults to 0.0):
            Dropout after each layer of the DExTra units.
        adaptive_softmax_dropout (`float`, defaults to 0.1):
            Dropout of the adaptive softmax's input, and between the projection and table of a tail.
        layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the layer norms.

    Raises:
        `ValueError`: if a value is impossible; the message names the field, the value and the way out.
    """

    model_type = "delight"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "num_decoder_layers"}
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight", "decoder.layers.*": "free_full_weight"}

    vocab_size: int = 43736
    source_vocab_size: int | None = None
    hidden_size: int = 512
    embedding_size: int = 128
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    min_depth: int = 4
    max_depth: int | None = 8
    width_multiplier: float | int = 2.0
    max_groups: int | None = None
    ffn_reduction: int = 4
    normalize_before: bool = False
    final_norm: bool = True
    position_embedding_type: str = "sinusoidal"
    max_position_embeddings: int = 1024
    encoder_min_depth: int | None = None
    encoder_max_depth: int | None = None
    encoder_width_multiplier: float | int | None = None
    encoder_max_groups: int | None = None
    encoder_ffn_reduction: int | None = None
    encoder_normalize_before: bool | None = None
    encoder_position_embedding_type: str | None = None
    encoder_max_position_embeddings: int | None = None
    embedding_depth: int = 4
    embedding_width_multiplier: float | int = 2.0
    embedding_max_groups: int | None = None
    dextra_layout: str = "dextra"
    feature_shuffle: bool = True
    hidden_act: str = "silu"
    scale_embedding: bool = True
    share_embeddings: bool = True
    tie_word_embeddings: bool = True
    adaptive_cutoffs: list[int] | None = None
    adaptive_factor: int = 2
    tie_adaptive_projections: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.0
    ffn_dropout: float | int = 0.1
    embedding_dropout: float | int = 0.1
    position_dropout: float | int = 0.1
    dextra_dropout: float | int = 0.0
    adaptive_softmax_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2

    @property
    def num_attention_heads(self) -> int:
        return 1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // 2

    def of_stack(self, name: str, is_encoder: bool):
        """The value of a field for one stack, e.g. `config.of_stack("ffn_reduction", is_encoder=True)`."""
        value = getattr(self, f"encoder_{name}") if is_encoder else None
        return getattr(self, name) if value is None else value

    def depth_bounds(self, is_encoder: bool) -> tuple[int, int]:
        """`min_depth` and `max_depth` of one stack."""
        low = self.of_stack("min_depth", is_encoder)
        has_own_depth = is_encoder and self.encoder_min_depth is not None
        high = self.encoder_max_depth if has_own_depth else self.of_stack("max_depth", is_encoder)
        return low, low if high is None else high

    def groups(self, max_groups: int | None) -> int:
        """`max_groups`, or what the width suggests."""
        return max_groups or 2 ** math.ceil(math.log2(self.hidden_size / 32))

    def validate_architecture(self):
        self._validate_sizes()
        self._validate_groups()
        self._validate_depths()
        self._validate_choices()
        if self.adaptive_cutoffs is not None:
            self._validate_bands()

    def _validate_sizes(self):
        sizes = ("vocab_size", "source_vocab_size", "hidden_size", "embedding_size", "num_encoder_layers")
        more = ("num_decoder_layers", "ffn_reduction", "encoder_ffn_reduction", "max_position_embeddings")
        more += ("encoder_max_position_embeddings", "max_groups", "encoder_max_groups", "embedding_max_groups")
        for name in (*sizes, *more):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % 4:
            raise ValueError(f"`hidden_size` must be a multiple of 4, got {self.hidden_size}.")
        for name in ("ffn_reduction", "encoder_ffn_reduction"):
            if self.hidden_size % (getattr(self, name) or 1):
                raise ValueError(f"`{name}` ({getattr(self, name)}) must divide `hidden_size` ({self.hidden_size}).")
        for name in (name for name in vars(self) if name.endswith("dropout")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        for name in ("layer_norm_eps", "width_multiplier", "encoder_width_multiplier", "embedding_width_multiplier"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def _validate_groups(self):
        widths = {"max_groups": self.hidden_size, "embedding_max_groups": self.embedding_size}
        if self.encoder_max_groups is not None:
            widths["encoder_max_groups"] = self.hidden_size
        for name, width in widths.items():
            if getattr(self, name) is None and self.hidden_size % 32:
                raise ValueError(
                    f"`{name}` must be set where `hidden_size` ({self.hidden_size}) is not a multiple of 32."
                )
            groups = self.groups(getattr(self, name))
            if groups < 2 or groups & (groups - 1) or width % groups:
                raise ValueError(
                    f"`{name}` must be a power of two, at least 2, that divides {width}, the width it cuts into "
                    f"groups; got {groups}."
                )

    def _validate_depths(self):
        if self.embedding_depth < 2:
            raise ValueError(f"`embedding_depth` must be at least 2, got {self.embedding_depth}.")
        for is_encoder, num_layers in ((False, self.num_decoder_layers), (True, self.num_encoder_layers)):
            prefix, (low, high) = "encoder_" if is_encoder else "", self.depth_bounds(is_encoder)
            if low < 2:
                raise ValueError(f"`{prefix}min_depth` must be at least 2, got {low}.")
            if high < low:
                raise ValueError(f"`{prefix}max_depth` ({high}) must not be below `{prefix}min_depth` ({low}).")
            if high > low and num_layers == 1 and (self.is_encoder_decoder or not is_encoder):
                raise ValueError(
                    f"Block-wise scaling from depth {low} to {high} needs at least 2 blocks, but "
                    f"`num_{'en' if is_encoder else 'de'}coder_layers` is 1: set `{prefix}max_depth` to {low}."
                )

    def _validate_choices(self):
        for name in ("position_embedding_type", "encoder_position_embedding_type"):
            value = getattr(self, name)
            if value not in POSITION_EMBEDDING_TYPES and (value is not None or not name.startswith("encoder")):
                raise ValueError(f"`{name}` must be one of {POSITION_EMBEDDING_TYPES}, got {value!r}.")
        if self.dextra_layout not in ("dextra", "define"):
            raise ValueError(f"`dextra_layout` must be 'dextra' or 'define', got {self.dextra_layout!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}.")
        if not (self.is_encoder_decoder and self.share_embeddings):
            return
        if self.source_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"`share_embeddings` needs one vocabulary, got source_vocab_size={self.source_vocab_size} and "
                f"vocab_size={self.vocab_size}."
            )
        if not self.tie_word_embeddings:
            raise ValueError("`share_embeddings` needs `tie_word_embeddings`: set it, or unshare the token tables.")

    def _validate_bands(self):
        cutoffs, last = self.adaptive_cutoffs, len(self.adaptive_cutoffs)
        if self.is_encoder_decoder:
            raise ValueError("`adaptive_cutoffs` are for language models: set `is_encoder_decoder=False`.")
        if not cutoffs or any(a >= b for a, b in zip([0, *cutoffs], [*cutoffs, self.vocab_size], strict=True)):
            raise ValueError(
                f"`adaptive_cutoffs` must rise and lie between 0 and `vocab_size` ({self.vocab_size}), got {cutoffs}."
            )
        if self.adaptive_factor < 1 or self.embedding_size // self.adaptive_factor**last < 1:
            raise ValueError(
                f"`adaptive_factor` ({self.adaptive_factor}) must be at least 1 and leave the last of {last + 1} "
                f"bands a width: embedding_size {self.embedding_size} / factor^{last} is below 1."
            )


__all__ = ["DeLighTConfig"]
