# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Measures what quantised weights cost in perplexity and save in bytes, for trained models.

    python scripts/benchmarks/quantization.py --models outputs/fast_weight_stdlib --json quantization.json

Each model is loaded anew for each method and measured as scripts/evaluate.py does, on the test data that its folder's
`arguments.yaml` names. Methods whose library is missing are left out. Saved and loaded again, a model must give the
same logits. What is no `nn.Linear` stays in float32: tensor chains, group linear layers, embeddings and norms.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from run import environment
from torch import nn
from tqdm.auto import tqdm
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils import logging

from leanformers.arguments import LanguageModelingDataArguments, TranslationDataArguments
from leanformers.data.collator import TranslationCollator
from leanformers.data.translation import load_translation, tokenize_translation
from leanformers.evaluation.language_modeling import evaluate_text_splits
from leanformers.evaluation.loading import load_generator
from leanformers.evaluation.perplexity import seq2seq_perplexity

Load = Callable[..., PreTrainedModel]


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def dynamic_int8(load: Load) -> PreTrainedModel:
    """torch's own: int8 weights, and inputs made int8 as they come."""
    return torch.ao.quantization.quantize_dynamic(load(), {nn.Linear}, dtype=torch.qint8)


def torchao(load: Load, name: str, **options) -> PreTrainedModel:
    config = getattr(importlib.import_module("torchao.quantization"), name)(**options)
    return load(quantization_config=TorchAoConfig(config))


def torchao_int4(load: Load) -> PreTrainedModel:
    """Groups of 32 weights share a scale: layers whose inputs do not divide into them are left out."""
    quantization = importlib.import_module("torchao.quantization")
    config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32))
    left_out = ["lm_head", *(name for name, layer in linears(load()).items() if layer.in_features % 32)]
    return load(quantization_config=TorchAoConfig(config, modules_to_not_convert=left_out))


def bitsandbytes_int8(load: Load) -> PreTrainedModel:
    importlib.import_module("bitsandbytes")
    return load(quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def bitsandbytes_nf4(load: Load) -> PreTrainedModel:
    """On a CPU inputs must be multiples of 64 and outputs of 32: other layers are left out."""
    importlib.import_module("bitsandbytes")
    odd = (name for name, layer in linears(load()).items() if layer.in_features % 64 or layer.out_features % 32)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head", *odd]}
    return load(quantization_config=BitsAndBytesConfig(**options))


METHODS: dict[str, Callable[[Load], PreTrainedModel]] = {
    "float32": lambda load: load(),
    "bfloat16": lambda load: load(dtype=torch.bfloat16),
    "torch dynamic int8": dynamic_int8,
    "torchao int8 weights": partial(torchao, name="Int8WeightOnlyConfig"),
    "torchao int8 weights and inputs": partial(torchao, name="Int8DynamicActivationInt8WeightConfig"),
    "torchao int4 weights": torchao_int4,
    "bitsandbytes int8": bitsandbytes_int8,
    "bitsandbytes nf4": bitsandbytes_nf4,
}


class TestData:
    """What a run was tested on, and the tokenizers that its folder holds."""

    def __init__(self, folder: Path, samples: int):
        settings = yaml.safe_load((folder / "arguments.yaml").read_text(encoding="utf-8"))
        self.folder, self.is_text = folder, "block_size" in settings
        kind = LanguageModelingDataArguments if self.is_text else TranslationDataArguments
        named = {name: settings[name] for name in kind.__dataclass_fields__ if name in settings}
        self.arguments = kind(**named | {"max_eval_samples": samples})

    def load(self, **options) -> PreTrainedModel:
        return load_generator(str(self.folder), **options)[0]

    def perplexity(self, model: PreTrainedModel) -> float:
        tokenizers = load_generator(str(self.folder))[1]
        if self.is_text:
            results = evaluate_text_splits(model, tokenizers.target, self.arguments, names=["test"])["test"]
            return results["perplexity"]
        pairs = tokenize_translation(load_translation(self.arguments)["test"], tokenizers, self.arguments, "test")
        collate, columns = TranslationCollator(tokenizers.source, model=model), ["input_ids", "labels"]
        rows = list(pairs.select_columns(columns))
        with torch.no_grad():
            return seq2seq_perplexity(model, (collate(rows[i : i + 32]) for i in range(0, len(rows), 32)))[
                "perplexity"
            ]


def num_bytes(model: PreTrainedModel) -> int:
    """What a file of the weights takes, with one copy of what is tied."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder, "weights"))
        return Path(folder, "weights").stat().st_size


def share_of_linears(model: PreTrainedModel) -> float:
    """How many of all weights are in linear layers that quantisation is for, so without the head that gives logits."""
    inside = sum(layer.weight.numel() for name, layer in linears(model).items() if name != "lm_head")
    return inside / sum(parameter.numel() for parameter in model.parameters())


def reloads_equal(model: PreTrainedModel, data: TestData) -> bool | str:
    """Whether the saved model, loaded again, gives the same logits; or why it cannot be saved."""
    ids = torch.arange(5, 21)[None]
    inputs = {"input_ids": ids} if data.is_text else {"input_ids": ids, "decoder_input_ids": ids}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            model.save_pretrained(folder)
        except Exception as error:
            return f"not saved: {type(error).__name__}"
        again = type(model).from_pretrained(folder).eval()
        return torch.equal(again(**inputs).logits, model(**inputs).logits)


def measure(folder: Path, samples: int) -> dict:
    data, rows = TestData(folder, samples), {}
    for name, method in tqdm(METHODS.items(), desc=folder.name, unit="method"):
        try:
            model = method(data.load).eval()
        except ImportError as error:
            rows[name] = {"skipped": str(error)}
            continue
        # Before the first forward, with which bitsandbytes packs weights of 4 bits for the processor.
        rows[name] = {"bytes": num_bytes(model)}
        if name != "torch dynamic int8":  # no format of transformers
            rows[name]["reloads_equal"] = reloads_equal(model, data)
        rows[name]["perplexity"] = data.perplexity(model)
        exact = rows["float32"]
        rows[name]["perplexity_change"] = rows[name]["perplexity"] / exact["perplexity"] - 1
        rows[name]["size"] = rows[name]["bytes"] / exact["bytes"]
    plain = data.load()
    return {
        "model_type": plain.config.model_type,
        "parameters": plain.num_parameters(),
        "share_of_parameters_in_linear_layers": share_of_linears(plain),
        "methods": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="folders of training runs")
    parser.add_argument("--samples", type=int, default=3, help="test documents, or pairs, to measure on")
    parser.add_argument("--json", type=Path, required=True, help="file to write; models in it that are not named stay")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    arguments = parser.parse_args()
    arguments.device = "cpu"
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    written = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"models": {}}
    for folder in arguments.models:
        result = measure(folder, arguments.samples) | {"samples": arguments.samples}
        written["models"][folder.name] = result
        written |= environment(arguments)
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
