# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers does with a repository and a checkpoint; run by test_hub_cache.py.

    python stranger.py CLEAN_PROCESS.py CHECKPOINT RESULT.json

Runs in the exported folder, with a Hub cache in which `lean/tiny` is that folder.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

FIRST_COMMIT, REPOSITORY = "1" * 40, "lean/tiny"

clean_process_file, checkpoint, result_file = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)
sys.addaudithook(clean_process.refuse_network)


def load(auto_class, name=REPOSITORY, **kwargs):
    return auto_class.from_pretrained(name, trust_remote_code=True, **kwargs)


model = load(AutoModelForSeq2SeqLM)
outputs = clean_process.outputs_of(model)
result = {
    "config": type(load(AutoConfig)).__name__,
    "config class is one": type(model.config) is type(model).config_class,
    "module": type(model).__module__,
    "base": type(load(AutoModel)).__name__,
    "tokenizers differ": load(AutoTokenizer).get_vocab()
    != load(AutoTokenizer, subfolder="target_tokenizer").get_vocab(),
    "outputs": clean_process.digest(outputs),
    "outputs of the first commit": clean_process.digest(
        clean_process.outputs_of(load(AutoModelForSeq2SeqLM, revision=FIRST_COMMIT))
    ),
}

from_checkpoint = load(AutoModelForSeq2SeqLM, checkpoint)
result["checkpoint"] = clean_process.digest(clean_process.outputs_of(from_checkpoint))
# A second copy of the code is loaded by now; the first must still generate.
texts = [model.generate(torch.tensor([[5, 6, 3]]), max_new_tokens=5).tolist() for _ in range(2)]
result["generates after another load"] = texts[0] == texts[1]

readme = Path("README.md").read_text(encoding="utf-8")
printed = []
exec(readme.split("```python\n")[1].split("```")[0], {"print": printed.append})
result["printed by the card's example"] = printed
result["transformers"] = transformers.__version__
Path(result_file).write_text(json.dumps(result), encoding="utf-8")
