# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Every golden tensor of the original DeLighT, reproduced by the real modules."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from leanformers.accounting import count_parameters
from leanformers.conversion import convert_state_dict
from leanformers.conversion.delight import ACTIVATIONS, oriented, reference_name
from leanformers.conversion.weights import load_weights
from leanformers.modeling.delight.dextra import DExTra, group_linear, naive_dextra

MODELS = ["v1_encdec_block_shuffle", "v2_encdec_uniform_prenorm"]
UNITS = "v3_dextra_units"
# Where each recorded activation is found: a module, and whether its input or its output was recorded.
PLACES = (
    (r"^(en|de)coder\.map$", r"model.\1coder.embeddings.embed_tokens", "output"),
    (r"^(en|de)coder\.token_embedding$", r"model.\1coder.embeddings.dextra", "output"),
    (r"^(en|de)coder\.embedding_output$", r"model.\1coder.embeddings", "output"),
    (r"^(en|de)coder\.block\.(\d+)$", r"model.\1coder.layers.\2", "output"),
    (r"^(en|de)coder\.block\.(\d+)\.(dextra|self_attn|cross_attn)$", r"model.\1coder.layers.\2.\3", "output"),
    (r"^(en|de)coder\.block\.(\d+)\.dextra\.input_layer$", r"model.\1coder.layers.\2.dextra.layers.0", "input"),
    (r"^(en|de)coder\.block\.(\d+)\.dextra\.glt\.(\d+)$", r"model.\1coder.layers.\2.dextra.layers.\3", "output"),
    (r"^(en|de)coder\.final_norm$", r"model.\1coder.layer_norm", "output"),
    (r"^encoder\.output$", "model.encoder", "output"),
    (r"^decoder\.features$", "output_proj", "output"),
    (r"^logits$", "lm_head", "output"),
)


@pytest.fixture
def golden(request, shared):
    """Weights, recorded tensors and hyper-parameters of the golden case that a test is parametrised with."""
    folder = shared / "reference" / "delight" / request.param
    tensors = [load_file(folder / f"{name}.safetensors") for name in ("weights", "io")]
    return *tensors, json.loads((folder / "config.json").read_text())


def assert_near(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    actual = actual.reshape(expected.shape)  # features may be in groups, on an axis of their own
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0, msg=lambda text: f"{name}: {text}")


def recorded(module: torch.nn.Module, call) -> dict[tuple[str, str], torch.Tensor]:
    """The first tensor that went into each submodule during `call()`, and the first that came out."""
    found, hooks = {}, []

    def first(value):
        return value if isinstance(value, torch.Tensor) else value[0]

    def hook_for(name):
        def hook(_, inputs, output):
            found[name, "output"] = first(output)
            if inputs:
                found[name, "input"] = inputs[0]

        return hook

    for name, submodule in module.named_modules():
        hooks.append(submodule.register_forward_hook(hook_for(name)))
    call()
    for hook in hooks:
        hook.remove()
    return found


def place_of(key: str) -> tuple[str, str]:
    for pattern, name, end in PLACES:
        if re.match(pattern, key):
            return re.sub(pattern, name, key), end
    raise AssertionError(f"{key} is compared with nothing")


def translate(model, tensors):
    source, target = tensors["input.src_tokens"], tensors["input.prev_output_tokens"]
    return model(
        input_ids=source,
        attention_mask=(source != 1).long(),
        decoder_input_ids=target,
        decoder_attention_mask=(target != 1).long(),
    ).logits


@pytest.mark.parametrize("golden", MODELS, indirect=True)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_recorded_activation(golden, attention):
    weights, tensors, hparams = golden
    model = convert_state_dict("delight", weights, hparams)
    model.set_attn_implementation(attention)
    found = recorded(model, lambda: translate(model, tensors))
    expected = {key: tensor for key, tensor in tensors.items() if not key.startswith("input.")}
    assert len(expected) >= 30
    for key, tensor in expected.items():
        assert_near(found[place_of(key)], tensor, key)


@pytest.mark.parametrize("golden", MODELS, indirect=True)
def test_model_that_was_used_often_gives_the_same(golden):
    """By then it looks up what its embeddings' DExTra unit makes of each token."""
    weights, tensors, hparams = golden
    model = convert_state_dict("delight", weights, hparams)
    with torch.no_grad():
        for _ in range(6):
            logits = translate(model, tensors)
    assert_near(logits, tensors["logits"], "logits")


@pytest.mark.parametrize("golden", MODELS, indirect=True)
def test_layouts_and_parameters(golden):
    weights, _, hparams = golden
    model = convert_state_dict("delight", weights, hparams)
    assert count_parameters(model) == hparams["num_parameters"]
    for stack in ("encoder", "decoder"):
        ours = getattr(model.model, stack)
        units = [ours.embeddings.dextra, *(layer.dextra for layer in ours.layers)]
        for unit, expected in zip(units, [hparams[f"{stack}_embedding"], *hparams[f"{stack}_blocks"]], strict=True):
            assert_layout(unit, expected)


def assert_layout(unit: DExTra, expected: dict) -> None:
    layers = [
        {"n_in": layer.in_features, "n_out": layer.out_features, "groups": layer.num_groups} for layer in unit.layers
    ]
    assert layers == expected["glt_layers"]
    assert unit.in_proj.weight.shape == (expected["in_proj_features"], expected["in_features"])
    assert unit.out_proj.out_features == expected["out_features"]


@pytest.mark.parametrize("golden", MODELS, indirect=True)
def test_every_parameter_gets_a_gradient(golden):
    weights, tensors, hparams = golden
    model = convert_state_dict("delight", weights, hparams)
    logits = translate(model, tensors)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def unit_names(name: str, prefix: str) -> str:
    return f"{prefix}.{reference_name(name)}"


@pytest.mark.parametrize("golden", [UNITS], indirect=True)
@pytest.mark.parametrize(
    "name",
    [
        "a_depth5_shuffle",
        "b_depth7_noshuffle",
        "c_depth2_shuffle",
        "d_depth3_gelu_embedding_like",
        "e_define_iclr_depth5",
    ],
)
def test_unit(golden, name):
    weights, tensors, hparams = golden
    settings = hparams["units"][name]["kwargs"]
    unit = DExTra(
        settings["in_features"],
        settings["in_proj_features"],
        settings["out_features"],
        settings["width_multiplier"],
        settings["dextra_depth"],
        settings["max_glt_groups"],
        layout="define" if settings.get("is_iclr_version") else "dextra",
        shuffle=settings["glt_shuffle"],
        activation=ACTIVATIONS[settings["act_type"]],
    ).eval()
    own = {key: tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}
    load_weights(unit, own, lambda ours: unit_names(ours, name), oriented)
    assert_layout(unit, hparams["units"][name]["resolved"])
    assert count_parameters(unit) == hparams["units"][name]["num_parameters"]

    found = recorded(unit, lambda: unit(tensors[f"{name}.x"]))
    for layer in range(len(unit.layers)):
        assert_near(found[f"layers.{layer}", "input"], tensors[f"{name}.glt.{layer}.input"], f"input {layer}")
        assert_near(found[f"layers.{layer}", "output"], tensors[f"{name}.glt.{layer}.output"], f"output {layer}")
    assert_near(found["layers.0", "input"], tensors[f"{name}.input_layer"], "input_layer")
    assert_near(found["out_proj", "input"], tensors[f"{name}.output_layer.input"], "output_layer.input")
    assert_near(found["", "output"], tensors[f"{name}.y"], "y")
    assert_near(naive_dextra(tensors[f"{name}.x"], unit), tensors[f"{name}.y"], "naive y")


@pytest.mark.parametrize("golden", [UNITS], indirect=True)
def test_shuffle(golden):
    _, tensors, _ = golden
    output = group_linear(tensors["shuffle_demo.x"], torch.eye(6).expand(4, 6, 6), torch.zeros(4, 6))
    assert torch.equal(output.flatten(-2), tensors["shuffle_demo.y"])


@pytest.mark.parametrize("golden", MODELS, indirect=True)
def test_converted_model_generates_the_same_with_and_without_cache(golden):
    weights, tensors, hparams = golden
    model = convert_state_dict("delight", weights, hparams)
    source = tensors["input.src_tokens"]
    options = {"attention_mask": (source != 1).long(), "do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    cached = model.generate(source, use_cache=True, **options)
    assert torch.equal(cached, model.generate(source, use_cache=False, **options))
    with torch.no_grad():
        logits = model(source, attention_mask=options["attention_mask"], decoder_input_ids=cached[:, :-1]).logits
    logits[..., model.config.eos_token_id] = -torch.inf
    assert torch.equal(logits.argmax(-1), cached[:, 1:])


def test_every_published_golden_case_is_used(shared):
    folders = {path.name for path in (shared / "reference" / "delight").glob("v*")}
    assert folders == {*MODELS, UNITS}
