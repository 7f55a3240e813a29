# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Write a Hub folder: weights, code, tokenizers and card, loadable with torch and transformers alone."""

import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from ..data.tokenizers import TARGET_SUBFOLDER, TranslationTokenizers
from ..plots import training_curves
from ..registry import Family, family_of
from .card import PIPELINE_TAGS, public_results, render_card
from .check import refuse_problems
from .safety import code_hashes
from .static_checks import REFERENCE, weight_problems

CURVES = "training_curves.png"
RESULTS = "all_results.json"
SAMPLES = "samples.json"
WRITTEN_SUFFIXES = (".safetensors", ".py")
WRITTEN_NAMES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    TARGET_SUBFOLDER,
    "tokenizer.json",
    "tokenizer_config.json",
    CURVES,
    RESULTS,
    SAMPLES,
}
# Where a tokenizer was loaded from says nothing about the tokenizer.
LOADING_TRACES = ("is_local", "local_files_only", "name_or_path")


@dataclass(frozen=True)
class ShippedCode:
    """The code of a model class: the folder it lies in, and which of its classes each Auto class loads."""

    folder: Path
    auto_map: Mapping[str, str]

    def files(self) -> set[Path]:
        modules = {self.folder / f"{reference.partition('.')[0]}.py" for reference in self.auto_map.values()}
        return modules.union(*(map(Path, get_relative_import_files(module)) for module in modules))

    def auto_class(self, model: PreTrainedModel) -> str:
        for auto_class, reference in self.auto_map.items():
            if reference.rpartition(".")[2] == type(model).__name__ and auto_class in PIPELINE_TAGS:
                return auto_class
        raise ValueError(
            f"{type(model).__name__} cannot be exported: only models of {' and '.join(PIPELINE_TAGS)} can, and their "
            "folder then also loads with the other Auto classes."
        )


def export(
    model: PreTrainedModel | str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    *,
    target_tokenizer: PreTrainedTokenizerBase | None = None,
    metrics: Mapping[str, object] | None = None,
    training_log: Sequence[Mapping] | None = None,
    arguments: Mapping[str, object] | None = None,
    repository: str | None = None,
    license_id: str = "apache-2.0",
    samples: Mapping[str, object] | None = None,
    overwrite: bool = False,
    check: bool = True,
) -> Path:
    """
    Write a folder that loads with `trust_remote_code=True` wherever torch and transformers are.

    It appears under its name only when it is complete and has passed `leanformers.hub.check`.

    Args:
        model (`PreTrainedModel` or path): The model, or a folder with one of leanformers' models.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer, of the source language if there are two of a translator.
        directory (`str` or `os.PathLike`): The folder to write: a new or an empty one.
        target_tokenizer (`PreTrainedTokenizerBase`, *optional*): Tokenizer of the target language, if another one.
        metrics (`Mapping`, *optional*): Results for the card, named as in a run's `all_results.json`, which is
            written beside it.
        training_log (`Sequence[Mapping]`, *optional*): `trainer.state.log_history`, drawn for the card.
        arguments (`Mapping`, *optional*): The run's arguments for the card, named as in its `arguments.yaml`.
        repository (`str`, *optional*): Name that the folder will have on the Hub, for the card's example.
        license_id (`str`, defaults to `"apache-2.0"`): The Hub's name of the licence of the weights, for the card.
        samples (`Mapping`, *optional*): Texts of the model for the card, as `evaluation.samples` takes them, which
            are written beside it.
        overwrite (`bool`, defaults to `False`): Replace an earlier export. Nothing else is ever replaced.
        check (`bool`, defaults to `True`): Judge the folder before it gets its name.
    """
    directory = Path(directory).resolve()
    _refuse_to_lose(directory, overwrite)
    model = _load(model) if isinstance(model, str | os.PathLike) else model
    _refuse_wrapped(model)
    family = _family(model)
    code = _shipped_code(model, family)
    auto_class = code.auto_class(model)

    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write_model(partial, model, code)
        tokenizers = TranslationTokenizers(tokenizer, target_tokenizer or tokenizer)
        _write_tokenizers(partial, tokenizers)
        log = training_log or ()
        has_curves = any(not {"loss", "eval_loss"}.isdisjoint(entry) for entry in log)
        if has_curves:
            training_curves(log, partial / CURVES)
        for name, content in {RESULTS: public_results(metrics or {}), SAMPLES: samples}.items():
            if content:
                _write_json(partial / name, content)
        card = render_card(
            family,
            model,
            auto_class,
            repository=repository,
            metrics=metrics,
            arguments=arguments,
            separate_target_tokenizer=not tokenizers.shared,
            curves=CURVES if has_curves else None,
            license_id=license_id,
            code_hashes=code_hashes(partial),
            samples=samples,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        if check:
            refuse_problems(partial, directory)
        _put_in_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def export_run(
    run: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    repository: str | None = None,
    overwrite: bool = False,
    check: bool = True,
) -> Path:
    """Export what a training script left in its output folder, with its results and curves in the card."""
    run = Path(run)
    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"{run} holds no trained model (no config.json).")
    log, arguments = run / "trainer_state.json", run / "arguments.yaml"
    tokenizers = TranslationTokenizers.from_pretrained(run)
    return export(
        run,
        tokenizers.source,
        directory,
        target_tokenizer=tokenizers.target,
        metrics=_read_json(run / RESULTS),
        training_log=(_read_json(log) or {}).get("log_history"),
        arguments=yaml.safe_load(arguments.read_text(encoding="utf-8")) if arguments.exists() else None,
        repository=repository,
        samples=_read_json(run / SAMPLES),
        overwrite=overwrite,
        check=check,
    )


def is_written(path: PurePosixPath) -> bool:
    """Whether exports write a file of this name, which is relative to the folder."""
    return path.parts[0] in WRITTEN_NAMES or (len(path.parts) == 1 and path.name.endswith(WRITTEN_SUFFIXES))


def _refuse_to_lose(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; choose another name for the folder.")
    names = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    foreign = [name for name in names if not is_written(PurePosixPath(name))]
    if names and not overwrite:
        raise FileExistsError(
            f"{directory} is not empty ({len(names)} entries, {names[0]} first); choose another folder, or overwrite "
            "if it is an earlier export."
        )
    if foreign:
        raise FileExistsError(
            f"{directory} holds {foreign[0]}, which no export writes; it is not overwritten. Choose another folder."
        )


def _load(path: str | os.PathLike) -> PreTrainedModel:
    """A model of ours from a folder, whole: a tensor that is missing there would silently be a random one."""
    path = Path(path)
    if (path / "adapter_config.json").exists():
        raise ValueError(
            f"{path} holds a LoRA adapter; load it with peft and call merge_and_unload() before exporting."
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder with a model.")
    problems = weight_problems(path)
    if problems:
        raise ValueError(f"{path} cannot be exported: {' '.join(problems)}")
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    family = family_of(config)
    auto_class = next(name for name, model in family.models.items() if model in (config.architectures or [model]))
    model, info = family.model_class(auto_class).from_pretrained(path, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{path} cannot be exported: it lacks the weights {', '.join(sorted(info['missing_keys']))}.")
    return model


def _refuse_wrapped(model: PreTrainedModel) -> None:
    if hasattr(model, "merge_and_unload") or any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("The model carries adapters; call merge_and_unload() and export what it returns.")
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"A {type(model).__name__} cannot be exported; pass the PreTrainedModel inside it.")


def _family(model: PreTrainedModel) -> Family | None:
    try:
        return family_of(model)
    except ValueError:
        return None


def _shipped_code(model: PreTrainedModel, family: Family | None) -> ShippedCode:
    """The installed package's code for a family of ours, even if the model was loaded by an older copy of it."""
    if family:
        return ShippedCode(Path(inspect.getfile(family.config_class)).parent, family.auto_map(model.config))
    auto_map = getattr(model.config, "auto_map", None)
    if not auto_map:
        raise ValueError(
            f"{type(model).__name__} is no model of leanformers and its config has no auto_map; there is no code of "
            "its own to ship."
        )
    # Loaded from the Hub, an entry reads `organisation/repository--module.Class`.
    auto_map = {auto_class: reference.rpartition("--")[2] for auto_class, reference in auto_map.items()}
    for auto_class, reference in auto_map.items():
        if not REFERENCE.fullmatch(reference):
            raise ValueError(f"auto_map takes {auto_class} from {reference}, which is no class of a module beside it.")
    return ShippedCode(Path(inspect.getfile(type(model))).parent, auto_map)


def _write_model(folder: Path, model: PreTrainedModel, code: ShippedCode) -> None:
    model.save_pretrained(folder)
    _edit_json(folder / "config.json", auto_map=dict(code.auto_map))
    for copied_by_save_pretrained in folder.glob("*.py"):
        copied_by_save_pretrained.unlink()
    for file in code.files():
        shutil.copyfile(file, folder / file.name)


def _write_tokenizers(folder: Path, tokenizers: TranslationTokenizers) -> None:
    tokenizers.save_pretrained(folder)
    for path in folder.rglob("tokenizer_config.json"):
        _edit_json(path, drop=LOADING_TRACES)
    if not tokenizers.shared:
        # From a repository, unlike from a folder, AutoTokenizer fails without a configuration beside the tokenizer; a
        # model_type in it would bring a warning.
        _write_json(folder / TARGET_SUBFOLDER / "config.json", {})


def _read_json(path: Path) -> dict | None:
    """Its content; None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _edit_json(path: Path, drop: Sequence[str] = (), **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if key not in drop}
    _write_json(path, kept)


def _put_in_place(partial: Path, directory: Path) -> None:
    """Two renames, undone if the second fails: under `directory` there is always a whole folder or none."""
    earlier = directory.with_name(f".{directory.name}.earlier-{os.getpid()}")
    replaces = directory.exists()
    if replaces:
        directory.rename(earlier)
    try:
        partial.rename(directory)
    except BaseException:
        if replaces:
            earlier.rename(directory)
        raise
    if replaces:
        shutil.rmtree(earlier)
