#!/usr/bin/env bash
# Lints, type-checks and tests, in a virtual environment it makes by itself. Further arguments go to pytest:
#     bash scripts/test.sh -k anthe -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment .venv all
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

say "ruff"
"$python" -m ruff check --output-format concise .
"$python" -m ruff format --check .
say "mypy"
"$python" -m mypy
say "import rules"
bash scripts/dev/lint_imports.sh
say "pytest"
"$python" -m pytest -n 2 "$@"
