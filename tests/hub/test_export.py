# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Export writes a folder whole or not at all, from whatever model it is given."""

import errno
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import leanformers.hub.check as check_module
import leanformers.hub.export as export_module
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.evaluation.loading import load_generator
from leanformers.hub.check import check
from leanformers.hub.clean_process import outputs_of
from leanformers.hub.export import export, export_run
from leanformers.modeling.anthe import AntheForSeq2SeqLM
from leanformers.modeling.delight import DeLighTForCausalLM
from leanformers.registry import family_of, language_model_class

CODE = {"configuration_anthe.py", "modeling_anthe.py", "soft_positions.py", "tensor_chain.py"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_is_complete(exported: Path):
    assert set(contents(exported)) > CODE
    auto_map = json.loads((exported / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_anthe.AntheConfig",
        "AutoModel": "modeling_anthe.AntheModel",
        "AutoModelForSeq2SeqLM": "modeling_anthe.AntheForSeq2SeqLM",
    }
    loaded = TranslationTokenizers.from_pretrained(exported)
    assert not loaded.shared
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_only_what_loads_from_the_folder_is_offered(exported_of_each_kind: Path, root: Path):
    config = AutoConfig.from_pretrained(exported_of_each_kind)
    code = {path.name for path in (root / "modeling" / family_of(config).name).glob("*.py")} - {"__init__.py"}
    assert {path.name for path in exported_of_each_kind.glob("*.py")} == code
    classifier = {"AutoModelForSequenceClassification"} & family_of(config).models.keys()
    assert config.auto_map.keys() == {"AutoConfig", "AutoModel", language_model_class(config)} | classifier
    assert config.auto_map[language_model_class(config)].endswith(config.architectures[0])
    assert (exported_of_each_kind / "target_tokenizer").is_dir() == config.is_encoder_decoder


def test_example_of_the_card_runs(exported_of_each_kind: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(exported_of_each_kind)
    printed = []
    example = Path("README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(example, {"print": printed.append})
    [text] = printed
    assert isinstance(text, str)
    # A language model's text begins with the prompt; a translation is another text.
    is_language_model = "AutoModelForCausalLM" in example
    assert text.startswith("def main(") == is_language_model


def test_export_leaves_the_model_as_it_was(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tokenizers.source, tmp_path / "out", target_tokenizer=tokenizers.target, check=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_tokenizer_is_written_once(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    folder = export(model, tokenizers.source, tmp_path / "out", check=False)
    assert not (folder / "target_tokenizer").exists()
    assert TranslationTokenizers.from_pretrained(folder).shared


def test_low_precision_stays(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    folder = export(model.bfloat16(), tokenizers.source, tmp_path / "out", check=False)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_traces_of_loading_are_not_shipped(exported: Path, model: AntheForSeq2SeqLM, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    folder = export(model, tokenizer, tmp_path / "out", check=False)
    assert (
        not {"is_local", "local_files_only", "name_or_path"}
        & json.loads((folder / "tokenizer_config.json").read_text()).keys()
    )
    assert str(exported) not in (folder / "tokenizer_config.json").read_text()


def test_refuses_a_folder_that_is_not_empty(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"notes\.txt"):
            export(model, tokenizers.source, tmp_path, overwrite=overwrite, check=False)
    with pytest.raises(FileExistsError, match="is a file"):
        export(model, tokenizers.source, tmp_path / "notes.txt", check=False)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_overwrites_an_earlier_export_only_if_told(folder: Path, model: AntheForSeq2SeqLM, tokenizers):
    before = contents(folder)
    with pytest.raises(FileExistsError, match="is not empty"):
        export(model, tokenizers.source, folder, check=False)
    assert contents(folder) == before
    export(model, tokenizers.source, folder, overwrite=True, check=False)
    assert not (folder / "target_tokenizer").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_uses_an_empty_folder(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    assert set(contents(export(model, tokenizers.source, tmp_path, check=False))) > CODE


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("step", ["render_card", "_put_in_place"])
def test_interrupt_or_full_disk_leaves_what_was_there(
    folder: Path,
    model: AntheForSeq2SeqLM,
    tokenizers,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    step: str,
):
    def fail(*args, **kwargs):
        raise error

    before = contents(folder.parent)
    monkeypatch.setattr(export_module, step, fail)
    with pytest.raises(type(error)):
        export(model, tokenizers.source, folder, overwrite=True, check=False)
    with pytest.raises(type(error)):
        export(model, tokenizers.source, folder.parent / "new", check=False)
    assert contents(folder.parent) == before


def test_failed_rename_puts_the_earlier_export_back(
    folder: Path, model: AntheForSeq2SeqLM, tokenizers, monkeypatch: pytest.MonkeyPatch
):
    rename = Path.rename

    def fail_for_partial(path: Path, target: Path):
        if ".partial-" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    before = contents(folder.parent)
    monkeypatch.setattr(Path, "rename", fail_for_partial)
    with pytest.raises(OSError, match="Input/output"):
        export(model, tokenizers.source, folder, overwrite=True, check=False)
    assert contents(folder.parent) == before


def test_folder_with_problems_does_not_get_its_name(
    model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    static_check = lambda directory: check(directory, live=False)  # noqa: E731
    monkeypatch.setattr(check_module, "check", static_check)
    tokenizers.source.chat_template = "see /home/someone/template"
    try:
        with pytest.raises(ValueError, match=r"not fit for the Hub:\n.*/home/someone/template"):
            export(model, tokenizers.source, tmp_path / "out")
    finally:
        tokenizers.source.chat_template = None
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
def test_adapters_must_be_merged(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"]))
    for wrapped in (adapted, adapted.base_model.model):
        with pytest.raises(ValueError, match="merge_and_unload"):
            export(wrapped, tokenizers.source, tmp_path / "out", check=False)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="merge_and_unload"):
        export(tmp_path / "adapter", tokenizers.source, tmp_path / "out", check=False)
    export(adapted.merge_and_unload(), tokenizers.source, tmp_path / "out", check=False)


def test_models_without_code_of_their_own_are_refused(tokenizers, model: AntheForSeq2SeqLM, tmp_path: Path):
    bart = BartForConditionalGeneration(
        BartConfig(d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1)
    )
    with pytest.raises(ValueError, match="BartForConditionalGeneration is no model of leanformers"):
        export(bart, tokenizers.source, tmp_path / "out", check=False)
    with pytest.raises(ValueError, match="AntheModel cannot be exported"):
        export(model.model, tokenizers.source, tmp_path / "out", check=False)
    with pytest.raises(TypeError, match="Linear"):
        export(torch.nn.Linear(1, 1), tokenizers.source, tmp_path / "out", check=False)


def test_remote_code_of_our_family_is_replaced_by_the_installed_code(folder: Path, tokenizers, tmp_path: Path):
    with (folder / "tensor_chain.py").open("a") as file:
        file.write("\nOLD = True\n")
    shutil.copyfile(folder / "tensor_chain.py", folder / "gone_since.py")
    with (folder / "modeling_anthe.py").open("a") as file:
        file.write("\nfrom .gone_since import OLD  # noqa\n")
    remote = get_class_from_dynamic_module("modeling_anthe.AntheForSeq2SeqLM", folder)
    assert remote is not AntheForSeq2SeqLM
    out = export(remote.from_pretrained(folder), tokenizers.source, tmp_path / "out", check=False)
    assert {path.name for path in out.glob("*.py")} == CODE
    assert "OLD" not in (out / "tensor_chain.py").read_text()


def test_remote_code_of_others_is_shipped_as_it_is(folder: Path, tokenizers, tmp_path: Path):
    for name in ("config.json", "configuration_anthe.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(
            text.replace('"model_type": "anthe"', '"model_type": "stranger"').replace(
                'model_type = "anthe"', 'model_type = "stranger"'
            )
        )
    remote = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    out = export(remote, tokenizers.source, tmp_path / "out", target_tokenizer=tokenizers.target, check=False)
    assert {name: (out / name).read_bytes() for name in CODE} == {name: (folder / name).read_bytes() for name in CODE}
    report = check(out, live=False)
    assert report.ok, str(report)


def test_damaged_weights_are_refused(folder: Path, tokenizers, tmp_path: Path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights lm_head\.bias"):
        export(folder, tokenizers.source, tmp_path / "out", check=False)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match="is truncated"):
        export(folder, tokenizers.source, tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def test_run_of_a_language_model(language_model: DeLighTForCausalLM, language_tokenizer, tmp_path: Path):
    run = tmp_path / "run"
    language_model.save_pretrained(run)
    language_tokenizer.source.save_pretrained(run)
    results = {
        "eval_perplexity": 9.5,
        "test_perplexity": 10.5,
        "test_perplexity_per_word": 80.25,
        "train_runtime": 3.0,
    }
    (run / "all_results.json").write_text(json.dumps(results))
    (run / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 2.0, "step": 1}]}))
    (run / "arguments.yaml").write_text(f"task: stdlib\nblock_size: 128\ntokenizer_type: bpe\noutput_dir: {run}\n")
    folder = export_run(run, tmp_path / "out", check=False)
    card = (folder / "README.md").read_text()
    assert "10.5" in card and "80.25" in card and "standard library" in card and "![Training curves]" in card
    loaded, tokenizer = load_generator(str(folder))
    assert tokenizer.shared and not (folder / "target_tokenizer").exists()
    assert torch.equal(outputs_of(loaded), outputs_of(language_model))
