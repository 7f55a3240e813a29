# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Measure a trained model on every test set, and write the results as JSON.

    python scripts/evaluate.py --model_name_or_path outputs/anthe_numbers --task numbers

A translator's are BLEU, chrF, exact match and perplexity per real target token; a language model's are perplexity per
token and per word and bits per byte, by windows of `--block_size` tokens, `--context_window` of which it has seen; the
default block size is that of the run it is from, where `arguments.yaml` lies in its folder, else 512. A model's
configuration says which of the two it is; `--help` beside its name shows the arguments for it. `--memory_budgets 64`,
or a number for each layer, is how many tokens a model with selective attention may hold.
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
    LanguageModelingDataArguments,
    LeanArgumentParser,
    MemoryArguments,
    ModelArguments,
    TranslationDataArguments,
    plain_errors,
)
from leanformers.evaluation.language_modeling import evaluate_text_splits
from leanformers.evaluation.lines import reserve
from leanformers.evaluation.loading import (
    ScoringArguments,
    fastest_device,
    is_language_model,
    load_generator,
    read_model_arguments,
    trained_block_size,
)
from leanformers.evaluation.memory import memory_held, set_memory_budgets
from leanformers.evaluation.translation import evaluate_splits


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    with plain_errors():
        named = read_model_arguments(sys.argv[1:])
        scores_text = is_language_model(named)
    groups = (
        [LanguageModelingDataArguments, ScoringArguments]
        if scores_text
        else [TranslationDataArguments, GenerationArguments]
    )
    parser = LeanArgumentParser([ModelArguments, *groups, MemoryArguments, EvaluationArguments])
    if scores_text and (block_size := trained_block_size(named.model_name_or_path)):
        parser.set_defaults(block_size=block_size)
    model_arguments, data_arguments, running, memory, arguments = parser.parse()
    with plain_errors():
        reserve(arguments.output_file)
        model, tokenizers = load_generator(
            model_arguments.model_name_or_path,
            trust_remote_code=model_arguments.trust_remote_code,
            attn_implementation=model_arguments.attn_implementation,
        )
        model.to(running.device or fastest_device())
        if memory.memory_budgets is not None:
            set_memory_budgets(model, memory.memory_budgets)
        if scores_text:
            results = evaluate_text_splits(
                model, tokenizers.target, data_arguments, batch_size=running.batch_size, names=arguments.splits
            )
            held = memory_held(model.config, data_arguments.block_size)
            results = {name: metrics | held for name, metrics in results.items()}
        else:
            results = evaluate_splits(model, tokenizers, data_arguments, running, arguments.splits)
        text = json.dumps(results, indent=2, ensure_ascii=False)
        if arguments.output_file:
            Path(arguments.output_file).write_text(text + "\n", encoding="utf-8")
        else:
            print(text)


if __name__ == "__main__":
    main()
