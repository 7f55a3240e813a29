# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""How many pairs a memory holds, by feature map and by update rule: the paper's study, as JSON and a figure.

    python scripts/benchmarks/retrieval.py configs/train/fast_weight_retrieval_capacity.yaml [--num_keys 20 40 ...]

Stopped and started again, it goes on with the next point.
"""

import sys

import torch
from run import environment

from leanformers.arguments import LeanArgumentParser, plain_errors
from leanformers.plots import retrieval_losses
from leanformers.training.retrieval_sweep import RetrievalArguments, run_sweep


def main(argv: list[str] | None = None) -> None:
    (arguments,) = LeanArgumentParser([RetrievalArguments]).parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        with plain_errors():
            points = run_sweep(arguments, environment(arguments))
            if arguments.figure:
                retrieval_losses(points, arguments.figure, arguments.title)
    except KeyboardInterrupt:
        print(f"\nStopped; the finished points are in {arguments.output_file}.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
