# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From sentence pairs to a measured model in a folder, and what is refused before any time is spent."""

import json
import os

import pytest
import torch
from training.runs import parse, run_here, train
from transformers import AutoModelForSeq2SeqLM

from leanformers.arguments import GenerationArguments
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.evaluation.translation import evaluate_splits, load_translator
from leanformers.training.seq2seq import prepare_config

RESULTS = ("train_results.json", "eval_results.json", "test_results.json", "all_results.json")


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_loss_falls(trained):
    losses = [entry["loss"] for entry in read(trained, "trainer_state.json")["log_history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_every_result_is_written(trained):
    for name in (*RESULTS, "arguments.yaml", "training_curves.png", "model.safetensors", "target_tokenizer"):
        assert (trained / name).exists(), name
    assert not list(trained.glob("*.bin"))
    results = read(trained, "all_results.json")
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    assert results["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert results["seed"] == 42 and results["train_runtime"] > 0
    assert {"python", "torch", "transformers", "leanformers"} <= results["versions"].keys()
    assert results["hardware"].startswith(f"{os.cpu_count()}-core ")
    for prefix in ("eval", "test_first", "test_second"):
        for metric in ("chrf", "exact_match", "perplexity", "loss", "num_target_tokens"):
            assert f"{prefix}_{metric}" in results
    assert results["chrf_signature"].startswith("nrefs:1")
    assert results == {key: value for name in RESULTS[:3] for key, value in read(trained, name).items()}


def test_the_folder_generates_as_long_as_it_was_trained_to(trained):
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    assert model.generation_config.max_length == 41
    assert model.config.source_vocab_size == model.config.vocab_size == 300


def test_evaluation_in_training_equals_evaluation_of_the_folder(trained):
    model, tokenizers = load_translator(str(trained))
    _, data, _ = parse(trained / "arguments.yaml")
    results = evaluate_splits(model, tokenizers, data, GenerationArguments(batch_size=5), ["validation", "test_first"])
    expected = read(trained, "all_results.json")
    for split, prefix in (("validation", "eval"), ("test_first", "test_first")):
        for key in ("chrf", "exact_match", "num_target_tokens"):
            assert results[split][key] == expected[f"{prefix}_{key}"]
        assert results[split]["perplexity"] == pytest.approx(expected[f"{prefix}_perplexity"], rel=1e-5)


def test_evaluate_script(monkeypatch, trained, data, tmp_path):
    output = tmp_path / "results.json"
    run_here(
        monkeypatch,
        "evaluate.py",
        *(f"--model_name_or_path={trained}", "--num_beams=2", f"--output_file={output}", "--device=cpu", *data),
    )
    results = read(tmp_path, "results.json")
    assert results.keys() == {"test_first", "test_second"}
    assert results["test_first"] == results["test_second"]
    assert results["test_first"]["num_sentences"] == 7


def test_fine_tuning_starts_from_the_saved_weights(trained, recipe, tmp_path):
    flags = (f"--model_name_or_path={trained}", "--learning_rate=0", "--max_steps=1", "--weight_decay=0")
    train(*recipe(tmp_path / "tuned", *flags))
    before, after = (load_translator(str(folder))[0].state_dict() for folder in (trained, tmp_path / "tuned"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "tuned/target_tokenizer").is_dir()


def test_shared_tokenizer_and_no_validation(recipe, tmp_path):
    train_only = recipe(tmp_path / "run", "--max_steps=2", "--shared_tokenizer")
    start = train_only.index("--validation_files")
    results = train(*train_only[:start], *train_only[start + 6 :])
    assert "eval_loss" not in results and "test_first_loss" not in results
    assert not (tmp_path / "run/target_tokenizer").exists()
    assert load_translator(str(tmp_path / "run"))[1].shared


def test_damaged_weights_are_named(trained, tmp_path):
    folder = tmp_path / "damaged"
    load_translator(str(trained))[0].save_pretrained(folder)
    TranslationTokenizers.from_pretrained(trained).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"damaged \(model\.safetensors\) are damaged"):
        load_translator(str(folder))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_name=nowhere.json"], "nowhere.json cannot be read"),
        (["--config_name="], "Name the model: --config_name"),
        (["--model_name_or_path=outputs/none"], "outputs/none is no folder or repository"),
        (["--model_name_or_path={trained}", "--config_overrides=dropout=0.0"], "takes no config_overrides"),
        (["--config_overrides=hiden_size=64"], "AntheConfig has no 'hiden_size'; did you mean 'hidden_size'"),
        (["--config_overrides=hidden_size=wide"], "hidden_size"),
        (
            ["--config_overrides=vocab_size=100"],
            "target tokenizer has 300 tokens, but the model's vocabulary only 100",
        ),
        (["--config_overrides=source_vocab_size=9"], "source tokenizer has 300 tokens"),
        (["--max_target_length=3"], "longer than max_source_length=64 or max_target_length=3"),
        (["--tokenizer_vocab_size=20"], "vocab_size=20"),
        (["--train_files", "a.en"], "train_files needs two files"),
    ],
)
def test_bad_input_is_refused(recipe, trained, tmp_path, flags, message):
    flags = [flag.format(trained=trained) for flag in flags]
    with pytest.raises((ValueError, OSError), match=message):
        train(*recipe(tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_run_that_failed_before_training_can_be_repeated(recipe, tmp_path):
    with pytest.raises(ValueError, match="vocabulary only 100"):
        train(*recipe(tmp_path, "--config_overrides=vocab_size=100"))
    assert any(tmp_path.iterdir())
    train(*recipe(tmp_path, "--max_steps=1"))


def test_a_directory_in_use_is_left_alone(recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty: --resume"):
        train(*recipe(tmp_path))
    with pytest.raises(ValueError, match="holds no run of this script"):
        train(*recipe(tmp_path, "--overwrite_output_dir"))
    with pytest.raises(ValueError, match="nothing to resume"):
        train(*recipe(tmp_path, "--resume"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_run_can_be_overwritten(recipe, tmp_path):
    train(*recipe(tmp_path, "--max_steps=1"))
    (tmp_path / "left over").touch()
    train(*recipe(tmp_path, "--max_steps=1", "--overwrite_output_dir"))
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / "left over").exists()


def test_script_says_one_sentence(monkeypatch, recipe, tmp_path):
    with pytest.raises(SystemExit, match="^error: .*nowhere.json cannot be read"):
        run_here(monkeypatch, "train_seq2seq.py", *recipe(tmp_path / "run", "--config_name=nowhere.json"))


def test_configuration_takes_what_the_tokenizers_say(root, trained):
    tokenizers = TranslationTokenizers.from_pretrained(trained)
    model, _, _ = parse("--config_name", root / "configs/model/anthe/small.json", "--config_overrides=dropout=0.0")
    config = prepare_config(model, tokenizers)
    assert (config.vocab_size, config.source_vocab_size, config.dropout) == (300, 300, 0.0)
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (0, 2, 3)
    assert prepare_config(model, TranslationTokenizers(tokenizers.source, tokenizers.source)).source_vocab_size is None


def test_two_tokenizers_cannot_share_a_table(root, trained):
    tokenizers = TranslationTokenizers.from_pretrained(trained)
    model, _, _ = parse("--config_name", root / "configs/model/delight/wmt14_en_de_128.json")
    with pytest.raises(ValueError, match="one token table, but there are two tokenizers"):
        prepare_config(model, tokenizers)
    assert prepare_config(model, TranslationTokenizers(tokenizers.source, tokenizers.source)).share_embeddings
