# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Soft positions: the fast forms against the equations, and convolution inputs that follow their cache everywhere."""

import math

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from leanformers.modeling.anthe import AntheConfig
from leanformers.modeling.anthe.soft_positions import (
    ConvolutionInputs,
    HierarchicalSoftPositions,
    SoftPositions,
    SoftPositionsLayer,
    StaticSoftPositionsLayer,
    naive_causal_convolution,
    naive_soft_positions,
    sinusoidal_positions,
    soft_positions,
)
from numerics import assert_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
lengths = pytest.mark.parametrize("length", [1, 2, 63, 65])


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a loss that weighs every entry of the output differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


def assert_same(fast: torch.Tensor, naive: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    assert_close("output", fast, naive, **EXACT)
    for k, (actual, expected) in enumerate(zip(gradients(fast, inputs), gradients(naive, inputs), strict=True)):
        assert_close(f"gradient {k}", actual, expected, **EXACT)


def hierarchy(levels: int = 3, tc_ratio: float | None = None) -> HierarchicalSoftPositions:
    """Level 0 is 10 wide, the others 6."""
    module = HierarchicalSoftPositions(10, 6, levels, tc_ratio).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def naive_hierarchy(module: HierarchicalSoftPositions, hidden_states: torch.Tensor) -> torch.Tensor:
    """H-SoftPOS from the naive forms: `x_{i+1}` is the causal convolution of `x_i` with dilation `2^i`."""
    outputs = []
    for level, positions in enumerate(module.levels):
        read = naive_soft_positions(hidden_states[..., : module.width], positions.subpositions)
        outputs += [hidden_states, read[..., module.width :]]
        if level < len(module.convs):
            conv = module.convs[level]
            weight = conv.weight if isinstance(conv, nn.Conv1d) else conv.materialize()
            hidden_states = naive_causal_convolution(hidden_states, weight, conv.bias, 2**level)
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("width", [2, 6, 64])
def test_sinusoidal_positions(width):
    position_ids = torch.tensor([[0, 1, 2, 511], [7, 0, 0, 3]])
    table = sinusoidal_positions(position_ids, width)
    assert table.shape == (2, 4, width) and table.dtype == torch.float32
    for row, position, j in ((0, 1, 0), (0, 3, width // 2 - 1), (1, 0, width // 4), (1, 3, 0)):
        angle = position_ids[row, position].item() / 10000 ** (2 * j / width)
        assert table[row, position, j].item() == pytest.approx(math.sin(angle), abs=1e-4)
        assert table[row, position, width // 2 + j].item() == pytest.approx(math.cos(angle), abs=1e-4)


@lengths
@pytest.mark.parametrize(("repeats", "num_subpositions", "units"), [(1, 8, 8), (2, 3, 5), (3, 1, 2), (1, 12, 1)])
def test_soft_positions_are_the_naive_ones(repeats, num_subpositions, units, length):
    hidden_states = torch.randn(2, length, 12, dtype=torch.float64, requires_grad=True)
    subpositions = torch.randn(repeats, num_subpositions, units, dtype=torch.float64, requires_grad=True)
    fast = soft_positions(hidden_states, subpositions)
    assert fast.shape == (2, length, 12 + repeats * units)
    assert_same(fast, naive_soft_positions(hidden_states, subpositions), [hidden_states, subpositions])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_scores_do_not_overflow(dtype):
    hidden_states = torch.full((1, 2, 4), 1000.0, dtype=dtype)
    output = soft_positions(hidden_states, torch.randn(1, 4, 3).to(dtype))
    assert output.dtype == dtype and output.isfinite().all()


@pytest.mark.parametrize(("num_subpositions", "units"), [(3, 8), (8, 8), (8, 3)])
def test_initial_soft_positions_are_orthogonal(num_subpositions, units):
    module = SoftPositions(num_subpositions, units, repeats=2)
    module.reset_parameters()
    for positions in module.subpositions.detach():
        smaller = positions if num_subpositions <= units else positions.T
        assert_close("products", smaller @ smaller.T, torch.eye(len(smaller)))
    assert not torch.equal(*module.subpositions)


@lengths
@pytest.mark.parametrize("tc_ratio", [None, 0.7], ids=["dense", "tensor_chain"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_hierarchy_is_the_naive_one(levels, tc_ratio, length):
    module = hierarchy(levels, tc_ratio)
    hidden_states = torch.randn(2, length, 10, dtype=torch.float64, requires_grad=True)
    fast = module(hidden_states)
    assert fast.shape == (2, length, 10 + 6 * (2 * levels - 1))
    parameters = [parameter for _, parameter in module.named_parameters()]
    assert_same(fast, naive_hierarchy(module, hidden_states), [hidden_states, *parameters])


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_a_token_reaches_as_far_as_the_convolutions_do(levels):
    module, changed_at = hierarchy(levels), 3
    hidden_states = torch.randn(1, 32, 10, dtype=torch.float64)
    changed = hidden_states.clone()
    changed[:, changed_at] += 1
    moved = (module(hidden_states) != module(changed)).any(-1)[0].nonzero().flatten()
    assert moved.min() == changed_at
    assert moved.max() == changed_at + 2 * (2 ** (levels - 1) - 1)


@pytest.mark.parametrize("chunks", [[1] * 11, [4, 1, 6], [2, 3, 1, 5], [10, 1], [11]], ids=str)
@pytest.mark.parametrize("tc_ratio", [None, 0.7], ids=["dense", "tensor_chain"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_steps_and_chunks_are_the_whole(levels, tc_ratio, chunks):
    module, past_inputs = hierarchy(levels, tc_ratio), ConvolutionInputs()
    hidden_states = torch.randn(2, sum(chunks), 10, dtype=torch.float64)
    outputs = [module(chunk, past_inputs=past_inputs) for chunk in hidden_states.split(chunks, dim=1)]
    assert_close("output", torch.cat(outputs, dim=1), naive_hierarchy(module, hidden_states), **EXACT)
    for level, inputs in past_inputs.inputs.items():
        assert inputs.shape[1] == 2 * 2**level  # a token more would be memory for nothing


@pytest.mark.parametrize("chunks", [[11], [1] * 11, [2, 1, 8]], ids=str)
def test_tokens_before_the_first_real_one_change_nothing(chunks):
    module, past_inputs = hierarchy(3), ConvolutionInputs()
    pads = torch.tensor([0, 1, 4, 10])
    is_real = torch.arange(11) >= pads[:, None]
    hidden_states = torch.randn(4, 11, 10, dtype=torch.float64)
    outputs = [
        module(chunk, real, past_inputs)
        for chunk, real in zip(hidden_states.split(chunks, dim=1), is_real.split(chunks, dim=1), strict=True)
    ]
    output = torch.cat(outputs, dim=1)
    for row, num_pads in enumerate(pads):
        alone = naive_hierarchy(module, hidden_states[row : row + 1, num_pads:])
        assert_close(f"row {row}", output[row : row + 1, num_pads:], alone, **EXACT)


@pytest.fixture(params=["dynamic", "static"])
def cache(request) -> DynamicCache | StaticCache:
    config = AntheConfig(hidden_size=32, num_decoder_layers=2, num_attention_heads=4, soft_position_levels=2)
    return DynamicCache(config=config) if request.param == "dynamic" else StaticCache(config=config, max_cache_len=16)


def advance(cache, module: HierarchicalSoftPositions, hidden_states: torch.Tensor) -> torch.Tensor:
    """What a decoder does to the first layer of its cache."""
    output = module(hidden_states, past_inputs=cache.layers[0].convolutions)
    keys = torch.randn(hidden_states.shape[0], 4, hidden_states.shape[1], 8)
    for index in range(2):
        cache.update(keys, keys, index)
    return output


def test_config_chooses_the_cache_layer(cache):
    # By name: a copy of the code loaded from a repository registers a class of its own for the same layer type.
    expected = SoftPositionsLayer if isinstance(cache, DynamicCache) else StaticSoftPositionsLayer
    assert type(cache.layers[0]).__name__ == expected.__name__
    assert not hasattr(cache.layers[1], "convolutions")


def test_one_level_needs_no_cache_layer_of_its_own():
    for options in ({"soft_position_levels": 1}, {"position_embedding_type": "sinusoidal"}):
        config = AntheConfig(hidden_size=32, num_attention_heads=4, **options)
        assert not hasattr(DynamicCache(config=config).layers[0], "convolutions")


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 1]], ids=str)
def test_reorder_moves_convolution_inputs(cache, order):
    module, hidden_states = hierarchy(3), torch.randn(3, 9, 10, dtype=torch.float64)
    advance(cache, module, hidden_states[:, :5])
    cache.reorder_cache(torch.tensor(order))
    output = advance(cache, module, hidden_states[order, 5:])
    assert_close("output", output, naive_hierarchy(module, hidden_states[order])[:, 5:], **EXACT)


def test_batch_select_moves_convolution_inputs():
    module, hidden_states = hierarchy(3), torch.randn(3, 9, 10, dtype=torch.float64)
    for indices in (torch.tensor([2, 0]), torch.tensor([False, True, True])):
        cache = DynamicCache(config=AntheConfig(num_decoder_layers=2))
        advance(cache, module, hidden_states[:, :5])
        cache.batch_select_indices(indices)
        output = advance(cache, module, hidden_states[indices, 5:])
        assert_close("output", output, naive_hierarchy(module, hidden_states[indices])[:, 5:], **EXACT)


def test_batch_repeat_moves_convolution_inputs():
    module, hidden_states = hierarchy(3), torch.randn(2, 9, 10, dtype=torch.float64)
    cache = DynamicCache(config=AntheConfig(num_decoder_layers=2))
    advance(cache, module, hidden_states[:, :5])
    cache.batch_repeat_interleave(3)
    repeated = hidden_states.repeat_interleave(3, dim=0)
    output = advance(cache, module, repeated[:, 5:])
    assert_close("output", output, naive_hierarchy(module, repeated)[:, 5:], **EXACT)


def test_reset_starts_over(cache):
    module, hidden_states = hierarchy(3), torch.randn(3, 6, 10, dtype=torch.float64)
    first = advance(cache, module, hidden_states)
    cache.reset()
    assert not cache.layers[0].convolutions.inputs
    assert torch.equal(advance(cache, module, hidden_states), first)


@pytest.mark.parametrize("num_removed", [0, 1, 3, 4])
def test_crop_restores_convolution_inputs(num_removed):
    module, hidden_states = hierarchy(3), torch.randn(2, 12, 10, dtype=torch.float64)
    cache = DynamicCache(config=AntheConfig(num_decoder_layers=2))
    advance(cache, module, hidden_states[:, :6])
    cache.activate_past_recording()
    for position in (6, 7):
        advance(cache, module, hidden_states[:, position : position + 1])
    advance(cache, module, hidden_states[:, 8:10])
    cache.crop(-num_removed)
    kept = 10 - num_removed
    assert cache.get_seq_length() == kept
    assert {level: inputs.shape[1] for level, inputs in cache.layers[0].convolutions.inputs.items()} == {0: 2, 1: 4}
    continued = torch.cat([hidden_states[:, :kept], torch.randn(2, 3, 10, dtype=torch.float64)], dim=1)
    output = advance(cache, module, continued[:, kept:])
    assert_close("output", output, naive_hierarchy(module, continued)[:, kept:], **EXACT)


def test_crop_to_before_the_first_reach():
    module, hidden_states = hierarchy(3), torch.randn(2, 5, 10, dtype=torch.float64)
    cache = DynamicCache(config=AntheConfig(num_decoder_layers=2))
    cache.activate_past_recording()
    advance(cache, module, hidden_states)
    cache.crop(-4)
    output = advance(cache, module, hidden_states[:, 1:])
    assert_close("output", output, naive_hierarchy(module, hidden_states)[:, 1:], **EXACT)


def test_crop_refuses_what_was_not_recorded():
    module, hidden_states = hierarchy(3), torch.randn(2, 8, 10, dtype=torch.float64)
    cache = DynamicCache(config=AntheConfig(num_decoder_layers=2))
    advance(cache, module, hidden_states)
    with pytest.raises(RuntimeError, match="cannot step back 2. Call `activate_past_recording`"):
        cache.crop(-2)
