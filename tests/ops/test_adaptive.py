# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Adaptive input and softmax: against a look-up token by token and torch's own adaptive softmax, tied in every way."""

import math

import pytest
import torch
from torch import nn

from leanformers.modeling.delight.adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax
from numerics import assert_close, assert_low_precision_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
WIDTH = 16
# (cutoffs, factor), the last cutoff being the vocabulary: two to four bands, one of a single word.
BANDS = [([20, 50], 2), ([10, 11, 40], 2), ([8, 16, 32, 61], 2), ([12, 30, 47], 4), ([5, 9, 30], 1)]
bands = pytest.mark.parametrize(("cutoffs", "factor"), BANDS, ids=str)
# (tie_weights, tie_projections)
TIES = {
    "tied": (True, True),
    "tables_tied": (True, False),
    "untied": (False, False),
    "projections_tied": (False, True),
}
ties = pytest.mark.parametrize("tie", TIES)


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def embedding(cutoffs=(10, 11, 40), factor: int = 2, padding_idx: int | None = None) -> AdaptiveEmbedding:
    return randomized(AdaptiveEmbedding(list(cutoffs), WIDTH, factor, padding_idx))


def pair(
    tie: str, cutoffs=(10, 11, 40), factor: int = 2, dropout: float = 0.0
) -> tuple[AdaptiveLogSoftmax, AdaptiveEmbedding]:
    """Output and input layer."""
    output = AdaptiveLogSoftmax(list(cutoffs), WIDTH, factor, *TIES[tie], dropout=dropout)
    return randomized(output).eval(), embedding(cutoffs, factor)


def parameters_of(*modules: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{type(module).__name__}.{name}": p for module in modules for name, p in module.named_parameters()}


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """Of a loss that weighs every entry of the output differently; None for what it does not depend on."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True, retain_graph=True))


def assert_same(fast: torch.Tensor, naive: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    assert_close("output", fast, naive, **EXACT)
    leaves = list(inputs.values())
    for name, actual, expected in zip(inputs, gradients(fast, leaves), gradients(naive, leaves), strict=True):
        if actual is None or expected is None:  # a band without a token may have no gradient or one of zeros
            assert actual is None or actual.eq(0).all(), name
            assert expected is None or expected.eq(0).all(), name
        else:
            assert_close(f"gradient of {name}", actual, expected, **EXACT)


def rows_one_by_one(layer: AdaptiveEmbedding, input_ids: torch.Tensor) -> torch.Tensor:
    rows = []
    for token in input_ids.flatten().tolist():
        band = next(band for band, end in enumerate(layer.cutoffs) if token < end)
        start = layer.cutoffs[band - 1] if band else 0
        table, projection = layer.tables[band].weight, layer.projections[band].weight
        rows.append(projection @ (table[token - start] * math.sqrt(table.shape[1])))
    return torch.stack(rows).view(*input_ids.shape, -1)


def torchs_softmax(output: AdaptiveLogSoftmax, layer: AdaptiveEmbedding, factor: int):
    """torch's module, and what its parameters are in terms of ours."""
    *cutoffs, vocab_size = output.cutoffs
    reference = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, vocab_size, cutoffs, factor, head_bias=False).double()
    if output.tie_weights:
        weights = {"head.weight": torch.cat([layer.tables[0].weight, output.class_proj.weight])}
    else:
        weights = {"head.weight": output.head.weight}
    for tail in range(len(cutoffs)):
        own = not output.tie_projections
        projection = output.tail_projections[tail].weight if own else layer.projections[tail + 1].weight.T
        table = layer.tables[tail + 1].weight if output.tie_weights else output.tail_tables[tail].weight
        weights |= {f"tail.{tail}.0.weight": projection, f"tail.{tail}.1.weight": table}
    return reference, weights


def reference_losses(output, layer, factor: int, hidden_states, labels) -> torch.Tensor:
    """`-log p` of each label."""
    reference, weights = torchs_softmax(output, layer, factor)
    return -torch.func.functional_call(reference, weights, (hidden_states, labels)).output


@bands
@pytest.mark.parametrize("shape", [(1,), (65,), (2, 7), (2, 1, 5)], ids=str)
def test_embedding_is_a_look_up_token_by_token(cutoffs, factor, shape):
    layer = embedding(cutoffs, factor)
    input_ids = torch.randint(cutoffs[-1], shape)
    output = layer(input_ids)
    assert output.shape == (*shape, WIDTH)
    assert_same(output, rows_one_by_one(layer, input_ids), parameters_of(layer))


@bands
def test_every_word_and_every_border(cutoffs, factor):
    layer = embedding(cutoffs, factor)
    assert_same(
        layer(torch.arange(cutoffs[-1])), rows_one_by_one(layer, torch.arange(cutoffs[-1])), parameters_of(layer)
    )


@bands
def test_widths_of_the_bands(cutoffs, factor):
    layer = embedding(cutoffs, factor)
    starts = [0, *cutoffs[:-1]]
    for band, table in enumerate(layer.tables):
        assert table.weight.shape == (cutoffs[band] - starts[band], WIDTH // factor**band)
        assert layer.projections[band].weight.shape == (WIDTH, WIDTH // factor**band)
    assert (layer.num_embeddings, layer.embedding_dim) == (cutoffs[-1], WIDTH)


@pytest.mark.parametrize("padding_idx", [1, 10, 11, 39])
def test_padding_row_is_not_trained(padding_idx):
    """In whichever band it lies."""
    layer = embedding(padding_idx=padding_idx)
    layer(torch.arange(40)).square().sum().backward()
    trained = torch.cat([table.weight.grad.ne(0).any(-1) for table in layer.tables])
    assert (~trained).nonzero().flatten().tolist() == [padding_idx]


@ties
@bands
@pytest.mark.parametrize("shape", [(1,), (65,), (2, 7)], ids=str)
def test_log_probabilities_are_torchs(cutoffs, factor, tie, shape):
    output, layer = pair(tie, cutoffs, factor)
    hidden_states = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    log_probabilities = output(hidden_states, layer)
    assert log_probabilities.shape == (*shape, cutoffs[-1])
    assert_close("sum", log_probabilities.exp().sum(-1), torch.ones(shape).double(), **EXACT)
    reference, weights = torchs_softmax(output, layer, factor)
    labels = torch.arange(cutoffs[-1]).repeat(math.prod(shape))
    each = hidden_states.view(-1, 1, WIDTH).expand(-1, cutoffs[-1], -1).reshape(-1, WIDTH)
    expected = torch.func.functional_call(reference, weights, (each, labels)).output.view(log_probabilities.shape)
    assert_same(log_probabilities, expected, {"hidden_states": hidden_states, **parameters_of(output, layer)})


@ties
@bands
def test_loss_is_the_mean_over_real_labels(cutoffs, factor, tie):
    output, layer = pair(tie, cutoffs, factor)
    hidden_states = torch.randn(80, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(cutoffs[-1], (80,))
    labels[[0, 7, 8, 79]] = -100
    real = labels != -100
    inputs = {"hidden_states": hidden_states, **parameters_of(output, layer)}
    loss = output.loss(hidden_states, labels, layer)
    losses = reference_losses(output, layer, factor, hidden_states[real], labels[real])
    assert_same(loss[None], losses.mean()[None], inputs)
    chosen = output(hidden_states, layer)[real].gather(-1, labels[real, None])
    assert_same(loss[None], -chosen.mean()[None], inputs)


@ties
@pytest.mark.parametrize(
    "labels",
    [[0, 9, 3, -100], [10, 10, 10, 10], [11, 39, 25, 12], [0, 11, 39, 5], [10, 2, -100, 9], [39]],
    ids=["band_0", "band_1", "band_2", "no_band_1", "no_band_2", "one_token"],
)
def test_bands_without_a_label(tie, labels):
    output, layer = pair(tie)
    labels = torch.tensor(labels)
    hidden_states = torch.randn(len(labels), WIDTH, dtype=torch.float64, requires_grad=True)
    real = labels != -100
    losses = reference_losses(output, layer, 2, hidden_states[real], labels[real])
    inputs = {"hidden_states": hidden_states, **parameters_of(output, layer)}
    assert_same(output.loss(hidden_states, labels, layer)[None], losses.mean()[None], inputs)


@ties
def test_every_parameter_gets_a_gradient_whatever_the_labels(tie):
    """Processes that train together wait for one."""
    for labels in ([0, 1], [39, 39], [-100, -100]):
        output, layer = pair(tie)
        input_ids = torch.tensor([0, 20])
        output.loss(layer(input_ids), torch.tensor(labels), layer, num_items_in_batch=2).backward()
        for name, parameter in parameters_of(output, layer).items():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@ties
def test_no_label_at_all(tie):
    output, layer = pair(tie)
    hidden_states, labels = torch.randn(3, WIDTH, dtype=torch.float64), torch.full((3,), -100)
    assert output.loss(hidden_states, labels, layer).isnan()  # a mean of nothing, as torch's cross-entropy has it
    assert output.loss(hidden_states, labels, layer, num_items_in_batch=5) == 0


@pytest.mark.parametrize("as_tensor", [False, True])
def test_losses_of_parts_add_up_to_that_of_the_whole(as_tensor):
    output, layer = pair("tied")
    hidden_states, labels = torch.randn(10, WIDTH, dtype=torch.float64), torch.randint(40, (10,))
    labels[4] = -100
    count = torch.tensor(9) if as_tensor else 9
    parts = [
        output.loss(some, those, layer, num_items_in_batch=count)
        for some, those in zip(hidden_states.split([6, 4]), labels.split([6, 4]), strict=True)
    ]
    assert_close("loss", sum(parts), output.loss(hidden_states, labels, layer), **EXACT)


def test_new_parameters_are_those_that_are_not_tied():
    names = {tie: sorted(name for name, _ in pair(tie)[0].named_parameters()) for tie in TIES}
    tails = [f"tail_{{}}.{tail}.weight" for tail in range(2)]
    projections, tables = ([name.format(kind) for name in tails] for kind in ("projections", "tables"))
    assert names == {
        "tied": ["class_proj.weight"],
        "tables_tied": ["class_proj.weight", *projections],
        "untied": ["head.weight", *projections, *tables],
        "projections_tied": ["head.weight", *tables],
    }


@ties
def test_dropout_is_of_training_alone(tie):
    output, layer = pair(tie, dropout=0.5)
    hidden_states, labels = torch.randn(30, WIDTH, dtype=torch.float64), torch.randint(40, (30,))
    expected = reference_losses(output, layer, 2, hidden_states, labels).mean()
    assert_close("loss", output.loss(hidden_states, labels, layer), expected, **EXACT)
    output.train()
    losses = [output.loss(hidden_states, labels, layer) for _ in range(2)]
    assert not torch.allclose(losses[0], losses[1]) and not torch.allclose(losses[0], expected)


def test_dropout_of_the_input_and_of_what_a_tail_projects():
    output, layer = pair("untied", (10, 1000), dropout=0.25)
    seen = []
    for module in (output.head, output.tail_projections[0], output.tail_tables[0]):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hidden_states, labels = torch.ones(1000, WIDTH, dtype=torch.float64), torch.full((1000,), 500)
    output.train().loss(hidden_states, labels, layer)
    assert len(seen) == 3
    for inputs in seen:
        assert inputs.eq(0).double().mean().item() == pytest.approx(0.25, abs=0.02)


@ties
def test_bfloat16_strays_no_further_than_torchs(tie):
    output, layer = pair(tie, (20, 60, 200))
    output, layer = output.bfloat16(), layer.bfloat16()
    hidden_states, labels = torch.randn(50, WIDTH).bfloat16(), torch.randint(200, (50,))
    fast = output(hidden_states, layer)
    assert fast.dtype == torch.bfloat16
    reference, weights = torchs_softmax(output, layer, 2)
    each, every = hidden_states.repeat_interleave(200, 0), torch.arange(200).repeat(50)
    naive = torch.func.functional_call(reference.bfloat16(), weights, (each, every)).output.view(50, 200)
    wide = {name: weight.float() for name, weight in weights.items()}
    exact = torch.func.functional_call(reference.float(), wide, (each.float(), every)).output.view(50, 200)
    assert_low_precision_close("log-probabilities", fast, naive, exact)
    loss = output.loss(hidden_states, labels, layer)
    assert loss.dtype == torch.float32
    assert_close("loss", loss, -exact.gather(1, labels[:, None]).mean(), relative=0.01, absolute=0.01)


def test_autocast_trains_every_parameter():
    output, layer = (module.float() for module in pair("tied"))
    input_ids = torch.arange(40)
    expected = output.loss(layer(input_ids), input_ids, layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = output.loss(layer(input_ids), input_ids, layer)
    assert loss.dtype == torch.float32
    assert_close("loss", loss, expected, relative=0.02, absolute=0.02)
    loss.backward()
    assert all(parameter.grad.ne(0).any() for parameter in parameters_of(output, layer).values())
