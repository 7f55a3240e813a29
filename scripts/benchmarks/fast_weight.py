# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""FastWeight as a language model beside transformers' Llama of the same size, by the length of text.

Both have the same vocabulary, width, layers and heads, tied tables, no dropout, and as many parameters to within one
percent: Llama's gated feed-forward layer has three matrices, and is made narrower. Llama runs as it comes, with SDPA
and the growing cache that `generate` gives it.

Lengths double up to `longest`. A training step always has half as many tokens as that, in rows of the length that is
measured. A decoding step is one token at batch size 1 after a cache that has seen so many. A process of its own
measures the peak memory of that, and reads these tokens in pieces of the shortest length.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from peak_memory import added_memory, in_subprocess
from registry import Case, Settings
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedConfig, PreTrainedModel

import leanformers  # noqa: F401  registers our families with the Auto classes
from leanformers.accounting import cache_bytes, count_parameters
from leanformers.modeling.fast_weight.memory_cache import CACHE_NAME

KIBIBYTE = 2**10
READING_PIECE = 1024  # tokens that are read at once
DECODING_LENGTHS, TRAINING_LENGTHS, MEMORY_LENGTHS = (128, 64, 32, 16, 8, 4, 2, 1), (32, 16, 8, 4, 2), (128, 8, 1)


def lengths(settings: Settings, parts: tuple[int, ...]) -> list[int]:
    """Fractions of the longest length, the shortest first."""
    if settings.longest < parts[0]:
        raise SystemExit(f"--longest must be at least {parts[0]}, not {settings.longest}")
    return [settings.longest // part for part in parts]


def llama_of_the_same_size(config: PreTrainedConfig) -> LlamaConfig:
    """Its feed-forward layers have as many parameters as ours and all that Llama has not: biases and beta."""
    size, multiple = config.hidden_size, max(1, config.hidden_size // 32)  # widths like 686 would be unkind to Llama
    ours = 2 * size * config.intermediate_size + config.intermediate_size + (3 + config.num_attention_heads) * size
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=size,
        intermediate_size=multiple * round(ours / (3 * size) / multiple),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=True,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


def contenders(settings: Settings) -> dict[str, PreTrainedConfig]:
    config = AutoConfig.from_pretrained(settings.preset, dropout=0.0, activation_dropout=0.0)
    found = {"fast_weight": config, "llama": llama_of_the_same_size(config)}
    for contender in found.values():
        contender.max_position_embeddings = settings.longest
    return found


def build(config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(settings.device, getattr(torch, settings.dtype))


def models(settings: Settings) -> dict[str, PreTrainedModel]:
    return {name: build(config, settings).eval() for name, config in contenders(settings).items()}


def describe(models: dict[str, PreTrainedModel]) -> dict[str, dict]:
    """What the contenders are: class, size and settings. They must be of one size."""
    sizes = {name: count_parameters(model) for name, model in models.items()}
    if max(sizes.values()) > 1.01 * min(sizes.values()):
        raise SystemExit(f"these contenders differ by more than one percent in parameters: {sizes}")
    found = {}
    for name, model in models.items():
        config = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
        found[name] = {"class": type(model).__name__, "parameters": sizes[name], "config": config}
    return found


def random_tokens(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    """The same for every contender."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, model.config.vocab_size, (batch_size, length), generator=generator).to(model.device)


def training(settings: Settings) -> Iterator[Case]:
    """Tokens per second of whole steps: forward, backward and AdamW (fused, the Trainer's default)."""
    found = {name: model.train() for name, model in models(settings).items()}
    optimizers = optimizers_of(found)
    for length in lengths(settings, TRAINING_LENGTHS):
        yield training_case(found, optimizers, settings.longest // 2 // length, length)


def optimizers_of(models: dict[str, PreTrainedModel]) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}


def training_case(
    found: dict[str, PreTrainedModel], optimizers: dict[str, torch.optim.Optimizer], batch_size: int, length: int
) -> Case:
    return Case(
        name=f"training step, {batch_size} x {length} tokens",
        unit="tokens/s",
        shapes={"batch_size": batch_size, "length": length},
        contenders={name: training_step(model, optimizers[name], batch_size, length) for name, model in found.items()},
        tokens=batch_size * length,
        models=describe(found),
        most_repeats=3,
    )


def training_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch_size: int, length: int
) -> Callable[[], None]:
    tokens = random_tokens(model, batch_size, length)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prefill(settings: Settings) -> Iterator[Case]:
    """Tokens per second of one prompt, which fills a cache and gives the logits of its last token."""
    found = models(settings)
    for length in lengths(settings, TRAINING_LENGTHS):
        yield prefill_case(found, length)


def prefill_case(found: dict[str, PreTrainedModel], length: int) -> Case:
    return Case(
        name=f"prefill, {length} tokens",
        unit="tokens/s",
        shapes={"batch_size": 1, "length": length},
        contenders={name: partial(read, model, length, length) for name, model in found.items()},
        tokens=length,
        models=describe(found),
        most_repeats=5,
    )


@torch.no_grad()
def read(model: PreTrainedModel, length: int, piece: int, cache: DynamicCache | None = None) -> DynamicCache:
    """A cache that has seen so many tokens, those after `cache` read in pieces of that size."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    for tokens in random_tokens(model, 1, length)[:, cache.get_seq_length() :].split(piece, dim=1):
        model(input_ids=tokens, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})
    return cache


def decoding(settings: Settings) -> Iterator[Case]:
    """Tokens per second of single steps at batch size 1, and the size of the cache that they go on from."""
    found, read_so_far = models(settings), dict.fromkeys(contenders(settings))
    for length in lengths(settings, DECODING_LENGTHS):
        for name, model in found.items():
            read_so_far[name] = read(model, length, READING_PIECE, read_so_far[name])
        caches = copy.deepcopy(read_so_far)
        common = {"shapes": {"batch_size": 1, "length": length}, "models": describe(found)}
        yield Case(
            name=f"cache, after {length} tokens",
            unit="KiB",
            contenders={name: partial(kibibytes, caches[name]) for name in found},
            most_repeats=1,
            **common,
        )
        yield Case(
            name=f"decoding step, after {length} tokens",
            unit="tokens/s",
            contenders={name: steps(model, caches[name], settings) for name, model in found.items()},
            tokens=settings.new_tokens,
            **common,
        )


def steps(model: PreTrainedModel, cache: DynamicCache, settings: Settings, batch_size: int = 1) -> Callable[[], None]:
    """`new_tokens` steps; a cache that grows does so in copies, so that every call begins at the same length."""
    token = random_tokens(model, batch_size, 1)

    @torch.no_grad()
    def call() -> None:
        growing = copy.copy(cache)
        if cache.is_croppable:  # layers that keep everything append to it in tensors of their own
            growing.layers = [copy.copy(layer) for layer in cache.layers]
        for _ in range(settings.new_tokens):
            model(input_ids=token, use_cache=True, **{CACHE_NAME: growing})

    return call


def kibibytes(cache: DynamicCache) -> float:
    return cache_bytes(cache) / KIBIBYTE


def memory(settings: Settings) -> Iterator[Case]:
    """Peak memory of model, cache and activations over that of the process before the model."""
    for length in lengths(settings, MEMORY_LENGTHS):
        yield Case(
            name=f"peak memory, decoding after {length} tokens",
            unit="MiB",
            shapes={"batch_size": 1, "length": length},
            contenders={name: partial(peak_memory, name, length, settings) for name in contenders(settings)},
            most_repeats=2,
        )


def peak_memory(contender: str, length: int, settings: Settings) -> float:
    return in_subprocess(__file__, contender=contender, length=length, settings=dataclasses.asdict(settings))


def main(contender: str, length: int, settings: dict) -> None:
    chosen = Settings(**settings)

    def work() -> None:
        model = build(contenders(chosen)[contender], chosen).eval()
        steps(model, read(model, length, lengths(chosen, DECODING_LENGTHS)[0]), chosen)()

    print(added_memory(work, chosen))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
