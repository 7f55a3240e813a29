# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Votes that grow in training: by step, whatever was stopped, measured or saved meanwhile; from a Llama, which cast
none; and the memory loss, which is logged as a mean."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training.runs import parse_language_model, run_here, run_script, train_lm
from training.test_distributed import LAUNCHER, assert_same_runs
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from leanformers.arguments import LanguageModelTrainingArguments
from leanformers.conversion import convert_checkpoint
from leanformers.data.language_modeling import TrainingBlocks, load_texts, tokenize_texts
from leanformers.evaluation.language_modeling import evaluate_text_splits
from leanformers.training import runs
from leanformers.training.trainer import LanguageModelTrainer

MODEL = {
    "model_type": "selective_attn",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
FLAGS = ("--max_steps=12", "--selection_warmup_steps=8", "--save_steps=2", "--save_total_limit=20")
EVALUATED = ("--eval_strategy=steps", "--eval_steps=2")


@pytest.fixture(scope="module")
def selective_recipe(lm_recipe, tmp_path_factory):
    """Arguments of a small run of a SelectiveAttn: `selective_recipe(output_dir, "--max_steps=6")`."""
    config = tmp_path_factory.mktemp("model") / "model.json"
    config.write_text(json.dumps(MODEL))
    return lambda output_dir, *more: lm_recipe(output_dir, f"--config_name={config}", *more)


@pytest.fixture(scope="module")
def warmed_up(selective_recipe, tmp_path_factory):
    """12 steps, over 8 of which the votes grow, with a validation and a checkpoint every second one."""
    folder = tmp_path_factory.mktemp("warmed_up") / "run"
    train_lm(*selective_recipe(folder, *FLAGS, *EVALUATED))
    return folder


def log_of(folder, key):
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {entry["step"]: entry[key] for entry in history if key in entry}


def strength_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["selection_strength"]


def assert_same_weights(first, second):
    weights, others = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def test_strength_grows_linearly_is_logged_and_ends_at_its_full_value(warmed_up):
    assert log_of(warmed_up, "selection_strength") == {step: min(step / 8, 1.0) for step in range(1, 13)}
    assert strength_of(warmed_up) == 1.0
    assert (warmed_up / "training_curves.png").is_file()


def test_every_step_trains_with_the_strength_of_its_beginning(monkeypatch, selective_recipe, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            seen.append({layer.self_attn._rule()["strength"] for layer in model.model.layers})

    monkeypatch.setattr(runs, "CurvesCallback", Watch)
    overrides = "--config_overrides=selection_strength=0.5"
    train_lm(*selective_recipe(tmp_path, "--max_steps=6", "--selection_warmup_steps=4", overrides))
    assert seen == [{0.0}, {0.125}, {0.25}, {0.375}, {0.5}, {0.5}]
    assert strength_of(tmp_path) == 0.5


@pytest.mark.parametrize("step", [4, 8], ids=["while votes grow", "when they are grown"])
def test_resumed_run_equals_uninterrupted_run(warmed_up, tmp_path, step):
    run = tmp_path / "run"
    shutil.copytree(warmed_up, run, ignore=shutil.ignore_patterns("*_results.json"))
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    train_lm(run / "arguments.yaml", f"--output_dir={run}", "--resume")
    assert_same_weights(run, warmed_up)
    for key in ("loss", "selection_strength", "eval_loss"):
        assert log_of(run, key) == log_of(warmed_up, key)
    assert strength_of(run) == 1.0


def test_a_checkpoint_is_the_model_that_was_measured(warmed_up):
    """With the votes it had when it was, which are not its weights."""
    checkpoint = warmed_up / "checkpoint-4"
    assert strength_of(checkpoint) == 0.5
    _, data, _ = parse_language_model(warmed_up / "arguments.yaml")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    losses = {}
    for strength in (0.5, 1.0):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, selection_strength=strength)
        losses[strength] = evaluate_text_splits(model, tokenizer, data, names=["validation"])["validation"]["loss"]
    assert losses[0.5] == pytest.approx(log_of(warmed_up, "eval_loss")[4], rel=1e-5)
    assert losses[1.0] != pytest.approx(losses[0.5], rel=1e-5)


def test_no_checkpoint_of_the_warm_up_is_the_best(selective_recipe, tmp_path):
    """If a high loss were good, the first would be the best."""
    flags = ("--load_best_model_at_end", "--metric_for_best_model=loss", "--greater_is_better=true")
    train_lm(*selective_recipe(tmp_path, *FLAGS, *EVALUATED, *flags))
    losses = log_of(tmp_path, "eval_loss")
    state = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))
    assert max(losses, key=losses.get) < 8 <= state["best_global_step"]
    assert state["best_metric"] == max(loss for step, loss in losses.items() if step >= 8)
    assert_same_weights(tmp_path, tmp_path / f"checkpoint-{state['best_global_step']}")


def llama(folder, tokenizer):
    """A small Llama with a tokenizer, in a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=2,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_training_goes_on_from_a_llama_that_has_cast_no_votes(warmed_up, selective_recipe, tmp_path):
    """The first step is Llama's own."""
    llama(tmp_path / "llama", AutoTokenizer.from_pretrained(warmed_up))
    convert_checkpoint("selective_attn", tmp_path / "llama", tmp_path / "selective")
    flags = ("--max_steps=4", "--selection_warmup_steps=3", "--per_device_train_batch_size=4", "--weight_decay=0")
    first = {}
    for name in ("llama", "selective"):
        more = flags if name == "selective" else (flags[0], *flags[2:])
        train_lm(*selective_recipe(tmp_path / f"{name}_run", f"--model_name_or_path={tmp_path / name}", *more))
        first[name] = log_of(tmp_path / f"{name}_run", "loss")
    assert first["selective"][1] == pytest.approx(first["llama"][1], rel=1e-5)
    assert first["selective"][4] != pytest.approx(first["llama"][4], rel=1e-5)
    assert log_of(tmp_path / "selective_run", "selection_strength") == {1: 1 / 3, 2: 2 / 3, 3: 1.0, 4: 1.0}
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "selective_run")
    assert type(trained).__name__ == "SelectiveAttnForCausalLM" and trained.config.selection_strength == 1.0


def trainer_of(warmed_up, argv, **overrides):
    _, data, training = parse_language_model(*argv)
    model = AutoModelForCausalLM.from_pretrained(warmed_up, **overrides)
    tokenizer = AutoTokenizer.from_pretrained(warmed_up)
    rows = tokenize_texts(load_texts(data)["train"], tokenizer, data)
    return LanguageModelTrainer(model, training, tokenizer, TrainingBlocks(rows, data.block_size))


def test_memory_loss_is_logged_as_the_mean_of_all_batches(warmed_up, selective_recipe, tmp_path):
    flags = ("--save_strategy=no", "--learning_rate=0", "--max_steps=2", "--logging_steps=2", "--weight_decay=0")
    flags += ("--per_device_train_batch_size=2", "--gradient_accumulation_steps=2")
    trainer = trainer_of(warmed_up, selective_recipe(tmp_path, *flags), memory_loss_coef=0.1)
    seen = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.memory_loss.item()))
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(seen) == 4 and len(set(seen)) > 1 and all(0 < value < 1 for value in seen)
    assert logged["memory_loss"] == pytest.approx(sum(seen) / 4, rel=1e-6)
    plain = trainer_of(warmed_up, selective_recipe(tmp_path, *flags))
    plain.train()
    [without] = [entry for entry in plain.state.log_history if "loss" in entry]
    assert "memory_loss" not in without and "selection_strength" not in without
    assert logged["loss"] == pytest.approx(without["loss"] + 0.1 * logged["memory_loss"], rel=1e-3)


def test_two_processes_equal_one(selective_recipe, tmp_path):
    flags = ("--max_steps=6", "--selection_warmup_steps=4", "--config_overrides=memory_loss_coef=0.1")
    process = run_script(
        "train_clm.py",
        *selective_recipe(tmp_path / "two", *flags, "--per_device_train_batch_size=2"),
        launcher=LAUNCHER,
    )
    assert process.returncode == 0, process.stderr.decode()
    train_lm(*selective_recipe(tmp_path / "one", *flags, "--per_device_train_batch_size=4"))
    assert_same_runs(tmp_path / "two", tmp_path / "one")
    one, two = (log_of(tmp_path / name, "memory_loss") for name in ("one", "two"))
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-4)
    assert log_of(tmp_path / "two", "selection_strength") == log_of(tmp_path / "one", "selection_strength")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--selection_warmup_steps=7"], r"selection_warmup_steps=7 is more than the 6 steps of the run"),
        (
            ["--selection_warmup_steps=2", "--config_overrides=use_selective_attention=false"],
            "selection_warmup_steps=2 needs a model with selective attention",
        ),
        (
            ["--selection_warmup_steps=2", "--config_overrides=selection_strength=0.0"],
            "up to selection_strength, which is 0.0 in this model",
        ),
        (
            ["--label_smoothing_factor=0.1", "--config_overrides=memory_loss_coef=0.1"],
            "label_smoothing_factor=0.1 takes the labels from the model",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(selective_recipe, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train_lm(*selective_recipe(tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_other_models_have_no_votes_to_grow(monkeypatch, lm_recipe, tmp_path):
    with pytest.raises(SystemExit, match="error: selection_warmup_steps=2 needs a model with selective attention"):
        run_here(monkeypatch, "train_clm.py", *lm_recipe(tmp_path / "run", "--selection_warmup_steps=2"))


def test_steps_are_not_negative(tmp_path):
    with pytest.raises(ValueError, match="selection_warmup_steps must be at least 0, got -1"):
        LanguageModelTrainingArguments(output_dir=str(tmp_path), use_cpu=True, selection_warmup_steps=-1)
