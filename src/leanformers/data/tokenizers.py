# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers trained on the data at hand and saved as `PreTrainedTokenizerFast` beside the model.

What is unusual here:

- Text is split into bytes before it is merged, so every string comes back as it went in (for translation in Unicode's
  composed form, NFC) and `<unk>` never appears: `decode(encode(text), skip_special_tokens=True) == text`. The
  tokenizers of words that WikiText's figures are made with are the exception.
- Text that happens to read `</s>` or `<pad>` is text: only the tokenizer itself adds special tokens.
- A separate tokenizer of the target language lives in the subfolder `target_tokenizer/`; the source tokenizer's
  configuration says so (`separate_target_tokenizer`), so that loading never guesses from a missing file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# One token ends a text and so begins the next.
LANGUAGE_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "</s>", "eos_token": "</s>"}
TARGET_SUBFOLDER = "target_tokenizer"


def train_tokenizer(lines: Iterable[str], kind: str = "bpe", vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """Train a subword tokenizer for translation, which appends `</s>` to what it encodes.

    Training a BPE tokenizer twice on the same lines gives the same file byte for byte. The unigram trainer of
    `tokenizers` sums in the order of a randomised hash table, so its scores differ a little from one run to the next.

    Args:
        lines: The text, one sentence each; read once.
        kind: `"bpe"` or `"unigram"`.
        vocab_size: Tokens altogether, the 4 special ones and the 256 bytes included. Little text gives fewer.
    """
    if kind not in ("bpe", "unigram"):
        raise ValueError(f"There is no tokenizer type {kind!r}; choose 'bpe' or 'unigram'.")
    tokenizer = _train_subwords(lines, kind, vocab_size, SPECIAL_TOKENS, normalizers.NFC())
    return _finish(tokenizer, "$A </s>", "$A </s> $B </s>", SPECIAL_TOKENS, vocab_size)


def train_language_tokenizer(
    texts: Iterable[str], kind: str = "bpe", vocab_size: int = 8000
) -> PreTrainedTokenizerFast:
    """Train a tokenizer for a language model, which puts `</s>` before what it encodes, as it stands before every text
    in training, and which has no `<s>`.

    A subword tokenizer gives back every text exactly. One of words does not: it splits at spaces, line feeds being
    tokens, and has `<unk>` for what is not among the most frequent words, the ids of which are in order of frequency.

    Args:
        texts: The text in pieces of any length; read once.
        kind: `"bpe"`, `"unigram"` or `"word"`.
        vocab_size: Tokens altogether, the 3 special ones and, of subwords, the 256 bytes included.
    """
    if kind == "word":
        tokenizer = _train_words(texts, vocab_size)
    elif kind in ("bpe", "unigram"):
        tokenizer = _train_subwords(texts, kind, vocab_size, LANGUAGE_TOKENS, None)
    else:
        raise ValueError(f"There is no tokenizer type {kind!r}; choose 'bpe', 'unigram' or 'word'.")
    return _finish(tokenizer, "</s> $A", "</s> $A </s> $B", LANGUAGE_TOKENS, vocab_size)


def _train_subwords(
    lines: Iterable[str],
    kind: str,
    vocab_size: int,
    special_tokens: dict[str, str],
    normalizer: normalizers.Normalizer | None,
) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys(special_tokens.values()))
    smallest = len(tokens) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"A tokenizer cannot have vocab_size={vocab_size}: {len(tokens)} special tokens and "
            f"{len(alphabet)} bytes are always in it, so ask for at least {smallest}."
        )
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": tokens, "initial_alphabet": alphabet}
    trainer: trainers.Trainer
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(**common)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**common, unk_token="<unk>")
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def _train_words(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    special_tokens = list(dict.fromkeys(LANGUAGE_TOKENS.values()))
    if vocab_size <= len(special_tokens):
        raise ValueError(
            f"A tokenizer cannot have vocab_size={vocab_size}: {len(special_tokens)} special tokens are always in it."
        )
    # Told of special tokens, this trainer would give their ids to words of the text that read the same.
    counter = Tokenizer(models.WordLevel(unk_token="<unk>"))
    counter.pre_tokenizer = word_splitter()
    counter.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=vocab_size + len(special_tokens)))
    ids = counter.get_vocab()
    words = [word for word in sorted(ids, key=ids.__getitem__) if word not in special_tokens]
    vocabulary = {word: index for index, word in enumerate((special_tokens + words)[:vocab_size])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = word_splitter()
    # <unk> in the text is meant as such; what reads like the others is text, and must not end one.
    tokenizer.normalizer = normalizers.Replace(Regex("</s>|<pad>"), "<unk>")
    return tokenizer


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """Splits at space; a line feed is a word of its own, as which `</s>` ends lines in WikiText's convention."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )


def _finish(
    tokenizer: Tokenizer, single: str, pair: str, special_tokens: dict[str, str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer for transformers; `single` and `pair` say where special tokens go."""
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[end])
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(
            f"The text gave {tokenizer.get_vocab_size()} tokens, fewer than the vocab_size={vocab_size} asked for."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **special_tokens,
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
