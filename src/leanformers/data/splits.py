# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Which data a run reads: local files before a data set of the Hub, and that before a task made on the spot."""

from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict, load_dataset
from transformers.utils import logging

if TYPE_CHECKING:
    from leanformers.arguments import DataArguments

logger = logging.get_logger(__name__)

SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def warn_of_unread(arguments: "DataArguments") -> None:
    """Say which arguments give way to an earlier one, so that a recipe's default can be overridden but not unseen."""
    origins = [option for option in ("train_files", "dataset_name", "task") if getattr(arguments, option)]
    if len(origins) > 1:
        logger.warning(f"The data are those of {origins[0]}; {' and '.join(origins[1:])} are not read.")


def load_named_dataset(arguments: "DataArguments") -> dict[str, Dataset]:
    """The splits `train`, `validation` and `test*` of the data set of the Hub, whatever it calls them itself."""
    loaded = load_dataset(arguments.dataset_name, arguments.dataset_config_name)
    splits = {}
    for own_name, dataset in loaded.items():
        split = SPLIT_NAMES.get(own_name, own_name)
        wanted = split in ("train", "validation") or split.startswith("test")
        if not wanted or split != own_name and split in loaded:
            logger.warning(f"The split {own_name!r} of {arguments.dataset_name} is not used.")
        else:
            splits[split] = dataset
    return splits


def remove_tests(splits: DatasetDict) -> None:
    for name in [name for name in splits if name.startswith("test")]:
        del splits[name]


def limit_samples(splits: DatasetDict, arguments: "DataArguments", unit: str) -> DatasetDict:
    """The splits cut to `max_train_samples` and `max_eval_samples`, which is said."""
    limited = DatasetDict()
    for name, dataset in splits.items():
        limit = arguments.max_train_samples if name == "train" else arguments.max_eval_samples
        if limit is not None and limit < len(dataset):
            logger.warning(f"{name}: the first {limit} of {len(dataset)} {unit} are used.")
            dataset = dataset.select(range(limit))
        limited[name] = dataset
    return limited
