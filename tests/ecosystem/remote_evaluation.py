# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers measures with lm-evaluation-harness; run by test_evaluation_tools.py.

    python remote_evaluation.py CLEAN_PROCESS.py MODELS TASKS RESULT.json

RESULT.json has for each model, a folder in MODELS, what the harness found, or the error.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

clean_process_file, models, tasks, result_file = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)
sys.addaudithook(clean_process.refuse_network)

import lm_eval  # noqa: E402  after what refuses leanformers
import torch  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

torch.set_num_threads(1)
manager = TaskManager(include_path=tasks, include_defaults=False)
results = {}
for model in sorted(Path(models).iterdir()):
    try:
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={model},trust_remote_code=True",
            tasks=sorted(f"local_{path.stem}" for path in Path(tasks).glob("*.yaml")),
            task_manager=manager,
            device="cpu",
            batch_size=2,
            bootstrap_iters=0,
        )
        results[model.name] = found["results"]
    except Exception:
        results[model.name] = {"error": traceback.format_exc()}
Path(result_file).write_text(json.dumps(results))
