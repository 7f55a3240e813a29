# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Prompts in, texts out, and the perplexity of text: what generate.py and evaluate.py do with a language model."""

import json
import math
import shutil

import pytest
import torch
from training.runs import run_here, run_script

from leanformers.data.tokenizers import train_language_tokenizer, train_tokenizer
from leanformers.evaluation.generation import SamplingArguments, continue_prompts, prompt_ids
from leanformers.evaluation.language_modeling import language_model_perplexity
from leanformers.evaluation.loading import load_generator
from leanformers.evaluation.translation import load_translator
from leanformers.modeling.delight import DeLighTConfig, DeLighTForCausalLM

TEXT = "def main():\n    for name in names:\n        print(name)\n    return 0\n"
PROMPTS = ["def main", "", "for name in names:", "x", "return"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained language model, whose weights are large enough to make its texts differ."""
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer = train_language_tokenizer([TEXT], vocab_size=280)
    torch.manual_seed(0)
    config = DeLighTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        embedding_size=16,
        num_decoder_layers=2,
        min_depth=2,
        max_depth=3,
        is_encoder_decoder=False,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    )
    model = DeLighTForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    model, tokenizers = load_generator(str(saved))
    return model, tokenizers.target


def alone(model, tokenizer, prompt, **settings):
    """What `generate()` makes of one prompt without padding."""
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    output = model.generate(input_ids=ids, max_new_tokens=12, **settings)[0]
    return tokenizer.decode(output[ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_order_and_batching_change_nothing(loaded, num_beams):
    expected = [alone(*loaded, prompt, num_beams=num_beams) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    for batch_size in (1, 2, 5):
        texts = continue_prompts(*loaded, PROMPTS, batch_size=batch_size, max_new_tokens=12, num_beams=num_beams)
        assert texts == expected
    assert continue_prompts(*loaded, []) == []


def test_length_comes_from_the_flag_the_model_or_a_default(loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)

    def num_tokens(**settings):
        return len(tokenizer(continue_prompts(model, tokenizer, ["x"], **settings)[0]).input_ids)

    default = num_tokens()
    monkeypatch.setattr(model.generation_config, "max_new_tokens", 30)
    assert num_tokens(max_new_tokens=3) < num_tokens() < default


def test_prompts_end_where_the_text_goes_on(loaded):
    _, tokenizer = loaded
    assert prompt_ids(tokenizer, "def")[0] == tokenizer.eos_token_id != prompt_ids(tokenizer, "def")[-1]
    appends_end = train_tokenizer([TEXT], vocab_size=280)
    assert appends_end("def").input_ids[-1] == appends_end.eos_token_id != prompt_ids(appends_end, "def")[-1]
    assert prompt_ids(appends_end, "") == [appends_end.eos_token_id]
    assert prompt_ids(tokenizer, "") == [tokenizer.eos_token_id]


def test_spaces_at_the_seam_stay(loaded):
    """A tokenizer that drops the space before a first word must not do so in the middle of a text."""
    model, tokenizer = loaded
    for prompt in PROMPTS:
        [text] = continue_prompts(model, tokenizer, [prompt], max_new_tokens=12)
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        whole = tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=12)[0], skip_special_tokens=True)
        assert prompt + text == whole


def script(monkeypatch, saved, tmp_path, *flags):
    (tmp_path / "in.txt").write_text("\n".join(PROMPTS))
    output = tmp_path / "out.jsonl"
    common = (f"--model_name_or_path={saved}", f"--input_file={tmp_path / 'in.txt'}", f"--output_file={output}")
    run_here(monkeypatch, "generate.py", *common, "--max_new_tokens=12", "--device=cpu", *flags)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_json_lines_keep_texts_apart(monkeypatch, saved, loaded, tmp_path):
    rows = script(monkeypatch, saved, tmp_path, "--batch_size=2")
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["continuation"] for row in rows] == [alone(*loaded, prompt) for prompt in PROMPTS]


def test_sampling_is_drawn_from_the_seed(monkeypatch, saved, loaded, tmp_path):
    first, again, other = (
        script(monkeypatch, saved, tmp_path, "--do_sample", "--top_p=0.9", "--temperature=2", f"--seed={seed}")
        for seed in (0, 0, 1)
    )
    assert first == again != other
    likeliest = script(monkeypatch, saved, tmp_path, "--do_sample", "--top_k=1")
    assert [row["continuation"] for row in likeliest] == [alone(*loaded, prompt) for prompt in PROMPTS]


def test_settings_of_sampling_need_sampling():
    assert SamplingArguments().settings() == {"do_sample": False}
    assert SamplingArguments(do_sample=True, top_k=0).settings() == {"do_sample": True, "top_k": 0}
    with pytest.raises(
        ValueError, match="temperature says how tokens are drawn, which they are only with --do_sample"
    ):
        SamplingArguments(temperature=0.5)


def test_standard_input_to_standard_output(saved, loaded):
    flags = (f"--model_name_or_path={saved}", "--max_new_tokens=12", "--device=cpu")
    process = run_script("generate.py", *flags, input="\n".join(PROMPTS[1:3]).encode())
    assert process.returncode == 0, process.stderr.decode()
    expected = [prompt + alone(*loaded, prompt) for prompt in PROMPTS[1:3]]
    assert process.stdout == f"{expected[0]}\n\n{expected[1]}\n".encode()
    assert "2/2" in process.stderr.decode()


def test_evaluate_script(monkeypatch, saved, loaded, tmp_path):
    """Perplexity of a text of one window is that of one forward."""
    (tmp_path / "text.py").write_text(TEXT)
    output = tmp_path / "results.json"
    flags = (f"--model_name_or_path={saved}", f"--test_files={tmp_path / 'text.py'}", f"--output_file={output}")
    run_here(monkeypatch, "evaluate.py", *flags, "--device=cpu", "--batch_size=1")
    model, tokenizer = loaded
    ids = torch.tensor([[*tokenizer(TEXT).input_ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    results = json.loads(output.read_text())["test"]
    assert results["loss"] == pytest.approx(loss, rel=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    total = loss * results["num_tokens"]
    assert results["perplexity_per_word"] == pytest.approx(math.exp(total / results["num_words"]), rel=1e-4)


def test_windows_are_those_of_the_run_unless_told_otherwise(monkeypatch, saved, loaded, tmp_path):
    """Of the folder of a run, and of a checkpoint in it."""
    run = tmp_path / "run"
    shutil.copytree(saved, run / "checkpoint-8")
    shutil.copytree(saved, run, dirs_exist_ok=True)
    (run / "arguments.yaml").write_text("task: stdlib\nblock_size: 7\n")
    (tmp_path / "text.py").write_text(TEXT)
    model, tokenizer = loaded
    ids = [tokenizer.eos_token_id, *tokenizer(TEXT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    for folder, flags, block_size in ((run, [], 7), (run / "checkpoint-8", [], 7), (run, ["--block_size=9"], 9)):
        output = tmp_path / "results.json"
        flags += [f"--model_name_or_path={folder}", f"--test_files={tmp_path / 'text.py'}", "--device=cpu"]
        run_here(monkeypatch, "evaluate.py", *flags, f"--output_file={output}")
        expected = language_model_perplexity(model, ids, block_size=block_size)["loss"]
        assert json.loads(output.read_text())["test"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_arguments_are_those_of_the_model_that_is_named(monkeypatch, saved, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "evaluate.py", f"--model_name_or_path={saved}", "--max_source_length=9")
    assert "there is no --max_source_length" in capsys.readouterr().err
    recipe = tmp_path / "evaluation.yaml"
    recipe.write_text(f"model_name_or_path: {saved}\nblock_size: 1\n")
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "evaluate.py", recipe)
    assert "block_size=1 leaves no token" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="Name the model with --model_name_or_path"):
        run_here(monkeypatch, "evaluate.py", "--max_source_length=9")


def test_a_language_model_does_not_translate(saved):
    with pytest.raises(ValueError, match=r"holds a language model \(DeLighTForCausalLM\), which does not translate"):
        load_translator(str(saved))
