# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Export a training run to a Hub folder, and upload it with --push.

    python scripts/export_to_hub.py outputs/anthe_numbers --output hub/anthe_numbers
    python scripts/export_to_hub.py outputs/anthe_numbers --output hub/anthe_numbers --push --repo_id me/anthe-numbers

The folder gets its name only after `leanformers.hub.check` has loaded and run it in a clean process. A second push,
with --overwrite, uploads what changed, and one that was cut off goes on. --tag names the version that was pushed.
--space writes a folder that is a Space, a page on which the model can be tried, and with --push uploads that as well.
"""

import argparse
from pathlib import Path

from leanformers.arguments import plain_errors
from leanformers.hub.export import export_run
from leanformers.hub.push import push, push_space
from leanformers.hub.space import write_space


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="output folder of a training script, or any folder with a model")
    parser.add_argument("--output", required=True, help="folder to write; a new or an empty one")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --output")
    parser.add_argument("--push", action="store_true", help="upload the folder to --repo_id when it is written")
    parser.add_argument("--repo_id", help="name on the Hub, organisation/name; also goes into the card")
    parser.add_argument("--private", action="store_true", help="make a new repository on the Hub private")
    parser.add_argument("--tag", help="name of this version on the Hub, for revision=..., e.g. v1; needs --push")
    parser.add_argument(
        "--space",
        type=Path,
        metavar="DIRECTORY",
        help="also write the Space of --repo_id there, and upload it with --push",
    )
    arguments = parser.parse_args(argv)
    if (arguments.push or arguments.space) and not arguments.repo_id:
        parser.error("--push and --space need --repo_id organisation/name")
    if arguments.tag and not arguments.push:
        parser.error("--tag names what --push uploads; give both")
    with plain_errors():
        folder = export_run(
            arguments.run, arguments.output, repository=arguments.repo_id, overwrite=arguments.overwrite
        )
        print(f"{folder}: complete, and it loads and runs in a clean process.")
        commit = None
        if arguments.push:
            address = push(folder, arguments.repo_id, private=arguments.private, tag=arguments.tag, check=False)
            commit = address.rpartition("/")[2]
            print(address)
        if arguments.space:
            write_space(arguments.space, arguments.repo_id, commit)
            print(f"{arguments.space}: a Space that shows {arguments.repo_id}.")
            if arguments.push:
                print(push_space(arguments.space, arguments.repo_id, private=arguments.private))


if __name__ == "__main__":
    main()
