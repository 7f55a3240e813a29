# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Original Anthe checkpoints (TensorFlow orientation) -> `AntheForSeq2SeqLM`.

Hyper-parameters: `ref_string` (the original's flags, joined by underscores), `d_model`, `heads`, `d_ff`, `layers`
("encoder+decoder"), `src_vocab`, `tgt_vocab`, as text or numbers. What the original's flags hide:

- "geglu" is SwiGLU, and `gateattention` without an order is "qkv", which names the gate QgV and leaks future tokens;
- under a gate YgX the role `wq` makes the gate, `wv` projects the gated stream X and `wk` the remaining one;
- "projectoutput" is a frozen copy of the untrained table, which no checkpoint holds: it becomes true tying.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..modeling.anthe import AntheConfig, AntheForSeq2SeqLM
from ..modeling.anthe.configuration_anthe import CROSS_ATTENTION_GATES
from .weights import load_weights

# The original sorts the order string instead of inverting it, so the two 3-cycles are not what they spell.
GATE_OF_ORDER = {"kqv": "KgV", "vqk": "VgK", "kvq": "KgQ", "qvk": "VgQ", "qkv": "QgV", "vkq": "QgK"}
RATIO_FIELDS = {
    "tcffn": ("tc_ffn_ratio",),
    "tcpreatt": ("tc_attn_ratio",),
    "tclayer": ("tc_ffn_ratio", "tc_attn_ratio"),
    "tcemb": ("tc_embedding_ratio",),
    "tcconv": ("tc_conv_ratio",),
}
PLAIN_FLAGS: dict[str, dict[str, Any]] = {
    "geglu": {"ffn_type": "swiglu"},
    "sameemb": {"share_embeddings": True},
    "projectoutput": {"tie_word_embeddings": True},
}
UNSUPPORTED_FLAGS = {
    "nopreatt": "attention without projections",
    "sharedqkv": "one projection for the three attention roles",
    "noffn": "layers without feed-forward",
    "mpolastlayer": "an output layer that crashes in the original, too",
}
RENAMINGS = (
    (r"^model\.", ""),
    (r"^(enc|dec)oder\.layers\.(\d+)\.", r"\1\2."),
    (r"^(enc|dec)oder\.\w*embeddings\.", r"\1_embed."),
    (r"\.embed_tokens\.", ".embed."),
    (r"\.soft_positions\.levels\.(\d+)\.subpositions$", r".spos\1"),
    (r"\.soft_positions\.convs\.(\d+)\.", r".conv\1."),
    (r"\.core_(\d)$", r".core\1"),
    (r"\.self_attn_layer_norm\.", ".ln1."),
    (r"\.cross_attn_layer_norm\.", ".ln2."),
    (r"^(enc\d+)\.mlp_layer_norm\.", r"\1.ln2."),
    (r"^(dec\d+)\.mlp_layer_norm\.", r"\1.ln3."),
    (r"(\.ln\d\.)weight$", r"\1gamma"),
    (r"(\.ln\d\.)bias$", r"\1beta"),
    (r"^(enc\d+)\.self_attn\.", r"\1.attn."),
    (r"(?<!\.embed)\.weight$", ".kernel"),
)
HPARAMS = ("ref_string", "d_model", "heads", "d_ff", "layers", "src_vocab", "tgt_vocab")


def convert(
    state_dict: Mapping[str, Any], hparams: Mapping[str, Any], *, allow_noncausal_gate: bool = False
) -> AntheForSeq2SeqLM:
    """See `leanformers.conversion.convert_state_dict`. Recorded inputs and outputs (`in.*`, `out.*`) are passed over.

    Args:
        allow_noncausal_gate: convert also the gates that read ahead through cross-attention, to compare with the
            original; such a model needs sources and targets of equal length and cannot translate.
    """
    config = config_from_hparams(hparams, allow_noncausal_gate=allow_noncausal_gate)
    model = AntheForSeq2SeqLM(config)
    load_reference(model, state_dict, lambda name: reference_name(name, config))
    return model.eval()


def config_from_hparams(hparams: Mapping[str, Any], *, allow_noncausal_gate: bool = False) -> AntheConfig:
    """The configuration that the original's hyper-parameters describe."""
    if hparams.get("kind", "model") != "model":
        raise ValueError(f"these are the tensors of one {hparams['kind']!r}, not of a model")
    missing = [name for name in HPARAMS if name not in hparams]
    if missing:
        raise ValueError(f"the hyper-parameters lack {', '.join(missing)}; needed are {', '.join(HPARAMS)}")
    fields = parse_ref_string(str(hparams["ref_string"]))
    gate = fields["attention_gate"]
    if gate not in CROSS_ATTENTION_GATES and not allow_noncausal_gate:
        reason = "lets target tokens see later ones" if gate.startswith("Q") else "ties target to source positions"
        raise ValueError(
            f"ref_string {hparams['ref_string']!r} means the gate {gate}, which {reason} in cross-attention; "
            "pass allow_noncausal_gate=True (--allow-noncausal-gate) to convert it for comparison only"
        )
    encoder_layers, decoder_layers = parse_layers(hparams["layers"])
    try:
        return AntheConfig(
            hidden_size=whole_number(hparams, "d_model"),
            num_attention_heads=whole_number(hparams, "heads"),
            intermediate_size=whole_number(hparams, "d_ff"),
            source_vocab_size=whole_number(hparams, "src_vocab"),
            vocab_size=whole_number(hparams, "tgt_vocab"),
            num_encoder_layers=encoder_layers,
            num_decoder_layers=decoder_layers,
            allow_noncausal_gate=allow_noncausal_gate,
            use_cache=gate in CROSS_ATTENTION_GATES,
            **fields,
        )
    except StrictDataclassError as error:
        raise ValueError(f"the hyper-parameters describe no possible Anthe: {error.__cause__ or error}") from error


def parse_ref_string(ref_string: str) -> dict[str, Any]:
    """Configuration fields for the flags of the original, e.g. "geglu_gateattention:kqv_hsoftpos:2_tcffn:.005"."""
    fields: dict[str, Any] = {
        "ffn_type": "relu",
        "attention_gate": "none",
        "position_embedding_type": "sinusoidal",
        "tc_embedding_positions": False,
        "tc_reference_bond": True,
        **{name: None for names in RATIO_FIELDS.values() for name in names},
    }
    length = None
    for flag in filter(None, ref_string.split("_")):
        name, _, value = flag.partition(":")
        if name in UNSUPPORTED_FLAGS:
            raise ValueError(f"the flag {name!r} of ref_string ({UNSUPPORTED_FLAGS[name]}) is not supported")
        if name in PLAIN_FLAGS and not value:
            fields.update(PLAIN_FLAGS[name])
        elif name in RATIO_FIELDS:
            fields.update(dict.fromkeys(RATIO_FIELDS[name], flag_value(flag, value or "0.2", float)))
        elif name == "hsoftpos":
            fields["position_embedding_type"] = "h_softpos"
            fields["soft_position_levels"] = flag_value(flag, value or "2", int)
        elif name == "tclength":
            length = flag_value(flag, value, int)
        elif name == "gateattention":
            fields["attention_gate"] = flag_value(flag, value or "qkv", GATE_OF_ORDER.__getitem__)
        else:
            known = ["gateattention", "hsoftpos", "tclength", *PLAIN_FLAGS, *RATIO_FIELDS]
            raise ValueError(f"unknown flag {flag!r} in ref_string {ref_string!r}; known are {', '.join(known)}")
    has_soft_positions = fields["position_embedding_type"] == "h_softpos"
    if has_soft_positions and fields.get("tie_word_embeddings"):
        raise ValueError(
            f"ref_string {ref_string!r} has projectoutput beside hsoftpos, which the original cannot build"
        )
    fields["tc_length"] = length or 3
    fields["tc_embedding_length"] = length or (2 if has_soft_positions else 3)
    return fields


def flag_value(flag: str, value: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(value)
    except (ValueError, KeyError) as error:
        expected = f"one of {', '.join(GATE_OF_ORDER)}" if parse not in (int, float) else "a number"
        raise ValueError(f"the value of the flag {flag!r} in ref_string must be {expected}") from error


def whole_number(hparams: Mapping[str, Any], name: str) -> int:
    text = str(hparams[name]).strip()
    if not text.isdecimal():
        raise ValueError(f"the hyper-parameter {name} must be a whole number, not {hparams[name]!r}")
    return int(text)


def parse_layers(layers: Any) -> tuple[int, int]:
    """ "6+6" -> (6, 6); one number stands for both."""
    counts = [part.strip() for part in str(layers).split("+")]
    if len(counts) > 2 or not all(map(str.isdecimal, counts)):
        raise ValueError(f"the hyper-parameter layers must be like '6+6', not {layers!r}")
    return int(counts[0]), int(counts[-1])


def reference_name(name: str, config: AntheConfig) -> str:
    """The original's name of the parameter that we call `name`, e.g. "enc0.attn.wq.kernel"."""
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"attn\.(\w+)_proj", lambda match: f"attn.{attention_role(match[1], config.attention_gate)}", name)
    return re.sub(r"mlp\.(\w+)_proj", lambda match: f"ffn.{feed_forward_role(match[1], config.ffn_type)}", name)


def attention_role(stream: str, gate: str) -> str:
    """The original's role of `<stream>_proj`: it names roles by what they do under a gate, not by their stream."""
    if stream == "o" or gate == "none":
        return f"w{stream}"
    return {"gate": "wq", gate[2].lower(): "wv"}.get(stream, "wk")


def feed_forward_role(part: str, ffn_type: str) -> str:
    roles = {"gate": "w1", "up": "w3", "down": "w2"} if ffn_type == "swiglu" else {"up": "w1", "down": "w2"}
    return roles[part]


def load_reference(module: nn.Module, state_dict: Mapping[str, Any], reference_name: Callable[[str], str]) -> None:
    """Copies reference tensors into all parameters of `module`, or tells everything that does not fit.

    Args:
        reference_name: from the name of a parameter of `module` to that of the reference.
    """
    reference = {
        name: torch.as_tensor(value) for name, value in state_dict.items() if not name.startswith(("in.", "out."))
    }
    load_weights(module, reference, reference_name, oriented)


def oriented(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A reference tensor in our layout: torch's orientation, and outer bonds of 1 at the two ends of a chain."""
    leaf = name.rpartition(".")[2]
    if leaf == "kernel":
        return tensor.permute(*reversed(range(tensor.ndim)))  # [in, out], or [taps, in, out] of a convolution
    is_end = tensor.ndim == (4 if ".conv" in name else 3)
    if leaf.startswith("core") and is_end:
        return tensor.unsqueeze(-3 if leaf == "core0" else -2)
    return tensor.unsqueeze(0) if leaf.startswith("spos") else tensor  # H-SoftPOS makes one choice per level
