# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a model with selective attention forgets of a text: read off its votes, with the letters of every token."""

import logging

import pytest
import torch
from training.runs import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from leanformers.data.tokenizers import train_language_tokenizer
from leanformers.evaluation.selection import read_selections, tokens_of_text
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM

TEXT = "def f(x):\n    if x == 'ä€':\n\treturn  $x$\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a model that votes and of a Llama, and a text."""
    folder = tmp_path_factory.mktemp("selection")
    tokenizer = train_language_tokenizer(["def f(x):\n    if x == 0:\n        return x\n"] * 3, vocab_size=280)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(tokenizer), "initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 2}
    torch.manual_seed(0)
    models = {"model": SelectiveAttnForCausalLM(SelectiveAttnConfig(**sizes))}
    models["half"] = SelectiveAttnForCausalLM(SelectiveAttnConfig(**sizes, use_selective_attention=[False, True]))
    models["llama"] = LlamaForCausalLM(LlamaConfig(**sizes))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.py").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_pieces_are_the_text(kind):
    vocab_size = {"bpe": 280, "unigram": 270, "word": 20}[kind]
    tokenizer = train_language_tokenizer(["def f(x):\n    if x == 0:\n        return x\n"] * 3, kind, vocab_size)
    ids, pieces = tokens_of_text(tokenizer, TEXT)
    assert len(ids) == len(pieces) and pieces[0] == "</s>" and ids[0] == tokenizer.eos_token_id
    assert "".join(pieces[1:]) in (TEXT, TEXT.rstrip("\n"))
    if kind == "bpe":
        assert tokenizer.decode(ids[1:]) == TEXT
        at = pieces.index("€")
        assert pieces[at + 1 : at + 3] == ["", ""]  # three bytes


def test_votes_are_those_of_the_forward(saved):
    model = AutoModelForCausalLM.from_pretrained(saved / "model", attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(saved / "model")
    tokens, selections = read_selections(model, tokenizer, TEXT)
    length = len(tokens)
    assert [list(selection.shape) for selection in selections] == [[length, length]] * 2
    for selection in selections:
        assert selection.dtype == torch.float32 and selection.max() > 0
        assert not selection.triu().any() and not selection[:, 0].any()  # oneself, later ones, and the first
        assert (selection.diff(dim=0).tril(-1) >= -1e-5).all()
    half = AutoModelForCausalLM.from_pretrained(saved / "half", attn_implementation="eager")
    assert len(read_selections(half, tokenizer, TEXT)[1]) == 1


def test_what_is_left_out_is_said(saved, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("leanformers"), "propagate", True)
    model = AutoModelForCausalLM.from_pretrained(saved / "model", attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(saved / "model")
    tokens, selections = read_selections(model, tokenizer, TEXT, max_tokens=5)
    assert len(tokens) == 5 and selections[0].shape == (5, 5)
    assert "the first 5 are drawn" in caplog.text
    whole = read_selections(model, tokenizer, TEXT)[1]
    torch.testing.assert_close(selections[1], whole[1][:5, :5])


def test_script_draws_two_pictures(monkeypatch, saved, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = [f"--model_name_or_path={saved / 'model'}", f"--input_file={saved / 'text.py'}", "--device=cpu"]
    run_here(monkeypatch, "plot_selection.py", *flags, f"--output_dir={tmp_path / 'a'}")
    files = [tmp_path / "a" / name for name in ("selection.png", "forgotten_tokens.png")]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in files)
    run_here(monkeypatch, "plot_selection.py", *flags, f"--output_dir={tmp_path / 'b'}", "--threshold=1000")
    others = [tmp_path / "b" / file.name for file in files]
    same = [file.read_bytes() == other.read_bytes() for file, other in zip(files, others, strict=True)]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path={saved}/llama"], "LlamaForCausalLM has no selective attention"),
        (["--attn_implementation=sdpa"], "attn_implementation='sdpa' does not show F"),
        (["--input_file={saved}/nothing.txt"], "The text has no tokens"),
        (["--input_file=nowhere.txt"], "nowhere.txt"),
    ],
)
def test_script_says_one_sentence(monkeypatch, saved, tmp_path, flags, message):
    (saved / "nothing.txt").write_text("")
    common = [f"--model_name_or_path={saved / 'model'}", f"--input_file={saved / 'text.py'}", "--device=cpu"]
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run_here(
            monkeypatch,
            "plot_selection.py",
            *common,
            *(flag.format(saved=saved) for flag in flags),
            f"--output_dir={tmp_path}",
        )
    assert not list(tmp_path.iterdir())
