# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Llama, Mistral, Qwen2 and Qwen3 of transformers, as they save themselves, become SelectiveAttn."""

import copy
import json
from importlib import import_module

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from leanformers.conversion import convert_checkpoint, convert_state_dict, read_checkpoint
from leanformers.conversion.selective_attn import OPTIONS, ORIGINALS, config_from_hparams
from leanformers.data.tokenizers import train_language_tokenizer
from leanformers.hub.check import check
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM

SIZES = {
    "vocab_size": 277,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ALL_WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True, pad_token_id=0),
    "llama_with_biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=10, hidden_act="gelu"),
    "llama_3": LlamaConfig(**SIZES, rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}),
    "llama_yarn": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "llama_linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3}),
    "llama_dynamic": LlamaConfig(
        **SIZES | {"max_position_embeddings": 8}, rope_parameters={"rope_type": "dynamic", "factor": 4.0}
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=5, rms_norm_eps=1e-3),
    "mistral_without_window": MistralConfig(**SIZES, sliding_window=None, head_dim=8),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2_with_windows": Qwen2Config(**SIZES, **ALL_WINDOWS),
    "qwen2_with_windows_later": Qwen2Config(**SIZES, **ALL_WINDOWS | {"max_window_layers": 3}),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "qwen3_with_biases": Qwen3Config(**SIZES, head_dim=10, attention_bias=True, **ALL_WINDOWS),
}
OFF = [{"use_selective_attention": False}, {"selection_strength": 0.0}, {"selection_strength": 0}]


def original(config, dtype=torch.float32):
    """A model of transformers with nothing at its initial value."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1))
    return model


def logits_of(model, length=22):
    with torch.no_grad():
        return model(torch.arange(4, 4 + 2 * length).view(2, length)).logits


def precise_logits_of(model):
    """In float64, as in float32 PyTorch's kernels with a bias and without differ by more than is allowed here."""
    return logits_of(copy.deepcopy(model).double())


def written(model, **options):
    inputs = torch.tensor([[0, 0, 7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25, 26, 27]])
    mask = (inputs != 0).long()
    settings = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    outputs = model.generate(inputs, attention_mask=mask, pad_token_id=0, **{"do_sample": False} | settings | options)
    return outputs.sequences, torch.stack(outputs.logits)


@pytest.mark.parametrize("options", OFF, ids=["off", "strength 0.0", "strength 0"])
@pytest.mark.parametrize("name", CONFIGS)
def test_without_selection_the_original_is_computed(name, options):
    model = original(CONFIGS[name])
    converted = convert_state_dict("selective_attn", model.state_dict(), CONFIGS[name], **options)
    assert isinstance(converted, SelectiveAttnForCausalLM) and not converted.training
    torch.testing.assert_close(precise_logits_of(converted), precise_logits_of(model), atol=1e-6, rtol=1e-6)
    if "use_selective_attention" in options:
        assert torch.equal(logits_of(converted), logits_of(model))
    for beams in (1, 3):
        (text, logits), (expected_text, expected) = (
            written(converted, num_beams=beams),
            written(model, num_beams=beams),
        )
        assert torch.equal(text, expected_text)
        # Positions of padded rows are counted from their first token here, and from the padding there.
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_selection_is_on_unless_it_is_switched_off(name):
    model = original(CONFIGS[name])
    converted = convert_state_dict("selective_attn", model.state_dict(), CONFIGS[name])
    config = converted.config
    assert (config.use_selective_attention, config.selection_strength) == (True, 1.0)
    assert not torch.allclose(logits_of(converted), logits_of(model), atol=1e-2)
    config.selection_strength = 0.0  # as training that anneals selection in begins
    torch.testing.assert_close(precise_logits_of(converted), precise_logits_of(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_gradients_are_those_of_the_original(name):
    model = original(CONFIGS[name])
    converted = convert_state_dict("selective_attn", model.state_dict(), CONFIGS[name], selection_strength=0.0)
    ids = torch.arange(4, 44).view(2, 20)
    for one in (model, converted):
        one.train()(ids, labels=ids).loss.backward()
    gradients = dict(converted.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[parameter_name].grad, parameter.grad, atol=1e-6, rtol=1e-5)


def test_every_field_is_carried_over():
    fields = {
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-4,
        "initializer_range": 0.03,
        "attention_dropout": 0.125,
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
        "pad_token_id": 8,
        **SIZES,
    }
    for model_type, original_config in ORIGINALS.items():
        config = config_from_hparams(original_config(**fields))
        assert {name: getattr(config, name) for name in fields} == fields
        assert config.qk_norm == (model_type == "qwen3")
        assert config.head_dim == (128 if model_type == "qwen3" else 6)
        assert config.sliding_window == (4096 if model_type == "mistral" else None)
        assert config.attention_bias == (model_type == "qwen2")
        assert not config.attention_output_bias and not config.mlp_bias
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}
        assert config.position_embedding_type == "rotary"
        assert config_from_hparams(original_config(**SIZES)).pad_token_id is None
    assert config_from_hparams(LlamaConfig(**SIZES, attention_dropout=None)).attention_dropout == 0.0
    assert config_from_hparams(Qwen2Config(**SIZES, head_dim=10)).head_dim == 10


def test_options_of_selection_are_fields_of_the_configuration():
    options = {
        "use_selective_attention": True,
        "selection_head": 2,
        "protect_start": False,
        "protect_self": False,
        "selection_strength": 0.25,
        "memory_budgets": [8, 9, 10],
        "prune_prompt": "lazy",
        "memory_loss_coef": 0.1,
        "memory_loss_tau": 2.0,
    }
    assert options.keys() == set(OPTIONS)
    model = original(CONFIGS["llama"])
    config = convert_state_dict("selective_attn", model.state_dict(), CONFIGS["llama"], **options).config
    assert {name: getattr(config, name) for name in options} == options
    some = config_from_hparams(CONFIGS["llama"], use_selective_attention=[True, False, True])
    assert some.selective_layers == [True, False, True]


# As transformers 4 wrote it, generation settings included.
OLD = {
    **SIZES,
    "_name_or_path": "/home/me/llama",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": -1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_length": 20,
    "model_type": "llama",
    "pretraining_tp": 1,
    "pruned_heads": {},
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
    "temperature": 0.6,
    "tie_word_embeddings": False,
    "tokenizer_class": "LlamaTokenizer",
    "torch_dtype": "float16",
    "torchscript": False,
    "transformers_version": "4.31.0.dev0",
    "unsloth_fixed": True,
    "use_cache": True,
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
            {**LLAMA3, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_hyper_parameters_of_transformers_4(old, new):
    hparams = OLD | old
    before = json.dumps(hparams)
    config = config_from_hparams(hparams)
    assert json.dumps(hparams) == before, "the caller's hyper-parameters were changed"
    assert config.rope_parameters == new
    assert (config.pad_token_id, config.bos_token_id, config.rms_norm_eps) == (None, 1, 1e-5)
    model = original(LlamaConfig(**hparams))
    weights = model.state_dict()
    # Frequencies, which files of its time held.
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    converted = convert_state_dict("selective_attn", weights, hparams, use_selective_attention=False)
    assert torch.equal(logits_of(converted), logits_of(model))


def qwen2(**changes):
    return {"model_type": "qwen2", **SIZES, **changes}


MIX = "layers of different kinds cannot be converted, as sliding_window .6. is that of all layers or none"


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (
            {"model_type": "gemma", **SIZES},
            "model_type 'gemma'; what can be converted is llama, mistral, qwen2, qwen3",
        ),
        (SIZES, "model_type None; what can be"),
        ({"model_type": "llama", "hidden_size": 8}, "lack vocab_size, intermediate_size, num_hidden_layers, num_att"),
        (qwen2(hidden_size="24"), "no possible qwen2: (.|\n)*hidden_size"),
        (qwen2(hidden_act="square"), "`hidden_act` must be one of .* got 'square'"),
        (qwen2(num_key_value_heads=3), r"`num_key_value_heads` \(3\) must divide"),
        (qwen2(pad_token_id=277), "pad_token_id 277 is not in the vocabulary of 277 tokens"),
        (
            qwen2(use_mrope=True, logit_scale=0.5),
            "qwen2 of transformers does not read: use_mrope=True, logit_scale=0.5",
        ),
        (qwen2(attention_bias=True), "does not read: attention_bias=True"),
        (qwen2(rope_tetha=1e6), "does not read: rope_tetha=1000000.0"),
        ({"model_type": "mistral", **SIZES, "mlp_bias": True}, "mistral of transformers does not read: mlp_bias=True"),
        ({"model_type": "llama", **SIZES, "sliding_window": 8}, "llama of transformers does not read: sliding_win"),
        ({"model_type": "llama", **SIZES, "layer_types": ["full_attention"] * 3}, "does not read: layer_types"),
        (qwen2(quantization_config={"quant_method": "gptq"}), r"quantized .*dequantize\(\)"),
        (qwen2(rope_scaling={"type": "su", "factor": 2.0}), "rope_type must be one of default, .*, not 'su'"),
        (qwen2(rope_scaling={"type": "linear"}), "no possible qwen2: .*factor"),
        (qwen2(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), "factor 0.5 is not supported"),
        (qwen2(rope_parameters={"full_attention": {"rope_type": "default"}}), "differ by type of layer"),
        (qwen2(rope_scaling={"full_attention": {"type": "linear"}}), "rope_scaling .* differ by type of layer"),
        (qwen2(rope_scaling=[2.0]), "no possible qwen2"),
        (qwen2(**ALL_WINDOWS | {"max_window_layers": 2}), MIX),
        (qwen2(**ALL_WINDOWS, layer_types=["full_attention", *["sliding_attention"] * 2]), MIX),
        (qwen2(sliding_window=6, layer_types=["sliding_attention"] * 3), "as sliding_window .None. is"),
        (qwen2(layer_types=["chunked_attention"] * 3), "layer_types are .'chunked_attention"),
        (qwen2(layer_types=["full_attention"]), "no possible qwen2: (.|\n)*layer_types"),
        (qwen2(**ALL_WINDOWS | {"sliding_window": 1}), "`sliding_window` must be at least 2"),
    ],
)
def test_hyper_parameters_that_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict("selective_attn", {}, hparams)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 8, "strength": 1}, "hidden_size, strength: conversion has no such option; there are use_sel"),
        ({"selection_head": 4}, "`selection_head` must be one of the 4 heads"),
        ({"selection_strength": -1.0}, "`selection_strength` must not be negative"),
        ({"selection_strength": "all"}, "selection_strength"),
        ({"memory_budgets": [4, 4]}, "`memory_budgets` must be one number, or 3"),
        ({"memory_budgets": 8, "use_selective_attention": False}, "`memory_budgets` prunes by the votes"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict("selective_attn", {}, CONFIGS["llama"], **options)


def test_all_tensors_that_do_not_fit_are_listed_at_once():
    weights = original(CONFIGS["llama"]).state_dict()
    del weights["model.norm.weight"], weights["lm_head.weight"]
    weights["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(24, 24)
    weights["model.layers.2.self_attn.q_norm.weight"] = torch.ones(6)
    with pytest.raises(ValueError) as error:
        convert_state_dict("selective_attn", weights, CONFIGS["llama"])
    message = str(error.value)
    assert "model.norm.weight is missing" in message and "lm_head.weight is missing" in message
    assert "model.layers.1.self_attn.k_proj.weight is [24, 24], which gives [24, 24] instead of [12, 24]" in message
    assert "model.layers.2.self_attn.q_norm.weight has no place" in message
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is missing"):
        convert_state_dict("selective_attn", {}, CONFIGS["llama"])


def test_weights_of_one_original_with_the_hyper_parameters_of_another():
    weights = original(CONFIGS["qwen2"]).state_dict()
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.bias has no place"):
        convert_state_dict("selective_attn", weights, CONFIGS["llama"])
    with pytest.raises(ValueError, match=r"layers\.2\.self_attn\.k_norm\.weight is missing"):
        convert_state_dict("selective_attn", weights, CONFIGS["qwen3"])


def test_output_matrix_that_is_tied_may_be_left_out_and_must_not_differ():
    config = CONFIGS["qwen2"]
    weights = {name: tensor.clone() for name, tensor in original(config).state_dict().items()}
    whole = convert_state_dict("selective_attn", weights, config)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    output = weights.pop("lm_head.weight")
    assert torch.equal(logits_of(whole), logits_of(convert_state_dict("selective_attn", weights, config)))
    with pytest.raises(ValueError, match=r"lm_head\.weight and model\.embed_tokens\.weight are tied .* but differ"):
        convert_state_dict("selective_attn", weights | {"lm_head.weight": output + 1}, config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_kept(dtype):
    model = original(CONFIGS["llama_3"], dtype)
    converted = convert_state_dict("selective_attn", model.state_dict(), CONFIGS["llama_3"])
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    assert converted.config.dtype == dtype and torch.get_default_dtype() == torch.float32
    assert torch.equal(converted.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in converted.state_dict().items())


def test_mixed_precision_becomes_one_that_holds_all_and_integers_are_refused():
    weights = original(CONFIGS["llama"], torch.bfloat16).state_dict()
    weights["model.norm.weight"] = weights["model.norm.weight"].half()
    converted = convert_state_dict("selective_attn", weights, CONFIGS["llama"])
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float32}
    weights["model.norm.weight"] = torch.ones(24, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"floating point numbers .* model\.norm\.weight is torch\.int8"):
        convert_state_dict("selective_attn", weights, CONFIGS["llama"])


def test_arrays_are_taken_and_the_original_stays_as_it_is():
    model = original(CONFIGS["llama"])
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    converted = convert_state_dict("selective_attn", arrays, CONFIGS["llama"].to_dict(), use_selective_attention=False)
    expected = logits_of(model)
    assert torch.equal(logits_of(converted), expected)
    with torch.no_grad():
        converted.model.norm.weight.zero_()
    assert torch.equal(logits_of(model), expected) and np.all(arrays["model.norm.weight"] != 0)


@pytest.fixture
def convert(root, monkeypatch):
    """The script's `main` with the family given."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    script = import_module("convert_checkpoint")
    return lambda *options: script.main(["--family", "selective_attn", *map(str, options)])


@pytest.fixture(scope="module")
def tokenizer():
    return train_language_tokenizer(["a man rides a bicycle", "two dogs run"], "bpe", SIZES["vocab_size"])


@pytest.fixture
def save(tokenizer, tmp_path):
    """A function that saves a model and its tokenizer as transformers does."""

    def save(name, dtype=torch.float32, max_shard_size="1GB"):
        folder, model = tmp_path / name, original(CONFIGS[name], dtype)
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.5, top_p=0.75, bos_token_id=2, eos_token_id=[2, 3], pad_token_id=0
        )
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
        return folder, model

    return save


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen2", "qwen3"])
def test_folder_becomes_one_for_the_hub(convert, save, tokenizer, tmp_path, capsys, name, shard_size):
    folder, model = save(name, max_shard_size=shard_size)
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (shard_size == "20KB")
    output = tmp_path / "converted"
    convert("--source", folder, "--output", output, "--selection-strength", "0.0")
    assert "SelectiveAttnForCausalLM" in capsys.readouterr().out
    converted = AutoModelForCausalLM.from_pretrained(output)
    assert isinstance(converted, SelectiveAttnForCausalLM) and converted.config.selection_strength == 0
    torch.testing.assert_close(precise_logits_of(converted), precise_logits_of(model), atol=1e-6, rtol=1e-6)
    assert torch.equal(written(converted)[0], written(model)[0])
    for setting in ("do_sample", "temperature", "top_p", "bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(converted.generation_config, setting) == getattr(model.generation_config, setting)
    text = "two men ride 21 bicycles"
    assert AutoTokenizer.from_pretrained(output)(text).input_ids == tokenizer(text).input_ids
    report = check(output, live=False)
    assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_converted_folder_is_fit_for_the_hub(save, tmp_path, name):
    folder, _ = save(name, torch.bfloat16)
    convert_checkpoint("selective_attn", folder, tmp_path / "converted")
    assert check(tmp_path / "converted").problems == []


def test_files_keep_their_precision_and_shards_are_read_one_by_one(save, tmp_path):
    folder, model = save("qwen3", torch.bfloat16, "20KB")
    expected, _ = read_checkpoint(folder)
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    by_index = convert_checkpoint("selective_attn", folder / "model.safetensors.index.json", tmp_path / "by_index")
    convert_checkpoint("selective_attn", folder, tmp_path / "converted")
    with safe_open(tmp_path / "converted" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    reloaded = SelectiveAttnForCausalLM.from_pretrained(tmp_path / "converted")
    assert reloaded.dtype == torch.bfloat16 and reloaded.config.selection_strength == 1.0
    assert torch.equal(logits_of(reloaded), logits_of(by_index))


def test_tokenizer_of_an_original_keeps_its_class_and_its_template(save, tmp_path):
    folder, _ = save("qwen2")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in vocabulary["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary["vocab"], merges=merges, unk_token="<unk>", pad_token="<pad>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    convert_checkpoint("selective_attn", folder, tmp_path / "converted")
    carried = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert type(carried) is type(AutoTokenizer.from_pretrained(folder))
    text = "Two dogs run\n\n  1234 wölfe"
    assert carried(text).input_ids == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert carried.apply_chat_template([{"role": "user", "content": "run"}], tokenize=False) == "run"


def test_folder_without_a_tokenizer_and_settings(convert, tmp_path, capsys):
    folder = tmp_path / "bare"
    original(CONFIGS["llama"]).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    convert("--source", folder, "--output", tmp_path / "converted")
    assert "without a tokenizer" in capsys.readouterr().out
    loaded = SelectiveAttnForCausalLM.from_pretrained(tmp_path / "converted")
    assert loaded.generation_config.eos_token_id == 2
    assert not (tmp_path / "converted" / "tokenizer.json").exists()


def test_settings_without_effect_are_left_out_as_transformers_would_not_save_them(save, tmp_path, caplog):
    """Llama 2 came with a temperature and without sampling."""
    folder, _ = save("llama")
    settings = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = convert_checkpoint("selective_attn", folder, tmp_path / "converted")
    assert "temperature, top_p had no effect" in caplog.text
    carried = json.loads((tmp_path / "converted" / "generation_config.json").read_text())
    assert (carried["max_new_tokens"], carried["eos_token_id"]) == (7, 2)
    assert not {"temperature", "top_p"} & {name for name, value in carried.items() if value is not None}
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "again")
    assert model.generate(torch.tensor([[5, 6]]), eos_token_id=None).shape == (1, 10)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: llama3.2\nlanguage: [en]\n---\n# A Llama\n", "llama3.2"),
        ("---\nlanguage: [en]\n---\n", "unknown"),
        ("---\nlicense: [apache-2.0\n---\n", "unknown"),
        ("---\nlicense: [mit, gpl]\n---\n", "unknown"),
        ("A card without metadata", "unknown"),
        (None, "unknown"),
    ],
)
def test_licence_is_that_of_the_weights(save, tmp_path, card, expected):
    folder, _ = save("llama")
    if card is not None:
        (folder / "README.md").write_text(card)
    convert_checkpoint("selective_attn", folder, tmp_path / "converted")
    assert ModelCard.load(tmp_path / "converted" / "README.md").data.license == expected
    assert check(tmp_path / "converted", live=False).ok


def names_of(path):
    return json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]


def remove_shards(folder):
    for name in sorted(set(names_of(folder).values()))[1:3]:
        (folder / name).unlink()


def cut_shard(folder):
    shard = folder / sorted(set(names_of(folder).values()))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def take_tensor_out(folder):
    shard = folder / names_of(folder)["model.norm.weight"]
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors | {"other": torch.ones(1)}, shard)


def pickle_weights(folder, name="pytorch_model.bin"):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / name).write_bytes(b"cos\nsystem\n")


def remove_weights(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            remove_shards,
            r"names model-00002-of-\d+\.safetensors, model-00003-of-\d+\.safetensors, which are not beside",
        ),
        (cut_shard, r"model-00002-of-\d+\.safetensors is damaged or cut short"),
        (take_tensor_out, r"index\.json says that model-.* holds model\.norm\.weight, which it does not"),
        (pickle_weights, r"model\.bin is a pickle, which may hold code(.|\n)*save_pretrained\(.resaved"),
        (lambda folder: pickle_weights(folder, "pytorch_model.bin.index.json"), "index.json is a pickle"),
        (remove_weights, "holds no checkpoint: none of weights.safetensors, .*model.safetensors.index.json"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "no index of safetensors files"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "no index of safetensors files"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'), "of a file"),
        (lambda folder: (folder / "config.json").unlink(), "holds no hyper-parameters"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer in .* cannot be loaded"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json cannot be used"),
        (lambda folder: (folder / "generation_config.json").write_text("[]"), "generation_config.json cannot be used"),
        (
            lambda folder: (folder / "generation_config.json").write_text('{"num_return_sequences": 2}'),
            "generation_config.json cannot be used .*num_return_sequences",
        ),
    ],
)
def test_damaged_folders(convert, save, tmp_path, harm, message):
    folder, _ = save("llama", max_shard_size="20KB")
    harm(folder)
    with pytest.raises(SystemExit, match=message):
        convert("--source", folder, "--output", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_options_of_the_script_are_those_of_the_family(root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(root / "scripts"))
    main = import_module("convert_checkpoint").main
    for family, option in (("anthe", ["--selection-strength", "0"]), ("selective_attn", ["--allow-noncausal-gate"])):
        with pytest.raises(SystemExit):
            main(["--family", family, "--source", "x", "--output", "y", *option])
        assert f"not for {family}" in capsys.readouterr().err


def test_configurations_differ_only_in_what_is_selected():
    """Nothing but the fields that are said to be carried over departs from the defaults."""
    config = config_from_hparams(CONFIGS["llama"]).to_dict()
    expected = SelectiveAttnConfig(
        **SIZES, tie_word_embeddings=False, pad_token_id=None, bos_token_id=1, eos_token_id=2
    ).to_dict()
    assert config == expected
