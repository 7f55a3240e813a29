# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One command from nothing to a folder with a card: training cut to a few steps, the rest as users get it."""

import json
import re

import pytest
import yaml
from training.runs import run_here, write_programs

from leanformers.arguments import LANGUAGE_MODEL_GROUPS, TRANSLATION_GROUPS, LeanArgumentParser
from leanformers.evaluation.loading import load_generator
from leanformers.evaluation.samples import take_samples
from leanformers.evaluation.translation import translate
from leanformers.hub.release import RELEASES, train
from leanformers.training.runs import TrainingInterrupted

SHORT = ["--max_steps=2", "--max_train_samples=64", "--max_eval_samples=6", "--eval_strategy=no", "--use_cpu=true"]
SHORT += ["--save_strategy=no", "--load_best_model_at_end=false", "--disable_tqdm=true"]


def make(monkeypatch, family, output, *flags):
    run_here(monkeypatch, "make_release.py", family, "--output", output, *flags)
    return output / family


def test_translator(tmp_path, monkeypatch, capsys):
    folder = make(monkeypatch, "anthe", tmp_path, *SHORT)
    assert "it loads and runs in a clean process" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    found = json.loads((folder / "samples.json").read_text())
    assert "the first 4 sentences of the split test, with 1 beam" in card and len(found["samples"]) == 4
    for sample in found["samples"]:
        assert sample["input"] in card and sample["reference"] in card
    sources = [sample["input"] for sample in found["samples"]]
    assert translate(*load_generator(str(folder)), sources) == [sample["output"] for sample in found["samples"]]
    results = json.loads((folder / "all_results.json").read_text())
    assert results == json.loads((tmp_path / "runs/anthe/all_results.json").read_text())
    assert f"{results['test_perplexity']:.4g} |" in card


@pytest.mark.slow
def test_large_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="MB, more than the 0.5 that a release may have"):
        make(monkeypatch, "anthe", tmp_path, *SHORT, "--max_megabytes=0.5")


@pytest.mark.parametrize(
    "family",
    ["fast_weight", pytest.param("selective_attn", marks=pytest.mark.slow)],
)
def test_language_model(family, tmp_path, monkeypatch):
    files = write_programs(tmp_path)
    private = tmp_path / "private.py"
    private.write_text("# by somebody@example.org\n" + "x = 1\n" * 100)
    # The test's own is too short to be continued.
    tests = [files["test"], str(private), files["train"]]
    flags = ["--train_files", files["train"], "--validation_files", files["validation"], "--test_files", *tests]
    flags += ["--config_overrides=hidden_size=64,intermediate_size=64,num_hidden_layers=1,num_attention_heads=1"]
    flags += ["--tokenizer_vocab_size=300", "--block_size=64", "--context_window=0"]
    folder = make(monkeypatch, family, tmp_path / "out", *SHORT, *flags)
    [given, continued] = re.findall(r"```text\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert given.startswith("def add_0(x):\n    return x") and continued

    run = tmp_path / "out/runs" / family
    settings = yaml.safe_load((run / "arguments.yaml").read_text())

    def samples_of(text):
        private.write_text(text)
        (run / "arguments.yaml").write_text(yaml.safe_dump(settings | {"test_files": [str(private)]}))
        return take_samples(run)["samples"]

    [sample] = samples_of("one line " * 50)
    assert sample["input"] == ("one line " * 50)[: len(sample["input"])] and sample["input"].endswith("one")
    with pytest.raises(ValueError, match="No text of test has more than 240 characters"):
        samples_of("short")
    (run / "arguments.yaml").write_text(yaml.safe_dump(settings | {"test_files": None}))
    with pytest.raises(ValueError, match="There is no test set to take samples from; the data has train, validation"):
        take_samples(run)


def test_training_goes_on_and_ends(root, tmp_path):
    """What an interruption leaves is a checkpoint, and no results."""

    def train_further(*flags):
        train(RELEASES["anthe"], tmp_path / "run", flags, root / "configs")

    def of_run(name):
        return json.loads((tmp_path / "run" / name).read_text())

    steps = ["--save_strategy=steps", "--save_steps=1"]
    train_further(*SHORT, *steps, "--max_steps=1")
    (tmp_path / "run/all_results.json").unlink()
    train_further(*SHORT, *steps, "--max_steps=2")
    assert of_run("trainer_state.json")["global_step"] == 2
    assert of_run("all_results.json")["test_perplexity"] > 1
    checkpoints = {path.name: path.stat().st_mtime for path in (tmp_path / "run").glob("checkpoint-*")}
    assert set(checkpoints) == {"checkpoint-1", "checkpoint-2"}

    train_further()
    with pytest.raises(ValueError, match="--max_steps=3 has no effect on it: add --overwrite_output_dir"):
        train_further("--max_steps=3")
    assert checkpoints == {path.name: path.stat().st_mtime for path in (tmp_path / "run").glob("checkpoint-*")}
    train_further(*SHORT, "--max_steps=1", "--overwrite_output_dir")
    assert of_run("trainer_state.json")["global_step"] == 1


@pytest.mark.parametrize("flags", [["--push"], ["--tag=v1"]])
def test_pushing_needs_a_name(flags, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        make(monkeypatch, "anthe", tmp_path, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrainingInterrupted("Stopped at step 5 of 9.", exit_code=143), 143, "Or with this command again, without"),
        (KeyboardInterrupt(), 130, "this command goes on with what is saved"),
    ],
    ids=["in training", "outside"],
)
def test_interruptions_end_in_a_sentence(error, code, message, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise error

    monkeypatch.setattr("leanformers.hub.release.make_release", interrupted)
    with pytest.raises(SystemExit, match=str(code)):
        make(monkeypatch, "anthe", tmp_path)
    assert message in capsys.readouterr().err


def test_recipes_name_what_trains_them(root):
    """Each changes one of configs/train, and both together are flags of the script that its second line names."""
    for path in sorted((root / "configs/release").glob("*.yaml")):
        command = path.read_text().splitlines()[1].removeprefix("# python ").split()
        script, recipe, release = command
        assert release == f"configs/release/{path.name}" and recipe.startswith(f"configs/train/{path.stem}_")
        groups = TRANSLATION_GROUPS if script == "scripts/train_seq2seq.py" else LANGUAGE_MODEL_GROUPS
        *_, training = LeanArgumentParser(groups).parse([str(root / recipe), str(path)])
        assert training.max_steps == yaml.safe_load(path.read_text())["max_steps"]
        assert training.save_steps % training.eval_steps == 0
