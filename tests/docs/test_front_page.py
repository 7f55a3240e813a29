# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The figures of the README are those of the JSON files that it names."""

import json

import pytest

TESTS = ("test_2016_flickr", "test_2017_flickr")


@pytest.fixture(scope="module")
def results(root):
    return lambda name: json.loads((root / f"scripts/benchmarks/results/{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def says(root):
    """Asserts that a text stands in the README, however its lines are broken."""
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())

    def check(text):
        assert text in readme, f"README.md does not say {text!r}, as its JSON does"

    return check


@pytest.fixture
def cost(results):
    """Our cost over that of the peer in a case, of several with that name the one of that number."""

    def find(name, case, number=0):
        found = [result["cost_ratios"] for result in results(name)["results"] if result["case"] == case]
        return next(iter(found[number].values()))

    return find


def test_translators(results, says):
    runs = results("multi30k_small_cpu")["runs"]
    plain, anthe, delight = (runs[name] for name in ("transformer", "anthe", "delight"))
    bleu = {name: [f"{run['evaluation'][test]['bleu']:.1f}" for test in TESTS] for name, run in runs.items()}
    share = {name: run["num_parameters"] / plain["num_parameters"] for name, run in runs.items()}
    says(f"{share['anthe']:.2f} of the parameters of a dense transformer, with {bleu['anthe'][0]} BLEU to its")
    says(f"{delight['macs'] / plain['macs']:.2f} of the multiplications and {share['delight']:.2f} of the parameters")
    says(f"with {bleu['delight'][0]} BLEU to {bleu['transformer'][0]}")
    titles = {"dense transformer": "transformer", "Anthe `small`": "anthe", "DeLighT `small`": "delight"}
    for title, name in titles.items():
        run = runs[name]
        says(f"| {title} | {run['num_parameters']:,} | {run['macs'] / 1e6:.1f} M | {' | '.join(bleu[name])} |")
    millions = anthe["num_parameters"] / 1e6
    says(f"Anthe: {' and '.join(bleu['anthe'])} BLEU on Multi30k's tests of 2016 and 2017 with {millions:.1f} million")


def test_costs_of_translators(cost, says):
    def costs(name, number):
        training = cost(name, "training step", number)
        generation = [cost(name, f"greedy generation, batch {rows}", number) for rows in (1, 32)]
        memory = [cost(name, f"peak memory, {what}", number) for what in ("training", "generation")]
        return [f"{ratio:.2f}" for ratio in (training, *generation, *memory)]

    training, one, many, to_train, to_generate = costs("anthe_base_cpu", 0)
    says(f"| {training} | {one} for one sentence, {many} for 32 | {to_train} to train, {to_generate} to generate |")
    for number in (0, 1):
        training, one, many, to_train, to_generate = costs("delight_base_cpu", number)
        says(f"| {training} | {one}, and {many} for 32 | {to_train}, and {to_generate} to generate |")


def test_costs_of_fast_weight(results, cost, says):
    name = "fast_weight_small_cpu"
    short, long = (cost(name, f"training step, {batch} tokens") for batch in ("16 x 512", "1 x 8192"))
    says(f"| {short:.2f} with 512 tokens, {long:.2f} with 8,192 |")
    short, long = (cost(name, f"decoding step, after {length} tokens") for length in (512, 16384))
    says(f"| {short:.2f} after 512 tokens, {long:.2f} after 16,384 |")
    few, many = (cost(name, f"cache, after {length} tokens") for length in (512, 16384))
    says(f"at any length: {few:.3f}, {many:.3f} |")
    says(f"{long:.2f} of Llama's time for a token after 16,384 tokens, and {many:.3f} of its cache")
    speeds = [
        result["contenders"]["fast_weight"]["median"]
        for result in results(name)["results"]
        if result["case"].startswith("decoding step")
    ]
    says(f"FastWeight decodes {min(speeds):.0f} to {max(speeds):.0f} tokens per second")


def test_costs_of_selective_attention(cost, says):
    name, budget = "selective_attn_small_cpu", " under a budget of 64"
    short, long = (cost(name, f"training step, 1 x {length} tokens") for length in (512, 8192))
    says(f"| {short:.2f} with 512 tokens, {long:.2f} with 8,192 |")
    whole, pruned = (cost(name, f"decoding step{limit}, after 16384 tokens") for limit in ("", budget))
    says(f"| {whole:.2f} after 16,384 tokens, {pruned:.2f} with a budget of 64 |")
    whole, pruned = (cost(name, f"cache{limit}, after 16384 tokens") for limit in ("", budget))
    says(f"| {whole:.3f} of the cache, {pruned:.3f} with a budget of 64 |")


def test_language_models(results, says):
    runs = results("selective_attn_stdlib_cpu")["runs"]
    held = runs["selective"]["test_by_memory_budget"]["32"]["perplexity"]
    full, plain = (runs[name]["test"]["perplexity"] for name in ("selective", "plain"))
    says(f"32 of 512 tokens held a layer, with a perplexity of {held:.1f} to {full:.1f} with all, and {plain:.1f}")
    says(f"| {runs['selective']['num_parameters']:,} | {full:.1f} | without selection {plain:.1f} |")
    runs = results("fast_weight_stdlib_cpu")["runs"]
    delta, softmax = (runs[name]["test"]["perplexity"] for name in ("delta", "softmax"))
    says(f"| {runs['delta']['num_parameters']:,} | {delta:.1f} | ordinary attention {softmax:.1f} |")
    light = results("delight_stdlib_cpu")
    says(f"| {light['num_parameters']:,} | {light['test']['perplexity']:.1f} | |")
