# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Original DeLighT checkpoints (fairseq) -> `DeLighTForConditionalGeneration` or `DeLighTForCausalLM`.

Hyper-parameters: `args`, the original's options under its names; or these alone. An option that is absent has the
original's default. `src_vocab` and `tgt_vocab` (`vocab`, `vocab_size`), where given, must be those of the token
tables. Tensors of an encoder tell a translation model from a language model. What the original hides:

- `linear_kqv` holds query, key and value in this order;
- a group linear transform with one group is stored as a full linear layer, whose matrix is the transposed one;
- a language model is pre-norm whatever its options say, and `tie_adaptive_proj` alone ties nothing;
- tied tensors are stored once per name, and must be equal here.
"""

import math
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..modeling.delight import DeLighTConfig, DeLighTForCausalLM, DeLighTForConditionalGeneration
from .weights import load_weights

STACK_DEFAULTS = {
    "scaling": "block",
    "layers": 8,
    "min_depth": 4,
    "max_depth": 8,
    "width_mult": 2.0,
    "ffn_red": 4,
    "max_groups": None,
}
DEFAULTS: dict[str, Any] = {
    "delight_emb_map_dim": 128,
    "delight_emb_out_dim": 128,
    "delight_emb_width_mult": 2.0,
    "delight_emb_depth": 4,
    "delight_emb_max_groups": None,
    **{f"delight_{stack}_{option}": default for stack in ("enc", "dec") for option, default in STACK_DEFAULTS.items()},
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "no_decoder_final_norm": False,
    "no_cross_attention": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "no_token_positional_embeddings": False,
    "tokens_per_sample": 1024,
    "max_source_positions": 1024,
    "max_target_positions": None,
    "no_glt_shuffle": False,
    "define_iclr": False,
    "norm_type": "ln",
    "act_type": "swish",
    "no_scale_embedding": False,
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
    "adaptive_input": False,
    "adaptive_input_cutoff": None,
    "adaptive_input_factor": None,
    "adaptive_softmax_cutoff": None,
    "adaptive_softmax_factor": 2,
    "tie_adaptive_weights": False,
    "tie_adaptive_proj": False,
    "activation_dropout": 0.0,
}
LANGUAGE_MODEL_DEFAULTS = {"delight_emb_map_dim": 64}
DROPOUTS = {
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "ffn_dropout": "ffn_dropout",
    "embedding_dropout": "delight_emb_dropout",
    "position_dropout": "pe_dropout",
    "dextra_dropout": "delight_dropout",
    "adaptive_softmax_dropout": "adaptive_softmax_dropout",
}
ACTIVATIONS = {"swish": "silu", "relu": "relu", "gelu": "gelu", "sigmoid": "sigmoid", "tanh": "tanh"}
TARGET_VOCABULARY = ("tgt_vocab", "vocab", "vocab_size")

RENAMINGS = (
    (r"^model\.", ""),
    (r"\.embeddings\.embed_tokens\.tables\.", ".embed_tokens.map_layer.embeddings."),
    (r"\.embeddings\.embed_tokens\.", ".embed_tokens.map_layer."),
    (r"\.embeddings\.embed_positions\.", ".embed_positions."),
    (r"\.embeddings\.dextra\.", ".embed_tokens.dextra_layer."),
    (r"^(decoder\.layers\.\d+)\.dextra\.", r"\1.dextra_layer_sa."),
    (r"\.dextra\.", ".dextra_layer."),
    (r"(^|dextra_layer\.|dextra_layer_sa\.)layers\.(\d+)\.norm\.", r"\1dextra_layers.\2.normalization_fn."),
    (r"(^|dextra_layer\.|dextra_layer_sa\.)layers\.(\d+)\.", r"\1dextra_layers.\2."),
    (r"\b(in|out)_proj\.", r"\1put_layer."),
    (r"\b(in|out)_norm\.", r"\1put_layer.normalization_fn."),
    (r"\.cross_attn", ".encoder_attn"),
    (r"_attn\.qkv_proj\.", "_attn.linear_kqv."),
    (r"_attn\.(q|kv)_proj\.", r"_attn.linear_\1."),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
    (r"\.mlp_layer_norm\.", ".final_layer_norm."),
    (r"\.mlp\.", "."),
    (r"^output_proj\.", "decoder.project_out_dim."),
    (r"^lm_head\.weight$", "decoder.embed_out.weight"),
    (r"^lm_head\.class_proj\.", "decoder.adaptive_softmax.head.class_proj."),
    (r"^lm_head\.head\.", "decoder.adaptive_softmax.head."),
    (r"^lm_head\.tail_projections\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.0."),
    (r"^lm_head\.tail_tables\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.2."),
    # The project's own linear layers have `weights`; norms, tables and adaptive layers `weight`.
    (r"((?:put_layer|dextra_layers\.\d+|linear_\w+|out_proj|fc\d|project_out_dim|embed_out)\.weight)$", r"\1s"),
)


def convert(
    state_dict: Mapping[str, Any], hparams: Mapping[str, Any]
) -> DeLighTForConditionalGeneration | DeLighTForCausalLM:
    """See `leanformers.conversion.convert_state_dict`."""
    tensors = {
        name: torch.as_tensor(value)
        for name, value in state_dict.items()
        if name.rpartition(".")[2] not in ("version", "_float_tensor")
    }
    has_encoder = any(name.startswith("encoder.") for name in tensors)
    refuse_foreign(tensors, hparams, has_encoder)
    options = options_of(hparams, has_encoder)
    other_names = tied_names(options, has_encoder)
    tensors = without_duplicates(tensors, other_names)
    stated = next((hparams[name] for name in TARGET_VOCABULARY if name in hparams), None)
    config = config_from_options(
        options,
        vocabulary_size(tensors, "decoder", stated),
        vocabulary_size(tensors, "encoder", hparams.get("src_vocab"), other_names) if has_encoder else None,
        pad_token_id=hparams.get("pad_idx", 1),
    )
    model = (DeLighTForConditionalGeneration if has_encoder else DeLighTForCausalLM)(config)

    def stored_name(name: str) -> str:
        return other_names.get(reference_name(name), reference_name(name))

    load_weights(model, tensors, stored_name, oriented)
    return model.eval()


def refuse_foreign(tensors: Mapping[str, torch.Tensor], hparams: Mapping[str, Any], has_encoder: bool) -> None:
    if not any(re.match(r"(en|de)coder\..*\.dextra_layer(_sa)?\.", name) for name in tensors):
        first = f", the first is {next(iter(tensors))}" if tensors else ""
        raise ValueError(
            f"these are not the tensors of a DeLighT model: none of the {len(tensors)} belongs to a DExTra unit of an "
            f"encoder or decoder{first}"
        )
    if hparams.get("kind") == "encoder-decoder" and not has_encoder:
        raise ValueError("the hyper-parameters are of an encoder-decoder, but no tensor belongs to an encoder")


def options_of(hparams: Mapping[str, Any], has_encoder: bool) -> dict[str, Any]:
    """The original's options, with its defaults where they are absent or None."""
    given = hparams.get("args", hparams)
    given = vars(given) if isinstance(given, Namespace) else given
    if not any(name.startswith("delight_") for name in given):
        raise ValueError("the hyper-parameters have none of the original's options (`args`), like delight_emb_out_dim")
    options = dict.fromkeys(DROPOUTS.values(), 0.1) | DEFAULTS
    options |= {} if has_encoder else LANGUAGE_MODEL_DEFAULTS
    options |= {name: value for name, value in given.items() if value is not None}
    options.setdefault("glt_shuffle", not options["no_glt_shuffle"])
    refuse_unsupported(options, has_encoder)
    return options


def refuse_unsupported(options: Mapping[str, Any], has_encoder: bool) -> None:
    adaptive_input, adaptive_softmax = options["adaptive_input"], options["adaptive_softmax_cutoff"] is not None
    norm, activation = options["norm_type"], options["act_type"]
    refused = {
        f"norm_type {norm!r} (only 'ln' is)": norm != "ln",
        f"act_type {activation!r} (only {', '.join(ACTIVATIONS)} are)": activation not in ACTIVATIONS,
        "no_cross_attention": has_encoder and options["no_cross_attention"],
        "an adaptive input or softmax in a translation model": has_encoder and (adaptive_input or adaptive_softmax),
        "adaptive_input without adaptive_softmax_cutoff": adaptive_input and not adaptive_softmax,
        "adaptive_softmax_cutoff without adaptive_input": adaptive_softmax and not adaptive_input,
        "adaptive_input with no_scale_embedding": adaptive_input and options["no_scale_embedding"],
    }
    for option, is_set in refused.items():
        if is_set:
            raise ValueError(f"the original's option {option} is not supported")


def config_from_options(
    options: Mapping[str, Any], vocab_size: int, source_vocab_size: int | None = None, pad_token_id: int = 1
) -> DeLighTConfig:
    """The configuration that the original's options describe; without `source_vocab_size`, of a language model."""
    fields = shared_fields(options)
    if source_vocab_size is None:
        fields |= stack_fields(options, "dec") | adaptive_fields(options, vocab_size)
        fields["normalize_before"] = True
    else:
        fields |= encoder_and_decoder_fields(options)
        fields["source_vocab_size"] = None if source_vocab_size == vocab_size else source_vocab_size
    if fields["normalize_before"]:
        fields["final_norm"] = not options["no_decoder_final_norm"]
    try:
        return DeLighTConfig(
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            is_encoder_decoder=source_vocab_size is not None,
            **fields,
        )
    except StrictDataclassError as error:
        raise ValueError(f"the hyper-parameters describe no possible DeLighT: {error.__cause__ or error}") from error


def shared_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """What encoder and decoder have in common."""
    return {
        "hidden_size": options["delight_emb_out_dim"],
        "embedding_size": options["delight_emb_map_dim"],
        "embedding_depth": options["delight_emb_depth"],
        "embedding_width_multiplier": options["delight_emb_width_mult"],
        "embedding_max_groups": options["delight_emb_max_groups"],
        "dextra_layout": "define" if options["define_iclr"] else "dextra",
        "feature_shuffle": options["glt_shuffle"],
        "hidden_act": ACTIVATIONS[options["act_type"]],
        "scale_embedding": not options["no_scale_embedding"],
        "tie_word_embeddings": options["share_decoder_input_output_embed"],
        **{field: options[option] for field, option in DROPOUTS.items()},
    }


def encoder_and_decoder_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both stacks; the encoder's where they differ. Its two depths are one setting."""
    encoder, decoder = stack_fields(options, "enc"), stack_fields(options, "dec")
    layers = {"num_encoder_layers": encoder.pop("num_encoder_layers")}
    different = {name for name, value in encoder.items() if value != decoder[name]}
    if different & {"min_depth", "max_depth"}:
        different |= {"min_depth", "max_depth"}
    own = {f"encoder_{name}": encoder[name] for name in different}
    return {**decoder, **layers, **own, "share_embeddings": options["share_all_embeddings"]}


def stack_fields(options: Mapping[str, Any], stack: str) -> dict[str, Any]:
    """The fields of one stack ("enc" or "dec"), by their names without a prefix."""

    def of_stack(option: str) -> Any:
        return options[f"delight_{stack}_{option}"]

    scaling, low, high = of_stack("scaling"), of_stack("min_depth"), of_stack("max_depth")
    if scaling not in ("block", "uniform") or (scaling == "uniform" and low != high):
        raise ValueError(
            f"delight_{stack}_scaling must be 'block', or 'uniform' with one depth as delight_{stack}_min_depth and "
            f"max_depth; got {scaling!r} from {low} to {high}"
        )
    longest = options["max_source_positions" if stack == "enc" else "max_target_positions"]
    return {
        f"num_{stack}oder_layers": of_stack("layers"),
        "min_depth": low,
        "max_depth": None if high == low else high,
        "width_multiplier": of_stack("width_mult"),
        "max_groups": of_stack("max_groups") or default_groups(options),
        "ffn_reduction": of_stack("ffn_red"),
        "normalize_before": options[f"{stack}oder_normalize_before"],
        "position_embedding_type": position_embedding_type(options, stack),
        "max_position_embeddings": options["tokens_per_sample"] if longest is None else longest,
    }


def default_groups(options: Mapping[str, Any]) -> int:
    return 2 ** math.ceil(math.log2(options["delight_emb_out_dim"] / 32))


def position_embedding_type(options: Mapping[str, Any], stack: str) -> str:
    if options["no_token_positional_embeddings"]:
        return "none"
    return "learned" if options[f"{stack}oder_learned_pos"] else "sinusoidal"


def adaptive_fields(options: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The bands of input and softmax, which must be the same ones."""
    if not options["adaptive_input"]:
        return {}
    softmax = options["adaptive_softmax_cutoff"], options["adaptive_softmax_factor"]
    inputs = options["adaptive_input_cutoff"] or softmax[0], options["adaptive_input_factor"] or softmax[1]
    bands = [(parse_cutoffs(cutoffs, vocab_size), float(factor)) for cutoffs, factor in (inputs, softmax)]
    if bands[0] != bands[1]:
        raise ValueError(
            f"the adaptive input has the cutoffs {inputs[0]} and the factor {inputs[1]}, the adaptive softmax "
            f"{softmax[0]} and {softmax[1]}; only the same bands on both sides are supported"
        )
    cutoffs, factor = bands[0]
    if not factor.is_integer():
        raise ValueError(f"adaptive_softmax_factor must be a whole number, not {factor}")
    return {
        "adaptive_cutoffs": cutoffs,
        "adaptive_factor": int(factor),
        "tie_word_embeddings": options["tie_adaptive_weights"],
        "tie_adaptive_projections": options["tie_adaptive_weights"] and options["tie_adaptive_proj"],
    }


def parse_cutoffs(cutoffs: Any, vocab_size: int) -> list[int]:
    """ "20000,60000" or a list -> the first ids of all bands but the first; the original may add `vocab_size`."""
    parts = cutoffs.strip("[]() ").split(",") if isinstance(cutoffs, str) else list(cutoffs)
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise ValueError(f"adaptive cutoffs must be whole numbers like '20000,60000', not {cutoffs!r}") from error
    return numbers[:-1] if numbers[-1] == vocab_size else numbers


def tied_names(options: Mapping[str, Any], has_encoder: bool) -> dict[str, str]:
    """Of tensors with two names: from one to the other, that of the decoder's token tables."""
    table, softmax = "decoder.embed_tokens.map_layer", "decoder.adaptive_softmax"
    names = {}
    if has_encoder and options["share_all_embeddings"]:
        names["encoder.embed_tokens.map_layer.weight"] = f"{table}.weight"
    if options["adaptive_input"] and options["tie_adaptive_weights"]:
        names[f"{softmax}.head.word_proj.weight"] = f"{table}.embeddings.0.weight"
        for tail in range(len(parse_cutoffs(options["adaptive_softmax_cutoff"], vocab_size=0))):
            names[f"{softmax}.tail.{tail}.2.weight"] = f"{table}.embeddings.{tail + 1}.weight"
            if options["tie_adaptive_proj"]:
                names[f"{softmax}.tail.{tail}.0.weight"] = f"{table}.projections.{tail + 1}.weight"
    return names


def without_duplicates(tensors: Mapping[str, torch.Tensor], other_names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Each tied tensor once, under the name that `other_names` leads to."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored = other_names.get(name, name)
        if stored in kept and not torch.equal(kept[stored], tensor):
            alias = next(alias for alias, target in other_names.items() if target == stored)
            raise ValueError(f"{alias} and {stored} are tied by the hyper-parameters, but differ")
        kept[stored] = tensor
    return kept


def vocabulary_size(
    tensors: Mapping[str, torch.Tensor], stack: str, stated: Any, other_names: Mapping[str, str] | None = None
) -> int:
    """Rows of a stack's token table or tables, which must be what the hyper-parameters state, if they do."""
    prefix = f"{stack}.embed_tokens.map_layer."
    prefix = (other_names or {}).get(f"{prefix}weight", prefix).removesuffix("weight")
    rows = [len(tensor) for name, tensor in tensors.items() if re.match(rf"{prefix}(embeddings\.\d+\.)?weight$", name)]
    if not rows:
        raise ValueError(f"the tensors do not fit the hyper-parameters: {prefix}weight is missing")
    if stated is not None and int(stated) != sum(rows):
        raise ValueError(
            f"the hyper-parameters give the {stack} a vocabulary of {stated}, but its token table has {sum(rows)} "
            "rows: a dictionary that does not fit the weights"
        )
    return sum(rows)


def reference_name(name: str) -> str:
    """The original's name of the parameter that we call `name`, e.g. "decoder.layers.0.self_attn.linear_kqv.bias"."""
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def oriented(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A reference tensor in our layout, which differs in group linear transforms only."""
    if re.search(r"dextra_layers\.\d+\.weights$", name) and tensor.ndim == 2:
        return tensor.T[None]
    if re.search(r"dextra_layers\.\d+\.bias$", name):
        return tensor[None] if tensor.ndim == 1 else tensor.squeeze(1)
    return tensor
