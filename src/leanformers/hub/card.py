# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The model card of an exported folder: metadata for the Hub, and what a reader wants to know, from what is at hand.

A number that is not given is left out; none is filled in.
"""

import copy
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..accounting import macs
from ..ordinary import ordinary_model
from ..registry import Family
from .static_checks import LANGUAGE

PIPELINE_TAGS = {"AutoModelForSeq2SeqLM": "translation", "AutoModelForCausalLM": "text-generation"}
# Name in the results -> (name on the Hub, heading).
METRICS = {
    "bleu": ("sacrebleu", "BLEU"),
    "chrf": ("chrf", "chrF"),
    "exact_match": ("exact_match", "Exact match"),
    "perplexity": ("perplexity", "Perplexity per token"),
    "perplexity_per_word": ("perplexity", "Perplexity per word"),
    "bits_per_byte": ("bits_per_byte", "Bits per byte"),
}
TRAINING_ARGUMENTS = (
    "max_steps",
    "num_train_epochs",
    "block_size",
    "context_window",
    "carry_state",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
)
TASKS = {
    "numbers": "number translation (English number words to German ones, 0 to 999,999)",
    "stdlib": "the source files of Python's standard library",
}
EXAMPLES = {"numbers": "nine thousand and one", "stdlib": "def main("}
# Of these arguments of a run the first that is given says what it was trained on.
ORIGINS = ("train_files", "dataset_name", "task")
MOST_FILES_NAMED = 4
# Tokens of the forward pass whose multiply-accumulates are counted: of each side of a pair, or of a text.
PAIR_LENGTH, TEXT_LENGTH = 32, 512


def render_card(
    family: Family | None,
    model: PreTrainedModel,
    auto_class: str,
    *,
    repository: str | None = None,
    metrics: Mapping[str, object] | None = None,
    arguments: Mapping[str, object] | None = None,
    separate_target_tokenizer: bool = False,
    curves: str | None = None,
    license_id: str = "apache-2.0",
    code_hashes: Mapping[str, str] | None = None,
    samples: Mapping[str, Any] | None = None,
) -> str:
    """
    The text of README.md.

    Args:
        family (`Family`, *optional*): Family of the model; brings the description and the citation.
        model (`PreTrainedModel`): The model, for its sizes.
        auto_class (`str`): The Auto class that loads it, e.g. `AutoModelForSeq2SeqLM`.
        repository (`str`, *optional*): Name on the Hub, for the code example.
        metrics (`Mapping`, *optional*): Results as a run leaves them in `all_results.json`: `test_bleu`,
            `test_bleu_signature`, `eval_perplexity`, `train_runtime`, `hardware` or `device`, `versions`.
        arguments (`Mapping`, *optional*): The run's arguments as it leaves them in `arguments.yaml`.
        separate_target_tokenizer (`bool`, defaults to `False`): The folder has a `target_tokenizer`.
        curves (`str`, *optional*): Name of the picture of the training curves in the folder.
        license_id (`str`, defaults to `"apache-2.0"`): The Hub's name of the licence of the weights.
        code_hashes (`Mapping`, *optional*): SHA-256 of each Python file of the folder, for the metadata.
        samples (`Mapping`, *optional*): Texts of the model, as `evaluation.samples` takes them.
    """
    metrics, arguments = dict(metrics or {}), dict(arguments or {})
    results = result_table(metrics)
    translates = model.config.is_encoder_decoder
    card_data = _metadata(family, model, auto_class, arguments, results, metrics, license_id, code_hashes)
    card = ModelCard.from_template(
        card_data,
        template_str=_read("template.md"),
        title=f"{family.title if family else type(model).__name__}, {card_data.pipeline_tag}",
        family=family,
        description=_read(f"{family.name}.md") if family else "",
        auto_class=auto_class,
        repository=repository,
        example=EXAMPLES.get(_task(arguments), f"A man is riding{' a bicycle.' if translates else ''}"),
        translates=translates,
        separate_target_tokenizer=separate_target_tokenizer,
        sizes=sizes(model, family),
        counted=_counted_text(model),
        samples=_readable(samples or {}, translates),
        data=_data_name(arguments),
        results={split: {name: _figure(value) for name, value in row.items()} for split, row in results.items()},
        columns=[name for name in METRICS if any(name in row for row in results.values())],
        headings={name: heading for name, (_, heading) in METRICS.items()},
        signatures={key: value for key, value in metrics.items() if key.endswith("_signature")},
        training=_training_arguments(arguments),
        runtime=metrics.get("train_runtime"),
        hardware=metrics.get("hardware") or metrics.get("device"),
        trained_with=metrics.get("versions") or {},
        versions={name: version(name) for name in ("leanformers", "transformers", "torch")},
        curves=curves,
        code_is_listed=bool(code_hashes),
    )
    return str(card)


def result_table(metrics: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """`{"test_2016_flickr_bleu": 30.0}` as `{"test_2016_flickr": {"bleu": 30.0}}`."""
    table: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        for name in METRICS:
            if key.endswith(f"_{name}") and isinstance(value, int | float):
                split = key.removesuffix(f"_{name}")
                table.setdefault("validation" if split == "eval" else split, {})[name] = value
    return table


def public_results(metrics: Mapping[str, object]) -> dict[str, object]:
    """What of a run's results may be shown to all: numbers, signatures of metrics, hardware and versions."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) or name.endswith("_signature") or name in ("hardware", "device", "versions")
    }


def sizes(model: PreTrainedModel, family: Family | None) -> list[tuple[str, int, int | None]]:
    """Rows of what, parameters, and MACs of a forward pass: this model's, and those of what it stands in for."""
    total, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    rows: list[tuple[str, int, int | None]] = [("this model", total, macs(model, *counted_lengths(model)))]
    if trained != total:
        rows.append(("of them trained", trained, None))
    dense = dense_parameters(model)
    if dense is not None:
        rows.append(("the same model with dense matrices for its tensor chains", dense, None))
    if family is None:  # whose configuration may have other names
        return rows
    ordinary = ordinary_model(model)
    name = f"`{type(ordinary).__name__}` of transformers, of the same vocabulary, width and depth"
    # Marian's positions are a table, which is not trained.
    ordinary_size = ordinary.num_parameters(only_trainable=True)
    return [*rows, (name, ordinary_size, macs(ordinary, *counted_lengths(model)))]


def counted_lengths(model: PreTrainedModel) -> tuple[int, ...]:
    """Source and target tokens, or those of a text, that every model of the table can take."""
    most = getattr(model.config, "max_position_embeddings", None) or TEXT_LENGTH
    lengths = (PAIR_LENGTH, PAIR_LENGTH) if model.config.is_encoder_decoder else (TEXT_LENGTH,)
    return tuple(min(length, most) for length in lengths)


def dense_parameters(model: PreTrainedModel) -> int | None:
    """Parameters of the same model with every tensor chain replaced by its dense matrix; None if it has no chain."""
    config = copy.deepcopy(model.config)
    ratios = [name for name in vars(config) if name.startswith("tc_") and name.endswith("_ratio")]
    if all(getattr(config, name) is None for name in ratios):
        return None
    for name in ratios:
        setattr(config, name, None)
    with torch.device("meta"):
        return type(model)(config).num_parameters()


def _counted_text(model: PreTrainedModel) -> str:
    first, *others = counted_lengths(model)
    return f"a pair of {first} + {others[0]} tokens" if others else f"a text of {first} tokens"


def _figure(value: float) -> str:
    """Four digits, or more before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _readable(samples: Mapping[str, Any], translates: bool) -> dict[str, object]:
    """Samples as they may stand in Markdown: in cells of a table, or within a fence that none of them closes."""
    rows = [{key: text.rstrip() for key, text in sample.items()} for sample in samples.get("samples", ())]
    if translates:
        rows = [{key: " ".join(text.split()).replace("|", "\\|") for key, text in row.items()} for row in rows]
    ticks = [len(run) for row in rows for text in row.values() for run in re.findall("`+", text)]
    return {"how": samples.get("how"), "rows": rows, "fence": "`" * max([3, *(length + 1 for length in ticks)])}


def _metadata(
    family: Family | None,
    model: PreTrainedModel,
    auto_class: str,
    arguments: Mapping[str, object],
    results: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, object],
    license_id: str,
    code_hashes: Mapping[str, str] | None,
) -> ModelCardData:
    hub_dataset = _hub_dataset(arguments)
    dataset = hub_dataset or _task(arguments) or "local"
    pipeline_tag = PIPELINE_TAGS[auto_class]
    tags = ["custom_code", "leanformers", model.config.model_type]
    eval_results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=dataset,
            dataset_name=_data_name(arguments) or dataset,
            dataset_split=split,
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=value,
            metric_args={"signature": signature} if (signature := _signature(metrics, split, name)) else None,
        )
        for split, row in results.items()
        for name, value in row.items()
    ]
    return ModelCardData(
        language=_languages(arguments),
        license=license_id,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[*tags, f"arxiv:{family.paper}"] if family else tags,
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=_hub_name(arguments.get("model_name_or_path")),
        metrics=sorted({METRICS[name][0] for row in results.values() for name in row}) or None,
        model_name=family.title if family else type(model).__name__,
        eval_results=eval_results or None,
        code_hashes=dict(code_hashes) if code_hashes else None,
    )


def _signature(metrics: Mapping[str, object], split: str, name: str) -> object:
    """sacreBLEU's, of this split or one for all of them."""
    return metrics.get(f"{split}_{name}_signature") or metrics.get(f"{name}_signature")


def _training_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """What decides the result, without what is switched off; epochs count only where `max_steps` is -1."""
    given = {name: arguments.get(name) for name in TRAINING_ARGUMENTS}
    if given["max_steps"] not in (None, -1):
        del given["num_train_epochs"]
    return {name: value for name, value in given.items() if value not in (None, -1, "") and value is not False}


def _origin(arguments: Mapping[str, object]) -> str:
    return next((name for name in ORIGINS if arguments.get(name)), "")


def _task(arguments: Mapping[str, object]) -> str:
    return str(arguments["task"]) if _origin(arguments) == "task" else ""


def _hub_dataset(arguments: Mapping[str, object]) -> str | None:
    return _hub_name(arguments["dataset_name"]) if _origin(arguments) == "dataset_name" else None


def _hub_name(name: object) -> str | None:
    """The name, if it is of a repository of the Hub and not of a folder."""
    is_one = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and not os.path.exists(name)
    return str(name) if is_one else None


def _data_name(arguments: Mapping[str, object]) -> str:
    """What it was trained on, without the paths of a machine; empty if that is not known."""
    if task := _task(arguments):
        return TASKS.get(task, task)
    if _origin(arguments) == "dataset_name":
        return _hub_dataset(arguments) or PurePath(str(arguments["dataset_name"])).name
    train_files = arguments.get("train_files")
    names = [PurePath(str(file)).name for file in train_files] if isinstance(train_files, list) else []
    return " and ".join(names) if len(names) <= MOST_FILES_NAMED else f"{len(names):,} files"


def _languages(arguments: Mapping[str, object]) -> list[str]:
    """Codes of ISO 639, which has "und" for a language that is not known; the Hub adds "code"."""
    if _task(arguments) == "stdlib":
        return ["code"]
    languages = [str(arguments.get(name, "")) for name in ("source_lang", "target_lang")]
    return [language for language in languages if LANGUAGE.fullmatch(language)] or ["und"]


def _read(name: str) -> str:
    return files("leanformers.model_cards").joinpath(name).read_text(encoding="utf-8")
