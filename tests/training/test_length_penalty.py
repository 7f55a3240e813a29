# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The length penalty of published recipes reaches the search, in evaluation and in translation."""

import pytest
from training.runs import parse, run_here

from leanformers.arguments import GenerationArguments
from leanformers.evaluation.translation import evaluate_splits, load_translator, translate

LINES = ["forty-two", "nine hundred and ninety-nine thousand, nine hundred and ninety-nine", "seven"]
# So strong that only the length counts.
PENALTIES = (-30.0, 30.0)


@pytest.fixture(scope="module")
def translator(trained):
    return load_translator(str(trained))


def search(penalty: float) -> GenerationArguments:
    return GenerationArguments(num_beams=4, length_penalty=penalty, device="cpu")


def test_larger_penalties_favour_longer_translations(translator):
    short, long = (translate(*translator, LINES, **search(penalty).search_settings()) for penalty in PENALTIES)
    assert sum(map(len, short)) < sum(map(len, long))


def test_evaluation_takes_it(translator, data):
    _, arguments, _ = parse(*data, "--max_target_length=40", "--output_dir=unused", "--use_cpu=true")
    short, long = (evaluate_splits(*translator, arguments, search(penalty), ["test_first"]) for penalty in PENALTIES)
    assert short["test_first"]["loss"] == long["test_first"]["loss"]
    assert short["test_first"]["chrf"] != long["test_first"]["chrf"]


def test_generate_script_takes_it(translator, trained, tmp_path, monkeypatch):
    (tmp_path / "lines").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    run_here(
        monkeypatch,
        "generate.py",
        *(f"--model_name_or_path={trained}", f"--input_file={tmp_path / 'lines'}", "--device=cpu"),
        *(f"--output_file={tmp_path / 'output'}", "--num_beams=4", f"--length_penalty={PENALTIES[0]}"),
    )
    expected = translate(*translator, LINES, **search(PENALTIES[0]).search_settings())
    assert (tmp_path / "output").read_text(encoding="utf-8").splitlines() == expected


def test_without_beams_it_is_refused():
    with pytest.raises(ValueError, match="give --num_beams"):
        GenerationArguments(length_penalty=0.4)
