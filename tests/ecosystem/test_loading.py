# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Where weights go when a model is built and loaded: nowhere yet, a device, a disk, several files."""

import copy
import json

import pytest
import torch
import transformers
from ecosystem.texts import inputs
from models.suite import tensors_of
from transformers import set_seed


def auto_class(subject):
    return getattr(transformers, subject.auto_class)


@torch.no_grad()
def check_same(loaded, model, subject) -> None:
    """All weights and logits, and what is generated."""
    batch = inputs(subject)
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**prompt, **options), model.generate(**prompt, **options))


@pytest.mark.tool("loading", "same seed, same weights")
def test_initialization_follows_the_seed(subject):
    first, again = (tensors_of(subject.build(perturbed=False)) for _ in range(2))
    set_seed(1)
    other = tensors_of(auto_class(subject).from_config(subject.config()))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.tool("loading", "built on the meta device")
def test_meta_device(subject, tmp_path):
    """It holds no memory, and takes its weights and buffers from a file."""
    model = subject.build()
    with torch.device("meta"):
        empty = auto_class(subject).from_config(subject.config())
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert sum(parameter.numel() for parameter in empty.parameters()) == model.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = auto_class(subject).from_pretrained(tmp_path)
    assert not any(tensor.is_meta for tensor in tensors_of(loaded).values())
    check_same(loaded, model, subject)


@pytest.mark.tool("loading", "device_map")
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(subject, tmp_path, device_map):
    pytest.importorskip("accelerate")
    model = subject.build()
    model.save_pretrained(tmp_path)
    check_same(auto_class(subject).from_pretrained(tmp_path, device_map=device_map), model, subject)


@pytest.mark.tool("loading", "layers kept on a disk")
def test_disk_offload(subject, tmp_path):
    """accelerate reads each module's weights when its forward begins."""
    accelerate = pytest.importorskip("accelerate")
    model = subject.build()
    loaded = copy.deepcopy(model)
    accelerate.disk_offload(loaded, tmp_path / "offload", execution_device="cpu", offload_buffers=True)
    assert all(parameter.is_meta for parameter in loaded.parameters())
    check_same(loaded, model, subject)


@pytest.mark.tool("loading", "layers kept in the processor's memory")
def test_cpu_offload(subject):
    accelerate = pytest.importorskip("accelerate")
    model = subject.build()
    loaded = copy.deepcopy(model)
    accelerate.cpu_offload(loaded, execution_device="cpu", offload_buffers=True)
    assert all(parameter.is_meta for parameter in loaded.parameters())
    check_same(loaded, model, subject)


@pytest.mark.tool("loading", 'dtype="auto" and by name')
def test_dtype(subject, tmp_path):
    model = subject.build().bfloat16()
    model.save_pretrained(tmp_path)
    for dtype, expected in (("auto", torch.bfloat16), (None, torch.bfloat16), (torch.float32, torch.float32)):
        options = {} if dtype is None else {"dtype": dtype}
        loaded = auto_class(subject).from_pretrained(tmp_path, **options)
        assert loaded.dtype == expected
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.tool("loading", "in shards and as a variant")
@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "v2"}], ids=["shards", "variant"])
def test_shards_and_variants(subject, tmp_path, options):
    model = subject.build()
    model.save_pretrained(tmp_path, **options)
    files = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(files) > 1 if "max_shard_size" in options else files == ["model.v2.safetensors"]
    variant = {"variant": options["variant"]} if "variant" in options else {}
    check_same(auto_class(subject).from_pretrained(tmp_path, **variant), model, subject)
