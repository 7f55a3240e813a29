# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Translate lines, or continue prompts.

    echo "forty-two" | python scripts/generate.py --model_name_or_path outputs/anthe_numbers

An encoder-decoder translates each line. A language model continues each line; its texts may have many lines, which
`--output_file texts.jsonl` keeps apart; `--memory_budgets 64`, or a number for each layer, is how many tokens one with
selective attention may hold meanwhile. With `--input_file` and `--output_file` from file to file; a Hub repository
with code of its own needs `--trust_remote_code`.
"""

import sys

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers import set_seed
from transformers.utils import logging

from leanformers.arguments import (
    FileArguments,
    GenerationArguments,
    LeanArgumentParser,
    MemoryArguments,
    ModelArguments,
    plain_errors,
)
from leanformers.evaluation.generation import SamplingArguments, continue_prompts
from leanformers.evaluation.lines import read_lines, reserve, write_continuations, write_lines
from leanformers.evaluation.loading import fastest_device, load_generator
from leanformers.evaluation.memory import set_memory_budgets
from leanformers.evaluation.translation import translate


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    model_arguments, generation, sampling, memory, files = LeanArgumentParser(
        [ModelArguments, GenerationArguments, SamplingArguments, MemoryArguments, FileArguments]
    ).parse()
    with plain_errors():
        lines = read_lines(files.input_file)
        reserve(files.output_file)
        model, tokenizers = load_generator(
            model_arguments.model_name_or_path,
            trust_remote_code=model_arguments.trust_remote_code,
            attn_implementation=model_arguments.attn_implementation,
        )
        if memory.memory_budgets is not None:
            set_memory_budgets(model, memory.memory_budgets)
        set_seed(sampling.seed)
        settings = {
            "batch_size": generation.batch_size,
            "max_new_tokens": generation.max_new_tokens,
            "progress": True,
            **generation.search_settings(),
            **sampling.settings(),
        }
        model.to(generation.device or fastest_device())
        if model.config.is_encoder_decoder:
            write_lines(files.output_file, translate(model, tokenizers, lines, **settings))
        else:
            continuations = continue_prompts(model, tokenizers.target, lines, **settings)
            write_continuations(files.output_file, lines, continuations)


if __name__ == "__main__":
    main()
