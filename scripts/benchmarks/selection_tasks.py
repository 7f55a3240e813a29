# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a model with selective attention and one without learn of three tasks, as JSON and a figure: how far beyond the
training length they can do them, and with how little memory.

    python scripts/benchmarks/selection_tasks.py configs/train/selective_attn_assignment.yaml [--seeds 1 2 ...]

Stopped and started again, it goes on with the next point.
"""

import study

from leanformers.plots import selection_accuracies
from leanformers.training.selection_study import SelectionArguments, run_study


def main(argv: list[str] | None = None) -> None:
    study.main(SelectionArguments, run_study, lambda points, given: selection_accuracies(points, given.figure), argv)


if __name__ == "__main__":
    main()
