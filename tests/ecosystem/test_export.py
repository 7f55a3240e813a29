# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""torch.export and ONNX through transformers' exporters: programs for any length, with a cache and without."""

import copy

import pytest
import torch
from ecosystem.texts import inputs
from models.suite import empty_cache
from torch.export import Dim

from numerics import assert_close

pytestmark = pytest.mark.slow
dynamo = pytest.importorskip("transformers.exporters.exporter_dynamo", reason="transformers has no exporters yet")
onnx = pytest.importorskip("transformers.exporters.exporter_onnx")
ExportedModel = getattr(pytest.importorskip("transformers.exporters.base"), "ExportedModel", None)
if ExportedModel is None:
    pytest.skip("this transformers gives the bare program", allow_module_level=True)

BACKENDS = {
    "torch.export": (dynamo.DynamoExporter, dynamo.DynamoConfig),
    "ONNX": (onnx.OnnxExporter, onnx.OnnxConfig),
}
TOLERANCE = {"relative": 1e-4, "absolute": 1e-4}


def exporter(kind: str):
    if kind == "ONNX":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    exporter_class, config_class = BACKENDS[kind]
    return exporter_class(), config_class


STARTS = (
    "steps want two tokens in the cache, as torch fixes a length of one: export with decoder_input_ids of two or more"
)


def padded(subject, length: int) -> dict[str, torch.Tensor]:
    batch = inputs(subject, length=length, seed=length)
    batch["attention_mask"][0, :2] = 0
    return batch


@torch.no_grad()
def check_forward(kind: str, subject, folder) -> None:
    """A program traced at one length gives the model's logits at others, and after it was saved and loaded."""
    model, (export, config) = subject.build(), exporter(kind)
    batch = padded(subject, 9)
    shapes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in batch}
    exported = export.export(model, {**batch, "use_cache": False}, config(dynamic=True, dynamic_shapes=shapes))
    exported.save_pretrained(folder)
    exported = ExportedModel.from_pretrained(folder, trust_remote_code=True)
    for length in (5, 40):
        batch = padded(subject, length)
        real = batch["attention_mask"].bool() if subject.is_decoder else slice(None)
        logits = exported(**batch).logits[real]
        assert_close(f"length {length}", logits, model(**batch).logits[real], **TOLERANCE)


def prompt(subject, length: int) -> dict[str, torch.Tensor]:
    """What `generate` takes; a translator's target begins with the start token and two words."""
    batch = padded(subject, length)
    if not subject.is_decoder:
        batch["decoder_input_ids"] = batch["decoder_input_ids"][:, :3]
        batch["decoder_input_ids"][:, 0] = subject.config().decoder_start_token_id
    return batch


@torch.no_grad()
def check_generation(kind: str, subject, verdict) -> None:
    """Prompt and steps as two programs, the second fed with its own cache, write what `generate` writes."""
    model, (export, config) = subject.build(), exporter(kind)
    exported = export.export_for_generation(model, prompt(subject, 9), config(dynamic=True))
    batch, number = prompt(subject, 7), 5
    expected = model.generate(**batch, max_new_tokens=number, min_new_tokens=number, do_sample=False)
    assert torch.equal(written(exported.runners, model, batch, number), expected[:, -number:])
    if not subject.is_decoder:
        verdict.limits(STARTS)


def written(runners, model, batch, number: int) -> torch.LongTensor:
    """New tokens of greedy search with the programs alone, but for the encoder of a translator."""
    mask, name, state = batch["attention_mask"], "input_ids", {}
    if model.config.is_encoder_decoder:
        name = "decoder_input_ids"
        state["encoder_outputs"] = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    else:
        state["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    state |= {name: batch[name], "attention_mask": mask, "cache": empty_cache(model.config)}
    program, tokens = runners["prefill"], []
    for _ in range(number):
        known = {key: value for key, value in state.items() if key in program.metadata.kwargs}
        output = program(**copy.deepcopy(known))
        logits = output.logits[:, -1].clone()
        logits[:, model.config.eos_token_id] = -float("inf")  # generate is told to write that many tokens
        tokens.append(logits.argmax(-1, keepdim=True))
        program = runners["decode"]
        state |= {name: tokens[-1], "cache": output.cache}
        if not model.config.is_encoder_decoder:
            state["attention_mask"] = torch.nn.functional.pad(state["attention_mask"], (0, 1), value=1)
            state["position_ids"] = state["position_ids"][:, -1:] + 1
    return torch.cat(tokens, dim=1)


@pytest.mark.tool("torch", "torch.export, any length")
def test_exported_forward(subject, tmp_path):
    check_forward("torch.export", subject, tmp_path)


@pytest.mark.tool("torch", "torch.export, steps with a cache")
def test_exported_steps(subject, verdict):
    check_generation("torch.export", subject, verdict)


@pytest.mark.tool("torch", "ONNX, any length")
def test_onnx_forward(subject, tmp_path):
    check_forward("ONNX", subject, tmp_path)


@pytest.mark.tool("torch", "ONNX, steps with a cache")
def test_onnx_steps(subject, verdict):
    check_generation("ONNX", subject, verdict)
