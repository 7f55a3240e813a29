# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The judge of Hub folders: it passes a good folder, and each rule catches a folder broken in exactly that way."""

import json
import struct
from pathlib import Path

import pytest
from huggingface_hub import metadata_load, metadata_save
from safetensors.torch import load_file, save_file

from leanformers.evaluation.loading import load_generator
from leanformers.hub.check import check, main
from leanformers.hub.clean_process import digest, outputs_of
from leanformers.hub.safety import code_hashes
from leanformers.registry import language_model_class

MODELING, CONFIG, WEIGHTS, CARD = "modeling_anthe.py", "config.json", "model.safetensors", "README.md"


def append(name: str, text: str):
    def change(folder: Path):
        path = folder / name
        path.write_text((path.read_text() if path.exists() else "") + text)

    return change


def replace(name: str, old: str, new: str):
    def change(folder: Path):
        text = (folder / name).read_text()
        assert old in text, f"{name} no longer holds {old!r}"
        (folder / name).write_text(text.replace(old, new))

    return change


def write(name: str, content: bytes = b"x"):
    def change(folder: Path):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def delete(name: str):
    return lambda folder: (folder / name).unlink()


def edit_json(name: str, **values):
    def change(folder: Path):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return change


def edit_auto_map(**entries):
    def change(folder: Path):
        auto_map = json.loads((folder / CONFIG).read_text())["auto_map"] | entries
        edit_json(CONFIG, auto_map={key: value for key, value in auto_map.items() if value})(folder)

    return change


def resize(change_in_bytes: int):
    def change(folder: Path):
        content = (folder / WEIGHTS).read_bytes()
        content = content[:change_in_bytes] if change_in_bytes < 0 else content + bytes(change_in_bytes)
        (folder / WEIGHTS).write_bytes(content)

    return change


def shard(index_changes: dict[str, str]):
    """Two shards and an index; `index_changes` are then put in the index, None takes a key out."""

    def change(folder: Path):
        tensors = load_file(folder / WEIGHTS)
        names = sorted(tensors)
        weight_map = {}
        for number, part in enumerate((names[:5], names[5:]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        (folder / WEIGHTS).unlink()
        weight_map = {key: file for key, file in (weight_map | index_changes).items() if file}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def listing_code(change):
    """The change, and a card that lists the code as it then is: what another rule than the hashes finds."""

    def change_and_list(folder: Path):
        before = code_hashes(folder)
        change(folder)
        if code_hashes(folder) != before:
            card = folder / CARD
            metadata_save(card, metadata_load(card) | {"code_hashes": code_hashes(folder)})

    return change_and_list


def unlist_code(folder: Path):
    metadata_save(folder / CARD, metadata_load(folder / CARD) | {"code_hashes": []})


IMPORT_IN_FUNCTION = "\n\ndef late():\n    import einops\n"
IMPORT_WITHOUT_HANDLER = "\ntry:\n    import einops\nfinally:\n    pass\n"
IMPORT_AS_FALLBACK = "\ntry:\n    import torch\nexcept ImportError:\n    import einops\n"
IMPORT_FOR_TYPES = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy.typing\n"
IMPORT_UNDER_UNKNOWN = "\nif is_einops_at_hand_available():\n    import einops\n"
DOCSTRING_IMPORT = '\ndef example():\n    """\n    from .absent import thing\n    """\n'

STATIC = {
    "third-party import": (append(MODELING, "\nimport einops\n"), "needs the package 'einops'"),
    "import in a function": (append(MODELING, IMPORT_IN_FUNCTION), "needs the package 'einops'"),
    "import in try without except": (append(MODELING, IMPORT_WITHOUT_HANDLER), "needs the package 'einops'"),
    "import in except": (append(MODELING, IMPORT_AS_FALLBACK), "needs the package 'einops'"),
    "import for types": (append(MODELING, IMPORT_FOR_TYPES), "needs the package 'numpy'"),
    "import under an unknown condition": (append(MODELING, IMPORT_UNDER_UNKNOWN), "needs the package 'einops'"),
    "import of leanformers": (append(MODELING, "\nimport leanformers.kernels\n"), "needs the package 'leanformers'"),
    "absent sibling": (append(MODELING, "\nfrom .absent import thing\n"), "absent.py is not in the folder"),
    "absent sibling in a docstring": (append(MODELING, DOCSTRING_IMPORT), "imports `.absent`"),
    "sub-package": (append(MODELING, "\nfrom .ops.delta import rule\n"), "imports the sub-package `.ops.delta`"),
    "outside the folder": (append(MODELING, "\nfrom ..registry import Family\n"), "from outside the folder"),
    "from . import": (append(MODELING, "\nfrom . import tensor_chain\n"), "is not seen by the loader"),
    "import after a backslash": (append(MODELING, "\nfrom .fast \\\n    import a\n"), "not seen by the loader"),
    "code in a sub-folder": (write("ops/delta.py", b"x = 1\n"), "is in a sub-folder"),
    "invalid Python": (write("broken.py", b"def f(:\n"), "is not valid Python"),
    "no config": (delete(CONFIG), "config.json is missing"),
    "invalid config": (write(CONFIG, b"{"), "config.json is not valid JSON"),
    "no auto_map": (edit_json(CONFIG, auto_map=None), "needs an auto_map"),
    "no AutoConfig": (edit_auto_map(AutoConfig=None), "needs an auto_map"),
    "auto_map to no file": (edit_auto_map(AutoModel="modeling_x.AntheModel"), "modeling_x.py, which is not in"),
    "auto_map to no class": (edit_auto_map(AutoModel="modeling_anthe.Nothing"), "has no such class"),
    "auto_map to a sub-folder": (edit_auto_map(AutoModel="ops/delta.AntheModel"), "no class of a module beside it"),
    "auto_map above": (edit_auto_map(AutoModel="..modeling_anthe.AntheModel"), "no class of a module beside it"),
    "auto_map to a repository": (edit_auto_map(AutoModel="me/x--modeling_anthe.AntheModel"), "another repository"),
    "unknown Auto class": (edit_auto_map(AutoModelForPoems="modeling_anthe.AntheModel"), "AutoModelForPoems"),
    "architecture not mapped": (edit_auto_map(AutoModelForSeq2SeqLM=None), "no entry of auto_map loads"),
    "no weights": (delete(WEIGHTS), "There are no weights"),
    "pickled weights": (write("pytorch_model.bin"), "must be safetensors"),
    "Keras weights": (write("tf_model.h5"), "must be safetensors"),
    "training arguments": (write("training_args.bin"), "pickle of a training run"),
    "optimizer": (write("optimizer.pt"), "pickle of a training run"),
    "random state": (write("rng_state.pth"), "pickle of a training run"),
    "checkpoint": (write("checkpoint-10/state.json", b"{}"), "checkpoint of a training run"),
    "truncated weights": (resize(-1000), "is truncated: its header promises"),
    "truncated header": (write(WEIGHTS, struct.pack("<Q", 5000) + b"{"), "is truncated: it ends after 9 bytes"),
    "appended bytes": (resize(10), "has 10 bytes more than its header says"),
    "unreadable header": (write(WEIGHTS, struct.pack("<Q", 2) + b"{x"), "has an unreadable header"),
    "no format": (lambda folder: save_file(load_file(folder / WEIGHTS), folder / WEIGHTS), "no metadata"),
    "index to the wrong shard": (shard({"lm_head.gain": "model-00002-of-00002.safetensors"}), "The index says"),
    "tensor not in the index": (shard({"lm_head.bias": None}), "holds lm_head.bias, which the index does not name"),
    "shard without index": (
        lambda folder: (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors"),
        "index.json is missing",
    ),
    "no tokenizer": (delete("tokenizer.json"), "tokenizer.json is missing"),
    "no tokenizer config": (delete("tokenizer_config.json"), "tokenizer_config.json is missing"),
    "no target tokenizer": (delete("target_tokenizer/tokenizer.json"), "target_tokenizer/tokenizer.json is missing"),
    "no target config": (delete("target_tokenizer/config.json"), "target_tokenizer/config.json is missing"),
    "no generation config": (delete("generation_config.json"), "generation_config.json is missing"),
    "no card": (delete(CARD), "README.md (the model card) is missing"),
    "card without metadata": (write(CARD, b"# A model\n"), "must begin with its metadata"),
    "invalid YAML": (replace(CARD, "license: apache-2.0", "license: [apache"), "has invalid metadata"),
    "invalid results": (replace(CARD, "  results:", "  outcome:"), "has invalid metadata"),
    "other library": (replace(CARD, "library_name: transformers", "library_name: timm"), "library_name must be"),
    "no license": (replace(CARD, "license: apache-2.0\n", ""), "license is missing"),
    "no pipeline tag": (replace(CARD, "pipeline_tag: translation\n", ""), "pipeline_tag is missing"),
    "no list of code": (unlist_code, "code_hashes, the SHA-256 of each Python file, is missing"),
    "no custom_code": (replace(CARD, "- custom_code\n", ""), "must contain custom_code"),
    "language in words": (replace(CARD, "- en\n", "- English\n"), "ISO 639"),
    "result not a number": (replace(CARD, "value: 1.5", "value: .nan"), "not a finite number"),
    "absent picture": (delete("training_curves.png"), "shows training_curves.png, which is missing"),
    "token of the Hub": (append(CARD, f"\nLog in as hf_{'aB3' * 11}.\n"), "holds what looks like a token of the Hub"),
    "token of GitHub": (write(".env", b"ghp_" + b"a1B" * 12), ".env holds what looks like a token of GitHub"),
    "key of an API": (append(CARD, f"\nsk-{'x9' * 20}\n"), "holds what looks like a key of an API"),
    "private key": (write("id", b"-----BEGIN OPENSSH PRIVATE KEY-----"), "id holds a private key"),
    "path in config": (edit_json(CONFIG, _name_or_path="/home/someone/runs/best"), "/home/someone/runs/best"),
    "path in tokenizer": (edit_json("tokenizer_config.json", name_or_path="/data/run"), "/data/run"),
    "path in card": (append(CARD, "\nTrained in /scratch/someone/run1.\n"), "/scratch/someone/run1"),
    "home directory": (append(CARD, "\nCopy it to ~/models/anthe.\n"), "~/models/anthe"),
    "Windows path": (append(CARD, "\nFrom C:\\Users\\someone\\run.\n"), "C:\\Users\\someone\\run"),
}  # fmt: skip


def test_the_exported_folder_passes(exported_of_each_kind: Path):
    report = check(exported_of_each_kind, live=False)
    assert report.ok, str(report)
    assert "no problem found" in str(report)


@pytest.mark.parametrize(("change", "problem"), STATIC.values(), ids=STATIC.keys())
def test_static_rule(folder: Path, change, problem: str):
    listing_code(change)(folder)
    report = check(folder, live=False)
    assert len(report.problems) == 1, str(report)
    assert problem in report.problems[0]
    assert not report.ok
    assert problem in str(report)


HARMLESS = {
    "optional package": append(MODELING, "\ntry:\n    import triton\nexcept ImportError:\n    triton = None\n"),
    "known condition": append(MODELING, "\nif is_torch_available():\n    import einops\n"),
    "standard library": append(MODELING, "\nimport json, math\nfrom pathlib import Path\n"),
    "addresses": append(CARD, "\nSee [it](https://example.org/a/b), train/test, 1/2, </s> and docs/oom.md.\n"),
    "shards": shard({}),
    "path as a token": edit_json("tokenizer.json", model={"vocab": {"/usr/bin/env": 0}}),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_change_passes(folder: Path, change):
    listing_code(change)(folder)
    report = check(folder, live=False)
    assert report.ok, str(report)


def test_live_check_sees_the_same_model_as_the_installed_package(exported_of_each_kind: Path):
    report = check(exported_of_each_kind)
    assert report.ok, str(report)
    installed, tokenizers = load_generator(str(exported_of_each_kind))
    digests = {
        "AutoModel outputs sha256": digest(outputs_of(installed.model)),
        f"{language_model_class(installed.config)} outputs sha256": digest(outputs_of(installed)),
    }
    assert {name: report.facts[name] for name in digests} == digests
    assert type(installed).__module__.startswith("leanformers.")
    assert tokenizers.shared != installed.config.is_encoder_decoder


BROKEN_AT_RUN_TIME = """
import importlib


class NeedsAnAbsentFile(AntheModel):
    def forward(self, *args, **kwargs):
        return importlib.import_module(".absent", __package__).forward(self, *args, **kwargs)


class Noisy(AntheForSeq2SeqLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits + torch.rand_like(outputs.logits)
        return outputs
"""

FORBIDDEN_AT_RUN_TIME = """
import importlib
import socket


class NeedsLeanformers(AntheModel):
    def forward(self, *args, **kwargs):
        return importlib.import_module("leanformers.kernels").forward(self, *args, **kwargs)


class NeedsTheNetwork(AntheForSeq2SeqLM):
    def __init__(self, config):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
        super().__init__(config)
"""


def use_classes(folder: Path, code: str, base: str, head: str):
    listing_code(append(MODELING, code))(folder)
    edit_auto_map(AutoModel=f"modeling_anthe.{base}", AutoModelForSeq2SeqLM=f"modeling_anthe.{head}")(folder)
    edit_json(CONFIG, architectures=[head])(folder)


def test_live_check_catches_what_only_running_shows(folder: Path):
    use_classes(folder, BROKEN_AT_RUN_TIME, "NeedsAnAbsentFile", "Noisy")
    tensors = load_file(folder / WEIGHTS)
    del tensors["lm_head.bias"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert check(folder, live=False).ok

    report = check(folder)
    text = str(report)
    assert "AutoModel: ModuleNotFoundError" in text and "absent" in text
    assert "AutoModelForSeq2SeqLM: missing keys: lm_head.bias" in text
    assert "AutoModelForSeq2SeqLM: two forwards of one input differ in eval mode" in text


def test_live_check_hides_leanformers_and_the_network(folder: Path):
    use_classes(folder, FORBIDDEN_AT_RUN_TIME, "NeedsLeanformers", "NeedsTheNetwork")
    assert check(folder, live=False).ok

    problems = check(folder).problems
    assert any(line.startswith("AutoModel: ModuleNotFoundError: No module named 'leanformers") for line in problems)
    assert any(line.startswith("AutoModelForSeq2SeqLM: OSError: the network was used") for line in problems)


@pytest.mark.slow
def test_live_check_catches_a_tokenizer_too_large_for_the_model(folder: Path, tmp_path: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = tokenizer["added_tokens"][0] | {"id": 5000, "content": "<extra>"}
    edit_json("tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])(folder)
    assert any("the tokenizer has token ids up to" in problem for problem in check(folder).problems)


def test_command_line(folder: Path, capsys: pytest.CaptureFixture):
    assert main([str(folder), "--static"]) == 0
    (folder / CARD).unlink()
    assert main([str(folder), "--static"]) == 1
    assert "1 problem" in capsys.readouterr().out
    assert main([str(folder / "absent")]) == 1
    assert "is not a folder" in capsys.readouterr().out
