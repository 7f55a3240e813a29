# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Parallel text: from a task, a dataset of the Hub or local files to token ids.

What is unusual here: nothing is dropped or cut without being counted and said.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, DatasetDict
from transformers.utils import logging

from leanformers.data.splits import limit_samples, load_named_dataset, remove_tests, warn_of_unread
from leanformers.data.tasks import number_translation
from leanformers.data.text_files import read_lines
from leanformers.data.tokenizers import TranslationTokenizers

if TYPE_CHECKING:
    from leanformers.arguments import TranslationDataArguments

logger = logging.get_logger(__name__)


def load_translation(arguments: "TranslationDataArguments") -> DatasetDict:
    """Load the splits `train`, `validation`, `test` and `test_<name>`, as many as there are, as `source` and `target`.

    Local files come before `dataset_name`, and that before `task`, so that a recipe's default can be overridden:
    with `train_files` neither is read, and `validation_files` and `test_files` take the place of those splits.
    """
    warn_of_unread(arguments)
    splits = DatasetDict()
    if arguments.train_files:
        splits["train"] = read_parallel(*_pair("train_files", arguments.train_files))
    elif arguments.dataset_name:
        splits = _load_dataset(arguments)
    elif arguments.task == "numbers":
        splits = number_translation()
    elif arguments.task:
        raise ValueError(f"There is no translation task {arguments.task!r}; the one there is is 'numbers'.")
    if arguments.validation_files:
        splits["validation"] = read_parallel(*_pair("validation_files", arguments.validation_files))
    if arguments.test_files:
        remove_tests(splits)
        for name, files in _test_sets(arguments.test_files).items():
            splits[name] = read_parallel(*files)
    if not splits:
        raise ValueError(
            "There is no data: give --task numbers, --dataset_name or --train_files (source, then target)."
        )
    return limit_samples(splits, arguments, "pairs")


def read_parallel(source_path: str | Path, target_path: str | Path) -> Dataset:
    """Read two UTF-8 files, plain or gzip, in which lines of the same number translate each other."""
    source, target = read_lines(source_path), read_lines(target_path)
    if len(source) != len(target):
        raise ValueError(
            f"Parallel files need the same number of lines, but {source_path} has {len(source)} and {target_path} has "
            f"{len(target)}."
        )
    sides = ((source_path, source), (target_path, target))
    empty = [(path, number) for path, lines in sides for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        path, number = empty[0]
        more = f" (the first of {len(empty)} such lines)" if len(empty) > 1 else ""
        raise ValueError(
            f"Line {number} of {path} is empty{more}, so its pair teaches nothing: remove that line from both "
            f"{source_path} and {target_path}."
        )
    return Dataset.from_dict({"source": source, "target": target})


def _pair(option: str, files: list[str]) -> list[str]:
    if len(files) != 2:
        raise ValueError(f"{option} needs two files, the source and then the target, but has {len(files)}: {files}.")
    return files


def _test_sets(files: list[str]) -> dict[str, list[str]]:
    """`source target` is the split `test`; each `name=source,target` is a split `test_<name>`."""
    named = [re.fullmatch(r"(\w+)=([^,]+),([^,]+)", entry) for entry in files]
    if not any(named):
        return {"test": _pair("test_files", files)}
    sets: dict[str, list[str]] = {}
    for entry, match in zip(files, named, strict=True):
        if match is None:
            raise ValueError(f"test_files has {entry!r} among named test sets; write it name=source,target.")
        if f"test_{match[1]}" in sets:
            raise ValueError(f"test_files names two test sets {match[1]!r}; give each its own name.")
        sets[f"test_{match[1]}"] = [match[2], match[3]]
    return sets


def _load_dataset(arguments: "TranslationDataArguments") -> DatasetDict:
    if not (arguments.source_lang and arguments.target_lang):
        raise ValueError(
            f"The dataset {arguments.dataset_name} needs --source_lang and --target_lang, the names of its columns."
        )
    loaded = load_named_dataset(arguments)
    return DatasetDict({name: _to_pairs(dataset, name, arguments) for name, dataset in loaded.items()})


def _to_pairs(dataset: Dataset, name: str, arguments: "TranslationDataArguments") -> Dataset:
    """Bring a split to columns `source` and `target`, and leave out pairs of which a side is empty."""
    languages = {arguments.source_lang: "source", arguments.target_lang: "target"}
    if "translation" in dataset.column_names and not set(languages) <= set(dataset.column_names):
        dataset = dataset.select_columns("translation").flatten()
        dataset = dataset.rename_columns({column: column.split(".")[-1] for column in dataset.column_names})
    if len(languages) < 2 or not set(languages) <= set(dataset.column_names):
        raise ValueError(
            f"The {name} split of {arguments.dataset_name} cannot be read from {arguments.source_lang!r} to "
            f"{arguments.target_lang!r}: source_lang and target_lang must be two of {', '.join(dataset.column_names)}."
        )
    dataset = dataset.select_columns(list(languages)).rename_columns(languages)
    full = [
        index
        for index, (source, target) in enumerate(zip(dataset["source"], dataset["target"], strict=True))
        if source and target and source.strip() and target.strip()
    ]
    if len(full) == len(dataset):
        return dataset
    logger.warning(f"{name}: {len(dataset) - len(full)} of {len(dataset)} pairs have an empty side and are left out.")
    return dataset.select(full)


def tokenize_translation(
    dataset: Dataset, tokenizers: TranslationTokenizers, arguments: "TranslationDataArguments", name: str = "train"
) -> Dataset:
    """Add `input_ids`, `labels` and, for bucketing, `length` (of the longer side) to the columns of a split.

    Pairs longer than `max_source_length` or `max_target_length` (in tokens, `</s>` included) are counted, and
    `length_policy` says what becomes of them: "error"; "drop", which leaves all splits but `train` whole, since scores
    on part of a test set compare with nothing; or "truncate", which keeps `</s>` and the text beside the tokens.

    Args:
        dataset: One split of `load_translation`.
        tokenizers: Those of the two languages.
        arguments: Has the limits, the policy and `num_proc`.
        name: The split's name.
    """
    policy = arguments.length_policy
    if policy not in ("error", "drop", "truncate"):
        raise ValueError(f"There is no length_policy {policy!r}; choose 'error', 'drop' or 'truncate'.")
    limits = {"input_ids": arguments.max_source_length, "labels": arguments.max_target_length}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        tokens = {
            "input_ids": tokenizers.source(batch["source"])["input_ids"],
            "labels": tokenizers.target(batch["target"])["input_ids"],
        }
        whole = {f"{column}_length": [len(ids) for ids in rows] for column, rows in tokens.items()}
        if policy == "truncate":
            tokens = {column: [_truncate(ids, limits[column]) for ids in rows] for column, rows in tokens.items()}
        longer = [max(map(len, pair)) for pair in zip(*tokens.values(), strict=True)]
        return {**tokens, **whole, "length": longer}

    dataset = dataset.map(encode, batched=True, num_proc=arguments.num_proc, desc=f"Tokenizing {name}")
    lengths = {column: np.asarray(dataset[f"{column}_length"]) for column in limits}
    dataset = dataset.remove_columns([f"{column}_length" for column in limits])
    too_long = (lengths["input_ids"] > limits["input_ids"]) | (lengths["labels"] > limits["labels"])
    if not too_long.any():
        return dataset
    found = (
        f"{name}: {too_long.sum()} of {len(dataset)} pairs are longer than max_source_length={limits['input_ids']} or "
        f"max_target_length={limits['labels']} (the longest source has {lengths['input_ids'].max()} tokens, the "
        f"longest target {lengths['labels'].max()})"
    )
    if policy == "drop" and name == "train" and not too_long.all():
        logger.warning(f"{found} and are dropped.")
        return dataset.select(np.flatnonzero(~too_long))
    if policy == "drop" and name != "train":
        logger.warning(f"{found} and are kept: only training pairs are dropped.")
        return dataset
    if policy == "truncate":
        logger.warning(f"{found} and are truncated.")
        return dataset
    raise ValueError(f"{found}. Raise the limits, or set length_policy to 'drop' or 'truncate'.")


def _truncate(ids: list[int], limit: int) -> list[int]:
    """Cut before the last token, which is `</s>`."""
    return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]
