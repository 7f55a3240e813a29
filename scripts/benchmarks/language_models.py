# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Language models of any family beside a Llama of the same size: training steps, and for selective attention decoding
with full and with budgeted caches at several batch sizes.

Nothing drops out. A training step has `batch_size` rows of a sixteenth of the longest length, or as many rows of a
quarter as make the same number of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from fast_weight import (
    READING_PIECE,
    build,
    describe,
    kibibytes,
    llama_of_the_same_size,
    optimizers_of,
    read,
    steps,
    training_step,
)
from registry import Case, Settings
from selective_attn import build_ours, llama_like, llama_of_the_same_shape
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from leanformers.accounting import count_parameters

TRAINING_PARTS, CONTEXT_PARTS = (16, 4), (16, 4, 1)  # of the longest length
BUDGET_PARTS, BATCH_SIZES = (None, 16, 25, 47), (1, 64)
FEW_REPEATS, MEBIBYTE = 5, 2**20


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    for name in vars(config):
        if name.endswith("dropout"):
            setattr(config, name, 0.0)
    return config


def llama_beside(ours: PreTrainedModel) -> LlamaConfig:
    config = ours.config
    if config.model_type == "selective_attn":
        return llama_of_the_same_shape(config)
    if config.model_type == "fast_weight":
        return llama_of_the_same_size(config)
    return llama_of_parameters(count_parameters(ours), config)


def llama_of_parameters(number: int, config: PreTrainedConfig) -> LlamaConfig:
    """Of the usual proportions, with the vocabulary and depth of `config`."""
    width, depth = 768 if number > 50e6 else config.hidden_size, config.num_decoder_layers
    heads = max(1, width // 64)
    shape = {"vocab_size": config.vocab_size, "hidden_size": width, "num_hidden_layers": depth}
    shape |= {"num_attention_heads": heads, "tie_word_embeddings": True, "pad_token_id": config.pad_token_id}
    shape |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    with torch.device("meta"):
        narrowest = count_parameters(AutoModelForCausalLM.from_config(LlamaConfig(**shape, intermediate_size=1)))
    intermediate = 1 + max(0, number - narrowest) // (3 * width * depth)
    return LlamaConfig(**shape, intermediate_size=intermediate, max_position_embeddings=config.max_position_embeddings)


def training(settings: Settings) -> Iterator[Case]:
    """Tokens per second, and on a GPU the peak memory, of whole steps: forward, backward and AdamW."""
    config = without_dropout(AutoConfig.from_pretrained(settings.preset, max_position_embeddings=settings.longest))
    ours = build(config, settings).train()
    models = {config.model_type: ours, "llama": build(llama_beside(ours), settings).train()}
    optimizers = optimizers_of(models)
    for part in TRAINING_PARTS:
        length = settings.longest // part
        batch_size = max(1, settings.batch_size * part // TRAINING_PARTS[0])
        shapes = {"batch_size": batch_size, "length": length}
        calls = {name: training_step(model, optimizers[name], batch_size, length) for name, model in models.items()}
        common = {"shapes": shapes, "models": describe(models)}
        yield Case(
            name=f"training step, {batch_size} x {length} tokens",
            unit="tokens/s",
            contenders=calls,
            tokens=batch_size * length,
            most_repeats=FEW_REPEATS,
            **common,
        )
        if settings.device.startswith("cuda"):
            yield Case(
                name=f"peak memory of a training step, {batch_size} x {length} tokens",
                unit="MiB",
                contenders={name: partial(peak_of_step, call, models[name]) for name, call in calls.items()},
                most_repeats=1,
                **common,
            )


def peak_of_step(step: Callable[[], None], model: PreTrainedModel) -> float:
    """MiB on the GPU at the peak of a step, with this model's weights and optimizer state, without the others'."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    # Its weights and Adam's two moments were there before.
    own = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (torch.cuda.max_memory_allocated() - before + own) / MEBIBYTE


def decoding(settings: Settings) -> Iterator[Case]:
    """Tokens per second of single steps after contexts of several lengths, for one row and for many.

    A context is read once and repeated for all rows.
    """
    for length in (settings.longest // part for part in CONTEXT_PARTS):
        budgets = {part: None if part is None else max(2, length // part) for part in BUDGET_PARTS}
        ours = {part: build_ours(settings, budget) for part, budget in budgets.items()}
        llama = llama_like(ours[None], settings)
        caches = {part: read(model, length, READING_PIECE) for part, model in ours.items()}
        caches["llama"] = read(llama, length, READING_PIECE)
        for batch_size in BATCH_SIZES:
            for part, model in ours.items():
                pair = {"selective_attn": model, "llama": llama}
                some = {"selective_attn": caches[part], "llama": caches["llama"]}
                yield from decoding_cases(pair, some, length, batch_size, budgets[part], settings)


def decoding_cases(
    pair, caches, length: int, batch_size: int, budget: int | None, settings: Settings
) -> Iterator[Case]:
    under = "" if budget is None else f" under a budget of {budget}"
    shapes = {"batch_size": batch_size, "length": length} | ({} if budget is None else {"budget": budget})
    repeated = {name: copy.deepcopy(cache) for name, cache in caches.items()}
    for cache in repeated.values():
        cache.batch_repeat_interleave(batch_size)
    common = {"shapes": shapes, "models": describe(pair)}
    yield Case(
        name=f"cache{under}, {batch_size} x {length} tokens",
        unit="KiB",
        contenders={name: partial(kibibytes, repeated[name]) for name in pair},
        most_repeats=1,
        **common,
    )
    yield Case(
        name=f"decoding step{under}, after {batch_size} x {length} tokens",
        unit="tokens/s",
        contenders={name: steps(model, repeated[name], settings, batch_size) for name, model in pair.items()},
        tokens=settings.new_tokens * batch_size,
        most_repeats=FEW_REPEATS,
        **common,
    )
