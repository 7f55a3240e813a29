# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Three tasks of a few lines for lm-evaluation-harness, one for each thing it asks of a model."""

import json
from pathlib import Path

TEXTS = ("the first number is one and the second is two\nthere is no third", "def main():\n    return 0\n")
QUESTIONS = (
    ("one and one is", (" two", " three", " one hundred")),
    ("two and one is", (" four", " three", " eleven")),
)
TASKS = {
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "question": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "continuation": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> list[str]:
    """YAML files of the tasks and of their data; returns the tasks' names. JSON is YAML."""
    folder.mkdir()
    documents = {
        "text": [{"text": text} for text in TEXTS],
        "question": [{"text": text, "choices": choices} for text, choices in QUESTIONS],
        "continuation": [{"text": text} for text, _ in QUESTIONS],
    }
    for kind, task in TASKS.items():
        data = folder / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents[kind]))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{kind}.yaml").write_text(json.dumps({"task": f"local_{kind}", **source, **task}))
    return [f"local_{kind}" for kind in TASKS]
