# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The fraction of predictions that equal their reference character for character."""

import datasets
import evaluate

_DESCRIPTION = "The fraction of predictions equal to their reference, every space and capital counted."
_INPUTS = """
Args:
    predictions: Strings.
    references: One string for each prediction.
Returns:
    exact_match from 0 to 1.
"""


class ExactMatch(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        if len(predictions) == 0:
            raise ValueError("There are no predictions: exact match needs at least one.")
        matches = sum(prediction == reference for prediction, reference in zip(predictions, references, strict=True))
        return {"exact_match": matches / len(predictions)}
