#!/usr/bin/env bash
# From nothing to a published translator, in about five minutes on two CPU cores after the installation: trains Anthe to
# translate English number words to German ones, measures it, writes a folder for the Hugging Face Hub, and loads that
# folder in a process that has no leanformers. Safe to run again: what is done is not done twice.
#     bash scripts/quickstart.sh [--max_steps 500 ...]        further arguments go to scripts/train_seq2seq.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

run=outputs/anthe_numbers
export_folder=outputs/hub/anthe_numbers
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

prepare_environment .venv train

if [ -f "$run/all_results.json" ]; then
    say "$run is trained already; delete it to train again"
else
    # An earlier run that stopped goes on from its checkpoint, or starts anew if it left none.
    earlier=()
    [ ! -d "$run" ] || earlier=(--overwrite_output_dir)
    ! compgen -G "$run/checkpoint-*" >/dev/null || earlier=(--resume)
    say "training Anthe on number words: configs/train/anthe_numbers.yaml, into $run"
    "$python" scripts/train_seq2seq.py configs/train/anthe_numbers.yaml --output_dir "$run" "${earlier[@]}" "$@"
fi

say "measuring it on numbers it never saw"
"$python" scripts/evaluate.py --model_name_or_path "$run" --task numbers

say "translating with it"
printf '%s\n' "forty-two" "seven thousand and nine" | "$python" scripts/generate.py --model_name_or_path "$run"

say "writing and checking a folder for the Hub: $export_folder"
"$python" scripts/export_to_hub.py "$run" --output "$export_folder" --overwrite

say "loading that folder in a process that has no leanformers"
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
folder=$PWD/$export_folder python=$(cd "$(dirname "$python")" && pwd)/python
cd "$elsewhere"
HF_MODULES_CACHE=$elsewhere/modules TRANSFORMERS_VERBOSITY=error "$python" - "$folder" <<'PYTHON'
import sys


class NotInstalled:
    """leanformers is in this virtual environment; a stranger's machine does not have it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "leanformers":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NotInstalled)

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
source = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
target = AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer", trust_remote_code=True)
lines = ["twenty-one", "three hundred and sixteen", "nine hundred and eighty-seven thousand, six hundred and fifty-four"]
ids = model.generate(**source(lines, padding=True, return_tensors="pt"), do_sample=False)
for line, translation in zip(lines, target.batch_decode(ids, skip_special_tokens=True), strict=True):
    print(f"{line}  ->  {translation}")
assert not any(name.partition(".")[0] == "leanformers" for name in sys.modules)
PYTHON
say "done. The folder is $export_folder; with a token of the Hub, upload it with
   .venv/bin/python scripts/export_to_hub.py $run --output $export_folder --overwrite --push --repo_id YOU/anthe-numbers"
