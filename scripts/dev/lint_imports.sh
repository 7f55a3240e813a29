#!/usr/bin/env bash
# Holds the imports against the contracts in setup.cfg. import-linter finds modules by walking one folder, so it gets
# a tree of links in which modeling/ and model_cards/ stand where setup.cfg maps them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/leanformers"
ln -s "$PWD"/src/leanformers/* "$PWD/modeling" "$PWD/model_cards" "$tree/leanformers"
[ -x .venv/bin/lint-imports ] && PATH=$PWD/.venv/bin:$PATH
PYTHONPATH=$tree lint-imports --no-cache
