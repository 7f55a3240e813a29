# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What the scripts of studies have in common: points go to `output_file`, a figure of them to `figure`, and Ctrl-C
loses the point that is being trained, and nothing else."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from run import environment

from leanformers.arguments import LeanArgumentParser, plain_errors


def main(
    arguments_class: type,
    run: Callable[[Any, Mapping[str, Any]], list[dict]],
    draw: Callable[[list[dict], Any], Path],
    argv: list[str] | None = None,
) -> None:
    """Read arguments of that class, run what is missing, and draw all points there are by then."""
    (arguments,) = LeanArgumentParser([arguments_class]).parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        with plain_errors():
            points = run(arguments, environment(arguments))
            if arguments.figure:
                draw(points, arguments)
    except KeyboardInterrupt:
        print(f"\nStopped; the finished points are in {arguments.output_file}.", file=sys.stderr)
        sys.exit(130)
