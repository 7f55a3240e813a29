# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The recipes of DeLighT's public code: batch, schedule, learning rate and dropouts of every width, written out."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from training.runs import parse, train
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, get_scheduler

from leanformers.accounting import count_parameters
from leanformers.arguments import (
    LanguageModelingDataArguments,
    LanguageModelTrainingArguments,
    LeanArgumentParser,
    ModelArguments,
)
from leanformers.data.tasks import number_translation
from leanformers.modeling.delight import DeLighTForConditionalGeneration
from leanformers.training.causal_lm import train_language_model

GPUS = 8

# Width: peak learning rate, dropout after attention and feed-forward layers, of attention weights and of DExTra units,
# parameters.
WIDTHS = {
    "wmt14_en_de": {
        128: (0.010, 0.04, 0.01, 0.0, 8_094_432),
        256: (0.007, 0.07, 0.03, 0.0, 13_788_584),
        384: (0.005, 0.11, 0.04, 0.0, 23_246_072),
        512: (0.004, 0.15, 0.05, 0.0, 36_763_788),
        640: (0.003, 0.19, 0.06, 0.0, 54_036_236),
    },
    "wmt14_en_fr": {
        128: (0.010, 0.01, 0.01, 0.0, 8_193_760),
        256: (0.007, 0.03, 0.03, 0.0, 13_887_912),
        384: (0.005, 0.04, 0.04, 0.0, 23_345_400),
        512: (0.004, 0.05, 0.05, 0.0, 36_863_116),
        640: (0.003, 0.06, 0.06, 0.0, 54_135_564),
    },
    "wmt16_en_ro": {
        128: (0.0028, 0.04, 0.01, 0.03, 6_973_152),
        256: (0.0014, 0.07, 0.03, 0.05, 12_667_304),
        384: (0.0009, 0.11, 0.04, 0.08, 22_124_792),
        512: (0.0007, 0.15, 0.05, 0.10, 35_642_508),
        640: (0.0006, 0.19, 0.06, 0.10, 52_914_956),
    },
    "wikitext103": {
        128: (0.010, 0.01, 0.01, 0.01, 14_346_164),
        256: (0.008, 0.03, 0.03, 0.03, 18_794_540),
        384: (0.005, 0.04, 0.04, 0.04, 24_997_032),
        512: (0.004, 0.05, 0.05, 0.05, 35_101_170),
        1024: (0.002, 0.10, 0.10, 0.10, 99_247_668),
    },
}
RECIPES = [(task, width) for task, widths in WIDTHS.items() for width in widths]

# Rows of a step, tokens of a row (assumed for pairs, of the longer side), tokens of a step. The original has at most
# 4,096 x 16 x 8 = 524,288 for WMT14; at most 4,096 x 8 = 32,768 for WMT16, where its log counts 21,000 of the target;
# 8,192 x 4 x 8 = 262,144 for WikiText-103.
BATCHES = {
    "wmt14_en_de": (16_384, 32, 524_288),
    "wmt14_en_fr": (16_384, 32, 524_288),
    "wmt16_en_ro": (768, 28, 21_504),
    "wikitext103": (512, 512, 262_144),
}

LENGTH_PENALTIES = {"wmt14_en_de": 0.4, "wmt14_en_fr": 0.9, "wmt16_en_ro": 1.0}

# Share of the way from 1e-7 up to the peak at some steps.
SCHEDULES = {
    "wmt14_en_de": {5_000: 0.5, 10_000: 1, 15_000: 0.8535534, 20_000: 0.5, 30_000: 0},
    # 40,000 steps into a fall over 70,000: (1 + cos(pi 4 / 7)) / 2 is left.
    "wmt14_en_fr": {5_000: 0.5, 10_000: 1, 45_000: 0.5, 50_000: 0.3887395},
    "wmt16_en_ro": {5_000: 0.5, 10_000: 1, 55_000: 0.5, 100_000: 0},
    "wikitext103": {2_500: 0.5, 5_000: 1, 52_500: 0.5, 100_000: 0},
}


def recipe(root: Path, task: str, width: int) -> Path:
    return root / f"configs/train/delight_{task}_{width}.yaml"


def settings(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse_language_model(*argv: object) -> tuple:
    parser = LeanArgumentParser([ModelArguments, LanguageModelingDataArguments, LanguageModelTrainingArguments])
    return parser.parse([str(argument) for argument in argv])


def arguments_of(root: Path, task: str, width: int) -> tuple:
    """A recipe as its script reads it."""
    read = parse_language_model if task == "wikitext103" else parse
    return read(recipe(root, task, width), "--use_cpu=true")


def learning_rate(training, step: int) -> float:
    """What the trainer's schedule gives at a step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    schedule = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=training.get_warmup_steps(training.max_steps),
        num_training_steps=training.max_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )
    return training.learning_rate * schedule.lr_lambdas[0](step)


@pytest.mark.parametrize(("task", "width"), RECIPES)
def test_schedule_and_optimizer(root, task, width):
    *_, training = arguments_of(root, task, width)
    assert training.learning_rate == WIDTHS[task][width][0]
    assert learning_rate(training, 0) <= 1e-7
    for step, share in SCHEDULES[task].items():
        # The original's warm-up begins at 1e-7, this one at 0: half of that apart at half its way.
        expected = 1e-7 + share * (training.learning_rate - 1e-7)
        assert learning_rate(training, step) == pytest.approx(expected, rel=1e-6, abs=6e-8), step
    assert training.max_steps == max(SCHEDULES[task])
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.98, 1e-8)
    assert training.weight_decay == training.max_grad_norm == 0
    assert training.label_smoothing_factor == (0 if task == "wikitext103" else 0.1)
    assert training.seed == 1
    assert not training.bf16 and not training.fp16


@pytest.mark.parametrize(("task", "width"), RECIPES)
def test_batch_and_data(root, task, width):
    model, data, training = arguments_of(root, task, width)
    rows, length, tokens = BATCHES[task]
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS == rows
    assert rows * length == tokens
    config = AutoConfig.from_pretrained(root / model.config_name)
    assert config.hidden_size == width and config.vocab_size == data.tokenizer_vocab_size
    if task == "wikitext103":
        assert (data.block_size, data.context_window) == (length, 400)
        assert (data.documents, data.pack_documents, data.tokenizer_type) == ("lines", "stream", "word")
    else:
        assert data.shared_tokenizer and data.length_policy == "drop"
        assert (training.generation_num_beams, training.generation_length_penalty) == (5, LENGTH_PENALTIES[task])


@pytest.mark.parametrize(("task", "width"), RECIPES)
def test_preset(root, task, width):
    config = AutoConfig.from_pretrained(root / f"configs/model/delight/{task}_{width}.json")
    _, dropout, attention_dropout, dextra_dropout, parameters = WIDTHS[task][width]
    assert config.dropout == config.ffn_dropout == dropout
    assert (config.attention_dropout, config.dextra_dropout) == (attention_dropout, dextra_dropout)
    assert (config.embedding_dropout, config.position_dropout, config.activation_dropout) == (0.1, 0.1, 0.0)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config)
    assert count_parameters(model) == parameters
    depth = 12 if task == "wikitext103" else 8
    assert (config.min_depth, config.max_depth, config.num_decoder_layers) == (4, depth, depth)
    if task == "wikitext103":
        assert (config.adaptive_cutoffs, config.adaptive_softmax_dropout) == ([20_000, 60_000], 0.1)
        assert config.normalize_before and not config.final_norm


@pytest.mark.parametrize("task", WIDTHS)
def test_widths_differ_in_the_model_and_its_learning_rate_only(root, task):
    recipes = [settings(recipe(root, task, width)) for width in WIDTHS[task]]
    allowed = {"config_name", "learning_rate", "output_dir"}
    for other in recipes[1:]:
        assert other.keys() == recipes[0].keys()
        assert {key for key in other if other[key] != recipes[0][key]} <= allowed


@pytest.mark.parametrize(("task", "width"), RECIPES)
def test_header_says_how_to_launch_it(root, task, width):
    path = recipe(root, task, width)
    script = "train_clm" if task == "wikitext103" else "train_seq2seq"
    launch = f"--num_processes {GPUS} --mixed_precision no scripts/{script}.py configs/train/{path.name}"
    text = path.read_text(encoding="utf-8")
    assert f"# accelerate launch --config_file configs/accelerate/ddp.yaml {launch}\n" in text
    assert f"--gradient_accumulation_steps {GPUS * settings(path)['gradient_accumulation_steps']} makes" in text


def test_multi30k_recipe_differs_from_anthes_in_model_and_learning_rate_only(root):
    delight, anthe = (settings(root / f"configs/train/{family}_multi30k.yaml") for family in ("delight", "anthe"))
    assert {key for key in delight | anthe if delight.get(key) != anthe.get(key)} == {
        *("config_name", "learning_rate", "output_dir"),
    }


@pytest.fixture
def pairs(tmp_path) -> list[str]:
    """Flags with parallel files: 24 pairs to train on, 3 to validate and 2 to test."""
    flags = []
    for name, split in number_translation(train_size=24, validation_size=3, test_size=2).items():
        files = [tmp_path / f"{name}.{side}" for side in ("source", "target")]
        for file in files:
            file.write_text("\n".join(split[file.suffix[1:]]) + "\n", encoding="utf-8")
        flags += [f"--{name}_files", *map(str, files)]
    return flags


def test_translation_recipe_runs(root, pairs, tmp_path, monkeypatch):
    """A few steps of it on a narrower model and less text, all else as it is."""
    monkeypatch.chdir(root)
    searches, generate = [], DeLighTForConditionalGeneration.generate

    def spied(model, *inputs, **kwargs):
        searches.append((kwargs["num_beams"], kwargs["length_penalty"]))
        return generate(model, *inputs, **kwargs)

    monkeypatch.setattr(DeLighTForConditionalGeneration, "generate", spied)
    output = tmp_path / "run"
    small = "hidden_size=64,embedding_size=32,num_encoder_layers=2,num_decoder_layers=2,min_depth=2,max_depth=3"
    train(
        recipe(root, "wmt14_en_de", 384),
        *("--config_overrides", small, "--tokenizer_vocab_size=300", "--max_target_length=20", "--num_proc=1"),
        *("--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--max_steps=3", "--logging_steps=1"),
        *("--eval_steps=3", "--save_steps=3", "--use_cpu=true", "--disable_tqdm=true", f"--output_dir={output}"),
        *pairs,
    )
    results = check_run(output, peak=0.005)
    assert set(searches) == {(5, 0.4)}
    assert {"eval_chrf", "test_chrf", "test_perplexity"} <= results.keys()
    config = AutoConfig.from_pretrained(output)
    assert (config.dropout, config.attention_dropout, config.share_embeddings) == (0.11, 0.04, True)
    assert AutoModelForSeq2SeqLM.from_pretrained(output).num_parameters() == results["num_parameters"]


def check_run(output: Path, peak: float) -> dict:
    """Three steps up the warm-up's 10,000 or 5,000, and a loss."""
    results = json.loads((output / "all_results.json").read_text())
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    warmup_steps = settings(output / "arguments.yaml")["warmup_steps"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([step * peak / warmup_steps for step in range(3)])
    assert results["train_loss"] > 0
    return results


def test_language_model_recipe_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    output, flags = tmp_path / "run", []
    for name, split in number_translation(train_size=60, validation_size=5, test_size=5).items():
        (tmp_path / name).write_text("\n".join(split["source"]) + "\n", encoding="utf-8")
        flags.append(f"--{name}_files={tmp_path / name}")
    small = "hidden_size=64,embedding_size=32,num_decoder_layers=2,min_depth=2,max_depth=3,adaptive_cutoffs=[9,20]"
    arguments = parse_language_model(
        recipe(root, "wikitext103", 256),
        *("--config_overrides", small, "--block_size=16", "--context_window=8", "--num_proc=1"),
        *("--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--max_steps=3", "--logging_steps=1"),
        *("--eval_steps=3", "--save_steps=3", "--use_cpu=true", "--disable_tqdm=true", f"--output_dir={output}"),
        *flags,
    )
    train_language_model(*arguments)
    results = check_run(output, peak=0.008)
    assert {"eval_perplexity_per_word", "test_perplexity_per_word"} <= results.keys()
    model = AutoModelForCausalLM.from_pretrained(output)
    assert (model.config.dropout, model.config.adaptive_cutoffs) == (0.03, [9, 20])
    assert model.num_parameters() == results["num_parameters"]
