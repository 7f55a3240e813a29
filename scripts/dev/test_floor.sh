#!/usr/bin/env bash
# Runs the test suite on the oldest transformers that setup.cfg allows, in a virtual environment of its own. A torch
# version may be given first, further arguments go to pytest:
#     bash scripts/dev/test_floor.sh
#     bash scripts/dev/test_floor.sh torch==2.6.0 -k anthe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/environment.sh

floor=$(sed -n 's/^ *transformers>=\([0-9.]*\)$/\1/p' setup.cfg)
torch=()
if [[ ${1:-} == torch==* ]]; then
    torch=("$1")
    shift
fi
prepare_environment ".venv-floor" all "transformers==$floor.0" "${torch[@]}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
"$python" -c 'import torch, transformers; print(f"== transformers {transformers.__version__}, torch {torch.__version__}")'
"$python" -m pytest -n 2 "$@"
