# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Draw what a model with selective attention forgets while it reads a text.

    python scripts/plot_selection.py --model_name_or_path outputs/selective_attn_stdlib \\
        --input_file scripts/plot_selection.py --output_dir outputs/selection

`selection.png` has F of each layer, the votes against each token when each later one came; `forgotten_tokens.png` the
text, once for each layer, with a line through the tokens with more than `--threshold` votes against them at its end.
"""

import sys

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import LeanArgumentParser, ModelArguments, plain_errors
from leanformers.evaluation.selection import SelectionPictureArguments, draw_selection


def main() -> None:
    logging.disable_progress_bar()
    arguments = LeanArgumentParser([ModelArguments, SelectionPictureArguments]).parse()
    with plain_errors():
        for path in draw_selection(*arguments):
            print(path)


if __name__ == "__main__":
    main()
