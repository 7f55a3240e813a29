# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How many pairs a memory holds, by feature map and by update rule: the paper's study, as JSON and a figure.

    python scripts/benchmarks/retrieval.py configs/train/fast_weight_retrieval_capacity.yaml [--num_keys 20 40 ...]

Stopped and started again, it goes on with the next point.
"""

import study

from leanformers.plots import retrieval_losses
from leanformers.training.retrieval_sweep import RetrievalArguments, run_sweep


def main(argv: list[str] | None = None) -> None:
    study.main(
        RetrievalArguments,
        run_sweep,
        lambda points, given: retrieval_losses(points, given.figure, given.title),
        argv,
    )


if __name__ == "__main__":
    main()
