# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The page on which a model can be tried: what it computes, and what a browser shows of it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from ecosystem.subjects import OURS

if find_spec("gradio") is None:
    pytest.skip("gradio, of the extra `demo`, is not installed", allow_module_level=True)

from transformers import DynamicCache

from leanformers.accounting import cache_bytes
from leanformers.data.tokenizers import train_language_tokenizer, train_tokenizer
from leanformers.hub import page
from leanformers.hub.space import write_space

SUBJECTS = {subject.name: subject for subject in OURS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A saved model of each kind with its tokenizer."""
    found, root = {}, tmp_path_factory.mktemp("models")
    for name in ("Anthe", "FastWeight", "SelectiveAttn"):
        train = train_language_tokenizer if SUBJECTS[name].is_decoder else train_tokenizer
        tokenizer = train(["nine thousand and one", "def main(): return 1"], vocab_size=260)
        ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        SUBJECTS[name].build(**ids).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        found[name] = str(root / name)
    return found


@pytest.fixture
def loaded(folders):
    return lambda name: page.Loaded(folders[name], trust_remote_code=False)


def test_beams_come_with_scores_and_attention(loaded):
    table, attention = page.translate(loaded("Anthe"), "one < two", 3)
    scores = [float(score) for score in table["score"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    columns = attention[: attention.index("</tr>")].count("<th>")
    assert columns == 1 + len("one < two") + 1  # a corner, a byte each and </s>
    assert "&lt;" in attention and "<script" not in attention
    assert attention.count("<tr>") > 1
    single, _ = page.translate(loaded("Anthe"), "one", 1)
    assert list(single["score"]) == [""]


def test_attention_leaves_the_model_as_it_was(loaded):
    model = loaded("Anthe")
    before = model.config._attn_implementation
    page.translate(model, "one", 2)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("name", ["FastWeight", "SelectiveAttn"])
def test_written_text_is_what_generate_writes(loaded, name):
    model = loaded(name)
    *_, (tokens, rows, sentence) = page.write(model, "def main", 12, 0.0)
    ids = model.tokenizer("def main", return_tensors="pt").input_ids
    expected = model.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, repetition_penalty=1.0)
    assert [text for text, _ in tokens] == [model.tokenizer.decode([token]) or " " for token in expected[0].tolist()]
    held = rows[rows["cache"] == "this model"]["KiB"].tolist()
    assert len(held) == 13 and f"{held[-1]:,.1f} KiB" in sentence
    assert (len(set(held)) == 1) == (name == "FastWeight")


def test_bytes_are_those_of_the_accounting(loaded):
    model = loaded("SelectiveAttn")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.model(torch.arange(4, 24)[None], past_key_values=cache, use_cache=True)
    assert page.cache_bytes(cache) == cache_bytes(cache)


def test_what_a_budget_drops_is_shown_as_forgotten(loaded):
    model = loaded("SelectiveAttn")
    *_, (tokens, rows, _) = page.write(model, "def main(): return 1", 20, 0.0, budget=8)
    shares = [share for _, share in tokens]
    assert shares[0] == shares[-1] == 0.0  # the first token and the current one are always held
    held = sum(1 - share for share in shares) * model.config.num_hidden_layers
    assert held == pytest.approx(8 * model.config.num_hidden_layers)
    sizes = rows[rows["cache"] == "this model"]["KiB"].tolist()
    assert len(set(sizes)) == 1
    *_, (tokens, _, _) = page.write(model, "def main(): return 1", 20, 0.0, budget=0)
    assert model.config.memory_budgets is None


def test_the_same_seed_samples_the_same_text(loaded):
    model, texts = loaded("FastWeight"), []
    for seed in (0, 0, 1):
        *_, (tokens, _, _) = page.write(model, "x", 10, 1.0, seed)
        texts.append("".join(text for text, _ in tokens))
    assert texts[0] == texts[1] != texts[2]


def test_delta_rule_overwrites_and_sum_rule_adds(loaded):
    pairs = "France = Paris\nItaly = Rome\nFrance = Lyon"
    similar = {}
    for rule in ("delta", "sum"):
        table, answer = page.associate(loaded("FastWeight"), pairs, "France", rule)
        similar[rule] = dict(zip(table["value"], table["similarity"], strict=True))
    assert max(similar["delta"], key=similar["delta"].get) == "Lyon"
    assert similar["delta"]["Lyon"] > similar["sum"]["Lyon"]
    assert similar["delta"]["Paris"] < similar["sum"]["Paris"]
    table, answer = page.associate(loaded("FastWeight"), pairs, "Italy", "delta")
    assert answer.startswith("**Rome**")


@pytest.mark.parametrize(("pairs", "question"), [("", "France"), ("France", "France"), ("a = b", " ")])
def test_nothing_to_ask_is_said(loaded, pairs, question):
    with pytest.raises(page.gr.Error, match="France = Paris"):
        page.associate(loaded("FastWeight"), pairs, question, "delta")


def test_nothing_to_translate_is_said(loaded):
    with pytest.raises(page.gr.Error, match="Type something"):
        page.translate(loaded("Anthe"), "  ", 2)


@pytest.mark.slow
def test_space_runs_the_page(folders, tmp_path):
    space = write_space(tmp_path / "space", "somebody/model", "abc123")
    assert {path.name for path in space.iterdir()} == {"app.py", "page.py", "requirements.txt", "README.md"}
    assert (space / "page.py").read_bytes() == Path(page.__file__).read_bytes()
    # Without leanformers, app.py asks for just that repository and commit, which is not to be had offline.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['leanformers'] = None; import runpy; sys.path[0] = '.'; runpy.run_path('app.py')",
    ]
    run = subprocess.run(command, cwd=space, env=environment, capture_output=True, text=True)
    assert run.returncode != 0 and "somebody/model" in run.stderr
    (space / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write_space(space, "somebody/model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Anthe", "FastWeight", "SelectiveAttn"])
def test_a_browser_shows_it(folders, name, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on the path")
    playwright = pytest.importorskip("playwright.sync_api")
    blocks = page.build_page(page.Loaded(folders[name], trust_remote_code=False))
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, css=page.CSS)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            view, faults = browser.new_page(), []
            view.on("pageerror", lambda error: faults.append(str(error)))
            view.goto(address)
            CLICKS[name](view)
            view.screenshot(path=str(tmp_path / f"{name}.png"), full_page=True)
            browser.close()
    finally:
        blocks.close()
    assert not faults and (tmp_path / f"{name}.png").stat().st_size > 10_000


def click_translate(view):
    view.click("#translate")
    view.wait_for_selector("#attention table.attention td", timeout=60_000)


def click_write(view):
    view.click("#write")
    view.wait_for_function("document.querySelector('#held').innerText.includes('KiB')", timeout=60_000)


def click_ask(view):
    click_write(view)
    view.get_by_role("tab", name="Remember").click()
    view.click("#ask")
    view.wait_for_function("document.querySelector('#answer').innerText.includes('Lyon')", timeout=60_000)


CLICKS = {"Anthe": click_translate, "FastWeight": click_ask, "SelectiveAttn": click_write}
