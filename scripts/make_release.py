# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Make a small released checkpoint: train, take samples, export with a card, check.

    python scripts/make_release.py anthe
    python scripts/make_release.py delight --dataset_name FOLDER --push --repo_id me/delight-multi30k

The four are a translator of number words (anthe) and one of Multi30k (delight), and two language models of Python's
standard library (fast_weight, selective_attn); docs/publishing.md says what they reach. Stopped, the same command goes
on from the last checkpoint, and a run that is finished is exported again as it is. Flags that are not listed by
--help are those of training, e.g. --overwrite_output_dir to train anew.
"""

import argparse
import sys
from pathlib import Path

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import plain_errors
from leanformers.hub.push import push
from leanformers.hub.release import RELEASES, folder_megabytes, make_release
from leanformers.training.runs import TrainingInterrupted

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("family", choices=RELEASES)
    parser.add_argument("--output", type=Path, default=Path("outputs/release"), help="folder of runs and of exports")
    parser.add_argument("--max_megabytes", type=float, default=20, help="how large the exported folder may be")
    parser.add_argument("--push", action="store_true", help="upload the folder to --repo_id when it is written")
    parser.add_argument("--repo_id", help="name on the Hub, organisation/name; also goes into the card")
    parser.add_argument("--tag", help="name of this version on the Hub, e.g. v1; needs --push")
    arguments, flags = parser.parse_known_args()
    if arguments.push and not arguments.repo_id:
        parser.error("--push needs --repo_id organisation/name")
    if arguments.tag and not arguments.push:
        parser.error("--tag names what --push uploads; give both")
    try:
        with plain_errors():
            folder = make_release(
                arguments.family,
                arguments.output,
                flags,
                configs=CONFIGS,
                repository=arguments.repo_id,
                max_megabytes=arguments.max_megabytes,
            )
            print(f"{folder}: {folder_megabytes(folder):.1f} MB, and it loads and runs in a clean process.")
            if arguments.push:
                print(push(folder, arguments.repo_id, tag=arguments.tag, check=False))
    except TrainingInterrupted as interruption:
        print(f"\n{interruption}\nOr with this command again, without --overwrite_output_dir.", file=sys.stderr)
        sys.exit(interruption.exit_code)
    except KeyboardInterrupt:
        print("\nInterrupted outside of training; this command goes on with what is saved.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
