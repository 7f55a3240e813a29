# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a finished run writes, for its card: the first texts of its test set, not chosen ones."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from datasets import DatasetDict
from transformers import PreTrainedModel, set_seed

from leanformers.arguments import (
    LANGUAGE_MODEL_GROUPS,
    TRANSLATION_GROUPS,
    LeanArgumentParser,
)
from leanformers.data.language_modeling import load_texts
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.data.translation import load_translation
from leanformers.hub.export import SAMPLES
from leanformers.training.checkpoints import ARGUMENTS_FILE

from .generation import continue_prompts
from .loading import load_generator
from .translation import translate

NUM_SAMPLES = 4
PROMPT_LENGTH = 240  # characters
ADDRESS = re.compile(r"\S@\S+\.\S")
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 80}
SEED = 0


class Sample(TypedDict, total=False):
    """What went in, what came out, and of a translation what a human wrote."""

    input: str
    output: str
    reference: str


class Samples(TypedDict):
    """Texts of one model, and a sentence on how they came about."""

    how: str
    samples: list[Sample]


def take_samples(run: Path) -> Samples:
    """Translate or continue the first texts of the test set that a run's arguments name; leaves `samples.json` there.

    Raises:
        ValueError: If there is no test set, or no text in it is long enough to be continued.
    """
    model, tokenizers = load_generator(str(run))
    samples = (_translations if model.config.is_encoder_decoder else _continuations)(run, model, tokenizers)
    (run / SAMPLES).write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return samples


def _translations(run: Path, model: PreTrainedModel, tokenizers: TranslationTokenizers) -> Samples:
    _, data, training = LeanArgumentParser(TRANSLATION_GROUPS).parse([str(run / ARGUMENTS_FILE)])
    name, pairs = _first_test_set(load_translation(data))
    pairs = pairs[:NUM_SAMPLES]
    beams = training.generation_num_beams or 1
    outputs = translate(model, tokenizers, pairs["source"], num_beams=beams, progress=True)
    columns = zip(pairs["source"], outputs, pairs["target"], strict=True)
    return {
        "how": f"the first {len(outputs)} sentences of the split {name}, with {beams} beam{'s' if beams > 1 else ''}",
        "samples": [{"input": source, "output": output, "reference": target} for source, output, target in columns],
    }


def _continuations(run: Path, model: PreTrainedModel, tokenizers: TranslationTokenizers) -> Samples:
    _, data, _ = LeanArgumentParser(LANGUAGE_MODEL_GROUPS).parse([str(run / ARGUMENTS_FILE)])
    name, texts = _first_test_set(load_texts(data))
    beginnings = (_beginning(text) for text in texts["text"] if len(text) > PROMPT_LENGTH)
    prompts = list(islice((text for text in beginnings if not ADDRESS.search(text)), NUM_SAMPLES))
    if not prompts:
        raise ValueError(
            f"No text of {name} has more than {PROMPT_LENGTH} characters and no address, so none can be continued."
        )
    set_seed(SEED)
    outputs = continue_prompts(model, tokenizers.target, prompts, progress=True, **SAMPLING)
    return {
        "how": (
            f"what follows the beginnings of the first {len(prompts)} documents of the split {name} (those with "
            "somebody's e-mail address left out), drawn with "
            f"temperature {SAMPLING['temperature']}, top_p {SAMPLING['top_p']} and seed {SEED}, "
            f"{SAMPLING['max_new_tokens']} tokens"
        ),
        "samples": [{"input": prompt, "output": output} for prompt, output in zip(prompts, outputs, strict=True)],
    }


def _first_test_set(splits: DatasetDict):
    name = next((name for name in splits if name.startswith("test")), None)
    if name is None:
        raise ValueError(f"There is no test set to take samples from; the data has {', '.join(splits)}.")
    return name, splits[name]


def _beginning(text: str) -> str:
    """Whole lines, or whole words of a text without any."""
    start = text[:PROMPT_LENGTH]
    line_end = start.rfind("\n") + 1
    return start[:line_end] if line_end else start.rpartition(" ")[0] or start
