# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The models that every tool is tried on: ours, and for comparison some of transformers and one of
flash-linear-attention. Each is a column of the compatibility table."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from models.suite import perturb
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed

from leanformers import Family, family_of

# 4 special tokens and 256 bytes, as the tokenizer of conftest.py has them.
TOKENS = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {"hidden_size": 32, "num_attention_heads": 4}
LAYERS = {"num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 256}
SEQ2SEQ = {"num_encoder_layers": 2, "num_decoder_layers": 2, "decoder_start_token_id": 2}
DELIGHT = {
    "hidden_size": 32,
    "embedding_size": 16,
    "min_depth": 2,
    "max_depth": 3,
    "max_groups": 4,
    "embedding_max_groups": 4,
    "max_position_embeddings": 256,
}
NO_DROPOUT = {"dropout": 0.0}
NO_DROPOUT_DELIGHT = NO_DROPOUT | {f"{kind}_dropout": 0.0 for kind in ("attention", "ffn", "embedding", "position")}


@dataclass(frozen=True)
class Subject:
    """
    A tiny model.

    Args:
        name (`str`): its column in the table.
        fields (`dict`): of its configuration, with `model_type`; dropout is off.
        auto_class (`str`): that loads it with the head that generates text.
        is_peer (`bool`): whether it is somebody else's.
    """

    name: str
    fields: dict
    auto_class: str = "AutoModelForCausalLM"
    is_peer: bool = False

    @property
    def is_decoder(self) -> bool:
        return self.auto_class == "AutoModelForCausalLM"

    @property
    def family(self) -> Family | None:
        """The family, or None of a peer."""
        return None if self.is_peer else family_of(self.config())

    @property
    def has_memory(self) -> bool:
        """Whether it is ours and keeps a memory of fixed size in place of keys and values."""
        return self.family is not None and self.family.model_class(self.auto_class)._is_stateful

    def config(self, **fields) -> PreTrainedConfig:
        merged = TOKENS | self.fields | fields
        return AutoConfig.for_model(merged.pop("model_type"), **copy.deepcopy(merged))

    def build(self, perturbed: bool = True, **fields) -> PreTrainedModel:
        """The model, always with the same weights, in evaluation mode."""
        import transformers

        set_seed(0)
        model = getattr(transformers, self.auto_class).from_config(self.config(**fields))
        if perturbed:
            perturb(model)
        return model.eval()


OURS = (
    Subject(
        "Anthe",
        {"model_type": "anthe", "intermediate_size": 48, "tc_attn_ratio": 0.5, "tc_ffn_ratio": 0.5}
        | SIZES
        | SEQ2SEQ
        | NO_DROPOUT,
        "AutoModelForSeq2SeqLM",
    ),
    Subject("DeLighT", {"model_type": "delight"} | DELIGHT | SEQ2SEQ | NO_DROPOUT_DELIGHT, "AutoModelForSeq2SeqLM"),
    Subject(
        "DeLighT LM",
        {"model_type": "delight", "is_encoder_decoder": False, "num_decoder_layers": 2, "normalize_before": True}
        | DELIGHT
        | NO_DROPOUT_DELIGHT,
    ),
    Subject("FastWeight", {"model_type": "fast_weight", "activation_dropout": 0.0} | SIZES | LAYERS | NO_DROPOUT),
    Subject("SelectiveAttn", {"model_type": "selective_attn"} | SIZES | LAYERS),
)
PEERS = (
    Subject("Llama", {"model_type": "llama"} | SIZES | LAYERS, is_peer=True),
    Subject(
        "T5",
        {
            "model_type": "t5",
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 2,
            "dropout_rate": 0.0,
        },
        "AutoModelForSeq2SeqLM",
        is_peer=True,
    ),
)
DELTA_NET = Subject(
    "DeltaNet (fla)",
    {"model_type": "delta_net", "hidden_size": 32, "num_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48},
    is_peer=True,
)


def peers() -> tuple[Subject, ...]:
    """Those of other libraries, as far as they are installed."""
    if find_spec("fla") is None:
        return PEERS
    import fla  # noqa: F401  registers its models

    return (*PEERS, DELTA_NET)


def subjects(include_peers: bool, kept: Callable[[Subject], bool] = lambda subject: True) -> list[Subject]:
    return [subject for subject in (*OURS, *(peers() if include_peers else ())) if kept(subject)]
