# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the original's options mean, which are refused by name, and its files: state dicts and whole models."""

import json
import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leanformers.conversion import convert_checkpoint, convert_state_dict, read_checkpoint
from leanformers.conversion.fast_weight import ATTENTION_TYPES, config_from_options, options_of
from leanformers.conversion.pickled_model import CLASSES
from leanformers.conversion.vocabulary import read_vocabulary
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.hub.check import check
from leanformers.modeling.fast_weight import FastWeightForCausalLM

HPARAMS = {"attn_type": 24, "n_layer": 2, "n_head": 3, "d_model": 16, "d_head": 4, "d_inner": 24, "n_token": 23}
ADAPTIVE = HPARAMS | {"cutoffs": [8, 15]}
FAVOR = HPARAMS | {"attn_type": 25, "proj_dim": 5}


def config_of(**options):
    return config_from_options(options_of(HPARAMS | options), 23)


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(22).view(2, 11), use_cache=False).logits


@pytest.mark.parametrize(
    ("attn_type", "rule", "feature_map", "key_norm", "norms"),
    [
        (4, "sum", "elu_plus_one", "none", ("output", "output")),
        (6, "sum", "dpfp", "none", ("output", "output")),
        (24, "delta", "elu_plus_one", "sum", ("output", "none")),
        (25, "delta", "favor", "sum", ("output", "none")),
        (26, "delta", "dpfp", "sum", ("output", "none")),
        (34, "sum", "elu_plus_one", "none", ("output", "none")),
        (35, "sum", "favor", "none", ("output", "none")),
        (44, "delta", "elu_plus_one", "sum", ("full", "none")),
        (45, "delta", "favor", "sum", ("full", "none")),
        (46, "delta", "dpfp", "sum", ("full", "none")),
    ],
)
def test_attention_types(attn_type, rule, feature_map, key_norm, norms):
    for skips, norm in zip((False, True), norms, strict=True):
        config = config_of(attn_type=attn_type, skip_attn_normalization=skips)
        assert (config.update_rule, config.feature_map, config.key_norm) == (rule, feature_map, key_norm)
        assert config.attention_norm == norm
    is_quadratic = attn_type < 10
    assert config.output_scale == (1.0 if is_quadratic else None)
    assert config.attention_norm_eps == pytest.approx(2e-5 if is_quadratic else 1e-5)
    assert (config.favor_layout, config.favor_eps) == ("rows", 1e-4)


def test_softmax_and_other_options():
    config = config_of(attn_type=2, dropatt=0.2, dropout=0.3, init_std=0.05, tgt_len=50, dataset="lm1b")
    assert (config.update_rule, config.attention_dropout, config.dropout) == ("softmax", 0.2, 0.3)
    assert (config.activation_dropout, config.initializer_range, config.norm_initializer_range) == (0.3, 0.05, 0.05)
    assert (config.max_position_embeddings, config.eos_token_id, config.pad_token_id) == (50, None, None)
    config = config_of(attn_type=26, n_roll=3, pre_lnorm=True, no_pos=True)
    assert (config.dpfp_nu, config.norm_position, config.final_norm) == (3, "pre_quirk", False)
    assert (config.position_embedding_type, config.eos_token_id, config.output_bias) == ("none", 0, True)
    assert config_of(attn_type=26, dpfp_n_roll="4").dpfp_nu == 4 and config_of(attn_type=26).dpfp_nu == 2
    assert config_of(attn_type=25, performer_proj_dim=7).favor_features == 7
    assert config_of(attn_type=34, use_sum_norm=True).key_norm == "sum"
    assert config_of(clamp_len=40, tgt_len=41).position_embedding_type == "sinusoidal_reversed"


def test_vocabulary_is_cut_where_the_original_cuts_it():
    options = options_of(HPARAMS | {"n_token": 267_735, "adaptive": True})
    assert config_from_options(options, 267_735).adaptive_cutoffs == [20_000, 40_000, 200_000]
    assert config_of(cutoffs="[8, 15, 23]").adaptive_cutoffs == [8, 15]
    assert config_of(cutoffs=[]).adaptive_cutoffs is config_of(adaptive=False).adaptive_cutoffs is None


def test_options_of_the_command_line_that_do_not_matter_are_passed_over():
    """Also those whose names are near to others'."""
    more = (
        "emb_init_range proj_init_std eval_tgt_len ext_len lr_min batch_size n_all_param n_nonemb_param carry layout"
    )
    config_of(**dict.fromkeys(more.split(), 1), tied=True, carry_over_fast_weight=True, seed="1111")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"attn_type": kind}, f"attn_type {kind} is not supported; there are 2, 4, 5")
            for kind in (0, 3, 14, 36, 64)
        ),
        ({"attn_type": None}, "lack attn_type; needed are attn_type, n_layer"),
        ({"skip_attn_normalisation": True}, "no option 'skip_attn_normalisation'; did you mean 'skip_attn_normaliz"),
        ({"n_layers": 2}, "no option 'n_layers'; did you mean 'n_layer'"),
        ({"n_layer": "two"}, "n_layer has a value that is not understood: 'two'"),
        ({"n_layer": 2.5}, "n_layer must not be 2.5"),
        ({"n_layer": True}, "n_layer must not be True"),
        ({"no_pos": "yes"}, "no_pos has a value that is not understood"),
        ({"no_pos": 1}, "no_pos must not be 1"),
        ({"cutoffs": 8}, "cutoffs must not be 8"),
        ({"n_head": 0}, "num_attention_heads. must be at least 1, got 0"),
        ({"attn_type": 26, "n_roll": 0}, "dpfp_nu. must be at least 1, got 0"),
        ({"cutoffs": [15, 8]}, "adaptive_cutoffs. must rise"),
        ({"adaptive": True, "dataset": "wt2"}, "cuts the vocabulary of wt103 and lm1b, not 'wt2'"),
        ({"d_embed": 8}, "d_embed 8 beside d_model 16 is not supported"),
        ({"d_res": 32}, "d_res 32 beside d_model 16"),
        ({"div_val": 4}, "div_val 4 .only 1 is"),
        ({"sample_softmax": 100}, "sample_softmax 100"),
        *(({name: True}, name) for name in ("remove_ff", "remove_res", "remove_lnorm", "remove_out_proj")),
        ({"attn_type": 2, "mem_len": 8}, "mem_len 8"),
        ({"clamp_len": 40, "tgt_len": 42}, "clamp_len 40 for segments of tgt_len 42"),
        ({"clamp_len": 40}, "clamp_len 40 for segments of tgt_len None"),
        ({"attn_type": 2, "same_length": True}, "same_length with attn_type 2"),
        *(
            ({"attn_type": kind, "pre_lnorm": True}, f"pre_lnorm with attn_type {kind}, whose")
            for kind in (2, 4, 5, 6)
        ),
        ({"attn_type": 5, "skip_attn_normalization": True}, "skip_attn_normalization with attn_type 5"),
        ({"attn_type": 4, "dropatt": 0.1}, "dropatt 0.1 with attn_type 4, which has no softmax"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        config_of(**options)


def test_separate_output_matrix_and_tied_one(fast_weight_weights):
    weights = fast_weight_weights(HPARAMS | {"not_tied": True})
    untied = convert_state_dict("fast_weight", weights, HPARAMS | {"not_tied": True})
    assert torch.equal(untied.lm_head.weight, weights["crit.out_layers.0.weight"])
    assert torch.equal(untied.model.embed_tokens.weight, weights["word_emb.emb_layers.0.weight"])
    with pytest.raises(ValueError, match=r"tied by the hyper-parameters \(`not_tied`\), but differ"):
        convert_state_dict("fast_weight", weights, HPARAMS)
    del weights["crit.out_layers.0.weight"]
    tied = convert_state_dict("fast_weight", weights, HPARAMS)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_half_precision_becomes_single(fast_weight_weights):
    weights = {name: tensor.half() for name, tensor in fast_weight_weights(ADAPTIVE).items()}
    model = convert_state_dict("fast_weight", weights, ADAPTIVE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_matrices_of_favor_are_kept_or_drawn(fast_weight_weights, caplog):
    weights = fast_weight_weights(FAVOR)
    model = convert_state_dict("fast_weight", weights, FAVOR)
    for index, layer in enumerate(model.model.layers):
        matrix = weights[f"layers.{index}.dec_attn.proj_matrix"]
        assert torch.equal(layer.attention.feature_map.projection, matrix)
    without_size = {name: value for name, value in FAVOR.items() if name != "proj_dim"}
    assert convert_state_dict("fast_weight", weights, without_size).config.favor_features == 5
    del weights["layers.1.dec_attn.proj_matrix"]
    with pytest.raises(ValueError, match=r"hyper-parameters: layers\.1\.dec_attn\.proj_matrix is missing"):
        convert_state_dict("fast_weight", weights, FAVOR)
    weights["layers.1.dec_attn.proj_matrix"] = torch.ones(5, 4)
    with pytest.raises(ValueError, match=r"layers\.1\.dec_attn\.proj_matrix is \[5, 4\] instead of \[4, 5\]"):
        convert_state_dict("fast_weight", weights, FAVOR)
    bare = {name: tensor for name, tensor in weights.items() if not name.endswith("proj_matrix")}
    drawn = convert_state_dict("fast_weight", bare, without_size)
    assert drawn.config.favor_features == 16 and logits_of(drawn).isfinite().all()


def test_all_tensors_that_do_not_fit_are_listed_at_once(fast_weight_weights):
    weights = fast_weight_weights(ADAPTIVE)
    del weights["layers.0.pos_ff.CoreNet.3.bias"]
    del weights["layers.1.dec_attn.qkvb_net.weight"]
    weights["layers.0.dec_attn.o_net.weight"] = torch.zeros(12, 16)
    weights["layers.2.dec_attn.o_net.weight"] = torch.zeros(16, 12)
    with pytest.raises(ValueError) as error:
        convert_state_dict("fast_weight", weights, ADAPTIVE)
    message = str(error.value)
    assert "layers.0.pos_ff.CoreNet.3.bias is missing" in message
    assert "layers.1.dec_attn.qkvb_net.weight[q] is missing" in message
    assert "layers.0.dec_attn.o_net.weight is [12, 16], which gives [12, 16] instead of [16, 12]" in message
    assert "layers.2.dec_attn.o_net.weight has no place" in message
    weights["layers.1.dec_attn.qkvb_net.weight"] = torch.zeros(40, 16)
    with pytest.raises(ValueError, match=r"layers\.1\.dec_attn\.qkvb_net\.weight is \[40, 16\] instead of 39 rows"):
        convert_state_dict("fast_weight", weights, ADAPTIVE)


@pytest.mark.parametrize("stated", [{"n_token": 24}, {"n_token": None, "vocab": "24"}])
def test_vocabulary_that_does_not_fit_the_weights(fast_weight_weights, stated):
    with pytest.raises(ValueError, match=r"a vocabulary of 24, but word_emb\.emb_layers\.0\.weight has 23 rows"):
        convert_state_dict("fast_weight", fast_weight_weights(HPARAMS), HPARAMS | stated)


def test_tensors_of_another_model_are_refused(fast_weight_weights):
    sum_rule = fast_weight_weights(HPARAMS | {"attn_type": 34})
    with pytest.raises(ValueError, match=r"qkvb_net\.weight\[q\] is missing.*qkv_net\.weight has no place"):
        convert_state_dict("fast_weight", sum_rule, HPARAMS)
    for foreign in ({}, {"decoder.embed_tokens.weight": torch.ones(2, 2)}):
        with pytest.raises(ValueError, match="not the tensors of a FastWeight language model"):
            convert_state_dict("fast_weight", foreign, HPARAMS)
    with pytest.raises(ValueError, match="not the tensors of a DeLighT model"):
        convert_state_dict("delight", sum_rule, {"delight_emb_out_dim": 16})


ORIGINAL_MODULES = {"utils", *(kind.__module__ for kind in CLASSES if not kind.__module__.startswith("torch."))}


@pytest.fixture
def original_classes(monkeypatch):
    """Modules as the original has them, by name, while a test saves one. Reading has to do without."""
    classes = {}
    for name in ORIGINAL_MODULES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for kind in CLASSES:
        if kind.__module__.startswith("torch."):
            continue
        classes[kind.__name__] = type(kind.__name__, (nn.Module,), {"__module__": kind.__module__})
        setattr(sys.modules[kind.__module__], kind.__name__, classes[kind.__name__])
    return classes


LAYERS = {
    2: "MultiHeadAttn",
    4: "LinearMultiHeadAttn",
    5: "PerformerMultiHeadAttn",
    6: "DPFPMultiHeadAttn",
    24: "CudaFastWeightLinearTransformerLayer",
    25: "CudaFastWeightPerformerLayer",
    26: "CudaFastWeightDPFPTransformerLayer",
    34: "CudaFastWeightSumLinearTransformerLayer",
    35: "CudaFastWeightSumPerformerLayer",
    44: "CudaNormFastWeightLinearTransformerLayer",
    45: "CudaNormFastWeightPerformerLayer",
    46: "CudaNormFastWeightDPFPTransformerLayer",
}


def original_model(classes, weights, hparams):
    """A module tree with the original's classes and attributes and these weights."""

    def create(name, **attributes):
        module = classes[name]()
        for key, value in attributes.items():
            setattr(module, key, value)
        return module

    def linear(name, bias=False):
        layer = nn.Linear(*weights[f"{name}.weight"].shape[::-1], bias=bias)
        layer.weight = nn.Parameter(weights[f"{name}.weight"])
        if bias:
            layer.bias = nn.Parameter(weights[f"{name}.bias"])
        return layer

    def norm(name):
        layer = nn.LayerNorm(hparams["d_model"])
        layer.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
        return layer

    def attention(name):
        nets = ("q_net", "kv_net", "qkv_net", "qkvb_net", "o_net")
        own = {net: linear(f"{name}.{net}") for net in nets if f"{name}.{net}.weight" in weights}
        own |= {"layer_norm": norm(f"{name}.layer_norm"), "drop": nn.Dropout(0.1), "dropatt": nn.Dropout(0.0)}
        own |= {key: hparams[key] for key in ("n_roll", "proj_dim") if key in hparams}
        if hparams["attn_type"] > 10:
            own["normalize_attn_scores"] = not hparams.get("skip_attn_normalization", False)
        if f"{name}.proj_matrix" in weights:
            own["proj_matrix"] = weights[f"{name}.proj_matrix"]
        return create(LAYERS[hparams["attn_type"]], pre_lnorm=hparams.get("pre_lnorm", False), eps=1e-5, **own)

    def block(name):
        inner = [linear(f"{name}.pos_ff.CoreNet.0", True), nn.ReLU(), nn.Dropout(0.1)]
        core = nn.Sequential(*inner, linear(f"{name}.pos_ff.CoreNet.3", True), nn.Dropout(0.1))
        ff = create("PositionwiseFF", CoreNet=core, layer_norm=norm(f"{name}.pos_ff.layer_norm"))
        is_favor = hparams["attn_type"] % 10 == 5
        kind = "PerformerDecoderLayer" if is_favor else "DecoderLayer"
        return create(kind, dec_attn=attention(f"{name}.dec_attn"), pos_ff=ff)

    table = nn.Embedding.from_pretrained(weights["word_emb.emb_layers.0.weight"], freeze=False)
    output = linear("crit.out_layers.0", True)
    if not hparams.get("not_tied"):
        output.weight = table.weight
    cutoffs = [*hparams.get("cutoffs", ()), hparams["n_token"]]
    clusters = {
        name: nn.Parameter(weights[f"crit.{name}"])
        for name in ("cluster_weight", "cluster_bias")
        if f"crit.{name}" in weights
    }
    options = {name: value for name, value in hparams.items() if name not in ("cutoffs", "pre_lnorm", "not_tied")}
    embedding = {"emb_layers": nn.ModuleList([table]), "emb_projs": nn.ParameterList()}
    model = create(
        "MemTransformerLM",
        **{"no_pos": False, "clamp_len": -1, "mem_len": 0, "sample_softmax": -1, **options},
        word_emb=create("AdaptiveEmbedding", cutoffs=cutoffs, div_val=1, **embedding),
        crit=create("ProjectedAdaptiveLogSoftmax", out_layers=nn.ModuleList([output]), **clusters),
        layers=nn.ModuleList([block(f"layers.{i}") for i in range(hparams["n_layer"])]),
        pos_emb=create("PositionalEmbedding"),
    )
    model.pos_emb.register_buffer("inv_freq", weights["pos_emb.inv_freq"])
    return model


@pytest.mark.parametrize("attn_type", ATTENTION_TYPES)
def test_whole_model_is_read_with_its_options_and_without_its_code(
    fast_weight_weights, original_classes, monkeypatch, tmp_path, attn_type
):
    options = {"attn_type": attn_type, "n_roll": 3, "proj_dim": 5, "cutoffs": [8, 15], "tgt_len": 12}
    options |= {"pre_lnorm": True, "skip_attn_normalization": True} if attn_type > 10 else {"no_pos": True}
    hparams = HPARAMS | options
    weights = fast_weight_weights(hparams)
    torch.save(original_model(original_classes, weights, hparams), tmp_path / "best_model.pt")
    for module in ORIGINAL_MODULES:
        monkeypatch.delitem(sys.modules, module)
    tensors, read = read_checkpoint(tmp_path)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights.items())
    model = convert_state_dict("fast_weight", tensors, read)
    expected = convert_state_dict("fast_weight", weights, hparams | {"dropout": 0.1})
    assert model.config.to_dict() == expected.config.to_dict()
    assert torch.equal(logits_of(model), logits_of(expected))


def test_output_matrix_of_a_whole_model_is_tied_if_it_was(fast_weight_weights, original_classes, tmp_path):
    for not_tied in (True, False):
        hparams = HPARAMS | {"not_tied": not_tied}
        model = original_model(original_classes, fast_weight_weights(hparams), hparams)
        torch.save(model, tmp_path / "best_model.pt")
        assert convert_state_dict("fast_weight", *read_checkpoint(tmp_path)).config.tie_word_embeddings != not_tied


class Trap:
    """Unpickled in the ordinary way, it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("place", ["", "word_emb", "layers.0.dec_attn", "layers.1.dec_attn.o_net"])
def test_whole_model_that_would_run_code_is_refused(fast_weight_weights, original_classes, tmp_path, place):
    model = original_model(original_classes, fast_weight_weights(HPARAMS), HPARAMS)
    model.get_submodule(place).trap = Trap(tmp_path / "sprung")
    torch.save(model, tmp_path / "best_model.pt")
    with pytest.raises(ValueError, match=r"names _?io\.open, which could run code on loading"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_whole_models_that_are_not_read_are_told_the_way_out(
    fast_weight_weights, original_classes, monkeypatch, tmp_path
):
    path = tmp_path / "best_model.pt"
    model = original_model(original_classes, fast_weight_weights(HPARAMS), HPARAMS)
    torch.save(model, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"format of torch before 1\.6(.|\n)*torch\.save\(model, .resaved\.pt"):
        read_checkpoint(path)
    module = sys.modules["utils.cuda_fast_weight_layer"]
    module.CudaDeltaDeltaLayer = type("CudaDeltaDeltaLayer", (nn.Module,), {"__module__": module.__name__})
    model.layers[0].dec_attn = module.CudaDeltaDeltaLayer()
    torch.save(model, path)
    with pytest.raises(
        ValueError, match=r"layer\.CudaDeltaDeltaLayer, which could(.|\n)*model\.state_dict\(\), .weig"
    ):
        read_checkpoint(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"a Linear, not a whole model(.|\n)*model\.state_dict\(\)"):
        read_checkpoint(path)
    del model.layers[0]
    model.layers.add_module("0", nn.Linear(2, 2))
    torch.save(model, path)
    with pytest.raises(ValueError, match="lacks attributes that the original's have"):
        read_checkpoint(path)


WORDS = ["<eos>", "the", ",", ".", "of", "and", "<unk>", "in", "=", "memory", "key", "value", "is", "a", "to", "fast"]
VOCABULARY = [*WORDS, "weight", "write", "read", "@-@", "2", "two", "wölfe"]


@pytest.fixture
def convert(root, monkeypatch):
    """The script's `main` with the family given."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    script = import_module("convert_checkpoint")
    return lambda *options: script.main(["--family", "fast_weight", *map(str, options)])


@pytest.fixture
def source(fast_weight_weights, tmp_path):
    """A folder with a state dict, its options and its vocabulary."""
    folder = tmp_path / "original"
    folder.mkdir()
    weights = {name: tensor.clone() for name, tensor in fast_weight_weights(ADAPTIVE).items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(ADAPTIVE))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    return folder


def test_folder_with_a_vocabulary_becomes_one_for_the_hub(convert, source, tmp_path, capsys):
    output = tmp_path / "converted"
    convert("--source", source, "--output", output)
    assert "FastWeightForCausalLM" in capsys.readouterr().out
    model, tokenizers = FastWeightForCausalLM.from_pretrained(output), TranslationTokenizers.from_pretrained(output)
    expected = convert_state_dict("fast_weight", *read_checkpoint(source))
    assert torch.equal(logits_of(model), logits_of(expected))
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 0)
    inputs = tokenizers.source(["the key\nis a", "= memory ="], padding=True, padding_side="left", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 2
    report = check(output, live=False)
    assert report.ok, str(report)


@pytest.mark.slow
def test_converted_folder_is_fit_for_the_hub(source, tmp_path):
    convert_checkpoint("fast_weight", source, tmp_path / "converted")
    assert check(tmp_path / "converted").problems == []


def test_state_dict_of_torch_with_and_without_a_vocabulary(source, tmp_path):
    expected = convert_state_dict("fast_weight", *read_checkpoint(source))
    tensors, _ = read_checkpoint(source)
    torch.save(tensors, source / "weights.pt")
    (source / "weights.safetensors").unlink()
    (source / "vocab.txt").rename(tmp_path / "words.txt")
    convert_checkpoint("fast_weight", source, tmp_path / "bare")
    convert_checkpoint("fast_weight", source, tmp_path / "whole", vocabulary=tmp_path / "words.txt")
    for name in ("bare", "whole"):
        model = FastWeightForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(logits_of(model), logits_of(expected))
        assert (tmp_path / name / "tokenizer.json").exists() == (name == "whole")


def test_words_are_those_of_the_original(source):
    tokenizer = read_vocabulary(source / "vocab.txt", 23)
    text = " = two @-@ way memory = \n the wölfe read <eos> .\n"
    words = ["<eos>", "=", "two", "@-@", "<unk>", "memory", "=", "<eos>"]
    words += ["the", "wölfe", "read", "<unk>", ".", "<eos>"]
    ids = tokenizer(text).input_ids
    assert ids == [VOCABULARY.index(word) for word in words]
    assert tokenizer.decode(ids[1:7]) == "= two @-@ <unk> memory ="
    assert tokenizer("").input_ids == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<eos>\n<unk>\n", "has 2 words, but the token table has 23 rows"),
        ("<eos>\nthe\nthe\n", "line 3 of .* must be one word that no other line has, not 'the'"),
        ("<eos>\n\nthe\n", "line 2 of .* must be one word .* not ''"),
        ("<eos> 14\nthe 12\n", "line 1 of .* not '<eos> 14'"),
        ("".join(f"{word}\n" for word in VOCABULARY).replace("<eos>", "</s>"), "must have <eos>, which ends lines"),
        ("".join(f"{word}\n" for word in VOCABULARY).replace("<unk>", "unk"), "and <unk> or <UNK> for all other"),
        ("\xff", "cannot be read as UTF-8"),
    ],
)
def test_vocabulary_file_that_does_not_fit(convert, source, tmp_path, content, message):
    encoding = "latin-1" if content == "\xff" else "utf-8"
    (source / "vocab.txt").write_text(content, encoding=encoding)
    with pytest.raises(SystemExit, match=message):
        convert("--source", source, "--output", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
