# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Every preset builds and every recipe parses, so that none can rot."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import AutoConfig

from leanformers import FAMILIES, get_family
from leanformers.arguments import (
    LANGUAGE_MODEL_GROUPS,
    TRANSLATION_GROUPS,
    LeanArgumentParser,
)
from leanformers.data.sequence_tasks import SEQUENCE_TASKS
from leanformers.registry import language_model_class
from leanformers.training.retrieval_sweep import RetrievalArguments
from leanformers.training.selection_study import SelectionArguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = sorted(CONFIGS.glob("model/*/*.json"))
RECIPES = sorted(CONFIGS.glob("train/*.yaml"))
RETRIEVAL_RECIPES = [path for path in RECIPES if "_retrieval_" in path.name]
SELECTION_RECIPES = [CONFIGS / f"train/selective_attn_{task}.yaml" for task in SEQUENCE_TASKS]
TRAINING_RECIPES = [path for path in RECIPES if path not in RETRIEVAL_RECIPES + SELECTION_RECIPES]
LAUNCHES = sorted(CONFIGS.glob("accelerate/*.yaml"))
ARGUMENTS_OF = {
    "scripts/train_seq2seq.py": TRANSLATION_GROUPS,
    "scripts/train_clm.py": LANGUAGE_MODEL_GROUPS,
}


def name(path):
    return path.relative_to(CONFIGS).as_posix()


def settings(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_registry_names_the_presets_that_exist(family):
    assert sorted(family.presets) == [path.stem for path in PRESETS if path.parent.name == family.name]


@pytest.mark.parametrize("path", PRESETS, ids=name)
def test_preset_builds(path):
    family, preset = get_family(path.parent.name), json.loads(path.read_text())
    # PreTrainedConfig keeps keys it does not know, so a misspelt one would go unnoticed.
    known = {field.name for field in fields(family.config_class)} | {"model_type", "architectures"}
    assert set(preset) <= known
    config = AutoConfig.from_pretrained(path)
    assert type(config) is family.config_class
    for auto_class in family.auto_classes(config):
        with torch.device("meta"):
            built = family.model_class(auto_class)(config)
        assert built.num_parameters() > 0 and type(built).__name__ == family.models[auto_class]
    assert preset["architectures"] == [family.models[language_model_class(config)]]


def script_of(path):
    """The script that the recipe's first lines name, by the command that runs it."""
    text = path.read_text(encoding="utf-8")
    script = re.search(rf"^# python (\S+) {re.escape('configs/' + name(path))}$", text, re.MULTILINE)[1]
    assert (CONFIGS.parent / script).is_file()
    return script


@pytest.mark.parametrize("path", TRAINING_RECIPES, ids=name)
def test_recipe_parses(path, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    # With `use_cpu`, as a recipe for a GPU must parse here too.
    argv = [str(path), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    model, data, training = LeanArgumentParser(ARGUMENTS_OF[script_of(path)]).parse(argv)
    assert Path(model.config_name) in [preset.relative_to(root) for preset in PRESETS]
    assert data.task or data.dataset_name or data.train_files
    assert training.max_steps > 0 or training.num_train_epochs > 0
    assert settings(path)["output_dir"] == f"outputs/{path.stem}"


@pytest.mark.parametrize("path", RETRIEVAL_RECIPES, ids=name)
def test_retrieval_recipe_parses(path):
    assert script_of(path) == "scripts/benchmarks/retrieval.py"
    (arguments,) = LeanArgumentParser([RetrievalArguments]).parse([str(path)])
    # As in the paper's code, which has another learning rate and batch for its oldest rule.
    expected = (1e-4, 128) if path.stem.endswith("_fwm") else (1e-3, 32)
    assert (arguments.learning_rate, arguments.batch_size) == expected
    assert arguments.points() and Path(arguments.output_file).parent == Path("scripts/benchmarks/results")


@pytest.mark.parametrize("path", SELECTION_RECIPES, ids=name)
def test_selection_recipe_parses(path):
    assert script_of(path) == "scripts/benchmarks/selection_tasks.py"
    (arguments,) = LeanArgumentParser([SelectionArguments]).parse([str(path)])
    assert path.stem == f"selective_attn_{arguments.task}"
    assert arguments.eval_lengths == [factor * arguments.train_length for factor in (1, 2, 4, 8)]
    assert arguments.models == ["selective", "plain"] and len(arguments.points()) == 2 * len(arguments.seeds)
    # One figure has them all.
    assert arguments.output_file == "scripts/benchmarks/results/selective_attn_tasks.json"


@pytest.mark.parametrize("path", [*RECIPES, *LAUNCHES], ids=name)
def test_every_setting_is_explained(path):
    bare = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and "#" not in line]
    assert [line for line in bare if not line.endswith(":")] == []


def test_translation_recipes_compare_like_with_like():
    """Anthe and the baseline differ in the model and in where it goes, and in nothing else."""
    anthe, baseline = (settings(CONFIGS / f"train/{model}_multi30k.yaml") for model in ("anthe", "transformer"))
    assert {key for key in anthe | baseline if anthe.get(key) != baseline.get(key)} == {"config_name", "output_dir"}


def test_launch_configurations_are_all_there():
    assert [path.stem for path in LAUNCHES] == ["cpu_2", "ddp", "deepspeed_zero2", "fsdp2", "tp"]


@pytest.mark.parametrize("path", LAUNCHES, ids=name)
def test_accelerate_takes_the_launch_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    flags = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    known = set(vars(flags))
    flags, *_ = _validate_launch_command(flags)
    chosen = {"fsdp2": "use_fsdp", "deepspeed_zero2": "use_deepspeed"}.get(path.stem, "multi_gpu")
    assert getattr(flags, chosen)
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        for key, value in settings(path).get(section, {}).items():
            assert key in known and getattr(flags, key) == value
