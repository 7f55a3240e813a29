# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Train a language model: python scripts/train_clm.py configs/train/delight_stdlib.yaml [--learning_rate 1e-3 ...]

`accelerate launch [--config_file configs/accelerate/ddp.yaml] scripts/train_clm.py ...` works the same way.
"""

import sys

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import LANGUAGE_MODEL_GROUPS, LeanArgumentParser, plain_errors
from leanformers.training.causal_lm import train_language_model
from leanformers.training.runs import TrainingInterrupted


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    arguments = LeanArgumentParser(LANGUAGE_MODEL_GROUPS).parse()
    try:
        with plain_errors():
            train_language_model(*arguments)
    except TrainingInterrupted as interruption:
        print(f"\n{interruption}", file=sys.stderr)
        sys.exit(interruption.exit_code)
    except KeyboardInterrupt:
        print("\nInterrupted outside of training; what was saved before is whole.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
