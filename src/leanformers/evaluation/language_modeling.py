# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Perplexity of language models by a sliding window, or with a memory that is carried through the text: per token, per
word and in bits per byte.

Per word and per byte are what compares across tokenizers: the same total loss, divided by what the text has of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from leanformers.arguments import LanguageModelingDataArguments
from leanformers.data.collator import BlockCollator
from leanformers.data.language_modeling import EvaluationWindows, LaneSegments, load_texts, tokenize_texts

from .perplexity import perplexity, row_losses, total_loss


def language_model_perplexity(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    block_size: int,
    context_window: int = 0,
    batch_size: int = 8,
    num_words: int | None = None,
    num_bytes: int | None = None,
    progress: bool = False,
) -> dict[str, float | int]:
    """Loss and perplexity of a stream of tokens, each but the first scored exactly once.

    The model sees windows of `block_size` tokens, `block_size - context_window` apart. A window scores the tokens that
    the one before it did not, so that each has at least `context_window` tokens before it.

    Args:
        token_ids: Begin with the token that stands before a text, mostly `</s>`, so that its first one is scored.
        num_words, num_bytes: Of the text, if known: they give `perplexity_per_word` and `bits_per_byte`.
        progress: Whether to show a progress bar on standard error.
    """
    windows = EvaluationWindows(
        token_ids,
        [0],
        block_size=block_size,
        context_window=context_window,
        num_words=num_words,
        num_bytes=num_bytes,
    )
    return evaluate_windows(model, windows, batch_size=batch_size, progress=progress)


@torch.no_grad()
def evaluate_windows(
    model: PreTrainedModel, windows: EvaluationWindows | LaneSegments, *, batch_size: int = 8, progress: bool = False
) -> dict[str, float | int]:
    """`language_model_perplexity` of windows, which may be those of separate documents, or of lanes, each read with a
    memory that is carried from its beginning to its end.

    The model is left in the mode it was in.
    """
    score: Callable[..., Tensor] = window_losses
    if isinstance(windows, LaneSegments):
        batch_size, score = windows.num_lanes, partial(segment_losses, memory=empty_memory(model))
    training = model.training
    model.eval()
    rows = []
    with token_by_token(model.config):
        for inputs, following in scoring_batches(model, windows, batch_size, disable=not progress):
            rows.append(score(model, inputs, following).cpu())
    model.train(training)
    return summarize_text(rows, num_words=windows.num_words, num_bytes=windows.num_bytes)


def scoring_batches(
    model: PreTrainedModel, windows: EvaluationWindows | LaneSegments, batch_size: int, **bar: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """`input_ids` and `shift_labels` of the windows in batches, on the model's device, under a progress bar."""
    padding = model.config.pad_token_id
    loader = DataLoader(
        windows, batch_size=batch_size, collate_fn=BlockCollator(padding if padding is not None else 0)
    )
    for batch in tqdm(loader, desc="scoring", unit="batch", **bar):
        yield batch["input_ids"].to(model.device), batch["shift_labels"].to(model.device)


@contextmanager
def token_by_token(config: PreTrainedConfig) -> Iterator[None]:
    """Let a forward hold what would be held token by token: a model that reads prompts lazily would hold all."""
    prune_prompt = getattr(config, "prune_prompt", None)
    if prune_prompt is not None:
        config.prune_prompt = "strict"
    try:
        yield
    finally:
        if prune_prompt is not None:
            config.prune_prompt = prune_prompt


def window_losses(model: nn.Module, input_ids: Tensor, shift_labels: Tensor) -> Tensor:
    """`row_losses` of windows; only the logits of tokens that are scored are computed, where the model allows that."""
    first = int(shift_labels.ne(-100).any(dim=0).nonzero()[0])
    num_scored = input_ids.shape[1] - first
    options = {"logits_to_keep": num_scored} if "logits_to_keep" in signature(model.forward).parameters else {}
    logits = model(input_ids=input_ids, use_cache=False, **options).logits
    return row_losses(logits[:, -num_scored:], shift_labels[:, first:])


def segment_losses(model: nn.Module, input_ids: Tensor, shift_labels: Tensor, memory: DynamicCache) -> Tensor:
    """`row_losses` of the segments that follow those that `memory` holds; it then holds these, too."""
    return row_losses(model(input_ids=input_ids, past_key_values=memory).logits, shift_labels)


def empty_memory(model: PreTrainedModel) -> DynamicCache:
    """The memory of a model before the first token, which can be carried from segment to segment."""
    memory = DynamicCache(config=model.config)
    if not memory.layers or not all(hasattr(layer, "detach_") for layer in memory.layers):
        raise ValueError(
            f"carry_state needs a model with a memory that does not grow, as FastWeight with update_rule 'delta' or "
            f"'sum' is; this {type(model).__name__} has none."
        )
    return memory


def summarize_text(
    rows: Sequence[Tensor], *, num_words: int | None = None, num_bytes: int | None = None
) -> dict[str, float | int]:
    """Loss and perplexity per token, and per word and byte where their numbers are known."""
    loss, num_tokens = total_loss(rows)
    results: dict[str, float | int] = {"loss": loss / num_tokens, "perplexity": perplexity(loss, num_tokens)}
    if num_words:
        results["perplexity_per_word"] = perplexity(loss, num_words)
    if num_bytes:
        results["bits_per_byte"] = loss / math.log(2) / num_bytes
    return results | {"num_tokens": num_tokens} | ({"num_words": num_words} if num_words else {})


def evaluate_text_splits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data_arguments: LanguageModelingDataArguments,
    *,
    batch_size: int = 8,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, float | int]]:
    """Perplexities of the named splits of the data, or of every test set."""
    splits = load_texts(data_arguments)
    names = names or [name for name in splits if name.startswith("test")]
    missing = [name for name in names if name not in splits]
    if missing or not names:
        raise ValueError(f"There is no split {missing or 'test'} to evaluate; the data has {list(splits)}.")
    windows = evaluation_windows(
        DatasetDict({name: splits[name] for name in names}), tokenizer, data_arguments, num_lanes=batch_size
    )
    return {name: evaluate_windows(model, windows[name], batch_size=batch_size, progress=True) for name in names}


def evaluation_windows(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    data_arguments: LanguageModelingDataArguments,
    *,
    num_lanes: int = 1,
) -> dict[str, EvaluationWindows | LaneSegments]:
    """What `data_arguments` ask to score of each of these splits: windows, or with `carry_state` that many lanes."""
    rows = {name: tokenize_texts(split, tokenizer, data_arguments, name) for name, split in splits.items()}
    block_size = data_arguments.block_size
    if data_arguments.carry_state:
        return {
            name: LaneSegments.of_texts(split, block_size=block_size, num_lanes=num_lanes)
            for name, split in rows.items()
        }
    return {
        name: EvaluationWindows.of_texts(
            split,
            block_size=block_size,
            context_window=data_arguments.context_window,
            separate=data_arguments.pack_documents == "separate",
        )
        for name, split in rows.items()
    }
