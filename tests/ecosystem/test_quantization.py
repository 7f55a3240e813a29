# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Weights in 8 and 4 bits; scripts/benchmarks/quantization.py measures what they cost trained models in perplexity."""

import importlib

import pytest
import torch
import transformers
from ecosystem.texts import inputs
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

pytestmark = pytest.mark.slow
# What bitsandbytes takes in 4 bits on a CPU: inputs in multiples of 64, outputs in multiples of 32.
WIDE = {"hidden_size": 128, "intermediate_size": 128}
WIDE_FIELDS = {
    **dict.fromkeys(("DeLighT", "DeLighT LM"), {"hidden_size": 256, "embedding_size": 128}),
    "T5": {"d_model": 128, "d_kv": 32, "d_ff": 128},
}
UNTOUCHED = {
    "Anthe": "tensor chains and embeddings stay as they are, as they hold few numbers already",
    "DeLighT": "group linear layers and embeddings stay as they are",
    "DeLighT LM": "group linear layers and embeddings stay as they are",
}


def wide(subject) -> dict[str, int]:
    return WIDE_FIELDS.get(subject.name, WIDE)


def is_small(layer: nn.Module) -> bool:
    """Whether what was an `nn.Linear` is another module now, or holds another kind of tensor."""
    return type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter


@torch.no_grad()
def check(subject, folder, verdict, config, error: float) -> None:
    """Logits are near those of float32, the model generates, and loaded again is the same."""
    dense, batch = subject.build(**wide(subject)), inputs(subject)
    auto_class = getattr(transformers, subject.auto_class)
    dense.save_pretrained(folder / "dense")
    model = auto_class.from_pretrained(folder / "dense", quantization_config=config, dtype=torch.float32).eval()
    # Before the first forward, with which bitsandbytes packs weights of 4 bits for the processor.
    model.save_pretrained(folder / "small")
    linear = [name for name, module in dense.named_modules() if type(module) is nn.Linear]
    assert sum(is_small(model.get_submodule(name)) for name in linear) > len(linear) / 2
    expected, logits = dense(**batch).logits, model(**batch).logits
    assert 0 < (logits - expected).norm() / expected.norm() < error
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model.generate(**prompt, max_new_tokens=3).shape[0] == 2
    again = auto_class.from_pretrained(folder / "small", dtype=torch.float32).eval()
    assert torch.equal(again(**batch).logits, logits)
    if subject.name in UNTOUCHED:
        verdict.limits(UNTOUCHED[subject.name])


@pytest.mark.tool("quantization", "torchao, int8 weights")
def test_torchao_int8(subject, tmp_path, verdict):
    quantization = pytest.importorskip("torchao.quantization")
    check(subject, tmp_path, verdict, TorchAoConfig(quantization.Int8WeightOnlyConfig()), 0.05)


@pytest.mark.tool("quantization", "torchao, int4 weights")
def test_torchao_int4(subject, tmp_path, verdict):
    quantization = pytest.importorskip("torchao.quantization")
    config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32))
    check(subject, tmp_path, verdict, TorchAoConfig(config), 0.5)


@pytest.mark.tool("quantization", "bitsandbytes, int8")
def test_bitsandbytes_int8(subject, tmp_path, verdict):
    pytest.importorskip("bitsandbytes")
    check(subject, tmp_path, verdict, BitsAndBytesConfig(load_in_8bit=True), 0.05)


@pytest.mark.tool("quantization", "bitsandbytes, nf4")
def test_bitsandbytes_nf4(subject, tmp_path, verdict):
    pytest.importorskip("bitsandbytes")
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    if subject.name == "FastWeight":  # as many outputs as heads, which its kernels for processors do not take
        options["llm_int8_skip_modules"] = ["beta_proj", "lm_head"]
    check(subject, tmp_path, verdict, BitsAndBytesConfig(**options), 0.5)
    if subject.name == "FastWeight":
        verdict.limits('on a CPU llm_int8_skip_modules=["beta_proj", "lm_head"], as it takes multiples of 32 alone')


@pytest.mark.tool("quantization", "quanto, int8")
def test_quanto_int8(subject, tmp_path, verdict):
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    auto_class, batch = getattr(transformers, subject.auto_class), inputs(subject)
    dense = subject.build(**wide(subject))
    dense.save_pretrained(tmp_path)
    config = transformers.QuantoConfig(weights="int8")
    model = auto_class.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = dense(**batch).logits
        assert 0 < (model(**batch).logits - expected).norm() / expected.norm() < 0.05
    verdict.limits("transformers does not save models that quanto made small")


@pytest.mark.tool("quantization", "torch, dynamic int8")
@torch.no_grad()
def test_dynamic_int8(subject, verdict):
    """Linear layers alone, of a model in memory."""
    quantize = importlib.import_module("torch.ao.quantization").quantize_dynamic
    dense, batch = subject.build(), inputs(subject)
    model, expected = quantize(dense, {nn.Linear}, dtype=torch.qint8), dense(**batch).logits
    assert any("quantized" in type(module).__module__ for module in model.modules())
    assert 0 < (model(**batch).logits - expected).norm() / expected.norm() < 0.1
    assert model.generate(batch["input_ids"], max_new_tokens=3).shape[0] == 2
    verdict.limits("it has no format to save, and leaves float32 where a layer is no nn.Linear")
