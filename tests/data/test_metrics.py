# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Local `evaluate` modules: sacreBLEU's own numbers, and no network."""

import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import sacrebleu

from leanformers import metrics

PREDICTIONS = ["Ein Mann geht über die Straße.", "Zwei Hunde laufen im Schnee .", "Ein Kind schläft"]
REFERENCES = ["Ein Mann geht über die Straße.", "Zwei Hunde rennen im Schnee .", "Ein Kind schläft."]
OTHERS = ["Ein Mann überquert die Straße.", "Zwei Hunde laufen durch den Schnee.", "Das Kind schläft."]


@pytest.fixture(scope="module")
def translation():
    return metrics.load("translation")


@pytest.fixture(scope="module")
def exact_match():
    return metrics.load("exact_match")


def test_translation_is_what_sacrebleu_says(translation):
    scores = translation.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score
    version = f"version:{sacrebleu.__version__}"
    assert scores["bleu_signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert scores["chrf_signature"] == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"


def test_no_bleu_of_single_words(translation):
    """It would be 0, as no four tokens are there to match."""
    scores = translation.compute(predictions=["zwei", "drei"], references=["zwei", "drei"])
    assert scores["chrf"] == 100 and not scores.keys() & {"bleu", "bleu_signature"}
    assert translation.compute(predictions=["zwei", "eins"], references=REFERENCES[:2])["bleu"] == 0


def test_several_references_for_each_sentence(translation):
    pairs = [list(pair) for pair in zip(REFERENCES, OTHERS, strict=True)]
    scores = translation.compute(predictions=PREDICTIONS, references=pairs)
    assert scores["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, OTHERS]).score
    assert scores["bleu_signature"].startswith("nrefs:2|")
    single = translation.compute(predictions=PREDICTIONS, references=[[reference] for reference in REFERENCES])
    assert single == translation.compute(predictions=PREDICTIONS, references=REFERENCES)


def test_sentences_can_be_added_in_batches(translation):
    for start in (0, 2):
        translation.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    assert translation.compute() == translation.compute(predictions=PREDICTIONS, references=REFERENCES)


def test_exact_match_counts_every_character(exact_match):
    compute = exact_match.compute
    assert compute(predictions=PREDICTIONS, references=REFERENCES) == {"exact_match": 1 / 3}
    assert compute(predictions=["eins ", "Eins", "eins"], references=["eins"] * 3) == {"exact_match": 1 / 3}


def test_metrics_combine(translation, exact_match):
    scores = evaluate.combine([translation, exact_match]).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert set(scores) == {"bleu", "chrf", "bleu_signature", "chrf_signature", "exact_match"}


def test_bad_input_is_refused_in_one_sentence(translation, exact_match):
    with pytest.raises(ValueError, match=r"same number of references, but there are \[1, 2\]"):
        translation.compute(predictions=["a", "b"], references=[["a"], ["b", "c"]])
    for metric in (translation, exact_match):
        with pytest.raises(ValueError, match="There are no predictions"):
            metric.compute(predictions=[], references=[])
        with pytest.raises(ValueError, match=r"number of predictions \(3\) and references \(2\)"):
            metric.compute(predictions=PREDICTIONS, references=REFERENCES[:2])
    with pytest.raises(ValueError, match="no metric 'bleu'; choose one of exact_match, translation"):
        metrics.load("bleu")


def test_nothing_is_fetched(tmp_path):
    """Loaded by path, as any user of `evaluate` can, in a fresh home and with every socket refused."""
    program = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'):\n"
        "        raise OSError(f'network: {event} {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "import evaluate\n"
        "both = evaluate.combine([evaluate.load(path) for path in sys.argv[1:]])\n"
        "print(both.compute(predictions=['eins zwei drei vier'], references=['eins zwei drei vier']))\n"
    )
    folders = [str(Path(metrics.__file__).parent / name) for name in ("translation", "exact_match")]
    # Not HF_HUB_OFFLINE: nothing may even be tried.
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program, *folders], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert "network" not in run.stderr
    assert "'bleu': 100.00000000000004" in run.stdout and "'exact_match': 1.0" in run.stdout
