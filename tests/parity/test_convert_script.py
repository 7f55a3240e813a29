# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""`scripts/convert_checkpoint.py`: the original's file becomes a folder that loads, a bad one a clear sentence."""

import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leanformers.conversion import convert_checkpoint, convert_state_dict, read_checkpoint
from leanformers.modeling.anthe import AntheForSeq2SeqLM

SIZES = {"d_model": "32", "heads": "4", "d_ff": "64", "layers": "1+2", "src_vocab": "40", "tgt_vocab": "42"}
HPARAMS = {**SIZES, "ref_string": "geglu_gateattention:kqv_hsoftpos:2_tcffn:.05_tcpreatt:.3_tclength:2"}


@pytest.fixture
def source(reference_weights, tmp_path):
    weights = {name: torch.from_numpy(weight) for name, weight in reference_weights(HPARAMS).items()}
    path = tmp_path / "original.safetensors"
    save_file(weights, path, metadata=HPARAMS)
    return path


@pytest.fixture
def convert(root, monkeypatch):
    """The script's `main` with the family given."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    script = import_module("convert_checkpoint")
    return lambda *options: script.main(["--family", "anthe", *map(str, options)])


def test_folder_loads_and_computes_what_was_converted(root, shared, tmp_path):
    golden = shared / "reference" / "anthe" / "model_anthe_tc2_d32.safetensors"
    script = root / "scripts" / "convert_checkpoint.py"
    options = ["--family", "anthe", "--source", golden, "--output", tmp_path / "converted"]
    result = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "17,676 parameters" in result.stdout
    with safe_open(golden, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("in.src", "in.tgt", "out.logits")}
    model = AntheForSeq2SeqLM.from_pretrained(tmp_path / "converted")
    ids = {"input_ids": tensors["in.src"], "decoder_input_ids": tensors["in.tgt"]}
    masks = {"attention_mask": ids["input_ids"] != 0, "decoder_attention_mask": ids["decoder_input_ids"] != 0}
    with torch.no_grad():
        logits = model(**ids, **masks).logits
    torch.testing.assert_close(logits, tensors["out.logits"], atol=1e-4, rtol=0)


def test_npz_with_hparams_in_json_gives_the_same_model(reference_weights, tmp_path):
    weights = reference_weights(HPARAMS)
    np.savez(tmp_path / "original.npz", **weights)
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    convert_checkpoint("anthe", tmp_path / "original.npz", tmp_path / "converted", tmp_path / "hparams.json")
    expected = convert_state_dict("anthe", weights, HPARAMS).state_dict()
    loaded = AntheForSeq2SeqLM.from_pretrained(tmp_path / "converted").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_output_that_is_not_empty_is_left_alone(convert, source, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="error: the output .* is not an empty folder"):
        convert("--source", source, "--output", output)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_truncated_file_is_told_in_one_sentence(convert, source, tmp_path):
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="error: .* is damaged or cut short"):
        convert("--source", source, "--output", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_bad_sources(tmp_path, source):
    with pytest.raises(ValueError, match="no file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    pickled = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1)}, pickled)
    with pytest.raises(ValueError, match=r"neither .safetensors nor .npz nor .pt"):
        read_checkpoint(pickled)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="plain arrays"):
        read_checkpoint(tmp_path / "objects.npz")
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a complete .npz"):
        read_checkpoint(tmp_path / "short.npz")
    np.savez(tmp_path / "bare.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="--hparams"):
        read_checkpoint(tmp_path / "bare.npz")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="one JSON object, not a list"):
        read_checkpoint(source, tmp_path / "list.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_checkpoint(source, tmp_path / "broken.json")


def test_leaking_gate_needs_the_flag(convert, reference_weights, tmp_path):
    hparams = {**SIZES, "ref_string": "gateattention"}
    weights = {name: torch.from_numpy(weight) for name, weight in reference_weights(hparams).items()}
    save_file(weights, tmp_path / "leaking.safetensors", metadata=hparams)
    options = ["--source", tmp_path / "leaking.safetensors", "--output", tmp_path / "converted"]
    with pytest.raises(SystemExit, match="--allow-noncausal-gate"):
        convert(*options)
    convert(*options, "--allow-noncausal-gate")
    assert AntheForSeq2SeqLM.from_pretrained(tmp_path / "converted").config.attention_gate == "QgV"
