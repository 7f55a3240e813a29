# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What selective attention forgets of a text, and pictures of it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from leanformers.arguments import ModelArguments
from leanformers.data.language_modeling import start_token
from leanformers.plots import forgotten_tokens, selection_heat_maps

from .lines import read_lines
from .loading import fastest_device, load_generator

logger = logging.get_logger(__name__)


@dataclass
class SelectionPictureArguments:
    """Which text is looked at, and where the pictures go."""

    output_dir: str = field(metadata={"help": "For selection.png and forgotten_tokens.png."})
    input_file: str | None = field(default=None, metadata={"help": "Text; else standard input."})
    max_tokens: int = field(default=256, metadata={"help": "Draw the first so many tokens of a longer text."})
    threshold: float = field(default=1.0, metadata={"help": "Votes with which a token counts as forgotten."})
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ...; the fastest there is if not given."})

    def __post_init__(self):
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, one that votes on another, got {self.max_tokens}.")


def draw_selection(model_arguments: ModelArguments, arguments: SelectionPictureArguments) -> list[Path]:
    """Draw F of each layer and what each forgets; gives the two files."""
    if model_arguments.attn_implementation not in (None, "eager"):
        raise ValueError(f"attn_implementation={model_arguments.attn_implementation!r} does not show F: leave it out.")
    text = "\n".join(read_lines(arguments.input_file))
    model, tokenizers = load_generator(
        model_arguments.model_name_or_path,
        trust_remote_code=model_arguments.trust_remote_code,
        attn_implementation="eager",  # the form that shows F
    )
    tokens, selections = read_selections(
        model.to(arguments.device or fastest_device()), tokenizers.target, text, max_tokens=arguments.max_tokens
    )
    directory = Path(arguments.output_dir)
    return [
        selection_heat_maps(tokens, selections, directory / "selection.png"),
        forgotten_tokens(tokens, selections, directory / "forgotten_tokens.png", arguments.threshold),
    ]


@torch.no_grad()
def read_selections(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, max_tokens: int = 256
) -> tuple[list[str], list[Tensor]]:
    """The tokens of a text, and F of each selective layer while it is read.

    Args:
        model: With `attn_implementation="eager"`.
        max_tokens: What comes after so many tokens is left out, which a warning says.

    Returns:
        The part of the text that each token stands for, the token before the text first; and F, `[length, length]` in
        float32, on the CPU.

    Raises:
        `ValueError`: if the model does not select, or there is no text.
    """
    if not any(getattr(model.config, "selective_layers", ())):
        raise ValueError(f"{type(model).__name__} has no selective attention: there are no votes to look at.")
    ids, pieces = tokens_of_text(tokenizer, text)
    if len(ids) > max_tokens:
        logger.warning(f"The text has {len(ids)} tokens; the first {max_tokens} are drawn.")
        ids, pieces = ids[:max_tokens], pieces[:max_tokens]
    inputs = torch.tensor([ids], device=model.device)
    selections = model(input_ids=inputs, use_cache=False, output_selections=True).selections
    return pieces, [selection[0].float().cpu() for selection in selections]


def tokens_of_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[str]]:
    """Ids, with what begins a text in front, and the letters that each of them brings; a letter that several tokens
    make together stands with the first of them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if not encoded.input_ids:
        raise ValueError("The text has no tokens: there is nothing to read.")
    start = start_token(tokenizer)
    pieces, end = [tokenizer.convert_ids_to_tokens(start)], 0
    for _, last in encoded["offset_mapping"]:
        pieces.append(text[end:last])
        end = max(end, last)
    return [start, *encoded.input_ids], pieces
