# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From text to a measured language model in a folder: by files, with separate documents, with an adaptive softmax,
interrupted and resumed; and what is refused before any time is spent."""

import json
import math
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from training.runs import parse_language_model, run_here, train_lm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from leanformers.data.language_modeling import TrainingBlocks, load_texts, tokenize_texts
from leanformers.evaluation.language_modeling import evaluate_text_splits, evaluation_windows
from leanformers.training import runs
from leanformers.training.causal_lm import prepare_config
from leanformers.training.runs import TrainingInterrupted
from leanformers.training.trainer import LanguageModelTrainer

RESULTS = ("train_results.json", "eval_results.json", "test_results.json", "all_results.json")
FLAGS = ("--max_steps=20", "--eval_strategy=steps", "--eval_steps=10", "--context_window=12")
ADAPTIVE = "adaptive_cutoffs=[40,120]"


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def losses_of(folder):
    return [entry["loss"] for entry in read(folder, "trainer_state.json")["log_history"] if "loss" in entry]


def assert_same_weights(first, second):
    weights, others = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture(scope="module")
def trained_lm(lm_recipe, tmp_path_factory):
    """20 steps with two validations."""
    folder = tmp_path_factory.mktemp("lm") / "run"
    train_lm(*lm_recipe(folder, *FLAGS))
    return folder


def test_loss_falls(trained_lm):
    losses = losses_of(trained_lm)
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]


def test_every_result_is_written(trained_lm, texts):
    for name in (*RESULTS, "arguments.yaml", "training_curves.png", "model.safetensors", "tokenizer.json"):
        assert (trained_lm / name).exists(), name
    assert not list(trained_lm.glob("*.bin"))
    results = read(trained_lm, "all_results.json")
    for prefix in ("eval", "test"):
        for metric in ("loss", "perplexity", "perplexity_per_word", "bits_per_byte", "num_tokens", "num_words"):
            assert f"{prefix}_{metric}" in results
        total = results[f"{prefix}_loss"] * results[f"{prefix}_num_tokens"]
        assert results[f"{prefix}_perplexity"] == pytest.approx(math.exp(results[f"{prefix}_loss"]))
        assert results[f"{prefix}_perplexity_per_word"] == pytest.approx(
            math.exp(total / results[f"{prefix}_num_words"])
        )
    assert results["test_num_words"] == 5 * 6 + 19
    model = AutoModelForCausalLM.from_pretrained(trained_lm)
    assert results["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (model.config.vocab_size, model.config.pad_token_id, model.config.bos_token_id) == (280, 0, 2)
    assert model.config.eos_token_id == 2 and not model.config.is_encoder_decoder


def test_evaluation_in_training_equals_evaluation_of_the_folder(trained_lm):
    model = AutoModelForCausalLM.from_pretrained(trained_lm)
    tokenizer = AutoTokenizer.from_pretrained(trained_lm)
    _, data, _ = parse_language_model(trained_lm / "arguments.yaml")
    assert data.context_window == 12
    results = evaluate_text_splits(model, tokenizer, data, batch_size=3, names=["validation", "test"])
    expected = read(trained_lm, "all_results.json")
    for split, prefix in (("validation", "eval"), ("test", "test")):
        for metric, value in results[split].items():
            assert value == pytest.approx(expected[f"{prefix}_{metric}"], rel=1e-5)


def test_resumed_run_equals_uninterrupted_run(trained_lm, lm_recipe, tmp_path, monkeypatch):
    """Stopped by the signal of Ctrl-C within the first epoch, dropout and order of blocks go on."""

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                signal.raise_signal(signal.SIGINT)

    curves = runs.CurvesCallback
    run = tmp_path / "run"
    monkeypatch.setattr(runs, "CurvesCallback", Interrupt)
    with pytest.raises(TrainingInterrupted, match=r"scripts/train_clm\.py .*arguments\.yaml --resume") as interruption:
        train_lm(*lm_recipe(run, *FLAGS))
    assert interruption.value.exit_code == 130
    monkeypatch.setattr(runs, "CurvesCallback", curves)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-8"]
    train_lm(run / "arguments.yaml", "--resume")
    assert_same_weights(run, trained_lm)
    assert losses_of(run) == losses_of(trained_lm)


def test_adaptive_softmax_trains_and_is_measured(lm_recipe, tmp_path):
    flags = (f"--config_overrides={ADAPTIVE}", "--max_steps=20", "--tokenizer_type=word", "--tokenizer_vocab_size=160")
    results = train_lm(*lm_recipe(tmp_path, *flags, "--gradient_accumulation_steps=2"))
    losses = losses_of(tmp_path)
    assert losses[-1] < 0.8 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.adaptive_cutoffs == [40, 120]
    # A word is a token, and a line feed is; the end of the text comes on top of them.
    assert results["test_num_tokens"] == results["test_num_words"] + 1


def test_separate_documents(lm_recipe, texts, tmp_path):
    flags = lm_recipe(tmp_path, "--pack_documents=separate", "--documents=lines", "--max_steps=20", "--eval_steps=10")
    results = train_lm(*flags, "--eval_strategy=steps")
    assert losses_of(tmp_path)[-1] < 0.7 * losses_of(tmp_path)[0]
    with open(texts["validation"], encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    total, num_tokens = 0.0, 0
    for line in lines:
        ids = torch.tensor([[*tokenizer(line).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        num_tokens += ids.shape[1] - 1
    assert results["eval_num_tokens"] == num_tokens
    assert results["eval_loss"] == pytest.approx(total / num_tokens, rel=1e-5)


@pytest.fixture
def start(trained_lm, lm_recipe, tmp_path):
    """A trainer of the trained model, without dropout, on blocks of which the last is short."""

    def trainer(*flags):
        argv = lm_recipe(tmp_path, "--save_strategy=no", "--max_grad_norm=0", "--max_steps=1", "--learning_rate=0")
        _, data, training = parse_language_model(*argv, *flags)
        dropouts = [name for name in vars(AutoConfig.from_pretrained(trained_lm)) if name.endswith("dropout")]
        model = AutoModelForCausalLM.from_pretrained(trained_lm, **dict.fromkeys(dropouts, 0.0))
        splits = load_texts(data)
        tokenizer = AutoTokenizer.from_pretrained(trained_lm)
        rows = tokenize_texts(splits["test"], tokenizer, data)
        blocks = TrainingBlocks(rows, data.block_size, data.pack_documents == "separate")
        windows = evaluation_windows(splits, tokenizer, data)["test"]
        return LanguageModelTrainer(model, training, tokenizer, blocks, windows)

    return trainer


def first_step(trainer):
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged["loss"], logged["grad_norm"]


def test_loss_and_gradient_do_not_depend_on_accumulation(start):
    trainer = start("--per_device_train_batch_size=32")
    num_blocks = len(trainer.train_dataset)
    assert num_blocks % 4 and len(trainer.train_dataset[num_blocks - 1]["input_ids"]) < 32
    model, total, num_tokens = trainer.model.eval(), 0.0, 0
    for index in range(num_blocks):
        ids = trainer.train_dataset[index]["input_ids"][None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        num_tokens += ids.shape[1] - 1
    assert num_tokens == len(trainer.train_dataset.tokens) - 1
    loss, norm = first_step(trainer)
    assert loss == pytest.approx(total / num_tokens, rel=1e-5)
    flags = ("--per_device_train_batch_size=3", f"--gradient_accumulation_steps={-(-num_blocks // 3)}")
    accumulated_loss, accumulated_norm = first_step(start(*flags))
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert accumulated_norm == pytest.approx(norm, rel=1e-4)


def test_packed_documents_train_as_single_ones(start):
    """The step on blocks of packed documents is that on the documents, each alone."""
    flags = ("--documents=lines", "--pack_documents=separate", "--block_size=1000", "--per_device_train_batch_size=1")
    with pytest.raises(ValueError, match="fewer than one block"):
        start(*flags)
    trainer = start(*flags[:2], "--block_size=60", "--per_device_train_batch_size=32")
    model, total, num_tokens = trainer.model.eval(), 0.0, 0
    for index in range(len(trainer.train_dataset)):
        block = trainer.train_dataset[index]
        borders = [*block["position_ids"].eq(0).nonzero()[:, 0].tolist(), len(block["input_ids"])]
        for first, last in zip(borders, borders[1:], strict=False):
            ids = block["input_ids"][None, first:last]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            num_tokens += ids.shape[1] - 1
    loss, _ = first_step(trainer)
    assert loss == pytest.approx(total / num_tokens, rel=1e-5)


def test_labels_are_shifted_once_where_they_are_smoothed(start):
    plain, _ = first_step(start("--per_device_train_batch_size=32"))
    smoothed, _ = first_step(start("--per_device_train_batch_size=32", "--label_smoothing_factor=1e-7"))
    assert smoothed == pytest.approx(plain, rel=1e-4)


def test_fine_tuning_starts_from_the_saved_weights(trained_lm, lm_recipe, tmp_path):
    flags = (f"--model_name_or_path={trained_lm}", "--learning_rate=0", "--max_steps=1", "--weight_decay=0")
    train_lm(*lm_recipe(tmp_path, *flags))
    assert_same_weights(tmp_path, trained_lm)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained_lm / "tokenizer.json").read_bytes()


def test_models_of_transformers_train_as_well(lm_recipe, tmp_path):
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    (tmp_path / "gpt2.json").write_text(json.dumps(config))
    results = train_lm(*lm_recipe(tmp_path / "run", f"--config_name={tmp_path}/gpt2.json", "--learning_rate=3e-2"))
    assert losses_of(tmp_path / "run")[-1] < losses_of(tmp_path / "run")[0]
    assert results["test_num_tokens"] > 0
    with pytest.raises(ValueError, match="block_size=33 is more than the model's max_position_embeddings=32"):
        train_lm(*lm_recipe(tmp_path / "other", f"--config_name={tmp_path}/gpt2.json", "--block_size=33"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_name=nowhere.json"], "nowhere.json cannot be read"),
        (["--config_name="], "Name the model: --config_name"),
        (["--model_name_or_path=outputs/none"], "outputs/none is no folder or repository"),
        (["--model_name_or_path={trained_lm}", "--config_overrides=dropout=0.0"], "takes no config_overrides"),
        (["--config_overrides=hiden_size=64"], "DeLighTConfig has no 'hiden_size'; did you mean 'hidden_size'"),
        (["--config_overrides=vocab_size=100"], "tokenizer has 280 tokens, but the model's vocabulary only 100"),
        (["--config_overrides=is_encoder_decoder=true"], "is an encoder-decoder, which is no language model"),
        (["--config_overrides=position_embedding_type=learned", "--block_size=65"], "max_position_embeddings=64"),
        ([f"--config_overrides={ADAPTIVE}", "--label_smoothing_factor=0.1"], "label_smoothing_factor=0.1 needs"),
        (["--config_overrides=adaptive_cutoffs=[40,400]"], "model.json with overrides"),
        (["--tokenizer_vocab_size=20"], "vocab_size=20"),
        (["--block_size=20000"], "fewer than one block of block_size=20000"),
        (["--train_files", "nowhere.txt"], "There is no file nowhere.txt"),
        (["--train_files="], "There is no file"),
    ],
)
def test_bad_input_is_refused(lm_recipe, trained_lm, tmp_path, flags, message):
    flags = [flag.format(trained_lm=trained_lm) for flag in flags]
    with pytest.raises((ValueError, OSError), match=message):
        train_lm(*lm_recipe(tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_model_without_position_ids_keeps_no_documents_apart(lm_recipe, tmp_path):
    config = {"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2}
    (tmp_path / "bloom.json").write_text(json.dumps(config))
    flags = (f"--config_name={tmp_path}/bloom.json", "--pack_documents=separate")
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        train_lm(*lm_recipe(tmp_path / "run", *flags))


def test_tests_alone_train_nothing(lm_recipe, texts, tmp_path):
    argv = [flag for flag in lm_recipe(tmp_path / "run") if not flag.startswith("--train_files")]
    with pytest.raises(ValueError, match="no text to train on"):
        train_lm(*argv)


def test_a_directory_in_use_is_left_alone(lm_recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty: --resume"):
        train_lm(*lm_recipe(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_script_says_one_sentence(monkeypatch, lm_recipe, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^error: .*nowhere.json cannot be read"):
        run_here(monkeypatch, "train_clm.py", *lm_recipe(tmp_path / "run", "--config_name=nowhere.json"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "train_clm.py", *lm_recipe(tmp_path / "run", "--context_window=32"))
    assert capsys.readouterr().err.strip().startswith("error: context_window=32 must be")


def test_configuration_takes_what_the_tokenizer_says(root, trained_lm):
    model, _, _ = parse_language_model(root / "configs/train/delight_stdlib.yaml", "--config_overrides=dropout=0.0")
    model.config_name = str(root / model.config_name)
    config = prepare_config(model, AutoTokenizer.from_pretrained(trained_lm))
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.dropout) == (280, 0, 2, 0.0)
