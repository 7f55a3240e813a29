# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""sacreBLEU's BLEU and chrF, each with the signature that makes the number comparable."""

import datasets
import evaluate
from sacrebleu.metrics import BLEU, CHRF

_DESCRIPTION = "BLEU and chrF of translations, computed by sacreBLEU on detokenised text."
_CITATION = """@inproceedings{post-2018-call,
    title = "A Call for Clarity in Reporting {BLEU} Scores",
    author = "Post, Matt",
    booktitle = "Proceedings of the Third Conference on Machine Translation: Research Papers",
    year = "2018",
    url = "https://aclanthology.org/W18-6319",
}"""
_INPUTS = """
Args:
    predictions: The translations, one string a sentence.
    references: One string a sentence, or the same number of alternative strings for every sentence.
Returns:
    bleu and chrf from 0 to 100, and bleu_signature and chrf_signature: sacreBLEU's record of how they were computed.
    Where no reference has the four tokens that BLEU looks for, it would be 0 for perfect translations and is left out.
"""


class Translation(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict | None:
        """Compute BLEU and chrF of the sentences given here or added before."""
        if predictions is not None and len(predictions) == 0:
            raise ValueError("There are no predictions: BLEU and chrF need at least one sentence.")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions, references) -> dict[str, float | str]:
        alternatives = [[line] if isinstance(line, str) else line for line in references]
        counts = {len(lines) for lines in alternatives}
        if len(counts) > 1:
            raise ValueError(f"Every sentence needs the same number of references, but there are {sorted(counts)}.")
        streams = list(zip(*alternatives, strict=True))
        bleu, chrf = BLEU(), CHRF()
        metrics: dict[str, BLEU | CHRF] = {"bleu": bleu, "chrf": chrf}
        if not any(bleu.corpus_score(stream, streams).totals[3] for stream in streams):
            del metrics["bleu"]
        scores = {name: metric.corpus_score(predictions, streams).score for name, metric in metrics.items()}
        return scores | {f"{name}_signature": str(metric.get_signature()) for name, metric in metrics.items()}
