# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Attention normalisation: the fast form is the recurrence, in outputs, states and every gradient."""

import pytest
import torch

from leanformers.modeling.fast_weight.normalized_rules import key_sums, naive_normalized_rule, normalized_rule

RULES = [("delta", norm) for norm in ("none", "output", "full")] + [("sum", "none"), ("sum", "output")]


def build(rule: str, length: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    torch.manual_seed(length)
    query, key = (torch.rand(2, length, 3, 6, dtype=dtype) + 0.05 for _ in range(2))
    inputs = {"query": query / query.sum(-1, keepdim=True), "key": key / key.sum(-1, keepdim=True)}
    inputs["value"] = torch.randn(2, length, 3, 5, dtype=dtype)
    if rule == "delta":
        inputs["beta"] = torch.rand(2, length, 3, dtype=dtype)
    return inputs


def results(form, inputs: dict[str, torch.Tensor], states: dict[str, torch.Tensor], **options) -> dict:
    """Outputs, states and the gradients of a sum that weighs every number differently."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in (inputs | states).items()}
    given = {"beta": None} | leaves
    found = dict(zip(("output", "memory", "normalizer"), form(**given, **options), strict=True))
    found = {name: tensor for name, tensor in found.items() if tensor is not None}
    weighed = sum(
        (tensor * torch.linspace(-1, 1, tensor.numel()).view(tensor.shape)).sum() for tensor in found.values()
    )
    gradients = torch.autograd.grad(weighed, list(leaves.values()), allow_unused=True)
    return found | {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize(("rule", "norm"), RULES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 193])
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "documents"])
def test_fast_form_is_the_recurrence(rule, norm, length, carried, packed):
    inputs, states, options = build(rule, length), {}, {"attention_norm": norm}
    if carried:
        states["initial_state"] = torch.randn(2, 3, 6, 5, dtype=torch.float64)
        if norm != "none":
            states["initial_normalizer"] = torch.rand(2, 3, 6, dtype=torch.float64) + 1
    if packed:
        options["document_ids"] = (torch.rand(2, length) < 0.1).long().cumsum(-1)
    fast = results(normalized_rule, inputs, states, **options)
    naive = results(naive_normalized_rule, inputs, states, **options)
    assert fast.keys() == naive.keys()
    for name, expected in naive.items():
        assert (fast[name] is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(fast[name], expected, atol=1e-10, rtol=1e-10, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize(("rule", "norm"), RULES)
def test_segments_are_the_whole(rule, norm):
    inputs = build(rule, 70)
    whole = normalized_rule(**({"beta": None} | inputs), attention_norm=norm)
    memory = normalizer = None
    outputs = []
    for begin, end in ((0, 1), (1, 40), (40, 40), (40, 70)):
        part = {"beta": None} | {name: tensor[:, begin:end] for name, tensor in inputs.items()}
        output, memory, normalizer = normalized_rule(
            **part, attention_norm=norm, initial_state=memory, initial_normalizer=normalizer
        )
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(memory, whole[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("rule", "norm"), RULES)
def test_zero_keys_leave_no_trace(rule, norm):
    """Masked tokens, before the first real one too, where `full` reads kappa = 1."""
    inputs = build(rule, 20)
    padded = {name: torch.cat([torch.ones_like(tensor[:, :7]), tensor], dim=1) for name, tensor in inputs.items()}
    padded["key"][:, :7] = 0
    alone = normalized_rule(**({"beta": None} | inputs), attention_norm=norm)
    behind = normalized_rule(**({"beta": None} | padded), attention_norm=norm)
    torch.testing.assert_close(behind[0][:, 7:], alone[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(behind[1], alone[1], atol=1e-12, rtol=1e-12)


def test_key_sums_of_documents_begin_at_exactly_zero():
    key = torch.rand(1, 50, 2, 4) * 1e4
    document_ids = (torch.arange(50) // 20)[None]
    before, after, last = key_sums(key, None, document_ids)
    assert not before[:, [0, 20, 40]].any()
    torch.testing.assert_close(after[:, 19], key[:, :20].sum(1), rtol=1e-6, atol=0)
    assert torch.equal(last, after[:, -1])
