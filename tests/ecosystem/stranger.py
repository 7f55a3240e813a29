# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers writes with a folder; run by test_pipelines.py.

python stranger.py CLEAN_PROCESS.py AUTO_CLASS FOLDER RESULT.json PROMPT
"""

import importlib.util
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoTokenizer, pipeline

clean_process_file, auto_class, folder, result_file, prompt = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)
sys.addaudithook(clean_process.refuse_network)

tokenizer = AutoTokenizer.from_pretrained(folder)
if auto_class == "AutoModelForCausalLM":
    generator = pipeline("text-generation", model=folder, tokenizer=tokenizer, trust_remote_code=True)
    model, text = generator.model, generator(prompt, max_new_tokens=5, do_sample=False)[0]["generated_text"]
else:
    model, text = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True), None
ids = model.generate(tokenizer(prompt, return_tensors="pt")["input_ids"], max_new_tokens=5, do_sample=False)[0]
text = tokenizer.decode(ids, skip_special_tokens=True) if text is None else text
result = {"ids": ids.tolist(), "text": text, "transformers": transformers.__version__}
Path(result_file).write_text(json.dumps(result), encoding="utf-8")
