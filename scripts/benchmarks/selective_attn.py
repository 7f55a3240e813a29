# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""SelectiveAttn beside transformers' Llama with the same weights, and its operator beside SDPA, by the length of text.

Llama has the same shape, layer for layer, and runs as it comes, with SDPA and the growing cache that `generate` gives
it; in training and prefill once more with eager attention. What holds matrices of all queries times all keys, that and
the naive form of the operator, is left out of the longest lengths.

Lengths double up to half of `longest`; a cache is measured up to all of it. Everything is at batch size 1. Prompts are
read in pieces. Under a budget a layer holds so many tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from delta_rule import forward, forward_and_backward
from fast_weight import (
    KIBIBYTE,
    READING_PIECE,
    TRAINING_LENGTHS,
    build,
    describe,
    kibibytes,
    lengths,
    optimizers_of,
    prefill_case,
    random_tokens,
    read,
    steps,
    training_case,
)
from registry import Case, Settings
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, DynamicCache, LlamaConfig, PreTrainedConfig, PreTrainedModel

from leanformers.accounting import cache_bytes
from leanformers.modeling.selective_attn import selective_attention as forms
from leanformers.modeling.selective_attn.pruning_cache import CACHE_NAME

NUM_HEADS, HEAD_DIM = 8, 64
QUADRATIC_PART = 8  # of the longest length, up to which all queries times all keys are held
DECODING_LENGTHS, BUDGETS = (128, 16, 4, 1), (256, 64, 16)  # parts of the longest length
FEW_REPEATS = 4
Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def budgets(settings: Settings) -> list[int]:
    """Fractions of the longest length, the smallest first."""
    return sorted({max(2, settings.longest // part) for part in BUDGETS})


def is_short(length: int, settings: Settings) -> bool:
    return length <= settings.longest // QUADRATIC_PART


# The operator


def blocks(query, key, value):
    return forms.selective_attention(query, key, value)[0]


def naive(query, key, value):
    return forms.naive_selective_attention(query, key, value)[0]


def sdpa(query, key, value):
    """Causal attention without selection."""
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)


def draw_inputs(settings: Settings, length: int) -> list[torch.Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 1, length, NUM_HEADS, HEAD_DIM, generator=generator)
    return [tensor.to(settings.device, getattr(torch, settings.dtype)).requires_grad_() for tensor in inputs]


def operator(settings: Settings) -> Iterator[Case]:
    """Tokens per second through one layer's attention, forward, and with the backward pass."""
    for length in lengths(settings, TRAINING_LENGTHS):
        inputs = draw_inputs(settings, length)
        operators: dict[str, Operator] = {"blocks": blocks, "sdpa": sdpa}
        if is_short(length, settings):
            operators["naive"] = naive
        for name, measure in (("forward", forward), ("forward and backward", forward_and_backward)):
            yield Case(
                name=f"{name}, {length} tokens",
                unit="tokens/s",
                shapes={"batch_size": 1, "length": length, "heads": NUM_HEADS, "width": HEAD_DIM},
                contenders={contender: measure(rule, inputs) for contender, rule in operators.items()},
                tokens=length,
                most_repeats=None if is_short(length, settings) else FEW_REPEATS,
            )


# The model


def llama_of_the_same_shape(config: PreTrainedConfig) -> LlamaConfig:
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    same += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    same += ("pad_token_id", "bos_token_id", "eos_token_id")
    return LlamaConfig(**{name: getattr(config, name) for name in same})


def build_ours(settings: Settings, memory_budget: int | None = None) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(
        settings.preset, memory_budgets=memory_budget, max_position_embeddings=settings.longest
    )
    return build(config, settings).eval()


def llama_like(ours: PreTrainedModel, settings: Settings, attention: str = "sdpa") -> PreTrainedModel:
    """Llama with the weights of ours."""
    config = llama_of_the_same_shape(ours.config)
    config._attn_implementation = attention
    llama = build(config, settings).eval()
    llama.load_state_dict(ours.state_dict())
    return llama


def models(settings: Settings) -> dict[str, PreTrainedModel]:
    ours = build_ours(settings)
    eager = llama_like(ours, settings, "eager")
    return {"selective_attn": ours, "llama": llama_like(ours, settings), "llama_eager": eager}


def at_length(found: dict[str, PreTrainedModel], length: int, settings: Settings) -> dict[str, PreTrainedModel]:
    """Those contenders that can be run at that length."""
    return {name: model for name, model in found.items() if name != "llama_eager" or is_short(length, settings)}


def training(settings: Settings) -> Iterator[Case]:
    """Tokens per second of whole steps: forward, backward and AdamW (fused, the Trainer's default)."""
    found = {name: model.train() for name, model in models(settings).items()}
    optimizers = optimizers_of(found)
    for length in lengths(settings, TRAINING_LENGTHS):
        yield training_case(at_length(found, length, settings), optimizers, 1, length)


def prefill(settings: Settings) -> Iterator[Case]:
    """Tokens per second of one prompt, which fills a cache and gives the logits of its last token."""
    found = models(settings)
    for length in lengths(settings, TRAINING_LENGTHS):
        yield prefill_case(at_length(found, length, settings), length)


def decoding(settings: Settings) -> Iterator[Case]:
    """Tokens per second of single steps, and the size of the cache that they go on from: all tokens, and budgets."""
    found = {budget: build_ours(settings, budget) for budget in (None, *budgets(settings))}
    found["llama"] = llama_like(found[None], settings)
    read_so_far = dict.fromkeys(found)
    for length in lengths(settings, DECODING_LENGTHS):
        for name, model in found.items():
            read_so_far[name] = read(model, length, READING_PIECE, read_so_far[name])
        for budget in (None, *(budget for budget in budgets(settings) if budget <= length)):
            pair = {"selective_attn": found[budget], "llama": found["llama"]}
            caches = {name: copy.deepcopy(read_so_far[key]) for name, key in zip(pair, (budget, "llama"), strict=True)}
            yield from decoding_cases(pair, caches, length, budget, settings)


def decoding_cases(
    pair: dict[str, PreTrainedModel],
    caches: dict[str, DynamicCache],
    length: int,
    budget: int | None,
    settings: Settings,
) -> Iterator[Case]:
    under = "" if budget is None else f" under a budget of {budget}"
    shapes = {"batch_size": 1, "length": length} | ({} if budget is None else {"budget": budget})
    yield Case(
        name=f"cache{under}, after {length} tokens",
        unit="KiB",
        shapes=shapes,
        contenders={name: partial(kibibytes, caches[name]) for name in pair},
        models=describe(pair),
        most_repeats=1,
    )
    yield Case(
        name=f"decoding step{under}, after {length} tokens",
        unit="tokens/s",
        shapes=shapes,
        contenders={name: steps(model, caches[name], settings) for name, model in pair.items()},
        tokens=settings.new_tokens,
        models=describe(pair),
    )


def generation(settings: Settings) -> Iterator[Case]:
    """The largest cache while a text of the longest length is written, token by token.

    Llama's, which only grows, is taken after a prompt of that length.
    """
    budget = budgets(settings)[0]
    ours = build_ours(settings, budget)
    llama = llama_like(ours, settings)
    yield Case(
        name=f"largest cache of a generation under a budget of {budget}, {settings.longest} tokens",
        unit="KiB",
        shapes={"batch_size": 1, "generated": settings.longest, "budget": budget},
        contenders={
            "selective_attn": partial(largest_cache, ours, settings.longest),
            "llama": lambda: kibibytes(read(llama, settings.longest, READING_PIECE)),
        },
        models=describe({"selective_attn": ours, "llama": llama}),
        most_repeats=1,
    )


@torch.no_grad()
def largest_cache(model: PreTrainedModel, length: int) -> float:
    """KiB of the cache at its largest, while the likeliest token is appended `length` times."""
    cache, token, largest = DynamicCache(config=model.config), random_tokens(model, 1, 1), 0
    for _ in range(length):
        logits = model(input_ids=token, use_cache=True, **{CACHE_NAME: cache}).logits
        token, largest = logits[:, -1:].argmax(dim=-1), max(largest, cache_bytes(cache))
    return largest / KIBIBYTE
