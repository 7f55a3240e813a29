# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Losses under memory budgets are those of a cache that prunes, token by token; the search is the greedy one, written
out; and what was stopped goes on to the same result."""

import json
import math
import shutil

import pytest
import torch
from torch.nn import functional
from training.runs import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from leanformers.data.language_modeling import EvaluationWindows
from leanformers.data.tokenizers import train_language_tokenizer
from leanformers.evaluation import memory
from leanformers.evaluation.generation import continue_prompts
from leanformers.evaluation.language_modeling import evaluate_windows
from leanformers.evaluation.memory import (
    candidate_losses,
    loss_under_budgets,
    lowered,
    memory_factor,
    memory_held,
    search_memory_budgets,
    set_memory_budgets,
)
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM

VOCABULARY = 50
TEXT = "".join(f"def add_{number}(x):\n    return x + {number % 7}\n\n" for number in range(12))


def build(vocab_size=VOCABULARY, seed=0, **options):
    """A model whose weights are large enough for many votes."""
    torch.manual_seed(seed)
    config = SelectiveAttnConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=2,
        **options,
    )
    return SelectiveAttnForCausalLM(config).eval()


@pytest.fixture
def model():
    return build()


@pytest.fixture(scope="module")
def windows():
    """Texts that the model itself has written, so that it predicts them the worse, the less it holds of them."""
    lengths = [21] * 7 + [13]
    start = torch.full((len(lengths), 1), 2)
    written = build().generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=20, eos_token_id=None
    )
    rows = [row[:length] for row, length in zip(written.tolist(), lengths, strict=True)]
    return EvaluationWindows(sum(rows, []), [21 * index for index in range(len(rows))], block_size=20)


@torch.no_grad()
def loss_token_by_token(model, windows):
    """With a cache that prunes, one window and one token at a time."""
    total, count = 0.0, 0
    for window in windows:
        cache = DynamicCache(config=model.config)
        for token, label in zip(window["input_ids"], window["shift_labels"], strict=True):
            logits = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits[0]
            if label != -100:
                total += functional.cross_entropy(logits.double(), label.view(1)).item()
                count += 1
        assert [layer.votes.shape[1] for layer in cache.layers] == [
            min(budget, len(window["input_ids"])) for budget in model.config.memory_budgets
        ]
    return total / count


@pytest.mark.parametrize("options", [{}, {"prune_prompt": "lazy"}, {"position_embedding_type": "learned"}])
def test_loss_under_budgets_is_that_of_a_cache_that_prunes(windows, options):
    model = build(**options)
    before = model.config.to_dict()
    losses = [loss_under_budgets(model, windows, budgets, batch_size=3) for budgets in ([3, 9, 5], 20, None)]
    assert model.config.to_dict() == before
    assert losses[1] == losses[2] != pytest.approx(losses[0], rel=1e-3)
    set_memory_budgets(model, [3, 9, 5])
    assert losses[0] == pytest.approx(loss_token_by_token(model, windows), rel=1e-5)
    assert evaluate_windows(model, windows)["loss"] == pytest.approx(losses[0], rel=1e-6)


def test_memory_factor():
    assert memory_factor([8, 8], 32) == 4.0
    assert memory_factor([2, 6, 100], 20) == 60 / 28
    config = build().config
    assert memory_held(config, 20) == {} == memory_held(LlamaConfig(), 20)
    config.memory_budgets = 5
    assert memory_held(config, 20) == {"memory_budgets": [5, 5, 5], "memory_factor": 4.0}


@pytest.mark.parametrize("options", [{}, {"position_embedding_type": "learned"}])
def test_candidates_share_work_and_are_measured_as_if_alone(windows, options):
    model = build(**options).train()
    blocks, calls = list(model.model.layers), []
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, inputs, index=index: calls.append(index))
    candidates = lowered([6, 2, 9], 3)
    assert candidates == {0: [3, 2, 9], 2: [6, 2, 6]}
    losses = candidate_losses(model, windows, candidates, batch_size=100)
    assert calls == [0, 1, 2, 0, 1, 2]
    calls.clear()
    losses |= candidate_losses(model, windows, {1: [6, 3, 9], 2: [6, 2, 6]}, batch_size=100)
    assert calls == [0, 1, 2, 1, 2]
    assert model.training and list(model.model.layers) == blocks and model.config.memory_budgets is None
    for layer, budgets in {0: [3, 2, 9], 2: [6, 2, 6]}.items():
        alone = loss_under_budgets(model, windows, budgets, batch_size=100)
        assert losses[layer] == pytest.approx(alone, rel=1e-12)
    assert len(set(losses.values())) == 3


def test_candidates_begin_where_they_differ(model, windows):
    """The second of two that differ in layers 1 and 2 must not take what came into layer 1 under other budgets."""
    budgets = [4, 12, 12]
    losses = candidate_losses(model, windows, lowered(budgets, 5), batch_size=2)
    for layer, changed in lowered(budgets, 5).items():
        assert losses[layer] == pytest.approx(loss_under_budgets(model, windows, changed, batch_size=2), rel=1e-12)


def greedy(model, windows, target, step, start):
    """The search, written out: accepted budgets, each with its loss."""
    budgets = [start] * 3
    accepted = [(budgets, loss_under_budgets(model, windows, budgets, batch_size=4))]
    while True:
        tried = []
        for layer in range(3):
            if budgets[layer] > 2:
                changed = list(budgets)
                changed[layer] = max(2, budgets[layer] - step)
                loss = loss_under_budgets(model, windows, changed, batch_size=4)
                tried.append((loss, -budgets[layer], layer, changed))
        if not tried or min(tried)[0] > target:
            return accepted
        loss, _, _, budgets = min(tried)
        accepted.append((budgets, loss))


def target_of(model, windows, share=0.5):
    """A loss between that without budgets and that with the smallest ones."""
    without, smallest = (loss_under_budgets(model, windows, budgets, batch_size=4) for budgets in (None, 2))
    assert smallest > without
    return without + share * (smallest - without)


def test_search_is_greedy(model, windows, tmp_path):
    target = target_of(model, windows)
    before = model.config.to_dict()
    path = tmp_path / "new_folder" / "search.json"
    search = search_memory_budgets(model, windows, path, target_loss=target, step=5, batch_size=4)
    assert model.config.to_dict() == before
    expected = greedy(model, windows, target, step=5, start=20)
    points = search["points"]
    assert [point["budgets"] for point in points] == [budgets for budgets, _ in expected]
    assert [point["loss"] for point in points] == pytest.approx([loss for _, loss in expected], rel=1e-9)
    assert len(points) > 4 and points[-1]["loss"] <= target < min(search["rejected"].values())
    assert search["stopped"] == "target_loss" and (search["context_length"], search["num_tokens"]) == (20, 152)
    assert points[-1]["memory_factor"] == 60 / sum(points[-1]["budgets"]) > 1 == points[0]["memory_factor"]
    assert points[-1]["perplexity"] == pytest.approx(math.exp(points[-1]["loss"]))
    assert points[-1]["candidates"][str(points[-1]["layer"])] == points[-1]["loss"]
    assert json.loads(path.read_text()) == search and list(path.parent.iterdir()) == [path]


def test_search_ends_with_the_smallest_budgets(model, windows, tmp_path):
    options = {"max_loss_increase": 50.0, "step": 7, "max_budget": 9}
    search = search_memory_budgets(model, windows, tmp_path / "search.json", **options)
    assert search["points"][0]["budgets"] == [9, 9, 9] and search["points"][-1]["budgets"] == [2, 2, 2]
    assert search["stopped"] == "smallest_budgets" and "rejected" not in search
    assert search["target_loss"] == pytest.approx(search["loss_without_budgets"] + 50)
    assert len(search["points"]) == 4


@pytest.mark.parametrize("num_writes", [1, 3])
def test_a_search_that_was_stopped_goes_on_to_the_same_result(model, windows, tmp_path, monkeypatch, num_writes):
    options = {"target_loss": target_of(model, windows), "step": 5, "batch_size": 4}
    whole = search_memory_budgets(model, windows, tmp_path / "whole.json", **options)
    write, writes = memory.write_points, []

    def write_and_stop(*arguments):
        write(*arguments)
        writes.append(arguments)
        if len(writes) == num_writes:
            raise KeyboardInterrupt

    monkeypatch.setattr(memory, "write_points", write_and_stop)
    path = tmp_path / "stopped.json"
    with pytest.raises(KeyboardInterrupt):
        search_memory_budgets(model, windows, path, **options)
    assert len(json.loads(path.read_text())["points"]) == num_writes
    monkeypatch.setattr(memory, "write_points", write)
    assert search_memory_budgets(model, windows, path, **options) == whole
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    monkeypatch.setattr(memory, "candidate_losses", None)  # nothing is left to measure
    assert search_memory_budgets(model, windows, path, **options) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 6}, "is of a search with step=5, and this one has 6: give another output_dir"),
        ({"max_budget": 10}, "max_budget=20, and this one has 10"),
        ({"about": {"model_name_or_path": "b"}}, "model_name_or_path=a, and this one has b"),
        ({"model": build(seed=1)}, "is of a search with loss_without_budgets="),
    ],
)
def test_another_search_in_the_file_is_refused(model, windows, tmp_path, changes, message):
    about = {"model_name_or_path": "a"}
    options = {"model": model, "max_loss_increase": 9.0, "step": 5, "about": about, "path": tmp_path / "search.json"}
    search_memory_budgets(windows=windows, **options)
    before = options["path"].read_bytes()
    with pytest.raises(ValueError, match=message):
        search_memory_budgets(windows=windows, **options | changes)
    assert options["path"].read_bytes() == before


def test_a_search_without_an_improvement_says_so_again(model, windows, tmp_path):
    options = {"max_loss_increase": 0.0, "step": 18, "path": tmp_path / "search.json"}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"No layer can do with 18 tokens less: .* Take a smaller step or allow"):
            search_memory_budgets(model, windows, **options)
    assert json.loads(options["path"].read_text())["stopped"] == "target_loss"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either target_loss or max_loss_increase"),
        ({"target_loss": 1.0, "max_loss_increase": 1.0}, "Give either target_loss or max_loss_increase"),
        ({"max_loss_increase": 1.0, "step": 0}, "step must be at least 1, got 0"),
        (
            {"target_loss": 0.5},
            r"With 20 tokens in each layer the loss is .* above target_loss=0.5000 .*higher loss\.",
        ),
        ({"max_loss_increase": 0.0, "max_budget": 2}, "With 2 tokens in each layer .* or a larger max_budget"),
        ({"max_loss_increase": 9.0, "max_budget": 1}, "memory_budgets=.1, 1, 1. do not fit .* must be at least 2"),
        ({"max_loss_increase": 9.0, "max_budget": 2}, "The budgets were 2 from the start"),
    ],
)
def test_a_search_that_cannot_be_is_refused(model, windows, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        search_memory_budgets(model, windows, tmp_path / "search.json", **options)
    assert model.config.memory_budgets is None


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            [4, 4],
            r"memory_budgets=\[4, 4\] do not fit SelectiveAttnForCausalLM: .* one number, or 3",
        ),
        ([1], r"memory_budgets=\[1\] do not fit .* at least 2"),
        ([4, 1, 4], "at least 2"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(model, budgets, message):
    set_memory_budgets(model, [7])
    assert model.config.memory_budgets == 7
    with pytest.raises(ValueError, match=message):
        set_memory_budgets(model, budgets)
    assert model.config.memory_budgets == 7


def test_models_without_votes_have_no_budgets():
    options = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match="LlamaForCausalLM has no memory budgets"):
        set_memory_budgets(LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **options)), [4])
    with pytest.raises(ValueError, match="prunes by the votes of selective layers"):
        set_memory_budgets(build(use_selective_attention=[True, False, True]), [4])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a model, of another one with its tokenizer, and of a Llama; and a text."""
    folder = tmp_path_factory.mktemp("memory")
    tokenizer = train_language_tokenizer([TEXT], vocab_size=280)
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    models = {"model": build(len(tokenizer)), "other": build(len(tokenizer), seed=3), "llama": LlamaForCausalLM(llama)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "model/arguments.yaml").write_text("block_size: 24\n")
    (folder / "text.py").write_text(TEXT)
    return folder


def evaluate(monkeypatch, saved, output, model, *flags):
    flags += (f"--test_files={saved / 'text.py'}", "--device=cpu", f"--output_file={output}")
    run_here(monkeypatch, "evaluate.py", f"--model_name_or_path={model}", *flags)
    return json.loads(output.read_text())["test"]


def find(monkeypatch, saved, output, *flags):
    common = (f"--model_name_or_path={saved / 'model'}", f"--test_files={saved / 'text.py'}", f"--output_dir={output}")
    run_here(monkeypatch, "search_memory_budgets.py", *common, "--device=cpu", *flags)
    return json.loads((output / "memory_budgets.json").read_text())


def test_evaluate_script_takes_budgets(monkeypatch, saved, tmp_path):
    output = tmp_path / "results.json"
    plain = evaluate(monkeypatch, saved, output, saved / "model")
    assert "memory_budgets" not in plain
    same = evaluate(monkeypatch, saved, output, saved / "model", "--memory_budgets=24")
    assert same["loss"] == pytest.approx(plain["loss"], rel=1e-6) and same["memory_factor"] == 1
    pruned = evaluate(monkeypatch, saved, output, saved / "model", "--memory_budgets", "3", "5", "4")
    assert pruned["memory_budgets"] == [3, 5, 4] and pruned["memory_factor"] == 6.0
    assert pruned["loss"] != pytest.approx(plain["loss"], rel=1e-3)


def test_search_script_saves_a_model_with_budgets(monkeypatch, saved, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = ("--max_loss_increase=1.5", "--step=7")
    search = find(monkeypatch, saved, tmp_path / "pruned", *flags)
    best = search["points"][-1]
    assert f"With {best['budgets']} tokens, {best['memory_factor']:.1f} times less" in capsys.readouterr().out
    assert search["context_length"] == 24 and len(search["points"]) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert model.config.memory_budgets == best["budgets"]
    measured = evaluate(monkeypatch, saved, tmp_path / "results.json", tmp_path / "pruned")
    assert measured["loss"] == pytest.approx(best["loss"], rel=1e-6)
    assert (measured["memory_budgets"], measured["memory_factor"]) == (best["budgets"], best["memory_factor"])
    assert (tmp_path / "pruned/memory_budgets.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert find(monkeypatch, saved, tmp_path / "pruned", *flags) == search


def test_search_script_stops_at_the_loss_of_a_baseline(monkeypatch, saved, tmp_path):
    baseline = saved / "other"
    target = evaluate(monkeypatch, saved, tmp_path / "results.json", baseline, "--block_size=24")["loss"]
    without = evaluate(monkeypatch, saved, tmp_path / "results.json", saved / "model")["loss"]
    assert without < target
    search = find(monkeypatch, saved, tmp_path / "pruned", f"--baseline_model_name_or_path={baseline}", "--step=11")
    assert search["target_loss"] == pytest.approx(target, rel=1e-6)
    assert search["baseline_model_name_or_path"] == str(baseline)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_loss_increase=1", "--split=validation"], "no split 'validation' to search on; the data has .'test'."),
        (["--max_loss_increase=1", "--carry_state"], "carry_state is for models whose memory has no budget"),
        (["--max_loss_increase=1", "--output_dir={saved}/model"], "model is not empty and holds no search"),
        (["--max_loss_increase=1", "--model_name_or_path={saved}/llama"], "LlamaForCausalLM has no memory budgets"),
        (["--target_loss=0.5"], "With 24 tokens in each layer the loss is .* above target_loss=0.5"),
        (["--baseline_model_name_or_path={saved}/other_tokens"], "has other tokens than .*model"),
    ],
)
def test_search_script_says_one_sentence(monkeypatch, saved, tmp_path, flags, message):
    if not (saved / "other_tokens").exists():
        shutil.copytree(saved / "other", saved / "other_tokens")
        train_language_tokenizer(["other words"], vocab_size=270).save_pretrained(saved / "other_tokens")
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        find(monkeypatch, saved, tmp_path / "pruned", *(flag.format(saved=saved) for flag in flags))
    assert not (tmp_path / "pruned/config.json").exists()


def test_search_script_needs_one_end(monkeypatch, saved, tmp_path, capsys):
    for flags in ([], ["--max_loss_increase=1", "--target_loss=2"]):
        with pytest.raises(SystemExit):
            find(monkeypatch, saved, tmp_path / "pruned", *flags)
        assert capsys.readouterr().err.startswith("error: The search needs an end: give one of --target_loss")


def test_generate_script_takes_budgets(monkeypatch, saved, tmp_path):
    prompts = ["def add_7(x):\n    return", "def add_11(x):"]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    lines = (tmp_path / "in.txt").read_text().split("\n")
    model = AutoModelForCausalLM.from_pretrained(saved / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(saved / "model")
    texts = {}
    for budgets in ((), ("3",), ("3", "9", "4")):
        output = tmp_path / "out.jsonl"
        flags = ("--memory_budgets", *budgets) if budgets else ()
        flags += (f"--input_file={tmp_path / 'in.txt'}", f"--output_file={output}", "--max_new_tokens=20")
        run_here(monkeypatch, "generate.py", f"--model_name_or_path={saved / 'model'}", "--device=cpu", *flags)
        texts[budgets] = [json.loads(line)["continuation"] for line in output.read_text().splitlines()]
        set_memory_budgets(model, [int(budget) for budget in budgets] or None)
        assert texts[budgets] == continue_prompts(model, tokenizer, lines, max_new_tokens=20)
    assert len({str(written) for written in texts.values()}) == 3


@pytest.mark.parametrize("script", ["evaluate.py", "generate.py"])
def test_scripts_refuse_budgets_of_other_models(monkeypatch, saved, tmp_path, script):
    flags = [f"--model_name_or_path={saved / 'llama'}", "--memory_budgets=4", "--device=cpu"]
    data = "test_files" if script == "evaluate.py" else "input_file"
    with pytest.raises(SystemExit, match="error: LlamaForCausalLM has no memory budgets.*or name a SelectiveAttn"):
        run_here(monkeypatch, script, *flags, f"--{data}={saved / 'text.py'}")
