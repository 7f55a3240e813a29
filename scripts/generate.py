# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Translate lines: echo "forty-two" | python scripts/generate.py --model_name_or_path outputs/anthe_numbers

With `--input_file` and `--output_file` from file to file; a Hub repository with code of its own needs
`--trust_remote_code`.
"""

import sys

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import (
    FileArguments,
    GenerationArguments,
    LeanArgumentParser,
    ModelArguments,
    plain_errors,
)
from leanformers.evaluation.lines import read_lines, reserve, write_lines
from leanformers.evaluation.translation import fastest_device, load_translator, translate


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    model_arguments, generation, files = LeanArgumentParser(
        [ModelArguments, GenerationArguments, FileArguments]
    ).parse()
    with plain_errors():
        lines = read_lines(files.input_file)
        reserve(files.output_file)
        model, tokenizers = load_translator(
            model_arguments.model_name_or_path,
            trust_remote_code=model_arguments.trust_remote_code,
            attn_implementation=model_arguments.attn_implementation,
        )
        translations = translate(
            model.to(generation.device or fastest_device()),
            tokenizers,
            lines,
            num_beams=generation.num_beams,
            batch_size=generation.batch_size,
            max_new_tokens=generation.max_new_tokens,
            progress=True,
        )
        write_lines(files.output_file, translations)


if __name__ == "__main__":
    main()
