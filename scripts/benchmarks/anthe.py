# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Anthe beside transformers' Marian of the same depth, width, heads, feed-forward size and vocabulary.

Marian is configured as the transformer that Anthe replaces: separate source and target tables and an untied output,
which is what the default Anthe has too. Both get the same random tokens, without padding, in float32 SDPA by default.
Run as a script, this file measures the peak memory of one contender in a process of its own.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from registry import Case, Settings
from transformers import AutoConfig, AutoModelForSeq2SeqLM, MarianConfig, PreTrainedModel

import leanformers  # noqa: F401  registers Anthe with the Auto classes
from leanformers.accounting import count_parameters

CONTENDERS = ("anthe", "marian")
GENERATION_BATCHES = (1, 32)
FIRST_WORD = 4  # ids below are <pad>, <unk>, <s> and </s>


def marian_like(config) -> MarianConfig:
    """Marian of Anthe's depth, width, heads, feed-forward size and vocabularies, with separate, untied tables."""
    return MarianConfig(
        vocab_size=config.source_vocab_size or config.vocab_size,
        decoder_vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        encoder_ffn_dim=config.intermediate_size,
        decoder_ffn_dim=config.intermediate_size,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        dropout=config.dropout,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        forced_eos_token_id=None,
        decoder_start_token_id=config.decoder_start_token_id,
    )


def build(contender: str, settings: Settings) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(settings.preset)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config if contender == "anthe" else marian_like(config))
    return model.to(settings.device, getattr(torch, settings.dtype))


def describe(model: PreTrainedModel) -> dict:
    """What a contender is: its class, its own settings and its size."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
    return {"class": type(model).__name__, "parameters": count_parameters(model), "config": config}


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


def training(settings: Settings) -> list[Case]:
    """Training tokens per second: source and target tokens of a batch over the time of a whole step."""
    models = {name: build(name, settings) for name in CONTENDERS}
    shapes = {name: getattr(settings, name) for name in ("batch_size", "source_length", "target_length")}
    return [
        Case(
            name="training step",
            unit="tokens/s",
            shapes=shapes,
            contenders={name: training_step(model, settings) for name, model in models.items()},
            tokens=settings.batch_size * (settings.source_length + settings.target_length),
            models={name: describe(model) for name, model in models.items()},
        )
    ]


def generation(settings: Settings) -> list[Case]:
    """Generated tokens per second, the encoder's run included."""
    models = {name: build(name, settings) for name in CONTENDERS}
    shapes = {"source_length": settings.source_length, "new_tokens": settings.new_tokens}
    return [
        Case(
            name=f"greedy generation, batch {batch_size}",
            unit="tokens/s",
            shapes={"batch_size": batch_size, **shapes},
            contenders={name: greedy_generation(model, batch_size, settings) for name, model in models.items()},
            tokens=batch_size * settings.new_tokens,
            models={name: describe(model) for name, model in models.items()},
        )
        for batch_size in GENERATION_BATCHES
    ]


def memory(settings: Settings) -> list[Case]:
    """Peak memory of model, activations, gradients and optimiser, over that of the process before the model."""
    shapes = {name: getattr(settings, name) for name in ("source_length", "target_length", "new_tokens")}
    batches = {"training": settings.batch_size, "generation": max(GENERATION_BATCHES)}
    return [
        Case(
            name=f"peak memory, {phase}",
            unit="MiB",
            shapes={"batch_size": batch_size, **shapes},
            contenders={name: partial(peak_in_subprocess, name, phase, settings) for name in CONTENDERS},
            most_repeats=3,
        )
        for phase, batch_size in batches.items()
    ]


def peak_in_subprocess(contender: str, phase: str, settings: Settings) -> float:
    """A process's peak never falls again, so each measurement has its own process."""
    request = json.dumps({"contender": contender, "phase": phase, "settings": dataclasses.asdict(settings)})
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), request], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(result.stdout.split()[-1])


def peak_memory(contender: str, phase: str, settings: Settings) -> float:
    """MiB that a contender adds to this process: of the device's allocator on CUDA, else of resident memory."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    gc.collect()
    before = resident("VmRSS")
    model = build(contender, settings)
    if phase == "training":
        call = training_step(model, settings)
    else:
        call = greedy_generation(model, max(GENERATION_BATCHES), settings)
    for _ in range(2):  # the second training step finds the optimiser's state in memory
        call()
    if settings.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Resident memory in MiB from /proc, now ("VmRSS") or at most so far ("VmHWM"); without /proc, at most so far.

    `ru_maxrss` is second choice because a child starts with its parent's, which may exceed all that it needs itself.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(peak_memory(request["contender"], request["phase"], Settings(**request["settings"])))
