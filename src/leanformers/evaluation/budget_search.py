# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""From a saved model to one with memory budgets in a folder: what scripts/search_memory_budgets.py does."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from leanformers.arguments import LanguageModelingDataArguments, ModelArguments
from leanformers.data.language_modeling import EvaluationWindows, load_texts
from leanformers.plots import perplexity_over_memory
from leanformers.training.checkpoints import ARGUMENTS_FILE

from .language_modeling import evaluate_windows, evaluation_windows
from .loading import ScoringArguments, fastest_device, load_generator
from .memory import search_memory_budgets, set_memory_budgets

SEARCH_FILE, FIGURE_FILE = "memory_budgets.json", "memory_budgets.png"


@dataclass
class BudgetSearchArguments:
    """Where the search begins and ends, and where it writes."""

    output_dir: str = field(
        metadata={
            "help": "For a copy of the model with the budgets, and the search as JSON and PNG; one that was stopped "
            "goes on there."
        }
    )
    split: str | None = field(
        default=None, metadata={"help": "What the loss is measured on; validation if there is one, else test."}
    )
    step: int = field(default=8, metadata={"help": "Tokens by which the budget of a layer is lowered at a time."})
    max_budget: int | None = field(
        default=None, metadata={"help": "Budget of every layer to begin with; block_size if not given."}
    )
    target_loss: float | None = field(
        default=None, metadata={"help": "Loss per token, in nats, up to which budgets are lowered."}
    )
    max_loss_increase: float | None = field(
        default=None, metadata={"help": "The same as a difference from the loss without budgets."}
    )
    baseline_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The same as the loss of another model with the same tokenizer."}
    )

    def __post_init__(self):
        given = [self.target_loss, self.max_loss_increase, self.baseline_model_name_or_path]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "The search needs an end: give one of --target_loss, --max_loss_increase and "
                "--baseline_model_name_or_path."
            )


def find_memory_budgets(
    model_arguments: ModelArguments,
    data_arguments: LanguageModelingDataArguments,
    scoring: ScoringArguments,
    arguments: BudgetSearchArguments,
) -> dict[str, Any]:
    """Search, and leave the model with its budgets, the search and its figure in `output_dir`.

    Returns:
        What `search_memory_budgets` does.
    """
    directory = Path(arguments.output_dir)
    _refuse_directory(directory)
    model, tokenizer = _load(model_arguments.model_name_or_path, model_arguments, scoring)
    name = str(model_arguments.model_name_or_path)
    windows = search_windows(tokenizer, data_arguments, arguments.split)
    target = arguments.target_loss
    if arguments.baseline_model_name_or_path:
        baseline, other = _load(arguments.baseline_model_name_or_path, model_arguments, scoring)
        if other.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"{arguments.baseline_model_name_or_path} has other tokens than {name}, so their losses per token do "
                "not compare: take a baseline with the same tokenizer, or give --target_loss."
            )
        target = float(evaluate_windows(baseline, windows, batch_size=scoring.batch_size, progress=True)["loss"])
        del baseline
    search = search_memory_budgets(
        model,
        windows,
        directory / SEARCH_FILE,
        target_loss=target,
        max_loss_increase=arguments.max_loss_increase,
        step=arguments.step,
        max_budget=arguments.max_budget,
        batch_size=scoring.batch_size,
        about={"model_name_or_path": name, "baseline_model_name_or_path": arguments.baseline_model_name_or_path},
        progress=True,
    )
    set_memory_budgets(model, search["points"][-1]["budgets"])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    run = Path(name) / ARGUMENTS_FILE
    if run.is_file():  # says which windows the model is for
        shutil.copyfile(run, directory / ARGUMENTS_FILE)
    perplexity_over_memory({Path(name).name: search}, directory / FIGURE_FILE)
    return search


def search_windows(
    tokenizer: PreTrainedTokenizerBase, data_arguments: LanguageModelingDataArguments, split: str | None = None
) -> EvaluationWindows:
    """The windows of that split, or else of the validation, or else of the test."""
    if data_arguments.carry_state:
        raise ValueError("carry_state is for models whose memory has no budget: leave it out.")
    splits = load_texts(data_arguments)
    name = split or ("validation" if "validation" in splits else "test")
    if name not in splits:
        raise ValueError(f"There is no split {name!r} to search on; the data has {list(splits)}: name one by --split.")
    return evaluation_windows(DatasetDict({name: splits[name]}), tokenizer, data_arguments)[name]


def _load(
    name: str | None, model_arguments: ModelArguments, scoring: ScoringArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizers = load_generator(
        name,
        trust_remote_code=model_arguments.trust_remote_code,
        attn_implementation=model_arguments.attn_implementation,
    )
    return model.to(scoring.device or fastest_device()), tokenizers.target


def _refuse_directory(directory: Path) -> None:
    if directory.is_dir() and any(directory.iterdir()) and not (directory / SEARCH_FILE).is_file():
        raise ValueError(f"{directory} is not empty and holds no search: name another --output_dir.")
