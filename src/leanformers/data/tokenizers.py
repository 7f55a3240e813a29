# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers trained on the data at hand and saved as `PreTrainedTokenizerFast` beside the model.

What is unusual here:

- Text is split into bytes before it is merged, so every string comes back as it went in (in Unicode's composed form,
  NFC) and `<unk>` never appears: `decode(encode(text), skip_special_tokens=True) == text`.
- Text that happens to read `</s>` or `<pad>` is text: only the tokenizer itself adds special tokens.
- A separate tokenizer of the target language lives in the subfolder `target_tokenizer/`; the source tokenizer's
  configuration says so (`separate_target_tokenizer`), so that loading never guesses from a missing file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
TARGET_SUBFOLDER = "target_tokenizer"


def train_tokenizer(lines: Iterable[str], kind: str = "bpe", vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """Train a subword tokenizer that appends `</s>` to what it encodes.

    Training a BPE tokenizer twice on the same lines gives the same file byte for byte. The unigram trainer of
    `tokenizers` sums in the order of a randomised hash table, so its scores differ a little from one run to the next.

    Args:
        lines: The text, one sentence each; read once.
        kind: `"bpe"` or `"unigram"`.
        vocab_size: Tokens altogether, the 4 special ones and the 256 bytes included. Little text gives fewer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special_tokens = list(SPECIAL_TOKENS.values())
    smallest = len(special_tokens) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"A tokenizer cannot have vocab_size={vocab_size}: {len(special_tokens)} special tokens and "
            f"{len(alphabet)} bytes are always in it, so ask for at least {smallest}."
        )
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": special_tokens, "initial_alphabet": alphabet}
    trainer: trainers.Trainer
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(**common)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**common, unk_token="<unk>")
    else:
        raise ValueError(f"There is no tokenizer type {kind!r}; choose 'bpe' or 'unigram'.")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainer)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end]
    )
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(
            f"The text gave {tokenizer.get_vocab_size()} tokens, fewer than the vocab_size={vocab_size} asked for."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **SPECIAL_TOKENS,
    )


@dataclass
class TranslationTokenizers:
    """The tokenizer of the source language and that of the target language; one object twice when they share."""

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    @classmethod
    def train(
        cls, source_lines: Iterable[str], target_lines: Iterable[str], kind: str, vocab_size: int, shared: bool
    ) -> "TranslationTokenizers":
        """Train one tokenizer on both sides, or one on each with `vocab_size` tokens each."""
        if shared:
            both = train_tokenizer(chain(source_lines, target_lines), kind, vocab_size)
            return cls(both, both)
        return cls(train_tokenizer(source_lines, kind, vocab_size), train_tokenizer(target_lines, kind, vocab_size))

    @property
    def shared(self) -> bool:
        return self.source is self.target

    @property
    def source_vocab_size(self) -> int:
        """Rows the source embedding needs: added tokens are counted, unlike in `tokenizer.vocab_size`."""
        return len(self.source)

    @property
    def target_vocab_size(self) -> int:
        """Rows the target embedding and the output layer need, added tokens counted."""
        return len(self.target)

    def save_pretrained(self, directory: str | Path) -> None:
        self.source.init_kwargs["separate_target_tokenizer"] = not self.shared
        self.source.save_pretrained(directory)
        if not self.shared:
            self.target.save_pretrained(Path(directory) / TARGET_SUBFOLDER)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs) -> "TranslationTokenizers":
        """Load from a folder or a repository of the Hub; `kwargs` (such as `revision`) go to `AutoTokenizer`."""
        source = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
        if not source.init_kwargs.get("separate_target_tokenizer", False):
            return cls(source, source)
        return cls(source, AutoTokenizer.from_pretrained(name_or_path, subfolder=TARGET_SUBFOLDER, **kwargs))
