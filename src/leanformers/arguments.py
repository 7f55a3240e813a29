# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the scripts: dataclasses read from YAML files and the command line, which wins.

A YAML value takes the same way as a flag, so `1e-3` (text to YAML) becomes the number it is meant to be, and a wrong
key or value is refused in the same words wherever it stands.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from transformers.hf_argparser import string_to_bool


@dataclass
class ModelArguments:
    """Which model: a new one from a configuration, or a saved one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub repository of a saved model, to go on from or to use."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "configs/model/<family>/<preset>.json: a new model of that shape."}
    )
    config_overrides: dict | str | None = field(
        default=None, metadata={"help": "Changes of the new model's configuration: hidden_size=128,dropout=0.0"}
    )
    attn_implementation: Literal["eager", "sdpa"] | None = field(
        default=None, metadata={"help": "How attention is computed; the fastest that the model has if not given."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that a Hub repository brings along."}
    )

    def __post_init__(self):
        if isinstance(self.config_overrides, str):
            self.config_overrides = parse_overrides(self.config_overrides)

    @property
    def overrides(self) -> dict[str, Any]:
        return self.config_overrides if isinstance(self.config_overrides, dict) else {}


@dataclass
class DataArguments:
    """What data of every kind have in common."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on that many pairs, or documents, only."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate, and test on each test set, with that many only."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or repository with a tokenizer; trained on the data if not given."}
    )
    tokenizer_vocab_size: int = field(default=8000, metadata={"help": "Size of a new tokenizer's vocabulary."})


@dataclass
class TranslationDataArguments(DataArguments):
    """Which sentence pairs, and how they become tokens."""

    task: Literal["numbers"] | None = field(
        default=None, metadata={"help": "A data set made on the spot; `numbers`: English number words to German."}
    )
    source_lang: str = field(default="en", metadata={"help": "Column or key of the source language."})
    target_lang: str = field(default="de", metadata={"help": "Column or key of the target language."})
    train_files: list[str] | None = field(
        default=None, metadata={"help": "Two parallel text files, plain or gzip: source, target."}
    )
    validation_files: list[str] | None = field(default=None, metadata={"help": "The same for validation."})
    test_files: list[str] | None = field(
        default=None, metadata={"help": "The same for the test, or several tests, each as name=source,target."}
    )
    max_source_length: int = field(default=128, metadata={"help": "Longest source in tokens, </s> included."})
    max_target_length: int = field(default=128, metadata={"help": "Longest target in tokens, </s> included."})
    length_policy: Literal["error", "drop", "truncate"] = field(
        default="error", metadata={"help": "What to do with longer pairs; how many they are is always said."}
    )
    tokenizer_type: Literal["bpe", "unigram"] = field(default="bpe", metadata={"help": "Kind of new tokenizers."})
    shared_tokenizer: bool = field(default=False, metadata={"help": "One new tokenizer for both languages."})


@dataclass
class LanguageModelingDataArguments(DataArguments):
    """Which texts, and how they become tokens and blocks of tokens."""

    task: Literal["stdlib"] | None = field(
        default=None, metadata={"help": "Text on every machine; `stdlib`: Python's standard library, file by file."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of dataset_name that has the text."})
    train_files: list[str] | None = field(default=None, metadata={"help": "Text files, UTF-8, plain or gzip."})
    validation_files: list[str] | None = field(default=None, metadata={"help": "The same for validation."})
    test_files: list[str] | None = field(
        default=None, metadata={"help": "The same for the test, or several tests, each as name=file,file."}
    )
    documents: Literal["whole", "lines"] = field(
        default="whole",
        metadata={
            "help": "What is a document, at whose end stands </s>: the `whole` file or row, with its line feeds, or "
            "each of its `lines`, as is the custom with WikiText; the choice for files of many megabytes."
        },
    )
    pack_documents: Literal["stream", "separate"] = field(
        default="stream",
        metadata={
            "help": "Whether a token sees those of earlier documents in its block: `stream`, or not: `separate`, "
            "where position_ids start again with each document."
        },
    )
    block_size: int = field(default=512, metadata={"help": "Tokens of a training block and an evaluation window."})
    context_window: int = field(
        default=0,
        metadata={
            "help": "Tokens that each evaluation window but the first has before those that it scores; 0 is the "
            "cheapest, block_size - 1 the most exact."
        },
    )
    carry_state: bool = field(
        default=False,
        metadata={
            "help": "Cut the text into as many parts as a batch has rows, read each from end to end in blocks, and "
            "begin a block with the memory that the one before it left; for models with a fast weight memory."
        },
    )
    tokenizer_type: Literal["bpe", "unigram", "word"] = field(
        default="bpe", metadata={"help": "Kind of a new tokenizer; `word`: words between spaces, by frequency."}
    )

    def __post_init__(self):
        check_windows(self.block_size, self.context_window)
        if self.carry_state and self.context_window:
            raise ValueError(
                f"carry_state brings along all that was before a block, so context_window={self.context_window} has "
                "nothing to add: set it to 0."
            )
        if self.carry_state and self.pack_documents == "separate":
            raise ValueError(
                "carry_state brings the memory from one document to the next: leave pack_documents at 'stream'."
            )


def check_windows(block_size: int, context_window: int) -> None:
    """Refuse windows in which nothing can be predicted, or nothing new."""
    if block_size < 2:
        raise ValueError(f"block_size={block_size} leaves no token to predict from another; take at least 2.")
    if not 0 <= context_window < block_size:
        raise ValueError(
            f"context_window={context_window} must be at least 0 and less than block_size={block_size}: what is left "
            "of a window is what it scores."
        )


@dataclass
class RunTrainingArguments(TrainingArguments):
    """The arguments of Trainer, with how a run goes on or starts again."""

    resume: bool = field(default=False, metadata={"help": "Go on from the last undamaged checkpoint in output_dir."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the earlier run in output_dir; nothing else is ever deleted."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: evaluation reads columns that no model takes."}
    )

    def __post_init__(self):
        super().__post_init__()
        # Without a device to copy to, torch warns in every epoch.
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay false: evaluation reads columns that no model takes.")


@dataclass
class LanguageModelTrainingArguments(RunTrainingArguments):
    """The arguments of Trainer, with how a model that has not selected so far begins to."""

    selection_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps over which the votes of selective attention grow from nothing to the model's "
            "selection_strength."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.selection_warmup_steps < 0:
            raise ValueError(f"selection_warmup_steps must be at least 0, got {self.selection_warmup_steps}.")


@dataclass
class TranslationTrainingArguments(RunTrainingArguments, Seq2SeqTrainingArguments):
    """The arguments of Seq2SeqTrainer, with lengths bucketed and translations scored unless told otherwise."""

    predict_with_generate: bool = field(
        default=True, metadata={"help": "Whether evaluation translates, and computes BLEU, chrF and exact match."}
    )
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = field(
        default="group_by_length", metadata={"help": "`group_by_length` fills batches with sentences of like length."}
    )
    generation_length_penalty: float | None = field(
        default=None, metadata={"help": "Power of the length that evaluation divides the scores of beams by."}
    )


# What the two training scripts take, and what a run's arguments.yaml holds.
TRANSLATION_GROUPS = (ModelArguments, TranslationDataArguments, TranslationTrainingArguments)
LANGUAGE_MODEL_GROUPS = (ModelArguments, LanguageModelingDataArguments, LanguageModelTrainingArguments)


@dataclass
class GenerationArguments:
    """How a trained model translates, or continues texts."""

    num_beams: int = field(default=1, metadata={"help": "Beams of the search; 1 is greedy."})
    length_penalty: float | None = field(
        default=None,
        metadata={"help": "Scores of beams are divided by that power of their length; the model's own if not given."},
    )
    batch_size: int = field(default=32, metadata={"help": "Lines of input worked on at once."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest translation or continuation in tokens; what the model's generation configuration says if "
            "not given."
        },
    )
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ...; the fastest there is if not given."})

    def __post_init__(self):
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("length_penalty says how beams are compared: give --num_beams, too.")

    def search_settings(self) -> dict[str, Any]:
        """What `generate()` is given of how to search."""
        penalty = {} if self.length_penalty is None else {"length_penalty": self.length_penalty}
        return {"num_beams": self.num_beams, **penalty}


@dataclass
class MemoryArguments:
    """How much a model with selective attention may hold."""

    memory_budgets: list[int] | None = field(
        default=None,
        metadata={
            "help": "Tokens that layers with selective attention hold: a number for all, or one for each; what the "
            "model's configuration says if not given."
        },
    )


@dataclass
class FileArguments:
    """Where generate.py reads and writes."""

    input_file: str | None = field(
        default=None, metadata={"help": "Text, a sentence or prompt a line; else standard input."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Translations or texts; else standard output."})


@dataclass
class EvaluationArguments:
    """What evaluate.py measures, and where it writes."""

    splits: list[str] | None = field(
        default=None, metadata={"help": "Splits to evaluate; every test set if not given."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON with the results; else standard output."})


def parse_overrides(text: str) -> dict[str, Any]:
    """`"hidden_size=128,tc_ffn_ratio=null"` or JSON as a dictionary."""
    flow = text.strip() if text.lstrip().startswith("{") else "{" + text.replace("=", ": ") + "}"
    message = f"config_overrides must read key=value,key=value but is {text!r}."
    try:
        values = yaml.safe_load(flow)
    except yaml.YAMLError as error:
        raise ValueError(message) from error
    if flow != text.strip() and len(values) > text.count("="):
        raise ValueError(message)
    return {key: _as_number(value) for key, value in values.items()}


def nearest(name: str, names) -> str:
    """The one of `names` that `name` most likely stands for."""
    return get_close_matches(name, list(names), n=1, cutoff=0)[0]


class LeanArgumentParser(HfArgumentParser):
    """Reads `[defaults.yaml ...] [--flag value ...]` into dataclasses; a mistake ends in one sentence and code 2."""

    def __init__(self, dataclass_types, **kwargs):
        # An abbreviation that works today would change its meaning with the next release's flags.
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.source = ""  # "<file>: " while a file is read, for its errors

    def parse(self, argv: list[str] | None = None) -> tuple:
        """The dataclasses, filled from YAML files (a later one wins) and then from flags."""
        argv = sys.argv[1:] if argv is None else list(argv)
        files = list(takewhile(lambda argument: argument.endswith((".yaml", ".yml")), argv))
        settings: dict[str, Any] = {}
        for file in files:
            settings |= self._read(file)
        tokens = [token for key, value in settings.items() for token in _as_flags(key, value)]
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(
                tokens + argv[len(files) :], return_remaining_strings=True, look_for_args_file=False
            )
        except ValueError as error:
            self.error(str(error))
        if unknown:
            self._refuse(unknown[0])
        return tuple(parsed)

    def _read(self, file: str) -> dict[str, Any]:
        try:
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"{file} cannot be read: {error.strerror}.")
        except yaml.YAMLError as error:
            self.error(f"{file} is not valid YAML: {' '.join(str(error).split())}.")
        if not isinstance(settings, dict):
            self.error(f"{file} must hold lines of `key: value`.")
        # Reversed: --flag comes before its complement --no_flag.
        flags = {action.dest: action for action in reversed(self._actions) if action.dest != "help"}
        for key, value in settings.items():
            if key not in flags:
                self.error(f"{file}: there is no {key!r}; did you mean {nearest(str(key), flags)!r}?")
            if isinstance(value, bool) and flags[key].type is not string_to_bool:
                self.error(f"{file}: YAML reads the value of {key} as {value}; put it in quotes.")
            self._check(file, _as_flags(key, value))
        return settings

    def _check(self, file: str, tokens: list[str]) -> None:
        """Let a wrong value fail here, where the file that has it is known."""
        self.source = f"{file}: "
        self.parse_known_args(tokens)
        self.source = ""

    def _refuse(self, argument: str) -> NoReturn:
        if not argument.startswith("--"):
            self.error(f"{argument!r} belongs to no flag (YAML files come first and end in .yaml).")
        name = argument[2:].split("=")[0].replace("-", "_")
        names = [action.dest for action in self._actions]
        self.error(f"there is no {argument.split('=')[0]}; did you mean --{nearest(name, names)}?")

    def error(self, message: str) -> NoReturn:
        # Without argparse's usage, which would be 150 flags long here.
        print(f"error: {self.source}{message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns an error that leanformers itself raises, or one on a file, into a message and exit code 1.

    Those are made for the user; an error from anywhere else keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        ours = frames[-1].f_globals.get("__name__", "").split(".")[0] == "leanformers"
        if not ours and not getattr(error, "filename", None):
            raise
        sys.exit(f"error: {error}")


def _as_flags(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
