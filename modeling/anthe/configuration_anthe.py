# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Anthe, the less-is-more translation transformer of arXiv 2305.10991."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# A gate "YgX" reads stream Y and multiplies stream X; the stream left over is the third one, projected as usual.
ATTENTION_GATES = ("none", "KgV", "VgK", "KgQ", "VgQ", "QgV", "QgK")
CROSS_ATTENTION_GATES = ("none", "KgV", "VgK")


@strict
class AntheConfig(PreTrainedConfig):
    r"""
    Configuration of an Anthe encoder-decoder. The defaults are the paper's Anthe for WMT14 (30,695,032 parameters at
    two vocabularies of 32,000, against 93,322,496 of the transformer it replaces).

    Args:
        vocab_size (`int`, defaults to 32000):
            Size of the target vocabulary: what the decoder reads and what the model predicts.
        source_vocab_size (`int`, *optional*):
            Size of the source vocabulary. `None` means `vocab_size`.
        hidden_size (`int`, defaults to 512):
            Width of the residual stream.
        num_encoder_layers (`int`, defaults to 6):
            Number of encoder blocks.
        num_decoder_layers (`int`, defaults to 6):
            Number of decoder blocks.
        num_attention_heads (`int`, defaults to 8):
            Number of attention heads, in encoder and decoder.
        intermediate_size (`int`, defaults to 2048):
            Hidden size of the feed-forward layer when `ffn_type="relu"`. SwiGLU has three matrices instead of two and
            takes `2 * intermediate_size // 3`, which keeps the parameter count.
        ffn_type (`str`, defaults to `"swiglu"`):
            `"swiglu"` (the flag "geglu" of the original) or `"relu"`.
        attention_gate (`str`, defaults to `"KgV"`):
            Which attention stream gates which, one of `"none"`, `"KgV"`, `"VgK"`, `"KgQ"`, `"VgQ"`, `"QgV"`, `"QgK"`.
        cross_attention_gate (`str`, *optional*):
            The gate of cross-attention. `None` means `attention_gate`. Only `"none"`, `"KgV"` and `"VgK"` are causal
            and free of any length there.
        allow_noncausal_gate (`bool`, defaults to `False`):
            Accept the other gates in cross-attention, without a cache and only at equal source and target lengths.
            Meant for comparing with checkpoints of the original, whose default leaks future target tokens.
        position_embedding_type (`str`, defaults to `"h_softpos"`):
            `"h_softpos"` (hierarchical soft positions), `"softpos"` (one level, no convolutions) or `"sinusoidal"`.
        soft_position_levels (`int`, defaults to 2):
            Number of levels of `"h_softpos"`.
        softpos_num_subpositions (`int`, defaults to 3):
            Number of sub-positions that `"softpos"` chooses among.
        softpos_units (`int`, *optional*):
            Width of each soft position of `"softpos"`. `None` means `hidden_size // (2 * softpos_repeats)`.
        softpos_repeats (`int`, defaults to 2):
            How many soft positions `"softpos"` appends.
        tc_attn_ratio (`float`, *optional*):
            Weights of each tensor-chain attention projection as a share of the dense matrix, in (0, 1). `None` is
            dense, as the output projection always is.
        tc_ffn_ratio (`float`, *optional*):
            The same for the feed-forward matrices.
        tc_embedding_ratio (`float`, *optional*):
            The same for the embedding tables.
        tc_conv_ratio (`float`, *optional*):
            The same for the convolutions of `"h_softpos"`.
        tc_output_ratio (`float`, *optional*):
            The same for the output layer.
        tc_length (`int`, defaults to 2):
            Number of cores of a tensor chain: 2, 3 or 4.
        tc_embedding_length (`int`, *optional*):
            Number of cores inside the embeddings (tables and convolutions). `None` means `tc_length`.
        tc_embedding_positions (`bool`, defaults to `True`):
            Scale the rows of tensor-chain tables and add sinusoidal positions, as for dense tables. The original does
            neither.
        tc_reference_bond (`bool`, defaults to `False`):
            Compute the bond of chains of four cores as the original does, where a slip makes it practically always 2.
        tc_init (`str`, defaults to `"variance_preserving"`):
            `"variance_preserving"` gives the materialised kernel the variance of a Glorot matrix, `"reference"` is the
            original's Glorot per core, which makes kernels 5 to 30 times too small.
        tc_forward (`str`, defaults to `"auto"`):
            `"materialize"`, `"chain"`, or `"auto"`: whichever costs less at the shape at hand.
        share_embeddings (`bool`, defaults to `False`):
            One embedding module for encoder and decoder. Needs one vocabulary.
        tie_word_embeddings (`bool`, defaults to `False`):
            The output matrix is the target embedding table. Where that table is narrower than `hidden_size`
            (`"softpos"`, `"h_softpos"`), a projection to its width comes first.
        dropout (`float`, defaults to 0.1):
            Dropout after the embeddings and on the output of each sub-layer.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.05):
            Embedding tables are drawn from U(-initializer_range, initializer_range); matrices and convolutions are
            Glorot uniform, soft positions orthogonal.

    Raises:
        `ValueError`: if a value is impossible; the message names the field, the value and the way out.
    """

    model_type = "anthe"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "num_decoder_layers"}
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight", "decoder.layers.*": "free_full_weight"}

    vocab_size: int = 32000
    source_vocab_size: int | None = None
    hidden_size: int = 512
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    ffn_type: str = "swiglu"
    attention_gate: str = "KgV"
    cross_attention_gate: str | None = None
    allow_noncausal_gate: bool = False
    position_embedding_type: str = "h_softpos"
    soft_position_levels: int = 2
    softpos_num_subpositions: int = 3
    softpos_units: int | None = None
    softpos_repeats: int = 2
    tc_attn_ratio: float | int | None = 0.07
    tc_ffn_ratio: float | int | None = 0.005
    tc_embedding_ratio: float | int | None = None
    tc_conv_ratio: float | int | None = None
    tc_output_ratio: float | int | None = None
    tc_length: int = 2
    tc_embedding_length: int | None = None
    tc_embedding_positions: bool = True
    tc_reference_bond: bool = False
    tc_init: str = "variance_preserving"
    tc_forward: str = "auto"
    share_embeddings: bool = False
    tie_word_embeddings: bool = False
    dropout: float | int = 0.1
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.05
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    decoder_start_token_id: int | None = 2

    @property
    def soft_position_width(self) -> int:
        """Width of one level of `"h_softpos"`: of its convolution and of its soft position."""
        return self.hidden_size // (2 * self.soft_position_levels)

    @property
    def softpos_width(self) -> int:
        """Width of one soft position of `"softpos"`."""
        return self.softpos_units or self.hidden_size // (2 * max(self.softpos_repeats, 1))

    @property
    def embedding_size(self) -> int:
        """Width of the token tables: what `hidden_size` leaves beside the soft positions."""
        if self.position_embedding_type == "h_softpos":
            return self.hidden_size - self.soft_position_width * (2 * self.soft_position_levels - 1)
        if self.position_embedding_type == "softpos":
            return self.hidden_size - self.softpos_width * self.softpos_repeats
        return self.hidden_size

    @property
    def ffn_hidden_size(self) -> int:
        """Hidden size of the feed-forward layer as it is built."""
        return 2 * self.intermediate_size // 3 if self.ffn_type == "swiglu" else self.intermediate_size

    @property
    def layer_types(self) -> list[str]:
        """Cache layer of each decoder block: the first also keeps the inputs of the soft positions' convolutions."""
        has_convolutions = self.position_embedding_type == "h_softpos" and self.soft_position_levels > 1
        first = "anthe_soft_positions" if has_convolutions else "full_attention"
        return [first] + ["full_attention"] * (self.num_decoder_layers - 1)

    def validate_layer_type(self):
        """`layer_types` is derived above and names a cache layer of this family's own."""

    def validate_architecture(self):
        self._validate_sizes()
        self._validate_gates()
        self._validate_embeddings()
        self._validate_tensor_chains()

    def _validate_sizes(self):
        sizes = ("vocab_size", "source_vocab_size", "hidden_size", "num_encoder_layers", "num_decoder_layers")
        for name in (*sizes, "num_attention_heads", "intermediate_size", "softpos_units"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        for name in ("layer_norm_eps", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        if self.ffn_type not in ("swiglu", "relu"):
            raise ValueError(f"`ffn_type` must be 'swiglu' or 'relu', got {self.ffn_type!r}.")
        if self.ffn_hidden_size < 1:
            raise ValueError(
                f"`intermediate_size` must be at least 2 for 'swiglu', which takes two thirds of it, got "
                f"{self.intermediate_size}."
            )

    def _validate_gates(self):
        gate = self.cross_attention_gate or self.attention_gate
        for name, value in (("attention_gate", self.attention_gate), ("cross_attention_gate", gate)):
            if value not in ATTENTION_GATES:
                raise ValueError(f"`{name}` must be one of {ATTENTION_GATES}, got {value!r}.")
        if gate in CROSS_ATTENTION_GATES or self.allow_noncausal_gate:
            return
        reason = (
            "multiplies source positions with target positions, so that later target tokens reach earlier ones,"
            if gate.startswith("Q")
            else "makes target position t read the gate of source position t"
        )
        raise ValueError(
            f"The gate {gate!r} {reason} in cross-attention, and needs sources and targets of equal length. Set "
            f"`cross_attention_gate` to one of {CROSS_ATTENTION_GATES}, or `allow_noncausal_gate=True` to compare "
            "with a checkpoint that was trained so."
        )

    def _validate_embeddings(self):
        kind, levels = self.position_embedding_type, self.soft_position_levels
        if kind not in ("h_softpos", "softpos", "sinusoidal"):
            raise ValueError(
                f"`position_embedding_type` must be 'h_softpos', 'softpos' or 'sinusoidal', got {kind!r}."
            )
        if kind == "h_softpos" and (levels < 1 or self.soft_position_width < 1):
            raise ValueError(
                f"`soft_position_levels` must be between 1 and hidden_size / 2 ({self.hidden_size // 2}), got {levels}"
            )
        if kind == "softpos":
            taken = self.softpos_repeats * self.softpos_num_subpositions
            if self.softpos_repeats < 1 or self.softpos_num_subpositions < 1 or self.embedding_size < taken:
                raise ValueError(
                    f"`softpos_repeats` ({self.softpos_repeats}) times `softpos_num_subpositions` "
                    f"({self.softpos_num_subpositions}) must be between 1 and the width left to the token table, "
                    f"hidden_size - softpos_repeats * units = {self.embedding_size}."
                )
        if self.embedding_size % 2:
            raise ValueError(
                f"The token table would be {self.embedding_size} wide with hidden_size={self.hidden_size} and "
                f"position_embedding_type={kind!r} (soft_position_levels={levels}); its sinusoidal positions need an "
                "even width. Change `hidden_size` or `soft_position_levels`."
            )
        if self.share_embeddings and self.source_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"`share_embeddings` needs one vocabulary, got source_vocab_size={self.source_vocab_size} and "
                f"vocab_size={self.vocab_size}."
            )
        if self.tie_word_embeddings and self.tc_embedding_ratio is not None:
            raise ValueError(
                "`tie_word_embeddings` needs a dense token table, but `tc_embedding_ratio` is "
                f"{self.tc_embedding_ratio}. Set it to None, or untie and set `tc_output_ratio`."
            )
        if self.tie_word_embeddings and self.tc_output_ratio is not None:
            raise ValueError(
                f"`tie_word_embeddings` and `tc_output_ratio` ({self.tc_output_ratio}) exclude each other: the output "
                "matrix is either the token table or a tensor chain of its own."
            )

    def _validate_tensor_chains(self):
        for name in ("attn", "ffn", "embedding", "conv", "output"):
            ratio = getattr(self, f"tc_{name}_ratio")
            if ratio is not None and not 0 < ratio < 1:
                raise ValueError(f"`tc_{name}_ratio` must be between 0 and 1 (or None for dense), got {ratio}.")
        if self.tc_length not in (2, 3, 4):
            raise ValueError(f"`tc_length` must be 2, 3 or 4, got {self.tc_length}.")
        if self.tc_embedding_length not in (None, 2, 3, 4):
            raise ValueError(f"`tc_embedding_length` must be 2, 3, 4 or None, got {self.tc_embedding_length}.")
        if self.tc_init not in ("variance_preserving", "reference"):
            raise ValueError(f"`tc_init` must be 'variance_preserving' or 'reference', got {self.tc_init!r}.")
        if self.tc_forward not in ("auto", "materialize", "chain"):
            raise ValueError(f"`tc_forward` must be 'auto', 'materialize' or 'chain', got {self.tc_forward!r}.")


__all__ = ["AntheConfig"]
