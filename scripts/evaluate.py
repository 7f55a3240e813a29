# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Measure a trained translator: python scripts/evaluate.py --model_name_or_path outputs/anthe_numbers --task numbers

Writes BLEU, chrF, exact match and perplexity per real target token of every test set as JSON.
"""

import json
import sys
from pathlib import Path

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import (
    EvaluationArguments,
    GenerationArguments,
    LeanArgumentParser,
    ModelArguments,
    TranslationDataArguments,
    plain_errors,
)
from leanformers.evaluation.lines import reserve
from leanformers.evaluation.loading import fastest_device
from leanformers.evaluation.translation import evaluate_splits, load_translator


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    parser = LeanArgumentParser([ModelArguments, TranslationDataArguments, GenerationArguments, EvaluationArguments])
    model_arguments, data_arguments, generation, arguments = parser.parse()
    with plain_errors():
        reserve(arguments.output_file)
        model, tokenizers = load_translator(
            model_arguments.model_name_or_path,
            trust_remote_code=model_arguments.trust_remote_code,
            attn_implementation=model_arguments.attn_implementation,
        )
        model.to(generation.device or fastest_device())
        results = evaluate_splits(model, tokenizers, data_arguments, generation, arguments.splits)
        text = json.dumps(results, indent=2, ensure_ascii=False)
        if arguments.output_file:
            Path(arguments.output_file).write_text(text + "\n", encoding="utf-8")
        else:
            print(text)


if __name__ == "__main__":
    main()
