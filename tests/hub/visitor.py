# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers does with a repository of the Hub; run by test_push.py.

    python visitor.py CLEAN_PROCESS.py RESULT.json REPOSITORY REVISION...

Everything comes over HTTP from HF_ENDPOINT into an empty HF_HOME: configuration, code, weights, tokenizers, card.
"""

import importlib.util
import json
import sys
from pathlib import Path

import transformers
from huggingface_hub import HfApi, ModelCard
from transformers import AutoConfig, AutoTokenizer

clean_process_file, result_file, repository, *revisions = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)

seen = {}
for revision in revisions:
    wanted = {"trust_remote_code": True, "revision": revision}
    config = AutoConfig.from_pretrained(repository, **wanted)
    [architecture] = config.architectures
    auto_class = next(name for name, reference in config.auto_map.items() if reference.endswith(f".{architecture}"))
    model = getattr(transformers, auto_class).from_pretrained(repository, **wanted)
    tokenizer = AutoTokenizer.from_pretrained(repository, **wanted)
    texts = {"tokenizer": tokenizer.tokenize("def main(")}
    if tokenizer.init_kwargs.get("separate_target_tokenizer"):
        target = AutoTokenizer.from_pretrained(repository, subfolder="target_tokenizer", **wanted)
        texts["target tokenizer"] = target.tokenize("zwei Hunde")
    seen[revision] = texts | {
        "commit of the code": HfApi().model_info(repository, revision=revision).sha in type(model).__module__,
        "generated": model.generate(**tokenizer(["a man rides"], return_tensors="pt"), max_new_tokens=4).tolist(),
        "license": ModelCard.load(repository).data.license,
        "outputs": clean_process.digest(clean_process.outputs_of(model)),
    }
seen["leanformers"] = sorted(name for name in sys.modules if name.partition(".")[0] == "leanformers")
Path(result_file).write_text(json.dumps(seen), encoding="utf-8")
