# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""`pipeline(task, folder)` on what a user has: a folder from the Hub, with leanformers installed and without."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, pipeline, set_seed

from leanformers.hub import clean_process
from leanformers.hub.export import export
from numerics import assert_close

TEXTS = ["The first text.", "Another", "And one more that is longer."]
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
STRANGER = Path(__file__).with_name("stranger.py")


@pytest.fixture
def folder(subject, tokenizer, tmp_path) -> Path:
    return write(subject, subject.build(), tokenizer, tmp_path / "folder")


def write(subject, model, tokenizer, folder: Path) -> Path:
    if subject.is_peer:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    return export(model, tokenizer, folder, check=False)


@pytest.mark.tool("pipelines", "text-generation")
def test_texts_are_continued(decoder, tokenizer, tmp_path):
    folder = write(decoder, decoder.build(), tokenizer, tmp_path / "folder")
    generator = pipeline("text-generation", model=folder)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    alone = [generator(text, **options)[0]["generated_text"] for text in TEXTS]
    assert [texts[0]["generated_text"] for texts in generator(TEXTS, batch_size=3, **options)] == alone
    model, ids = decoder.build(), tokenizer(TEXTS[0], return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert alone[0] == tokenizer.decode(written, skip_special_tokens=True)
    generator.tokenizer.chat_template = CHAT
    messages = [{"role": "user", "content": "Hello"}]
    answer = generator(messages, max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert answer[:-1] == messages and answer[-1]["role"] == "assistant"


@pytest.mark.tool("pipelines", "translation, text2text-generation")
def test_translation_pipelines_have_left_transformers(translator, tokenizer, tmp_path, verdict):
    folder = write(translator, translator.build(), tokenizer, tmp_path / "folder")
    for task in ("translation", "translation_en_to_de", "text2text-generation", "summarization"):
        with pytest.raises(KeyError, match=task):
            pipeline(task, model=folder)
    verdict.refused("transformers 5 removed them: AutoModelForSeq2SeqLM and generate do the same")


@pytest.mark.tool("pipelines", "feature-extraction")
def test_features_are_the_last_hidden_states(subject, folder, tokenizer, verdict):
    extractor = pipeline("feature-extraction", model=folder)
    if not subject.is_decoder:
        with pytest.raises(ValueError, match="input_ids" if subject.is_peer else "`decoder_input_ids`"):
            extractor(TEXTS[0])
        verdict.refused("a translator wants a target as well: take its encoder, model.get_encoder()")
        return
    model = subject.build().base_model
    for text, features in zip(TEXTS, extractor(TEXTS, batch_size=1), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert_close("features", torch.tensor(features), expected)


@pytest.mark.tool("pipelines", "text-classification")
def test_texts_are_classified_by_their_logits(subject, tokenizer, tmp_path, verdict):
    set_seed(0)
    if type(subject.config()) not in AutoModelForSequenceClassification._model_mapping:
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            AutoModelForSequenceClassification.from_config(subject.config())
        verdict.refused("it has no classification head")
        return
    model = AutoModelForSequenceClassification.from_config(subject.config(num_labels=3)).eval()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "folder")
    classifier = pipeline("text-classification", model=tmp_path / "folder", top_k=None)
    texts = [f"{text}</s>" for text in TEXTS]  # T5 reads off the end of the sentence
    results = classifier(texts, batch_size=3)
    for text, result in zip(texts, results, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        scores = {label["label"]: label["score"] for label in result}
        assert_close("scores", torch.tensor([scores[f"LABEL_{i}"] for i in range(3)]), expected)


@pytest.mark.slow
@pytest.mark.tool("pipelines", "in a process without the library (trust_remote_code)")
def test_stranger_writes_the_same(subject, folder, tokenizer, tmp_path):
    model, ids = subject.build(), tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = tmp_path / "result.json"
    command = [
        sys.executable,
        "-P",
        str(STRANGER),
        clean_process.__file__,
        subject.auto_class,
        str(folder),
        str(result),
    ]
    run = subprocess.run([*command, TEXTS[0]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["ids"] == expected and found["transformers"] == transformers.__version__
    assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)
