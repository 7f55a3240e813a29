# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Lines in, translations out: each in its place, however they are batched."""

import pytest
import torch
from training.runs import run_here, run_script

from leanformers.evaluation.translation import load_translator, translate

LINES = ["forty-two", "", "nine hundred and ninety-nine thousand, nine hundred and ninety-nine", "  ", "seven", "six"]


@pytest.fixture(scope="module")
def translator(trained):
    return load_translator(str(trained))


@pytest.fixture(scope="module")
def expected(translator):
    """Every line translated alone, without padding."""
    return [translate(*translator, [line], batch_size=1)[0] for line in LINES]


def test_order_and_batching_change_nothing(translator, expected):
    assert expected[1] == expected[3] == ""
    assert any(expected)
    for batch_size in (2, 6):
        assert translate(*translator, LINES, batch_size=batch_size) == expected
    assert translate(*translator, LINES[::-1]) == expected[::-1]
    assert translate(*translator, []) == []


def test_beams_are_used(translator):
    model, tokenizers = translator
    inputs = tokenizers.source([LINES[2]], return_tensors="pt")
    output = model.generate(**inputs, num_beams=4, max_length=41)
    assert translate(model, tokenizers, LINES, num_beams=4)[2] == tokenizers.target.decode(
        output[0], skip_special_tokens=True
    )


def test_cut_translations_are_counted(translator, capture_warnings):
    lines = [line for line in LINES if line.strip()]
    texts = translate(*translator, lines, max_new_tokens=2)
    ids = [translator[1].target(text, add_special_tokens=False).input_ids for text in texts]
    assert max(map(len, ids)) <= 2
    assert "of 4 translations reached 2 tokens and were cut there" in capture_warnings()


def test_sources_and_targets_have_their_own_tokenizers(translator):
    model, tokenizers = translator
    assert not tokenizers.shared
    line = "forty-two"
    tokens = tokenizers.source(line, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**tokens, max_length=41)
    assert translate(model, tokenizers, [line]) == tokenizers.target.batch_decode(output, skip_special_tokens=True)


def test_standard_input_to_standard_output(trained, expected):
    text = "\r\n".join(LINES[:2]) + "\n" + "\n".join(LINES[2:]) + "\n"
    process = run_script(
        "generate.py", f"--model_name_or_path={trained}", "--batch_size=2", "--device=cpu", input=text.encode()
    )
    assert process.returncode == 0, process.stderr.decode()
    assert process.stdout.decode() == "".join(f"{line}\n" for line in expected)
    assert "4/4" in process.stderr.decode()


def test_file_to_file(monkeypatch, trained, expected, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(LINES), encoding="utf-8")
    flags = (f"--input_file={tmp_path / 'in.txt'}", f"--output_file={tmp_path / 'out.txt'}", "--device=cpu")
    run_here(monkeypatch, "generate.py", f"--model_name_or_path={trained}", *flags)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "".join(f"{line}\n" for line in expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input_file=nowhere.txt", "--model_name_or_path={trained}"], "nowhere.txt"),
        (["--input_file={latin}", "--model_name_or_path={trained}"], "not UTF-8"),
        (["--input_file={empty}", "--output_file={latin}/out.txt"], "latin.txt"),
        (["--input_file={empty}"], "--model_name_or_path"),
        (["--input_file={empty}", "--model_name_or_path=outputs/none"], "outputs/none is no folder"),
    ],
)
def test_bad_input(monkeypatch, trained, tmp_path, flags, message):
    files = {"trained": trained, "latin": tmp_path / "latin.txt", "empty": tmp_path / "empty.txt"}
    files["latin"].write_bytes("zwölf".encode("latin-1"))
    files["empty"].touch()
    with pytest.raises(SystemExit, match=message) as exit:
        run_here(monkeypatch, "generate.py", *(flag.format(**files) for flag in flags))
    assert str(exit.value).startswith("error: ") and "\n" not in str(exit.value)
