# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""fairseq's files: checkpoints (`.pt`), and the dictionaries and BPE codes that lie beside them, as tokenizers.

What is unusual here:

- Text is expected as fairseq got it before BPE: tokenised (for DeLighT's data with the Moses scripts), and words
  separated by spaces.
- BPE codes are subword-nmt's. Its pieces are looked up in a dictionary that was made of training text: steps on the
  way to a piece need not be in it, and a piece that is not is `<unk>`. In `tokenizers`' own BPE every step has an id.
  Here the merges are string replacements in the order of their priority, ahead of a plain look-up; that takes tens of
  milliseconds per sentence with 32,000 merges.
"""

import heapq
import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from ..data.tokenizers import LANGUAGE_TOKENS, SPECIAL_TOKENS, TranslationTokenizers

RESERVED = ("<s>", "<pad>", "</s>", "<unk>")
CODES = ("code", "codes", "bpecodes")
# Around each symbol of a word, and behind the last one: noncharacters of Unicode, which no text has.
OPEN, CLOSE, END = "\ufdd0", "\ufdd1", "\ufdd2"


def read_fairseq(source: Path, checkpoint: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a checkpoint that was read from `source`, and its options as `{"args": ...}`."""
    options = _options(checkpoint) if isinstance(checkpoint, dict) else {}
    if not options or not isinstance(checkpoint.get("model"), dict):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{source} is no fairseq checkpoint: it needs `model`, and `args` or `cfg`; it has {found}. Nor is it a "
            "state dict, which has tensors alone"
        )
    return dict(checkpoint["model"]), {"args": options}


def _options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """`args` of older checkpoints, or the task's and the model's part of `cfg`."""
    cfg = checkpoint.get("cfg") or {}
    parts = [checkpoint.get("args"), cfg.get("task"), cfg.get("model")]
    return {name: value for part in parts for name, value in _mapping(part).items()}


def _mapping(part: Any) -> Mapping[str, Any]:
    if isinstance(part, Namespace):
        return vars(part)
    return part if isinstance(part, dict) else {}


def read_tokenizers(
    folder: Path, options: Mapping[str, Any], config: PreTrainedConfig, codes: str | Path | None = None
) -> TranslationTokenizers:
    """The tokenizers of a model: one object twice if it has one dictionary, or the same for source and target.

    Args:
        folder: where the dictionaries are.
        options: the checkpoint's; `source_lang` and `target_lang` name the dictionaries.
        config: the model's.
        codes: the BPE codes; by default `code`, `codes` or `bpecodes` beside the dictionaries, if there is one.
    """
    sizes = dict.fromkeys(_dictionary_paths(folder, options, config.is_encoder_decoder), config.vocab_size)
    if config.is_encoder_decoder and config.source_vocab_size:
        sizes[next(iter(sizes))] = config.source_vocab_size
    dictionaries = [read_dictionary(path) for path in sizes]
    for (path, size), words in zip(sizes.items(), dictionaries, strict=True):
        if len(words) != size:
            raise ValueError(
                f"{path} makes a vocabulary of {len(words)} ({len(RESERVED)} special tokens included), but the token "
                f"table has {size} rows: a dictionary that does not fit the weights"
            )
    merges = _find_merges(folder, codes, dictionaries)
    first = dictionary_tokenizer(dictionaries[0], merges, config.is_encoder_decoder)
    if dictionaries[0] == dictionaries[-1]:
        return TranslationTokenizers(first, first)
    return TranslationTokenizers(first, dictionary_tokenizer(dictionaries[-1], merges, config.is_encoder_decoder))


def _dictionary_paths(folder: Path, options: Mapping[str, Any], is_translation: bool) -> list[Path]:
    """The dictionary of the source and that of the target, or the only one."""
    languages = [options.get("source_lang"), options.get("target_lang")] if is_translation else []
    if None in languages:
        raise ValueError(
            "the hyper-parameters name no source_lang and target_lang, which tell the dictionary of the source "
            "(dict.<language>.txt) from that of the target"
        )
    paths = [folder / f"dict.{language}.txt" for language in languages] or [folder / "dict.txt"]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"there is no dictionary {' and no '.join(missing)}")
    return paths


def read_dictionary(path: Path) -> list[str]:
    """The words by their ids: the special ones, then those of the file, one "word count" per line."""
    words = dict.fromkeys(RESERVED)
    for number, line in enumerate(_lines(path), start=1):
        word, _, count = line.rstrip().rpartition(" ")
        if not word or not count.isdecimal():
            raise ValueError(f"line {number} of {path} must be a word and its count, not {line!r}")
        if word in words:
            raise ValueError(f"line {number} of {path} has {word!r} again; each word may have one id")
        words[word] = None
    return list(words)


def read_codes(path: Path) -> list[tuple[str, str]]:
    """The merges of a file of subword-nmt, the first to be made first, with `END` for its end of a word."""
    lines = _lines(path)
    # Before version 0.2, the end of a word was a symbol of its own.
    if not lines or not lines[0].startswith("#version: 0.2"):
        raise ValueError(f"{path} must begin with '#version: 0.2', as the codes that subword-nmt learns do")
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"line {number} of {path} must be two symbols with a space between, not {line!r}")
        merges.append((pair[0], re.sub("</w>$", END, pair[1])))
    return merges


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 ({error})") from error
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _find_merges(
    folder: Path, codes: str | Path | None, dictionaries: Sequence[list[str]]
) -> list[tuple[str, str]] | None:
    """The merges, or None for dictionaries of whole words."""
    found = [Path(codes)] if codes else [folder / name for name in CODES if (folder / name).is_file()]
    if found:
        return read_codes(found[0])
    pieces = [word for words in dictionaries for word in words if word.endswith("@@")]
    if pieces:
        raise ValueError(
            f"the dictionary in {folder} has pieces of words like {pieces[0]!r}, but there are no BPE codes "
            f"({', '.join(CODES)}) beside it; name their file (--codes)"
        )
    return None


def dictionary_tokenizer(
    words: Sequence[str], merges: Sequence[tuple[str, str]] | None, is_translation: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer with the ids of a fairseq dictionary.

    Args:
        words: the words by their ids.
        merges: of `read_codes`; None to look up whole words.
        is_translation: `</s>` behind a text. Otherwise it stands before it and for each line feed in it, as fairseq
            trains language models on a stream of lines.
    """
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    steps = _whole_words() if merges is None else _bpe(merges)
    if not is_translation:
        steps.append(normalizers.Replace("\n", " </s> "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A space behind each token, then none behind pieces and at the end.
    spaced = [decoders.Replace(Regex("$"), " "), decoders.Fuse(), decoders.Replace(Regex("@@ | $"), "")]
    tokenizer.decoder = decoders.Sequence(spaced)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if is_translation else "</s> $A",
        pair="$A </s> $B </s>" if is_translation else "</s> $A </s> $B",
        special_tokens=[("</s>", RESERVED.index("</s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **(SPECIAL_TOKENS if is_translation else LANGUAGE_TOKENS),
    )


def _whole_words() -> list[normalizers.Normalizer]:
    """What merely reads like a special token must not end a text."""
    return [normalizers.Replace(Regex(r"(?<!\S)(<s>|<pad>|</s>)(?!\S)"), "<unk>")]


def _bpe(merges: Sequence[tuple[str, str]]) -> list[normalizers.Normalizer]:
    """Text -> its pieces with spaces between, all but the last of a word with "@@" behind."""
    symbols: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(r"(?<=\S)(?=\S)"), CLOSE + OPEN),
        normalizers.Replace(Regex(r"(?<!\S)(?=\S)"), OPEN),
        normalizers.Replace(Regex(r"(?<=\S)(?!\S)"), END + CLOSE),
    ]
    joined = [
        normalizers.Replace(OPEN + left + CLOSE + OPEN + right + CLOSE, OPEN + left + right + CLOSE)
        for left, right in replacements(merges)
    ]
    pieces = [(END + CLOSE, ""), (CLOSE, "@@ "), (OPEN, "")]
    return symbols + joined + [normalizers.Replace(symbol, text) for symbol, text in pieces]


def replacements(merges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges in an order in which making each of them once, everywhere, is BPE.

    BPE always makes the first merge of the list that can be made. After a merge, those further down come next, but
    also those further up that need its symbol, where an earlier merge had already given that symbol.
    """
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    users: dict[str, set[int]] = defaultdict(set)
    for (left, right), rank in ranks.items():
        users[left].add(rank)
        users[right].add(rank)
    ordered = []
    for last in sorted(ranks.values()):
        queue = [last]
        while queue:
            rank = heapq.heappop(queue)
            while queue and queue[0] == rank:
                heapq.heappop(queue)
            ordered.append(merges[rank])
            for user in users["".join(merges[rank])]:
                if user < last:
                    heapq.heappush(queue, user)
    return ordered
