# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Every golden file of the original implementation, reproduced by the real modules."""

import pytest
import torch
from safetensors import safe_open

from leanformers.accounting import count_parameters
from leanformers.conversion import convert_state_dict
from leanformers.conversion.anthe import config_from_hparams, load_reference, reference_name
from leanformers.modeling.anthe.configuration_anthe import AntheConfig
from leanformers.modeling.anthe.modeling_anthe import (
    AntheAttention,
    AntheDecoderLayer,
    AntheEmbeddings,
    AntheEncoderLayer,
)
from leanformers.modeling.anthe.soft_positions import SoftPositions
from leanformers.modeling.anthe.tensor_chain import TensorChainConv1d, TensorChainEmbedding, TensorChainLinear

OPERATOR, MODEL = 1e-5, 1e-4


@pytest.fixture
def golden(request, shared):
    """Tensors and metadata of the golden file that a test is parametrised with."""
    folder = shared / "reference" / "anthe"
    with safe_open(folder / f"{request.param}.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def weights(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def chain_name(prefix: str):
    """Our `core_1` and `bias` under the reference's names."""
    return lambda name: f"{prefix}.{name.replace('core_', 'core')}"


@pytest.mark.parametrize(
    "golden",
    ["tc_dense_len2_small", "tc_dense_len2_512x1365_r005", "tc_dense_len3_small", "tc_dense_len4_small"],
    indirect=True,
)
@pytest.mark.parametrize("mode", ["materialize", "chain", "auto"])
def test_tensor_chain_linear(golden, mode):
    tensors, hparams = golden
    sizes = int(hparams["in_features"]), int(hparams["out_features"])
    layer = TensorChainLinear(
        *sizes, float(hparams["ratio"]), int(hparams["length"]), mode=mode, reference_bond=hparams["length"] == "4"
    )
    assert layer.bond_dim == int(hparams["bond"])
    load_reference(layer, tensors, chain_name("tc"))
    assert_near(layer(tensors["in.x"]), tensors["out.y"], OPERATOR)
    if "out.kernel" in tensors:
        assert_near(layer.materialize(), tensors["out.kernel"], OPERATOR)


@pytest.mark.parametrize("golden", ["tc_conv1d_len3_k3_d2"], indirect=True)
def test_tensor_chain_conv1d(golden):
    tensors, hparams = golden
    taps, dilation = int(hparams["kernel_size"]), int(hparams["dilation"])
    layer = TensorChainConv1d(
        int(hparams["in_channels"]),
        int(hparams["filters"]),
        taps,
        dilation,
        float(hparams["ratio"]),
        int(hparams["length"]),
    )
    reference = {name.replace("tc.", "tc.conv."): tensor for name, tensor in weights(tensors, "tc").items()}
    load_reference(layer, reference, chain_name("tc.conv"))
    assert_near(layer.materialize().permute(2, 1, 0), tensors["out.kernel"], OPERATOR)
    padded = torch.nn.functional.pad(tensors["in.x"], (0, 0, dilation * (taps - 1), 0))
    assert_near(layer(padded.transpose(1, 2)).transpose(1, 2), tensors["out.y"], OPERATOR)


@pytest.mark.parametrize("golden", ["tc_embedding_len2"], indirect=True)
def test_tensor_chain_embedding(golden):
    tensors, hparams = golden
    table = TensorChainEmbedding(
        int(hparams["vocab"]), int(hparams["dim"]), float(hparams["ratio"]), int(hparams["length"])
    )
    load_reference(table, tensors, chain_name("tc"))
    assert_near(table.materialize(), tensors["out.table"], OPERATOR)
    assert_near(table(tensors["in.ids"]), tensors["out.y"], OPERATOR)


@pytest.mark.parametrize("golden", ["softpos_n4_a6_r2", "softpos_n8_a8_r1"], indirect=True)
def test_soft_positions(golden):
    tensors, hparams = golden
    layer = SoftPositions(int(hparams["n_subpos"]), int(hparams["add_units"]), int(hparams["repeat"]))
    choices = [tensors[f"spos{repeat}"] for repeat in range(int(hparams["repeat"]))]
    load_reference(layer, {"subpositions": torch.stack(choices)}, lambda name: name)
    assert_near(layer(tensors["in.x"]), tensors["out.y"], OPERATOR)


def config_of(hparams: dict[str, str], attention: str = "eager") -> AntheConfig:
    """The configuration of one block: the metadata of a block lack what only a whole model has."""
    whole = {"d_ff": "64", "layers": "1+1", "src_vocab": "40", "tgt_vocab": "40", **hparams, "kind": "model"}
    config = config_from_hparams(whole, allow_noncausal_gate=True)
    config._attn_implementation = attention
    return config


def additive(blocked: torch.Tensor) -> torch.Tensor:
    """The original's mask (1 = blocked) as the attention functions want it."""
    return blocked * -1e9


ATTENTIONS = [
    "attn_kgv_causal_pad_dense",
    "attn_kgv_cross_dense",
    "attn_kgv_cross_tc2",
    "attn_kgv_self_dense",
    "attn_plain_cross",
    "attn_qgv_self_unsafe_cross",
    "attn_vgk_cross",
]


@pytest.mark.parametrize("golden", ATTENTIONS, indirect=True)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention(golden, attention):
    tensors, hparams = golden
    config = config_of(hparams, attention)
    layer = AntheAttention(config, config.attention_gate).eval()
    lone = "model.encoder.layers.0.self_attn."
    load_reference(layer, tensors, lambda name: reference_name(lone + name, config).removeprefix("enc0."))
    query, source = tensors["in.query"], tensors["in.keyvalue"]
    mask = additive(tensors["in.mask"]).expand(-1, -1, query.shape[1], -1)
    output, attention_weights = layer(query, mask, None if torch.equal(query, source) else source)
    assert_near(output, tensors["out.y"], MODEL)
    if attention == "eager":
        assert_near(attention_weights, tensors["out.weights"], MODEL)


@pytest.mark.parametrize("golden", ["encoder_block_anthe_d32", "encoder_block_baseline_d32"], indirect=True)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_encoder_layer(golden, attention):
    tensors, hparams = golden
    config = config_of(hparams, attention)
    layer = AntheEncoderLayer(config).eval()
    load_reference(
        layer, tensors, lambda name: reference_name(f"model.encoder.layers.0.{name}", config).replace("enc0", "enc")
    )
    mask = additive(tensors["in.mask"]).expand(-1, -1, tensors["in.x"].shape[1], -1)
    assert_near(layer(tensors["in.x"], mask), tensors["out.y"], MODEL)


@pytest.mark.parametrize("golden", ["decoder_block_anthe_d32", "decoder_block_baseline_d32"], indirect=True)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoder_layer(golden, attention):
    tensors, hparams = golden
    config = config_of(hparams, attention)
    layer = AntheDecoderLayer(config, layer_idx=0).eval()
    load_reference(
        layer, tensors, lambda name: reference_name(f"model.decoder.layers.0.{name}", config).replace("dec0", "dec")
    )
    source_mask = additive(tensors["in.padding_mask"]).expand(-1, -1, tensors["in.x"].shape[1], -1)
    output = layer(tensors["in.x"], additive(tensors["in.look_ahead_mask"]), tensors["in.encoder_output"], source_mask)
    assert_near(output, tensors["out.y"], MODEL)


def embed(embeddings: AntheEmbeddings, ids: torch.Tensor) -> torch.Tensor:
    return embeddings(embeddings.embed_tokens(ids), torch.arange(ids.shape[1])[None])


@pytest.mark.parametrize("golden", ["embedding_plain_sincos"], indirect=True)
def test_plain_embedding(golden):
    tensors, hparams = golden
    config = AntheConfig(hidden_size=int(hparams["dim"]), position_embedding_type="sinusoidal")
    embeddings = AntheEmbeddings(config, int(hparams["vocab"])).eval()
    load_reference(embeddings, tensors, lambda name: name.replace("embed_tokens", "embed"))
    assert_near(embed(embeddings, tensors["in.ids"]), tensors["out.y"], OPERATOR)


@pytest.mark.parametrize(
    "golden", ["hsoftpos_n2_d32", "hsoftpos_n3_d48", "hsoftpos_n2_d32_tcemb_tcconv_len3"], indirect=True
)
def test_hierarchical_soft_positions(golden):
    tensors, hparams = golden
    flags = f"hsoftpos:{hparams['n_layers']}"
    if "ratio" in hparams:
        flags += "_tcemb:{ratio}_tcconv:{ratio}_tclength:{length}".format(**hparams)
    config = config_of({"ref_string": flags, "d_model": hparams["d_model"], "heads": "4"})
    assert config.soft_position_width == int(hparams["local_d"])
    embeddings = AntheEmbeddings(config, int(hparams["vocab"])).eval()
    load_reference(
        embeddings,
        tensors,
        lambda name: reference_name(f"model.encoder.embeddings.{name}", config).replace("enc_embed", "hs"),
    )
    assert_near(embed(embeddings, tensors["in.ids"]), tensors["out.y"], OPERATOR)


@pytest.mark.parametrize("golden", ["model_anthe_tc2_d32", "model_baseline_d32"], indirect=True)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_model_logits(golden, attention):
    tensors, hparams = golden
    model = convert_state_dict("anthe", tensors, hparams)
    model.set_attn_implementation(attention)
    assert count_parameters(model) == int(hparams["n_params"])
    source, target = tensors["in.src"], tensors["in.tgt"]
    with torch.no_grad():
        logits = model(
            input_ids=source,
            attention_mask=(source != 0).long(),
            decoder_input_ids=target,
            decoder_attention_mask=(target != 0).long(),
        ).logits
    assert_near(logits, tensors["out.logits"], MODEL)


@pytest.mark.parametrize("golden", ["model_anthe_tc2_d32", "model_baseline_d32"], indirect=True)
def test_converted_model_generates_the_same_with_and_without_cache(golden):
    tensors, hparams = golden
    model = convert_state_dict("anthe", tensors, hparams)
    source = tensors["in.src"]
    options = {"attention_mask": (source != 0).long(), "do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    cached = model.generate(source, use_cache=True, **options)
    assert torch.equal(cached, model.generate(source, use_cache=False, **options))
    with torch.no_grad():
        logits = model(source, attention_mask=options["attention_mask"], decoder_input_ids=cached[:, :-1]).logits
    logits[..., model.config.eos_token_id] = -torch.inf
    assert torch.equal(logits.argmax(-1), cached[:, 1:])


def test_every_golden_file_is_used(shared):
    used = set()
    for test in [value for name, value in globals().items() if name.startswith("test_")]:
        for mark in getattr(test, "pytestmark", []):
            if mark.args[0] == "golden":
                used.update(mark.args[1])
    files = {path.stem for path in (shared / "reference" / "anthe").glob("*.safetensors")}
    assert used == files and len(files) == 25
