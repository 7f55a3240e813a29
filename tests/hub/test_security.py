# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Of a folder nothing is run but what its card lists, nothing is read from elsewhere, and no secret gets out."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import metadata_load
from safetensors.torch import load_file
from transformers import BartConfig, BartForConditionalGeneration

from leanformers.arguments import RunTrainingArguments
from leanformers.conversion import read_checkpoint
from leanformers.evaluation.loading import load_generator
from leanformers.hub.card import public_results, render_card
from leanformers.hub.check import _clean_environment, check
from leanformers.hub.export import export
from leanformers.hub.safety import leads_out
from leanformers.modeling.anthe import AntheForSeq2SeqLM
from leanformers.registry import get_family
from leanformers.training.runs import write_arguments

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src", "modeling", "scripts") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))]
INDEX = "model.safetensors.index.json"


# The code is what was reviewed.


def test_exported_code_is_that_of_the_repository(exported_of_each_kind: Path):
    config = json.loads((exported_of_each_kind / "config.json").read_text())
    listed = metadata_load(exported_of_each_kind / "README.md")["code_hashes"]
    files = {path.name: path.read_bytes() for path in exported_of_each_kind.glob("*.py")}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        assert content == (ROOT / "modeling" / config["model_type"] / name).read_bytes()
    assert "Its code is the same as that of the installed leanformers" in str(check(exported_of_each_kind, live=False))


def test_changed_byte_is_named_and_not_run(folder: Path, tmp_path: Path):
    file = folder / "tensor_chain.py"
    file.write_text(file.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    report = check(folder)
    [problem] = report.problems
    assert problem.startswith("tensor_chain.py is not the file that README.md lists")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in problem
    assert "differs from that of the installed leanformers" in report.code and "in tensor_chain.py" in report.code
    assert not report.live and not (tmp_path / "ran").exists()


def test_file_that_is_not_listed_or_not_there_is_named(folder: Path):
    (folder / "more.py").write_text("pass\n")
    (folder / "ops").mkdir()
    (folder / "ops" / "delta.py").write_text("pass\n")
    (folder / "soft_positions.py").unlink()
    problems = check(folder).problems
    assert [problem.split(" is ")[0] for problem in problems] == ["soft_positions.py", "more.py", "ops/delta.py"]


# Nothing leads out of the folder.


def edit(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("file", "values", "name"),
    [
        ("config.json", {"_name_or_path": "../../etc/passwd"}, "../../etc/passwd"),
        ("config.json", {"auto_map": {"AutoModel": "/etc/evil.Model"}}, "/etc/evil.Model"),
        ("config.json", {"auto_map": {"AutoTokenizer": [None, "../evil.Tokenizer"]}}, "../evil.Tokenizer"),
        ("generation_config.json", {"nested": {"file": "C:\\evil.json"}}, "C:\\evil.json"),
        ("tokenizer_config.json", {"tokenizer_file": "../tokenizer.json"}, "../tokenizer.json"),
        ("target_tokenizer/tokenizer_config.json", {"vocab_file": "a/../../vocab.json"}, "a/../../vocab.json"),
        (INDEX, {"weight_map": {"lm_head.gain": "../../etc/passwd"}}, "../../etc/passwd"),
        (INDEX, {"weight_map": {"lm_head.gain": "/etc/x.safetensors"}}, "/etc/x.safetensors"),
    ],
)
def test_name_of_a_file_elsewhere_is_refused(folder: Path, file: str, values: dict, name: str):
    edit(folder, file, **values)
    report = check(folder)
    assert report.problems == [f"{file} names {name}, which is outside the folder."] and not report.live


def test_names_and_text_that_lead_nowhere_else_pass():
    for name in ("model-00001-of-00002.safetensors", "sub/x.json", "...", "a..b", "</s>", "1/2", "/", "~", "en", ""):
        assert not leads_out(name), name
    for name in ("..", "../x", "x/../../y", "..\\x", "/x", "~/x", "//server/x", "C:/x", "\\\\server\\x"):
        assert leads_out(name), name


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "target_tokenizer"])
def test_link_is_refused(folder: Path, tmp_path: Path, name: str):
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    report = check(folder)
    [problem] = report.problems
    assert problem.startswith(f"{name} is a link, to {elsewhere}") and not report.live


def test_loaders_refuse_weights_from_elsewhere(folder: Path, tokenizers, tmp_path: Path):
    """What is there would fit: it is the name that is refused."""
    shard = tmp_path / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    for name in (f"../{shard.name}", str(shard)):
        edit(folder, INDEX, metadata={}, weight_map=dict.fromkeys(load_file(shard), name))
        for load in (
            lambda: load_generator(str(folder)),
            lambda: read_checkpoint(folder / INDEX),
            lambda: export(folder, tokenizers.source, tmp_path / "out", check=False),
        ):
            with pytest.raises(ValueError, match=r"takes weights from outside (its|the) folder.*model-00001"):
                load()
    assert not (tmp_path / "out").exists()


def test_code_from_elsewhere_is_not_exported(tokenizers, tmp_path: Path):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    stranger = BartForConditionalGeneration(BartConfig(**sizes, encoder_attention_heads=1, decoder_attention_heads=1))
    stranger.config.auto_map = {"AutoModelForSeq2SeqLM": "../evil.BartForConditionalGeneration"}
    with pytest.raises(ValueError, match=r"from \.\./evil\.BartFor.*no class of a module beside it"):
        export(stranger, tokenizers.source, tmp_path / "out", check=False)


def test_archive_is_read_in_memory(tmp_path: Path):
    """A member's name is only the name of a tensor."""
    inside = tmp_path / "inside"
    inside.mkdir()
    np.savez(inside / "weights.npz", **{"../evil": np.zeros(3)})
    (inside / "config.json").write_text('{"n_layer": 1}')
    tensors, _ = read_checkpoint(inside / "weights.npz")
    assert list(tensors) == ["../evil"]
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", "weights.npz", "config.json"}


# No pickle, and nothing else that runs what it reads.


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def calls(path: Path) -> list[tuple[int, str, dict[str, str]]]:
    """Line, function and named arguments of each call."""
    return [
        (node.lineno, ast.unparse(node.func), {str(one.arg): ast.unparse(one.value) for one in node.keywords})
        for node in nodes(path)
        if isinstance(node, ast.Call)
    ]


def imports(path: Path) -> set[str]:
    names = {alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes(path) if isinstance(node, ast.ImportFrom)}


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_source_unpickles_nothing():
    pickling = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in SOURCES:
        if {name.partition(".")[0] for name in imports(path)} & pickling:
            # Of pickle, the name of the error that torch raises.
            used = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)}
            assert {name for name in used if name.startswith("pickle.")} == {"pickle.UnpicklingError"}, ids(path)
            assert imports(path) & pickling == {"pickle"}, ids(path)
        for line, function, given in calls(path):
            where = f"{ids(path)}:{line}"
            if function == "torch.load":
                assert given.get("weights_only") == "True", where
            if function == "np.load":
                assert given.get("allow_pickle") == "False", where
            assert function not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"), where


def test_source_unpacks_no_archive_and_asks_no_shell():
    for path in SOURCES:
        for line, function, given in calls(path):
            where = f"{ids(path)}:{line}"
            assert function.rpartition(".")[2] not in ("extract", "extractall", "unpack_archive"), where
            assert function != "os.system" and given.get("shell", "False") == "False", where


def test_shipped_code_reaches_for_nothing():
    """No file, process, connection or module by its name."""
    reaching = {"os", "io", "sys", "pathlib", "shutil", "tempfile", "subprocess", "socket", "urllib", "http", "ctypes"}
    for path in (path for path in SOURCES if path.is_relative_to(ROOT / "modeling")):
        imported = {name.partition(".")[0] for name in imports(path)}
        assert not imported & (reaching | {"importlib", "requests"}), ids(path)
        assert not {function for _, function, _ in calls(path)} & {"open", "__import__", "compile"}, ids(path)


def test_source_trusts_code_where_the_user_said_so():
    """In a clean process, and nowhere else, without being asked."""
    for path in SOURCES:
        trusting = [line for line, _, given in calls(path) if given.get("trust_remote_code") == "True"]
        assert not trusting or path.name == "clean_process.py", f"{ids(path)}: lines {trusting}"


def test_exported_folder_holds_no_pickle(exported_of_each_kind: Path):
    files = [path for path in exported_of_each_kind.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".md", ".png", ".py", ".safetensors"}
    for path in files:
        start = path.read_bytes()[:2]
        assert start[:1] != b"\x80" and start != b"PK", path.name


# No secret gets out.

TOKEN = "hf_" + "ThisTokenMustNeverBeSeenAnywhereAB"


def test_run_and_card_leave_the_token_out(model: AntheForSeq2SeqLM, tmp_path: Path):
    arguments = RunTrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, use_cpu=True, report_to="none")
    write_arguments(tmp_path / "arguments.yaml", arguments)
    assert "learning_rate" in (tmp_path / "arguments.yaml").read_text()
    assert TOKEN not in (tmp_path / "arguments.yaml").read_text()
    card = render_card(
        get_family("anthe"),
        model,
        "AutoModelForSeq2SeqLM",
        arguments={"hub_token": TOKEN, "learning_rate": 0.1},
        metrics={"test_bleu": 1.0, "hub_token": TOKEN},
    )
    assert "learning_rate" in card and TOKEN not in card
    kept = {"test_bleu": 1.0, "bleu_signature": "nrefs:1", "hardware": "2-core CPU", "versions": {"torch": "2.13"}}
    assert public_results(kept | {"hub_token": TOKEN, "resumed_from": str(tmp_path)}) == kept


def test_token_in_a_folder_is_found_and_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    (folder / "config.json").write_text(
        (folder / "config.json").read_text()[:-2] + ', "by": "a-token-of-another-form"}'
    )
    report = check(folder, live=False)
    assert report.problems == ["config.json holds this machine's token of the Hub: take it out, and revoke it."]
    edit(folder, "config.json", by=TOKEN)
    report = check(folder, live=False)
    assert len(report.problems) == 1 and TOKEN not in str(report)


def test_folder_is_run_without_the_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, TOKEN)
    assert TOKEN not in _clean_environment(str(tmp_path)).values()
