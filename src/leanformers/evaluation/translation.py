# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Translations of a trained model, and their scores against references."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from leanformers import metrics
from leanformers.arguments import GenerationArguments, TranslationDataArguments
from leanformers.data.collator import TranslationCollator
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.data.translation import load_translation, tokenize_translation

from .generation import by_length
from .loading import load_generator
from .perplexity import seq2seq_perplexity

logger = logging.get_logger(__name__)

# For models of others that do not say how long they write: transformers' own 20 tokens cut most sentences.
DEFAULT_MAX_LENGTH = 257


def load_translator(
    name_or_path: str | None, *, trust_remote_code: bool = False, **kwargs
) -> tuple[PreTrainedModel, TranslationTokenizers]:
    """`load_generator` for what translates; a language model is refused."""
    model, tokenizers = load_generator(name_or_path, trust_remote_code=trust_remote_code, **kwargs)
    if not model.config.is_encoder_decoder:
        raise ValueError(f"{name_or_path} holds a language model ({type(model).__name__}), which does not translate.")
    return model, tokenizers


def translate(
    model: PreTrainedModel,
    tokenizers: TranslationTokenizers,
    lines: Sequence[str],
    *,
    num_beams: int = 1,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[str]:
    """Translate each line; an empty line gives an empty line.

    Args:
        max_new_tokens: Longest translation in tokens; if None, what the model's generation configuration says. How
            many translations were cut there is logged as a warning.
        progress: Whether to show a progress bar on standard error.
        settings: More for `generate()`: `do_sample`, `temperature`, ...
    """
    translations = [""] * len(lines)
    full = [index for index, line in enumerate(lines) if line.strip()]
    tokens = tokenizers.source([lines[index] for index in full]).input_ids if full else []
    sources = dict(zip(full, tokens, strict=True))
    max_length = _max_length(model, max_new_tokens)
    num_cut = 0
    training = model.training
    model.eval()
    with tqdm(total=len(sources), desc="translating", unit="line", disable=not progress) as bar:
        for indices in by_length(sources, batch_size):
            inputs = tokenizers.source.pad({"input_ids": [sources[index] for index in indices]}, return_tensors="pt")
            output = model.generate(**inputs.to(model.device), num_beams=num_beams, max_length=max_length, **settings)
            num_cut += _num_unfinished(model, output)
            texts = tokenizers.target.batch_decode(output, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                translations[index] = text
            bar.update(len(indices))
    model.train(training)
    if num_cut:
        logger.warning(
            f"{num_cut} of {len(sources)} translations reached {max_length - 1} tokens and were cut there; "
            "a larger max_new_tokens lets them end."
        )
    return translations


def score_translations(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """BLEU and chrF (0 to 100) with their signatures, and exact match (0 to 1)."""
    scores = metrics.load("translation").compute(predictions=predictions, references=references)
    return scores | metrics.load("exact_match").compute(predictions=predictions, references=references)


def evaluate_translation(
    model: PreTrainedModel,
    tokenizers: TranslationTokenizers,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    **settings: Any,
) -> dict[str, float | int | str]:
    """Scores of the translations, and loss and perplexity per real target token, of a tokenized dataset.

    Args:
        dataset: With columns source, target, input_ids and labels, as `tokenize_translation` makes it.
        settings: For `translate`: `num_beams`, `max_new_tokens`, ...
    """
    ordered = dataset.select(np.argsort(dataset["length"]))
    collate = TranslationCollator(tokenizers.source, model=model)
    batches = (collate(batch) for batch in _batches(ordered, batch_size))
    results = seq2seq_perplexity(model, batches)
    predictions = translate(model, tokenizers, dataset["source"], batch_size=batch_size, **settings)
    return results | score_translations(predictions, dataset["target"]) | {"num_sentences": len(dataset)}


def evaluate_splits(
    model: PreTrainedModel,
    tokenizers: TranslationTokenizers,
    data_arguments: TranslationDataArguments,
    generation: GenerationArguments,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, float | int | str]]:
    """`evaluate_translation` of the named splits of the data, or of every test set."""
    splits = load_translation(data_arguments)
    names = names or [name for name in splits if name.startswith("test")]
    missing = [name for name in names if name not in splits]
    if missing or not names:
        raise ValueError(f"There is no split {missing or 'test'} to evaluate; the data has {list(splits)}.")
    return {
        name: evaluate_translation(
            model,
            tokenizers,
            tokenize_translation(splits[name], tokenizers, data_arguments, name),
            batch_size=generation.batch_size,
            max_new_tokens=generation.max_new_tokens,
            progress=True,
            **generation.search_settings(),
        )
        for name in names
    }


def _max_length(model: PreTrainedModel, max_new_tokens: int | None) -> int:
    """In tokens that the decoder sees: its start token comes before the new ones."""
    if max_new_tokens is not None:
        return max_new_tokens + 1
    config = model.generation_config
    return config.max_new_tokens + 1 if config.max_new_tokens else config.max_length or DEFAULT_MAX_LENGTH


def _batches(dataset: Dataset, batch_size: int) -> Iterator[list[dict]]:
    for start in range(0, len(dataset), batch_size):
        yield dataset.select(range(start, min(start + batch_size, len(dataset)))).to_list()


def _num_unfinished(model: PreTrainedModel, output: torch.Tensor) -> int:
    """Rows without an end token behind the start token, which some models have as end token, too."""
    end = torch.as_tensor(model.generation_config.eos_token_id, device=output.device)
    return int((~torch.isin(output[:, 1:], end).any(dim=1)).sum())
