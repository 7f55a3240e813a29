# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Text that a language model continues, and how any model of ours is told to sample."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from leanformers.data.language_modeling import start_token

# For models that do not say how long they write: transformers' own 20 tokens are hardly a sentence.
DEFAULT_NEW_TOKENS = 128


@dataclass
class SamplingArguments:
    """Whether the next token is drawn, and from which."""

    do_sample: bool = field(default=False, metadata={"help": "Draw each token instead of taking the likeliest."})
    temperature: float | None = field(
        default=None, metadata={"help": "Below 1 likely tokens become likelier; 1 if not given."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw from that many tokens, 0 for all; transformers' 50 if not given."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Draw from the likeliest tokens that have this probability together; 1 if not given."},
    )
    seed: int = field(default=0, metadata={"help": "The same seed, input and batch size draw the same tokens."})

    def __post_init__(self):
        for name in ("temperature", "top_k", "top_p"):
            if getattr(self, name) is not None and not self.do_sample:
                raise ValueError(f"{name} says how tokens are drawn, which they are only with --do_sample.")

    def settings(self) -> dict[str, Any]:
        """What `generate()` is given."""
        names = ("do_sample", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[str]:
    """What the model writes after each prompt; after an empty one, a text from its first token on.

    Args:
        max_new_tokens: Longest continuation in tokens; if None, what the model's generation configuration says.
        progress: Whether to show a progress bar on standard error.
        settings: For `generate()`: `num_beams`, `do_sample`, `temperature`, ...
    """
    rows = {index: prompt_ids(tokenizer, prompt) for index, prompt in enumerate(prompts)}
    new_tokens = max_new_tokens or model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS
    continuations = [""] * len(prompts)
    training = model.training
    model.eval()
    with tqdm(total=len(rows), desc="writing", unit="prompt", disable=not progress) as bar:
        for indices in by_length(rows, batch_size):
            inputs = left_padded([rows[index] for index in indices], model)
            output = model.generate(**inputs, max_new_tokens=new_tokens, **settings)
            for index, ids in zip(indices, output.tolist(), strict=True):
                continuations[index] = _decode_after(tokenizer, rows[index], ids[inputs["input_ids"].shape[1] :])
            bar.update(len(indices))
    model.train(training)
    return continuations


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens, without the end token that a tokenizer may append, and at least what begins a text."""
    ids = tokenizer(prompt).input_ids
    return (ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids) or [start_token(tokenizer)]


def left_padded(rows: Sequence[list[int]], model: PreTrainedModel) -> dict[str, Tensor]:
    """Input of `generate()`, which goes on at the right end; the mask hides the padding, whatever its id."""
    width, padding = max(map(len, rows)), model.config.pad_token_id or 0
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return {"input_ids": ids, "attention_mask": mask}


def by_length(rows: Mapping[int, Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: memory runs out at once or never."""
    order = sorted(rows, key=lambda index: len(rows[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _decode_after(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """The text that the new tokens add: decoded alone, some tokenizers' lose the space that they begin with."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    return tokenizer.decode(prompt + new, skip_special_tokens=True)[len(before) :]
