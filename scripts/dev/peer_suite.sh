#!/usr/bin/env bash
# Runs transformers' own model tests on our families (peer_adapter.py), through the harness in ../shared/peer_suite:
#     bash scripts/dev/peer_suite.sh                                      what the release on PyPI has tests for
#     bash scripts/dev/peer_suite.sh --extra ~/src/transformers           all groups; the rest of tests/ comes from there
#     bash scripts/dev/peer_suite.sh --families Anthe --groups own -k lora        further options of its run.py
# The tests of the installed transformers are downloaded once, into a cache outside the repository.
# PEER_SUITE names another place of the harness. Exit status: 0 all passed, 1 some failed, 75 harness or tests not to be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-.venv/bin/python}
harness=${PEER_SUITE:-../shared/peer_suite}
give_up() { printf '%s\n' "$*" >&2; exit 75; }

[ -f "$harness/run.py" ] || give_up "no harness at $harness; set PEER_SUITE=/path/to/peer_suite."
command -v "$python" >/dev/null || give_up "no $python; run scripts/test.sh once, or set PYTHON."
version=$("$python" -c 'import transformers; print(transformers.__version__)')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/leanformers
sdist=$cache/transformers-$version

if [ ! -d "$sdist/tests" ]; then
    echo "== downloading the source distribution of transformers $version to $cache"
    mkdir -p "$cache"
    download=$(mktemp -d "$cache/download-XXXXXX")
    trap 'rm -rf "$download"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation \
        --dest "$download" "transformers==$version" || give_up "no source distribution of transformers $version to be had."
    tar xzf "$download/transformers-$version.tar.gz" -C "$download"
    # A run beside this one may have been faster.
    [ -d "$sdist/tests" ] || mv -T "$download/transformers-$version" "$sdist"
fi

groups=common,config,training,own
[[ " $* " == *" --extra"* ]] && groups=common,generation,config,pipeline,training,own
export OMP_NUM_THREADS=1
"$python" "$harness/run.py" --sdist "$sdist" --adapter scripts/dev/peer_adapter.py --groups "$groups" "$@"
