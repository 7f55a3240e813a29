# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""One of our translation models beside its peers: training, generation and memory, in turns and on the same tokens.

A family's module says which contenders there are. Run as a script, this file measures the peak memory of one contender
in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from peak_memory import added_memory, in_subprocess
from registry import Case, Settings
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

import leanformers  # noqa: F401  registers our families with the Auto classes
from leanformers.accounting import count_parameters, macs

GENERATION_BATCHES = (1, 32)
FIRST_WORD = 4  # ids below are special


@dataclass(frozen=True)
class Contender:
    """
    Args:
        config: what the model is built from, with random weights.
        settle: brings the model where long use does, before generation is measured.
    """

    config: PreTrainedConfig
    settle: Callable[[PreTrainedModel], None] | None = None


Contenders = Callable[[Settings], dict[str, Contender]]


def build(contender: Contender, settings: Settings) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(contender.config)
    return model.to(settings.device, getattr(torch, settings.dtype))


def describe(model: PreTrainedModel, settings: Settings) -> dict:
    """What a contender is: its class, its settings, its size and the MACs of one row. Frozen are Marian's sines."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
    return {
        "class": type(model).__name__,
        "parameters": count_parameters(model),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "macs": macs(model, settings.source_length, settings.target_length),
        "config": config,
    }


def random_tokens(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    """The same words for every contender, known to the source and the target vocabulary."""
    sizes = [getattr(model.config, name, None) for name in ("vocab_size", "source_vocab_size", "decoder_vocab_size")]
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD, min(filter(None, sizes)), (batch_size, length), generator=generator)
    return words.to(model.device)


def training_step(model: PreTrainedModel, settings: Settings) -> Callable[[], None]:
    """Forward, backward and AdamW (fused, the Trainer's default) on one batch."""
    source = random_tokens(model, settings.batch_size, settings.source_length)
    target = random_tokens(model, settings.batch_size, settings.target_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        model(input_ids=source, attention_mask=torch.ones_like(source), labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def greedy_generation(model: PreTrainedModel, batch_size: int, settings: Settings) -> Callable[[], None]:
    """Greedy, cached generation of `new_tokens` for every row; the end token is suppressed until then."""
    source = random_tokens(model, batch_size, settings.source_length)
    lengths = {"min_new_tokens": settings.new_tokens, "max_new_tokens": settings.new_tokens}
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}

    def generate() -> None:
        output = model.generate(**inputs, **lengths, do_sample=False, num_beams=1)
        if output.shape != (batch_size, 1 + settings.new_tokens):
            raise RuntimeError(f"expected {settings.new_tokens} new tokens a row, got output {tuple(output.shape)}")

    model.eval()
    return generate


def settle(model: PreTrainedModel, contender: Contender) -> None:
    if contender.settle is not None:
        contender.settle(model.eval())


def training(contenders: Contenders, settings: Settings) -> list[Case]:
    """Training tokens per second: source and target tokens of a batch over the time of a whole step."""
    models = {name: build(contender, settings) for name, contender in contenders(settings).items()}
    shapes = {name: getattr(settings, name) for name in ("batch_size", "source_length", "target_length")}
    return [
        Case(
            name="training step",
            unit="tokens/s",
            shapes=shapes,
            models={name: describe(model, settings) for name, model in models.items()},
            contenders={name: training_step(model, settings) for name, model in models.items()},
            tokens=settings.batch_size * (settings.source_length + settings.target_length),
        )
    ]


def generation(contenders: Contenders, settings: Settings) -> list[Case]:
    """Generated tokens per second, the encoder's run included."""
    models = {name: build(contender, settings) for name, contender in contenders(settings).items()}
    descriptions = {name: describe(model, settings) for name, model in models.items()}
    for name, contender in contenders(settings).items():
        settle(models[name], contender)
    shapes = {"source_length": settings.source_length, "new_tokens": settings.new_tokens}
    return [
        Case(
            name=f"greedy generation, batch {batch_size}",
            unit="tokens/s",
            shapes={"batch_size": batch_size, **shapes},
            contenders={name: greedy_generation(model, batch_size, settings) for name, model in models.items()},
            tokens=batch_size * settings.new_tokens,
            models=descriptions,
        )
        for batch_size in GENERATION_BATCHES
    ]


def memory(contenders: Contenders, settings: Settings) -> list[Case]:
    """Peak memory of model, activations, gradients and optimiser, over that of the process before the model."""
    shapes = {name: getattr(settings, name) for name in ("source_length", "target_length", "new_tokens")}
    batches = {"training": settings.batch_size, "generation": max(GENERATION_BATCHES)}
    return [
        Case(
            name=f"peak memory, {phase}",
            unit="MiB",
            shapes={"batch_size": batch_size, **shapes},
            contenders={
                name: partial(peak_in_subprocess, contenders.__module__, name, phase, settings)
                for name in contenders(settings)
            },
            most_repeats=3,
        )
        for phase, batch_size in batches.items()
    ]


def peak_in_subprocess(family: str, contender: str, phase: str, settings: Settings) -> float:
    request = {"family": family, "contender": contender, "phase": phase, "settings": dataclasses.asdict(settings)}
    return in_subprocess(__file__, **request)


def peak_memory(contender: Contender, phase: str, settings: Settings) -> float:
    """MiB that a contender adds to this process."""

    def work() -> None:
        model = build(contender, settings)
        if phase == "training":
            call = training_step(model, settings)
        else:
            settle(model, contender)
            call = greedy_generation(model, max(GENERATION_BATCHES), settings)
        for _ in range(2):  # the second training step finds the optimiser's state in memory
            call()

    return added_memory(work, settings)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    settings = Settings(**request["settings"])
    contenders = importlib.import_module(request["family"]).contenders(settings)
    print(peak_memory(contenders[request["contender"]], request["phase"], settings))
