# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Text for language models: from files, a data set of the Hub or a task to blocks to train on and windows to score.

What is unusual here:

- Blocks overlap by one token, so that an epoch predicts every token once; the last block is as long as it is.
- Evaluation scores every token once, the first of a text included: `</s>` stands before it.
- A model that carries its memory from segment to segment reads lanes, each a part of the stream from end to end.
- Words are counted in the text, not in the tokens: perplexities per word compare across tokenizers.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from leanformers.arguments import check_windows
from leanformers.data.splits import limit_samples, load_named_dataset, remove_tests, warn_of_unread
from leanformers.data.tasks import standard_library
from leanformers.data.text_files import read_text, split_lines

if TYPE_CHECKING:
    from leanformers.arguments import LanguageModelingDataArguments


def load_texts(arguments: "LanguageModelingDataArguments") -> DatasetDict:
    """Load the splits `train`, `validation`, `test` and `test_<name>`, as many as there are, with a document a row.

    Local files come before `dataset_name`, and that before `task`: with `train_files` neither is read, and
    `validation_files` and `test_files` take the place of those splits.
    """
    warn_of_unread(arguments)
    splits = DatasetDict()
    if arguments.train_files:
        splits["train"] = _read_texts(arguments.train_files)
    elif arguments.dataset_name:
        splits = DatasetDict(
            {name: _text_of(dataset, name, arguments) for name, dataset in load_named_dataset(arguments).items()}
        )
    elif arguments.task == "stdlib":
        splits = standard_library()
    elif arguments.task:
        raise ValueError(f"There is no task {arguments.task!r} for language models; the one there is is 'stdlib'.")
    if arguments.validation_files:
        splits["validation"] = _read_texts(arguments.validation_files)
    if arguments.test_files:
        remove_tests(splits)
        for name, files in _test_sets(arguments.test_files).items():
            splits[name] = _read_texts(files)
    if not splits:
        raise ValueError("There is no text: give --task stdlib, --dataset_name or --train_files.")
    if arguments.documents == "lines":
        splits = splits.map(_to_lines, batched=True, batch_size=100, desc="Splitting into lines")
    return limit_samples(splits, arguments, "documents")


def count_words(text: str) -> int:
    """Words between spaces, and one more for the end of each line, as perplexities per word on WikiText count."""
    return len(text.split()) + len(split_lines(text))


def tokenize_texts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: "LanguageModelingDataArguments",
    name: str = "train",
) -> Dataset:
    """A split of `load_texts` as `input_ids`, with `num_words` (`count_words`) and `num_bytes` (of UTF-8, line feeds
    included) of each document.

    Every document begins with `start_token` and ends with `</s>`, whatever the tokenizer itself would add.
    """
    start, end = start_token(tokenizer), tokenizer.eos_token_id

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [text + "\n" for text in batch["text"]] if arguments.documents == "lines" else batch["text"]
        # Without `verbose=False`, long documents are warned of: blocks are what the model gets.
        tokens = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return {
            "input_ids": [[start, *ids, end] for ids in tokens["input_ids"]],
            "num_words": [count_words(text) for text in texts],
            "num_bytes": [len(text.encode("utf-8")) for text in texts],
        }

    columns = {"input_ids": ListOf(Value("int32")), "num_words": Value("int64"), "num_bytes": Value("int64")}
    return dataset.map(
        encode,
        batched=True,
        num_proc=arguments.num_proc,
        remove_columns=dataset.column_names,
        features=Features(columns),
        desc=f"Tokenizing {name}",
    )


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text: what the tokenizer itself puts there, or else `</s>`, as within a stream."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end token, with which documents end: set its eos_token.")
    first = tokenizer("").input_ids[:1]
    return first[0] if first == [tokenizer.bos_token_id] else tokenizer.eos_token_id


class TrainingBlocks(torch.utils.data.Dataset):
    """Rows of `block_size` tokens with `input_ids` and `labels`, and `position_ids` where documents are separate.

    The first label of a row, and of each separate document in it, is -100: no model predicts it there.

    Args:
        dataset: As `tokenize_texts` makes it.
        block_size: Tokens of all rows but the last, which has what is left.
        separate: Whether a document's tokens see its own alone.
    """

    def __init__(self, dataset: Dataset, block_size: int, separate: bool = False):
        check_windows(block_size, 0)
        if separate and block_size < 3:
            raise ValueError(f"block_size={block_size} is too short for separate documents; take at least 3.")
        self.tokens, begins = _join(dataset, separate)
        self.block_size = block_size
        self.begins = np.zeros(len(self.tokens), dtype=bool)
        if separate:
            self.begins[begins] = True
        if len(self.tokens) < block_size:
            raise ValueError(
                f"The training text has {len(self.tokens)} tokens, fewer than one block of block_size={block_size}: "
                "take smaller blocks or more text."
            )
        self.separate = separate

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // (self.block_size - 1))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = index * (self.block_size - 1)
        tokens = self.tokens[first : first + self.block_size].astype(np.int64)
        begins = self.begins[first : first + self.block_size].copy()
        begins[0] = True
        row = {"input_ids": tokens, "labels": np.where(begins, -100, tokens)}
        if self.separate:
            indices = np.arange(len(tokens))
            row["position_ids"] = indices - np.maximum.accumulate(np.where(begins, indices, 0))
        return {name: torch.from_numpy(values) for name, values in row.items()}


class EvaluationWindows(torch.utils.data.Dataset):
    """Rows that score every token but the first of a stream, or of each separate document, exactly once.

    A row has `input_ids` and `shift_labels`, which are labels of the same length that are shifted already: the token
    that follows, or -100 where that is not to be scored. Every window but the first scores at most
    `block_size - context_window` tokens, so that each of them has at least `context_window` tokens before it, and
    reaches back to have `block_size` tokens. The longest rows come first.

    Args:
        tokens: Of all documents in a row.
        begins: Where in `tokens` each document, or the stream, begins.
        num_words, num_bytes: Of the text, if known, for what is measured per word and per byte.
    """

    def __init__(
        self,
        tokens: Sequence[int] | np.ndarray,
        begins: Sequence[int] | np.ndarray,
        *,
        block_size: int,
        context_window: int = 0,
        num_words: int | None = None,
        num_bytes: int | None = None,
    ):
        check_windows(block_size, context_window)
        self.tokens = np.asarray(tokens)
        self.num_words, self.num_bytes = num_words, num_bytes
        ends = [*begins[1:], len(self.tokens)]
        if any(end - begin < 2 for begin, end in zip(begins, ends, strict=True)):
            raise ValueError("A text needs at least one token after the one it begins with: there is none to score.")
        spans = np.concatenate(
            [
                begin + _window_spans(end - begin - 1, block_size, context_window)
                for begin, end in zip(begins, ends, strict=True)
            ]
        )
        self.spans = spans[np.argsort(spans[:, 0] - spans[:, 2], kind="stable")]

    @classmethod
    def of_texts(
        cls, dataset: Dataset, *, block_size: int, context_window: int = 0, separate: bool = False
    ) -> "EvaluationWindows":
        """The windows of a split that `tokenize_texts` made."""
        tokens, begins = _join(dataset, separate)
        return cls(
            tokens,
            begins if separate else [0],
            block_size=block_size,
            context_window=context_window,
            num_words=sum(dataset["num_words"]),
            num_bytes=sum(dataset["num_bytes"]),
        )

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int((self.spans[:, 2] - self.spans[:, 0]).max())

    @property
    def num_scored(self) -> int:
        """Tokens that are scored in all windows together."""
        return int((self.spans[:, 2] - self.spans[:, 1]).sum())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first, scored, end = self.spans[index]
        following = self.tokens[first + 1 : end + 1].astype(np.int64)
        following[: scored - first] = -100
        return {
            "input_ids": torch.from_numpy(self.tokens[first:end].astype(np.int64)),
            "shift_labels": torch.from_numpy(following),
        }


class LaneSegments(torch.utils.data.Dataset):
    """A stream in `num_lanes` lanes of equal length, side by side: row `t * num_lanes + lane` is a lane's segment t.

    In batches of `num_lanes` rows in order, each segment follows the one before it in its lane. A row has `input_ids`,
    of which no token is read twice, `shift_labels` as in `EvaluationWindows`, which predict every token but the first
    of the stream exactly once, and `labels`, which are the inputs.

    Args:
        tokens: Of all documents in a row.
        block_size: Tokens of a segment; the last of each lane has what is left.
        num_words, num_bytes: Of the text, if known, for what is measured per word and per byte.
    """

    def __init__(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        block_size: int,
        num_lanes: int,
        num_words: int | None = None,
        num_bytes: int | None = None,
    ):
        check_windows(block_size, 0)
        if len(tokens) < 2:
            raise ValueError("A text needs at least one token after the one it begins with: there is none to score.")
        self.tokens = np.asarray(tokens)
        self.block_size, self.num_lanes = block_size, num_lanes
        self.num_words, self.num_bytes = num_words, num_bytes
        # Where the stream does not share out evenly, the first lanes have one token more.
        lengths = np.full(num_lanes, (len(tokens) - 1) // num_lanes)
        lengths[: (len(tokens) - 1) % num_lanes] += 1
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths
        self.lane_length = int(lengths[0])

    @classmethod
    def of_texts(cls, dataset: Dataset, *, block_size: int, num_lanes: int) -> "LaneSegments":
        """The lanes of a split that `tokenize_texts` made."""
        tokens, _ = _join(dataset, separate=False)
        return cls(
            tokens,
            block_size=block_size,
            num_lanes=num_lanes,
            num_words=sum(dataset["num_words"]),
            num_bytes=sum(dataset["num_bytes"]),
        )

    def __len__(self) -> int:
        return -(-self.lane_length // self.block_size) * self.num_lanes

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        segment, lane = divmod(index, self.num_lanes)
        length = min(self.block_size, self.lane_length - segment * self.block_size)
        inputs = self.begins[lane] + segment * self.block_size + np.arange(length)
        # A lane that is one token shorter reads that of the next, without predicting anything from it.
        is_own = inputs < self.ends[lane]
        tokens = torch.from_numpy(self.tokens[inputs].astype(np.int64))
        following = np.where(is_own, self.tokens[np.minimum(inputs + 1, self.ends[lane])], -100)
        return {"input_ids": tokens, "labels": tokens, "shift_labels": torch.from_numpy(following.astype(np.int64))}


def _window_spans(num_inputs: int, block_size: int, context_window: int) -> np.ndarray:
    """The first input, the first that is scored and the end of each window on inputs of that number."""
    ends = np.arange(min(block_size, num_inputs), num_inputs, block_size - context_window)
    ends = np.append(ends, num_inputs)
    return np.stack([np.maximum(ends - block_size, 0), np.append(0, ends[:-1]), ends], axis=1)


def _join(dataset: Dataset, separate: bool) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in a row, and where documents begin.

    In a stream the `</s>` that ends a document also begins the next.
    """
    column = dataset.with_format("arrow")[:]["input_ids"]
    tokens = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks])
    begins = np.cumsum(lengths) - lengths
    if separate or tokens[0] != tokens[-1]:
        return tokens, begins
    return np.delete(tokens, begins[1:]), begins - np.arange(len(begins))


def _read_texts(files: list[str]) -> Dataset:
    return Dataset.from_dict({"text": [read_text(file) for file in files]})


def _to_lines(batch: dict[str, list]) -> dict[str, list]:
    return {"text": [line for text in batch["text"] for line in split_lines(text)]}


def _test_sets(files: list[str]) -> dict[str, list[str]]:
    """`file file` is the split `test`; each `name=file,file` is a split `test_<name>`."""
    named = [re.fullmatch(r"(\w+)=(.+)", entry) for entry in files]
    if not any(named):
        return {"test": files}
    sets: dict[str, list[str]] = {}
    for entry, match in zip(files, named, strict=True):
        if match is None:
            raise ValueError(f"test_files has {entry!r} among named test sets; write it name=file.")
        if f"test_{match[1]}" in sets:
            raise ValueError(f"test_files names two test sets {match[1]!r}; give each its own name.")
        sets[f"test_{match[1]}"] = match[2].split(",")
    return sets


def _text_of(dataset: Dataset, name: str, arguments: "LanguageModelingDataArguments") -> Dataset:
    if arguments.text_column not in dataset.column_names:
        raise ValueError(
            f"The {name} split of {arguments.dataset_name} has no column {arguments.text_column!r}: text_column must "
            f"be one of {', '.join(dataset.column_names)}."
        )
    return dataset.select_columns(arguments.text_column).rename_columns({arguments.text_column: "text"})
