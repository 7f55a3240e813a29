# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Original FastWeight language models (IDSIA's toolkit for them) -> `FastWeightForCausalLM`.

Hyper-parameters: the options of the original's command line or of its model, as text or values; one that is absent has
the command line's default. Tensors: as `model.state_dict()` gives them. What the original hides:

- `qkvb_net` holds head by head the rows of query, key, value and beta; `qkv_net` the same without beta; `kv_net` all
  keys and then all values;
- reads are divided by the sum of the keys unless `skip_attn_normalization` was given, which its own scripts and
  comments take for granted: what the option says decides, nothing else;
- types 4, 5 and 6 scale scores before they divide by their sum, so that the scale cancels but for the epsilon;
- with `pre_lnorm` attention adds to its normalised input, and in types 2, 4, 5 and 6 queries skip the norm;
- the random matrix of FAVOR+, `proj_matrix`, is a plain attribute of each layer: `state_dict()` lacks it.
"""

import ast
import math
import re
from argparse import Namespace
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from ..modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM
from .weights import load_weights

logger = logging.get_logger(__name__)

# Tens: 0 softmax or quadratic sum, 2 delta, 3 sum, 4 delta with normalised removal. Units: the feature map.
ATTENTION_TYPES = (2, 4, 5, 6, 24, 25, 26, 34, 35, 44, 45, 46)
FEATURE_MAPS = {4: "elu_plus_one", 5: "favor", 6: "dpfp"}
REQUIRED = ("attn_type", "n_layer", "n_head", "d_model", "d_head", "d_inner")
DEFAULTS: dict[str, Any] = {
    "n_token": None,
    "cutoffs": None,
    "adaptive": False,
    "dataset": "wt103",
    "not_tied": False,
    "d_embed": -1,
    "d_res": None,
    "div_val": 1,
    "sample_softmax": -1,
    "remove_ff": False,
    "remove_res": False,
    "remove_lnorm": False,
    "remove_out_proj": False,
    "pre_lnorm": False,
    "no_pos": False,
    "clamp_len": -1,
    "tgt_len": None,
    "mem_len": 0,
    "same_length": False,
    "skip_attn_normalization": False,
    "use_sum_norm": False,
    "n_roll": 2,
    "proj_dim": None,
    "dropout": 0.0,
    "dropatt": 0.0,
    "init_std": 0.02,
}
OTHER_NAMES = {"vocab": "n_token", "dpfp_n_roll": "n_roll", "performer_proj_dim": "proj_dim"}
COMMAND_LINE_FEATURES = 16
# The tables are cut by `adaptive` alone, for these data sets.
CUTOFFS = {"wt103": [20000, 40000, 200000], "lm1b": [60000, 100000, 640000]}
ENDS_LINES = ("wt103", "wt2", "ptb")  # with <eos>, which is id 0 there

TABLE, OUTPUT = "word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"
RENAMINGS = (
    (r"^model\.embed_tokens\.weight$", TABLE),
    (r"^model\.layers\.", "layers."),
    (r"\.attention\.o_proj\.", ".dec_attn.o_net."),
    (r"\.attention\.feature_map\.projection$", ".dec_attn.proj_matrix"),
    (r"\.attention_layer_norm\.", ".dec_attn.layer_norm."),
    (r"\.mlp\.up_proj\.", ".pos_ff.CoreNet.0."),
    (r"\.mlp\.down_proj\.", ".pos_ff.CoreNet.3."),
    (r"\.mlp_layer_norm\.", ".pos_ff.layer_norm."),
    (r"^lm_head\.(weight|bias)$", r"crit.out_layers.0.\1"),
    (r"^lm_head\.cluster_", "crit.cluster_"),
)


def convert(state_dict: Mapping[str, Any], hparams: Mapping[str, Any]) -> FastWeightForCausalLM:
    """See `leanformers.conversion.convert_state_dict`."""
    tensors = {name: torch.as_tensor(value) for name, value in state_dict.items()}
    refuse_foreign(tensors)
    tensors.pop("pos_emb.inv_freq", None)
    options = options_of(hparams)
    config = config_from_options(options, vocabulary_size(tensors, options["n_token"]), projection_width(tensors))
    if config.tie_word_embeddings and not torch.equal(tensors.pop(OUTPUT, tensors[TABLE]), tensors[TABLE]):
        raise ValueError(f"{OUTPUT} and {TABLE} are tied by the hyper-parameters (`not_tied`), but differ")
    model = FastWeightForCausalLM(config)
    attn_type = options["attn_type"]
    load_projections(model, tensors)
    load_weights(
        model,
        separated(tensors, attn_type, config.num_attention_heads, config.head_dim),
        lambda name: reference_name(name, attn_type),
        lambda _, tensor: tensor,
    )
    return model.eval()


def refuse_foreign(tensors: Mapping[str, torch.Tensor]) -> None:
    if TABLE not in tensors or not any(".dec_attn." in name for name in tensors):
        first = f", the first is {next(iter(tensors))}" if tensors else ""
        raise ValueError(
            f"these are not the tensors of a FastWeight language model: there is no {TABLE} or no layer's dec_attn "
            f"among the {len(tensors)}{first}"
        )


def options_of(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The original's options as values, with its defaults where they are absent or None."""
    given = hparams.get("args", hparams)
    given = vars(given) if isinstance(given, Namespace) else given
    known = {*REQUIRED, *DEFAULTS, *OTHER_NAMES}
    for name in given:
        nearest = get_close_matches(name, known, n=1, cutoff=0.85)
        if nearest and name not in known:
            raise ValueError(f"the original has no option {name!r}; did you mean {nearest[0]!r}?")
    missing = [name for name in REQUIRED if given.get(name) is None]
    if missing:
        raise ValueError(f"the hyper-parameters lack {', '.join(missing)}; needed are {', '.join(REQUIRED)}")
    options = DEFAULTS | {
        OTHER_NAMES.get(name, name): option_value(OTHER_NAMES.get(name, name), value)
        for name, value in given.items()
        if name in known and value not in (None, "None")
    }
    refuse_unsupported(options)
    return options


def option_value(name: str, value: Any) -> Any:
    """A value that may have been written as text, of the kind that the option has."""
    if isinstance(value, str) and name != "dataset":
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"the hyper-parameter {name} has a value that is not understood: {value!r}") from error
    kind = expected_kind(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"the hyper-parameter {name} must not be {value!r}")
    return value


def expected_kind(name: str) -> type | tuple[type, ...]:
    if isinstance(DEFAULTS.get(name), bool):
        return bool
    if isinstance(DEFAULTS.get(name), float):
        return int, float
    return {"cutoffs": (list, tuple), "dataset": (str,)}.get(name, int)


def refuse_unsupported(options: Mapping[str, Any]) -> None:
    attn_type, width, clamp = options["attn_type"], options["d_model"], options["clamp_len"]
    if attn_type not in ATTENTION_TYPES:
        raise ValueError(
            f"the original's attn_type {attn_type} is not supported; there are {', '.join(map(str, ATTENTION_TYPES))}"
        )
    is_quadratic = attn_type < 10
    clamps = clamp > 0 and not options["no_pos"] and (options["tgt_len"] or math.inf) > clamp + 1
    refused = {
        f"d_embed {options['d_embed']} beside d_model {width}": options["d_embed"] not in (-1, width),
        f"d_res {options['d_res']} beside d_model {width}": options["d_res"] not in (None, width),
        f"div_val {options['div_val']} (only 1 is)": options["div_val"] != 1,
        f"sample_softmax {options['sample_softmax']}": options["sample_softmax"] > 0,
        **{name: options[name] for name in DEFAULTS if name.startswith("remove_")},
        f"mem_len {options['mem_len']} (hidden states of earlier segments)": options["mem_len"] > 0,
        f"clamp_len {clamp} for segments of tgt_len {options['tgt_len']}, which it would change": clamps,
        f"same_length with attn_type {attn_type}": options["same_length"] and is_quadratic,
        f"pre_lnorm with attn_type {attn_type}, whose queries skip the norm": options["pre_lnorm"] and is_quadratic,
        "skip_attn_normalization with attn_type 5": options["skip_attn_normalization"] and attn_type == 5,
        f"dropatt {options['dropatt']} with attn_type {attn_type}, which has no softmax": (
            options["dropatt"] > 0 and attn_type in (4, 5, 6)
        ),
    }
    for option, is_set in refused.items():
        if is_set:
            raise ValueError(f"the original's option {option} is not supported")


def config_from_options(
    options: Mapping[str, Any], vocab_size: int, projection_width: int | None = None
) -> FastWeightConfig:
    """The configuration that the original's options describe; the matrix of FAVOR+ is as wide as it is, if given."""
    length = {} if options["tgt_len"] is None else {"max_position_embeddings": options["tgt_len"]}
    features = options["proj_dim"] or projection_width or COMMAND_LINE_FEATURES
    try:
        return FastWeightConfig(
            vocab_size=vocab_size,
            hidden_size=options["d_model"],
            num_hidden_layers=options["n_layer"],
            num_attention_heads=options["n_head"],
            head_dim=options["d_head"],
            intermediate_size=options["d_inner"],
            dpfp_nu=options["n_roll"],
            favor_features=features,
            favor_layout="rows",
            position_embedding_type="none" if options["no_pos"] else "sinusoidal_reversed",
            norm_position="pre_quirk" if options["pre_lnorm"] else "post",
            final_norm=False,
            output_bias=True,
            adaptive_cutoffs=cutoffs_of(options, vocab_size),
            tie_word_embeddings=not options["not_tied"],
            dropout=options["dropout"],
            activation_dropout=options["dropout"],
            initializer_range=options["init_std"],
            norm_initializer_range=options["init_std"],
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=0 if options["dataset"] in ENDS_LINES else None,
            **length,
            **attention_fields(options),
        )
    except StrictDataclassError as error:
        raise ValueError(
            f"the hyper-parameters describe no possible FastWeight: {error.__cause__ or error}"
        ) from error


def attention_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Update rule, feature map and normalisations of an `attn_type`."""
    if options["attn_type"] == 2:
        return {"update_rule": "softmax", "attention_dropout": options["dropatt"]}
    tens, units = divmod(options["attn_type"], 10)
    normalises = tens == 0 or not options["skip_attn_normalization"]
    is_delta = tens in (2, 4)
    fields: dict[str, Any] = {
        "update_rule": "delta" if is_delta else "sum",
        "feature_map": FEATURE_MAPS[units],
        "key_norm": "sum" if is_delta or options["use_sum_norm"] else "none",
        "attention_norm": ("full" if tens == 4 else "output") if normalises else "none",
    }
    if tens == 0:
        fields |= {"output_scale": 1.0, "attention_norm_eps": 1e-5 * math.sqrt(options["d_head"])}
    return fields


def cutoffs_of(options: Mapping[str, Any], vocab_size: int) -> list[int] | None:
    """First ids of the clusters but the first, without the vocabulary's size, which the original's softmax adds."""
    cutoffs = options["cutoffs"]
    if cutoffs is None and options["adaptive"]:
        if options["dataset"] not in CUTOFFS:
            raise ValueError(f"`adaptive` cuts the vocabulary of {' and '.join(CUTOFFS)}, not {options['dataset']!r}")
        cutoffs = CUTOFFS[options["dataset"]]
    return [int(cutoff) for cutoff in cutoffs or () if cutoff != vocab_size] or None


def vocabulary_size(tensors: Mapping[str, torch.Tensor], stated: int | None) -> int:
    """Rows of the token table, which must be what the hyper-parameters state, if they do."""
    rows = len(tensors[TABLE])
    if stated not in (None, rows):
        raise ValueError(f"the hyper-parameters give a vocabulary of {stated}, but {TABLE} has {rows} rows")
    return rows


def projection_width(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Columns of the first layer's matrix of FAVOR+, if there is one."""
    matrix = tensors.get("layers.0.dec_attn.proj_matrix")
    return None if matrix is None or matrix.ndim != 2 else matrix.shape[1]


def load_projections(model: FastWeightForCausalLM, tensors: dict[str, torch.Tensor]) -> None:
    """Takes the matrices of FAVOR+ out of `tensors`: those of all layers, or of none, which then have new ones."""
    if model.config.feature_map != "favor" or model.config.update_rule == "softmax":
        return
    buffers = {reference_name(name, 0): buffer for name, buffer in model.named_buffers()}
    given = {name: tensors.pop(name) for name in buffers if name in tensors}
    if not given:
        logger.warning(
            "The checkpoint holds no matrices of FAVOR+ (layers.0.dec_attn.proj_matrix, ...), so new ones were drawn. "
            "The original keeps the last ones of training, as attributes that its state_dict() lacks."
        )
        return
    problems = [f"{name} is missing" for name in buffers.keys() - given.keys()]
    problems += [
        f"{name} is {list(tensor.shape)} instead of {list(buffers[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != buffers[name].shape
    ]
    if problems:
        raise ValueError(f"the tensors do not fit the hyper-parameters: {'; '.join(sorted(problems))}")
    for name, tensor in given.items():
        buffers[name].copy_(tensor)


def reference_name(name: str, attn_type: int) -> str:
    """The original's name of the parameter that we call `name`; of a part of a matrix, the one that `separated` gives
    it."""
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    match = re.fullmatch(r"(.+)\.attention\.(\w+)_proj\.weight", name)
    if match is None:
        return name
    layer, stream = match.groups()
    if attn_type < 10 and stream == "q":
        return f"{layer}.dec_attn.q_net.weight"
    return f"{layer}.dec_attn.{fused_net(attn_type)}.weight[{stream}]"


def fused_net(attn_type: int) -> str:
    """The linear layer that makes several streams at once."""
    return {0: "kv_net", 3: "qkv_net"}.get(attn_type // 10, "qkvb_net")


def separated(
    tensors: Mapping[str, torch.Tensor], attn_type: int, num_heads: int, head_dim: int
) -> dict[str, torch.Tensor]:
    """The tensors with those of the fused layers in parts: `qkvb_net.weight[q]` and so on."""
    net, sizes = fused_net(attn_type), {"q": head_dim, "k": head_dim, "v": head_dim, "beta": 1}
    if net == "kv_net":
        num_heads, sizes = 1, {"k": num_heads * head_dim, "v": num_heads * head_dim}
    elif net == "qkv_net":
        del sizes["beta"]
    rows, width = num_heads * sum(sizes.values()), list(sizes.values())
    fused = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{net}.weight")}
    wrong = [f"{name} is {list(one.shape)} instead of {rows} rows" for name, one in fused.items() if len(one) != rows]
    if wrong:
        raise ValueError(f"the tensors do not fit the hyper-parameters: {'; '.join(wrong)}")
    parts = {name: tensor for name, tensor in tensors.items() if name not in fused}
    for name, tensor in fused.items():
        streams = tensor.unflatten(0, (num_heads, sum(width))).split(width, dim=1)
        parts |= {f"{name}[{stream}]": one.flatten(0, 1) for stream, one in zip(sizes, streams, strict=True)}
    return parts
