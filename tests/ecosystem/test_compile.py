# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""torch.compile without graph breaks, and without compiling again for every token or every length."""

import copy

import pytest
import torch
from ecosystem.texts import inputs

from numerics import assert_close

pytestmark = pytest.mark.slow
NEW_TOKENS = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
BLOCKS = "once for each length, as it goes through the prompt in blocks: pad to a few lengths (pad_to_multiple_of)"


class Compilations:
    """A backend that runs what it is given as it is, and counts."""

    def __init__(self):
        torch.compiler.reset()
        self.number = 0

    def __call__(self, graph, example_inputs):
        self.number += 1
        return graph


@pytest.mark.tool("torch", "torch.compile, forward")
@torch.no_grad()
def test_forward_compiles_for_any_length(subject, verdict):
    """The second length is taken for a sign that more will come."""
    model, compilations = subject.build(), Compilations()
    compiled, lengths = torch.compile(model, backend=compilations, fullgraph=True), (7, 9, 12, 20, 31)
    for length in lengths:
        batch = inputs(subject, length=length)
        batch["attention_mask"][0, :2] = 0
        assert_close(f"length {length}", compiled(**batch).logits, model(**batch).logits)
    if subject.name == "SelectiveAttn":
        assert compilations.number == len(lengths)
        verdict.limits(BLOCKS)
    else:
        assert compilations.number == 2


def compilations_of_generation(model, prompt, **options) -> int:
    """How often a forward was compiled while 40 tokens were generated, which must be those of an uncompiled one."""
    expected, compilations = model.generate(**prompt, **NEW_TOKENS), Compilations()
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, backend=compilations, fullgraph=True)
    assert torch.equal(compiled.generate(**prompt, **NEW_TOKENS, **options), expected)
    return compilations.number


@pytest.mark.tool("torch", "torch.compile, generation without compiling again")
@pytest.mark.parametrize("fields", [{}, {"memory_budgets": 12}], ids=["whole", "budget"])
def test_steps_do_not_compile_again(subject, fields):
    """At most the prompt, the first step and steps of any length; with a budget, those while the cache still grows."""
    if fields and subject.name != "SelectiveAttn":
        pytest.skip("its cache has no budget")
    prompt = inputs(subject)
    prompt.pop("decoder_input_ids", None)
    prompt["attention_mask"][0, :2] = 0
    assert compilations_of_generation(subject.build(**fields), prompt) <= (4 if fields else 3)


@pytest.mark.tool("torch", "torch.compile, inductor")
@torch.no_grad()
def test_inductor_changes_nothing(subject):
    """The default backend, on a forward and on a step of the cache."""
    model, batch = subject.build(), inputs(subject)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert_close("forward", compiled(**batch).logits, model(**batch).logits)
    name = "input_ids" if subject.is_decoder else "decoder_input_ids"
    output = model(**batch, use_cache=True)
    step = {**batch, name: batch[name][:, -1:], "past_key_values": output.past_key_values}
    if subject.is_decoder:
        step["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    else:
        step["encoder_outputs"] = (output.encoder_last_hidden_state,)
        del step["input_ids"]
    expected = model(**copy.deepcopy(step)).logits
    assert_close("step", compiled(**step).logits, expected)
