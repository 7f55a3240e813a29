# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""YAML gives defaults, the command line wins, and every mistake ends in one sentence."""

from dataclasses import asdict

import pytest
import yaml
from training.runs import parse

from leanformers.arguments import TRANSLATION_GROUPS, LeanArgumentParser, parse_overrides, plain_errors
from leanformers.training.runs import write_arguments


@pytest.fixture
def refused(capsys):
    """The sentence with which arguments are refused."""

    def sentence(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit:
            parse(*argv)
        assert exit.value.code == 2
        output = capsys.readouterr().err.strip()
        assert "\n" not in output
        return output

    return sentence


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_yaml_then_later_yaml_then_flags(recipe_file):
    first = recipe_file("learning_rate: 1e-3\nmax_steps: 20\nseed: 1\ntask: numbers\n", "first.yaml")
    second = recipe_file("max_steps: 30\nseed: 2\n", "second.yaml")
    _, data, training = parse(first, second, "--seed", "3", "--train_files", "a.en", "a.de")
    assert (training.learning_rate, training.max_steps, training.seed) == (1e-3, 30, 3)
    assert (data.task, data.train_files) == ("numbers", ["a.en", "a.de"])


def test_values_that_yaml_reads_otherwise_than_meant(recipe_file):
    text = "bf16: false\nresume: true\nlr_scheduler_kwargs: {min_lr: 0.1}\ntest_files: ['a=b,c']\neval_steps: null\n"
    _, data, training = parse(recipe_file(text))
    assert training.resume and not training.bf16
    assert training.lr_scheduler_kwargs == {"min_lr": 0.1}
    assert data.test_files == ["a=b,c"]
    assert training.eval_steps is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learning_rat: 3\n", ["recipe.yaml", "'learning_rat'", "'learning_rate'"]),
        ("max_steps: many\n", ["recipe.yaml", "max_steps", "int", "'many'"]),
        ("length_policy: cut\n", ["recipe.yaml", "length_policy", "'cut'", "truncate"]),
        ("eval_strategy: no\n", ["recipe.yaml", "eval_strategy", "False", "quotes"]),
        ("seed: true\n", ["recipe.yaml", "seed", "True"]),
        ("bf16: maybe\n", ["recipe.yaml", "bf16", "maybe"]),
        ("a: b: c\n", ["recipe.yaml", "not valid YAML", "line 1"]),
        ("just text\n", ["recipe.yaml", "key: value"]),
    ],
)
def test_mistakes_in_yaml(refused, recipe_file, text, parts):
    sentence = refused(recipe_file(text))
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--learning_rat", "3"], ["--learning_rat", "--learning_rate"]),
        (["--learning-rates=3"], ["--learning-rates", "--learning_rate"]),
        (["--max", "3"], ["there is no --max"]),
        (["numbers"], ["'numbers'", "belongs to no flag"]),
        (["--max_steps", "1.5"], ["max_steps", "int", "'1.5'"]),
        (["--config_overrides", "hidden_size"], ["config_overrides", "key=value"]),
        (["--config_overrides", "a=["], ["config_overrides", "'a=['"]),
        (["nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["--remove_unused_columns", "true"], ["remove_unused_columns"]),
    ],
)
def test_mistakes_on_the_command_line(refused, argv, parts):
    sentence = refused(*argv)
    assert all(part in sentence for part in parts), sentence


def test_help_lists_every_group(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--config_name", "--length_policy", "--resume", "--learning_rate"))


@pytest.mark.parametrize(
    "text",
    [
        "hidden_size=128,dropout=1e-1,tc_ffn_ratio=null,ffn_type=relu",
        '{"hidden_size": 128, "dropout": 0.1, "tc_ffn_ratio": null, "ffn_type": "relu"}',
    ],
)
def test_config_overrides(text):
    expected = {"hidden_size": 128, "dropout": 0.1, "tc_ffn_ratio": None, "ffn_type": "relu"}
    assert parse_overrides(text) == expected


@pytest.mark.parametrize("name", ["anthe_numbers", "anthe_multi30k", "transformer_multi30k"])
def test_recipes_parse_and_explain_every_key(root, name):
    path = root / f"configs/train/{name}.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(settings) > 15
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or "  # " in line, line
    model, _, training = parse(path)
    assert (root / model.config_name).is_file()
    assert training.learning_rate == float(settings["learning_rate"])


def test_multi30k_recipes_differ_in_the_model_only(root):
    recipes = [root / f"configs/train/{name}_multi30k.yaml" for name in ("anthe", "transformer")]
    first, second = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in recipes)
    assert {key for key in first if first[key] != second[key]} == {"config_name", "output_dir"}
    assert first.keys() == second.keys()


def test_written_arguments_are_a_recipe(root, tmp_path):
    before = parse(
        *(root / "configs/train/anthe_numbers.yaml", "--config_overrides", "dropout=0.0", "--test_files", "a=b,c"),
        *("--lr_scheduler_type=cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 0.1}', "--resume"),
    )
    write_arguments(tmp_path / "arguments.yaml", *before)
    after = parse(tmp_path / "arguments.yaml", "--resume")
    assert [asdict(group) for group in before[:2]] == [asdict(group) for group in after[:2]]
    assert before[2].to_dict() == after[2].to_dict()


def test_only_errors_of_leanformers_lose_their_traceback(capsys):
    with pytest.raises(SystemExit, match="error: config_overrides must"), plain_errors():
        parse_overrides("x")
    with pytest.raises(ValueError, match="invalid literal"), plain_errors():
        int("x")


def test_abbreviations_are_no_flags():
    assert LeanArgumentParser(TRANSLATION_GROUPS).allow_abbrev is False
