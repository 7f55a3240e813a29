# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The vocabulary of an original language model of words, a text file with one word per line by ids, as a tokenizer.

Text is split at white space, as the original does, and `<eos>` stands for the end of each line; a text begins with it,
as it stands before every line but the first one of the training data.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

END = "<eos>"
UNKNOWN = ("<unk>", "<UNK>")


def read_vocabulary(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary file.

    Args:
        path: the file, UTF-8.
        vocab_size: rows of the model's token table, which must be as many as the words.
    """
    words = _words(path)
    if len(words) != vocab_size:
        raise ValueError(
            f"{path} has {len(words)} words, but the token table has {vocab_size} rows: a vocabulary that does not "
            "fit the weights"
        )
    unknown = next((word for word in UNKNOWN if word in words), None)
    if unknown is None or END not in words:
        raise ValueError(f"{path} must have {END}, which ends lines, and {' or '.join(UNKNOWN)} for all other words")
    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(words, unknown),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        unk_token=unknown,
        bos_token=END,
        eos_token=END,
        pad_token=END,  # there is none of its own; masks tell padding
    )


def _words(path: Path) -> dict[str, int]:
    try:
        lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 ({error})") from error
    words: dict[str, int] = {}
    for number, word in enumerate(lines, start=1):
        if word in words or word.split() != [word]:
            raise ValueError(f"line {number} of {path} must be one word that no other line has, not {word!r}")
        words[word] = number - 1
    return words


def _tokenizer(words: dict[str, int], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    # What merely reads like the end of a line must not end one.
    apart = [normalizers.Replace(Regex(rf"(?<!\S){END}(?!\S)"), unknown), normalizers.Replace("\n", f" {END} ")]
    tokenizer.normalizer = normalizers.Sequence(apart)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaced = [decoders.Replace(Regex("$"), " "), decoders.Fuse(), decoders.Replace(Regex(" $"), "")]
    tokenizer.decoder = decoders.Sequence(spaced)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, words[END])]
    )
    return tokenizer
