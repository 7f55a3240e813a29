# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The recipes of FastWeight's published language models: batch, schedule and evaluation of each, written out."""

import json
import math
import re
import shlex

import pytest
import torch
import yaml
from training.runs import parse_language_model, train_lm
from transformers import AutoConfig, AutoModelForCausalLM, get_scheduler

from leanformers.accounting import count_parameters
from leanformers.arguments import (
    EvaluationArguments,
    LanguageModelingDataArguments,
    LeanArgumentParser,
    ModelArguments,
)
from leanformers.data.tasks import number_translation
from leanformers.evaluation.loading import ScoringArguments

# Width, tokens of a block, blocks of a step, steps.
SIZES = {"small": (128, 256, 96, 500_000), "medium": (256, 384, 56, 400_000)}
# Update rule and feature map of each, and its parameters.
MODELS = {
    "small": ("delta", "elu_plus_one", 44_034_778),
    "small_sum": ("sum", "elu_plus_one", 44_018_394),
    "small_dpfp": ("delta", "dpfp", 44_034_778),
    "medium": ("delta", "elu_plus_one", 89_866_202),
    "medium_sum": ("sum", "elu_plus_one", 89_833_434),
    "medium_dpfp": ("delta", "dpfp", 89_866_202),
    "medium_full_context": ("delta", "elu_plus_one", 89_866_202),
}


@pytest.fixture
def recipe(root, monkeypatch):
    monkeypatch.chdir(root)
    return lambda name: root / f"configs/train/fast_weight_wikitext103_{name}.yaml"


def settings(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_recipe_is_listed(root):
    names = {path.stem for path in root.glob("configs/train/fast_weight_wikitext103_*.yaml")}
    assert names == {f"fast_weight_wikitext103_{name}" for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_model(recipe, name):
    rule, feature_map, parameters = MODELS[name]
    model_arguments, data, _ = parse_language_model(recipe(name), "--use_cpu=true")
    config = AutoConfig.from_pretrained(model_arguments.config_name)
    assert (config.update_rule, config.feature_map) == (rule, feature_map)
    assert config.hidden_size == SIZES[name.split("_")[0]][0] and config.max_position_embeddings == data.block_size
    assert (config.dropout, config.activation_dropout, config.attention_dropout) == (0.1, 0.1, 0.0)
    with torch.device("meta"):
        assert count_parameters(AutoModelForCausalLM.from_config(config)) == parameters
    assert config.vocab_size == data.tokenizer_vocab_size == 267_735
    positions = "none" if name.endswith("full_context") else "sinusoidal_reversed"
    assert config.position_embedding_type == positions


@pytest.mark.parametrize("name", MODELS)
def test_batch_schedule_and_optimizer(recipe, name):
    _, data, training = parse_language_model(recipe(name), "--use_cpu=true")
    _, block_size, batch_size, steps = SIZES[name.split("_")[0]]
    assert (data.block_size, training.per_device_train_batch_size, training.max_steps) == (
        *(block_size, batch_size, steps),
    )
    assert training.gradient_accumulation_steps == 1 and training.seed == 1111
    assert (data.documents, data.pack_documents, data.tokenizer_type) == ("lines", "stream", "word")
    assert (training.weight_decay, training.max_grad_norm) == (0, 0.25)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert not training.bf16 and not training.fp16
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.get_warmup_steps(steps), steps)
    rate = schedule.lr_lambdas[0]
    assert training.learning_rate == 2.5e-4 and rate(steps) == 0
    assert [rate(step) for step in (0, 1000, 2000)] == [0, 0.5, 1]
    for step in range(2000, steps, 20_000):
        # The original's cosine begins with the warm-up, and so is ahead of this one a little.
        assert rate(step) == pytest.approx((1 + math.cos(math.pi * step / steps)) / 2, abs=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_the_published_one(recipe, name):
    """Windows one token apart, or one memory through the whole text: by the command in the recipe's first lines."""
    text = recipe(name).read_text(encoding="utf-8")
    command = re.search(r"^# python scripts/evaluate\.py (.*)$", text, re.MULTILINE)[1]
    groups = [ModelArguments, LanguageModelingDataArguments, ScoringArguments, EvaluationArguments]
    model, data, running, _ = LeanArgumentParser(groups).parse(shlex.split(command))
    given = settings(recipe(name))
    assert model.model_name_or_path == given["output_dir"] and data.block_size == given["block_size"]
    assert (data.dataset_name, data.dataset_config_name) == (given["dataset_name"], given["dataset_config_name"])
    assert data.documents == given["documents"]
    if name.endswith("full_context"):
        assert data.carry_state and running.batch_size == given["per_device_eval_batch_size"] == 1
    else:
        assert not data.carry_state and data.context_window == data.block_size - 1


@pytest.mark.parametrize("name", MODELS)
def test_header_says_how_to_launch_it_on_more_gpus(recipe, name):
    path, rows = recipe(name), settings(recipe(name))["per_device_train_batch_size"]
    launch = f"--num_processes 8 --mixed_precision no scripts/train_clm.py configs/train/{path.name}"
    flag = f"--per_device_train_batch_size {rows // 8}"
    assert rows % 8 == 0
    assert f"# accelerate launch --config_file configs/accelerate/ddp.yaml {launch} {flag}\n" in path.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", ["small_sum", "small_dpfp", "medium_sum", "medium_dpfp", "medium_full_context"])
def test_recipes_of_a_size_differ_in_the_model_only(recipe, name):
    given, other = settings(recipe(name)), settings(recipe(name.split("_")[0]))
    allowed = {"config_name", "output_dir"}
    if name.endswith("full_context"):
        allowed |= {"carry_state", "context_window", "per_device_eval_batch_size"}
    assert {key for key in given | other if given.get(key) != other.get(key)} == allowed


def test_standard_library_recipe_is_delights_but_for_rate_and_batch(root):
    recipes = [settings(root / f"configs/train/{family}_stdlib.yaml") for family in ("fast_weight", "delight")]
    fast_weight, delight = recipes
    assert {key for key in fast_weight | delight if fast_weight.get(key) != delight.get(key)} == {
        *("config_name", "learning_rate", "output_dir", "per_device_train_batch_size"),
    }


@pytest.mark.parametrize("name", ["small", "medium_full_context"])
def test_recipe_runs(recipe, tmp_path, name):
    """A few steps of it on a narrower model and less text, all else as it is."""
    output, flags = tmp_path / "run", []
    for split, pairs in number_translation(train_size=120, validation_size=5, test_size=5).items():
        (tmp_path / split).write_text("\n".join(pairs["source"]) + "\n", encoding="utf-8")
        flags.append(f"--{split}_files={tmp_path / split}")
    small = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,adaptive_cutoffs=[9,20]"
    results = train_lm(
        recipe(name),
        *("--config_overrides", small, "--block_size=16", "--num_proc=1", "--per_device_train_batch_size=4"),
        *("--max_steps=4", "--logging_steps=1", "--eval_steps=2", "--save_steps=2", "--use_cpu=true"),
        *("--disable_tqdm=true", f"--output_dir={output}"),
        *flags,
    )
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([step * 2.5e-4 / 2000 for step in range(4)])
    assert results["eval_num_tokens"] == results["eval_num_words"] > 0
    assert (output / "checkpoint-4/carried_state_0.safetensors").is_file() == name.endswith("full_context")
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.config.adaptive_cutoffs == [9, 20] and model.config.norm_position == "post"
