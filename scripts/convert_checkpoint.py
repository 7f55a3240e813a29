# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Converts a checkpoint of an original implementation into a folder for `from_pretrained`.

    python scripts/convert_checkpoint.py --family anthe --source original.safetensors --output converted

The source is .safetensors, with the hyper-parameters as metadata, or .npz with them in a JSON file.
"""

import argparse
import sys

from leanformers.accounting import count_parameters
from leanformers.conversion import convert_checkpoint
from leanformers.registry import FAMILIES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, choices=sorted(FAMILIES))
    parser.add_argument("--source", required=True, help="the checkpoint: .safetensors or .npz")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--hparams", help="JSON with the hyper-parameters; default: the metadata of the source")
    parser.add_argument(
        "--allow-noncausal-gate",
        action="store_true",
        help="anthe: convert also a gate order whose cross-attention reads ahead, to compare with the original",
    )
    arguments = parser.parse_args(argv)
    options = {"allow_noncausal_gate": True} if arguments.allow_noncausal_gate else {}
    try:
        model = convert_checkpoint(arguments.family, arguments.source, arguments.output, arguments.hparams, **options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{type(model).__name__} with {count_parameters(model):,} parameters saved in {arguments.output}")


if __name__ == "__main__":
    main()
