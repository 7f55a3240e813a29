# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""lm-evaluation-harness from task files on this machine finds what we find; `evaluate` loads our metrics by path."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch
from ecosystem.lm_eval_tasks import QUESTIONS, TEXTS, write_tasks
from ecosystem.subjects import Subject, subjects
from ecosystem.texts import words

from leanformers import metrics
from leanformers.evaluation.language_modeling import language_model_perplexity
from leanformers.hub import clean_process


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> tuple[Path, list[str]]:
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("lm_eval") / "tasks"
    return folder, write_tasks(folder)


def bits_per_byte(model, tokenizer) -> float:
    """By the library's own measure; the harness puts `<s>` before each text."""
    bits = num_bytes = 0.0
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text).input_ids]
        found = language_model_perplexity(model, ids, block_size=256, num_bytes=len(text.encode()))
        bits, num_bytes = bits + found["bits_per_byte"] * len(text.encode()), num_bytes + len(text.encode())
    return bits / num_bytes


@torch.no_grad()
def choice_scores(model, tokenizer, text: str, choices: tuple[str, ...]) -> list[float]:
    """Log-probability of each choice after the text."""
    scores = []
    for choice in choices:
        context, ids = tokenizer(text).input_ids, tokenizer(text + choice).input_ids
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(logits[at - 1, ids[at]].item() for at in range(len(context), len(ids))))
    return scores


@pytest.mark.slow
@pytest.mark.tool("evaluation", "lm-eval, a model in memory")
def test_lm_eval(decoder, tokenizer, tasks, verdict):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    folder, names = tasks
    model, options = decoder.build(), {"tokenizer": tokenizer, "batch_size": 2, "device": "cpu"}
    harness = HFLM(pretrained=model, **options)
    if harness.backend == "seq2seq":
        verdict.limits('needs backend="causal" where leanformers is imported: its model_type also translates')
        harness = HFLM(pretrained=model, backend="causal", **options)
    found = lm_eval.simple_evaluate(
        harness,
        tasks=names,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    expected = bits_per_byte(model, tokenizer)
    assert found["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert found["results"]["local_text"]["byte_perplexity,none"] == pytest.approx(2**expected, rel=1e-5)
    correct = 0
    for sample in found["samples"]["local_question"]:
        question = QUESTIONS[sample["doc_id"]]
        scores = choice_scores(model, tokenizer, *question)
        assert [float(answer[0][0]) for answer in sample["resps"]] == pytest.approx(scores, rel=1e-4)
        correct += max(scores) == scores[0]
    assert found["results"]["local_question"]["acc,none"] == correct / len(QUESTIONS)
    for sample in found["samples"]["local_continuation"]:
        ids = tokenizer(QUESTIONS[sample["doc_id"]][0], return_tensors="pt").input_ids
        text = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert sample["resps"][0][0] == tokenizer.decode(text, skip_special_tokens=True).split("</s>")[0]


@pytest.fixture(scope="module")
def remote_results(tasks, tokenizer, tmp_path_factory) -> dict[str, dict]:
    """What the harness finds in a process without leanformers and without a network."""
    folder = tmp_path_factory.mktemp("remote")
    for decoder in subjects(os.environ.get("LEANFORMERS_PEERS") == "1", lambda subject: subject.is_decoder):
        try:
            decoder.build().save_pretrained(folder / "models" / decoder.name)
        except Exception as error:
            assert decoder.is_peer, error
            continue
        tokenizer.save_pretrained(folder / "models" / decoder.name)
    script, loader = Path(__file__).with_name("remote_evaluation.py"), clean_process.__file__
    command = [sys.executable, "-P", str(script), loader, "models", str(tasks[0]), "results.json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.tool("evaluation", "lm-eval, pretrained=folder,trust_remote_code=True")
def test_lm_eval_of_remote_code(decoder: Subject, tokenizer, remote_results):
    found = remote_results[decoder.name]
    assert "error" not in found, found["error"]
    expected = bits_per_byte(decoder.build(), tokenizer)
    assert found["local_text"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(found["local_question"]["acc,none"]) and "exact_match,none" in found["local_continuation"]


@pytest.mark.tool("evaluation", "evaluate: our metrics, by path")
def test_metrics_load_by_path(subject, tokenizer):
    ids = subject.build().generate(words(), max_new_tokens=12, do_sample=True, eos_token_id=None)
    texts = [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in ids[:, -12:]]
    for name, score, best in (("exact_match", "exact_match", 1), ("translation", "bleu", 100)):
        metric = evaluate.load(str(Path(metrics.__file__).with_name(name)))
        assert metric.compute(predictions=texts, references=texts)[score] == pytest.approx(best)
        assert metric.compute(predictions=texts, references=texts[::-1])[score] < best
