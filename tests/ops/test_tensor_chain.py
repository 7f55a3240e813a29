# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Tensor chains: the fast forms against the equation, the factor and bond rules, and kernels that are never stale."""

import copy
import itertools
import math
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanformers.modeling.anthe.soft_positions import naive_causal_convolution
from leanformers.modeling.anthe.tensor_chain import (
    TensorChainConv1d,
    TensorChainEmbedding,
    TensorChainLinear,
    bond_from_ratio,
    chain_core_shapes,
    chain_costs,
    chain_from_left,
    chain_from_right,
    factorize,
    naive_tensor_chain_kernel,
    tensor_chain_kernel,
)
from numerics import assert_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
# (in_features, out_features, ratio, length): three cores also take primes, four also a product of two.
SIZES = [(24, 36, 0.3, 2), (35, 6, 0.9, 2), (24, 30, 0.4, 3), (7, 13, 0.9, 3), (24, 36, 0.5, 4), (15, 30, 0.8, 4)]
sizes = pytest.mark.parametrize(
    ("in_features", "out_features", "ratio", "length"), SIZES, ids=lambda value: f"{value:g}"
)


def random_cores(in_features: int, out_features: int, ratio: float, length: int) -> list[torch.Tensor]:
    shapes = chain_core_shapes(in_features, out_features, ratio, length)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def linear(in_features: int, out_features: int, ratio: float, length: int = 2, **options) -> TensorChainLinear:
    layer = TensorChainLinear(in_features, out_features, ratio, length=length, **options).double()
    layer.reset_parameters()
    torch.nn.init.normal_(layer.bias)
    return layer


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a loss that weighs every entry of the output differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True))


@pytest.mark.parametrize(
    ("size", "length", "factors"),
    [
        (512, 2, (32, 16)),
        (1365, 2, (39, 35)),
        (2048, 2, (32, 64)),
        (32000, 2, (80, 400)),
        (128, 2, (8, 16)),
        (384, 2, (24, 16)),
        (30, 2, (6, 5)),
        (15, 2, (3, 5)),
        (512, 3, (16, 2, 16)),
        (1365, 3, (3, 35, 13)),
        (2048, 3, (32, 2, 32)),
        (96, 3, (4, 3, 8)),
        (32000, 3, (16, 125, 16)),
        (3, 3, (1, 3, 1)),
        (2, 3, (1, 2, 1)),
        (14, 3, (2, 7, 1)),
        (90, 3, (9, 2, 5)),
        (15, 3, (3, 1, 5)),
        (105, 3, (3, 5, 7)),
        (512, 4, (8, 4, 4, 4)),
        (15, 4, (3, 1, 1, 5)),
        (30, 4, (2, 1, 3, 5)),
    ],
)
def test_factors_of_the_original(size, length, factors):
    assert factorize(size, length) == factors


def test_factors_multiply_to_the_size():
    for size, length in itertools.product(range(2, 400), (2, 3, 4)):
        is_prime = all(size % divisor for divisor in range(2, size))
        if is_prime and length != 3:
            continue
        factors = factorize(size, length)
        assert (prod(factors), len(factors)) == (size, length)


@pytest.mark.parametrize(("size", "length"), [(13, 2), (13, 4), (1, 2), (1, 3), (1, 4)])
def test_sizes_without_factors(size, length):
    with pytest.raises(ValueError, match=f"A size of {size} does not factor into a tensor chain of length {length}"):
        factorize(size, length)


@pytest.mark.parametrize("length", [0, 1, 5, -3])
def test_wrong_length(length):
    with pytest.raises(ValueError, match=f"has 2, 3 or 4 cores, not {length}"):
        TensorChainLinear(24, 36, 0.3, length=length)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        TensorChainLinear(24, 36, ratio)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (lambda: TensorChainLinear(13, 36, 0.3), 13),
        (lambda: TensorChainLinear(36, 13, 0.3), 13),
        (lambda: TensorChainConv1d(8, 8, 3, 1, 0.3, length=2), 3),
        (lambda: TensorChainEmbedding(101, 8, 0.3), 101),
    ],
    ids=["in", "out", "kernel", "vocabulary"],
)
def test_prime_size_names_itself_and_the_way_out(layer, size):
    with pytest.raises(ValueError, match=f"A size of {size} does not factor .* Use a composite size, length 3"):
        layer()


@pytest.mark.parametrize(
    ("in_features", "out_features", "ratio", "length", "bond"),
    [
        (512, 512, 0.07, 2, 14),
        (512, 1365, 0.005, 2, 2),
        (1365, 512, 0.005, 2, 2),
        (512, 1365, 0.1, 2, 38),
        (24, 36, 0.3, 2, 4),
        (24, 30, 0.4, 3, 5),
    ],
)
def test_bonds_of_the_original(in_features, out_features, ratio, length, bond):
    assert bond_from_ratio(factorize(in_features, length), factorize(out_features, length), ratio) == bond
    assert TensorChainLinear(in_features, out_features, ratio, length).bond_dim == bond


@pytest.mark.parametrize("length", [2, 3, 4])
def test_bond_is_the_largest_that_keeps_the_ratio(length):
    for in_features, out_features, ratio in itertools.product((96, 128, 360), (96, 210, 512), (0.013, 0.137, 0.61)):
        bond = bond_from_ratio(factorize(in_features, length), factorize(out_features, length), ratio)
        weights = sum(prod(shape) for shape in chain_core_shapes(in_features, out_features, ratio, length))
        cells = [i * o for i, o in zip(factorize(in_features, length), factorize(out_features, length), strict=True)]
        one_more = (bond + 1) * (cells[0] + cells[-1]) + (bond + 1) ** 2 * sum(cells[1:-1])
        allowed = ratio * in_features * out_features
        assert bond == 2 or weights <= allowed
        assert one_more > allowed


def test_reference_bond_divides_the_root_alone():
    factors = factorize(512, 4)
    assert bond_from_ratio(factors, factors, 0.07) == 22
    assert bond_from_ratio(factors, factors, 0.07, reference_bond=True) == 2
    # Only odd shapes show more of its formula: -2 + sqrt(4 + 8000 * 500000) / 4000 = 13.8.
    assert bond_from_ratio((1, 1000, 1000, 1), (1, 1, 1, 1), 0.5, reference_bond=True) == 13
    for length in (2, 3):  # the slip is in the formula of four cores only
        factors = factorize(512, length)
        assert bond_from_ratio(factors, factors, 0.3, reference_bond=True) == bond_from_ratio(factors, factors, 0.3)


@pytest.mark.parametrize("layer", [TensorChainLinear, TensorChainEmbedding])
def test_reference_bond_reaches_the_cores(layer):
    assert layer(512, 512, 0.07, length=4, reference_bond=True).bond_dim == 2
    assert layer(512, 512, 0.07, length=4).bond_dim == 22


@sizes
def test_naive_kernel_is_the_product_of_core_slices(in_features, out_features, ratio, length):
    cores = random_cores(in_features, out_features, ratio, length)
    kernel = naive_tensor_chain_kernel(cores)
    assert kernel.shape == (in_features, out_features)
    rows = list(itertools.product(*(range(core.shape[0]) for core in cores)))
    columns = list(itertools.product(*(range(core.shape[-1]) for core in cores)))
    for row, column in itertools.product((0, 1, in_features // 2, in_features - 1), (0, 2, out_features - 1)):
        slices = [core[a, :, :, x] for core, a, x in zip(cores, rows[row], columns[column], strict=True)]
        assert_close("entry", kernel[row, column], torch.linalg.multi_dot(slices).squeeze(), **EXACT)


@sizes
def test_materialised_kernel_is_the_naive_one(in_features, out_features, ratio, length):
    cores = random_cores(in_features, out_features, ratio, length)
    fast, naive = tensor_chain_kernel(cores), naive_tensor_chain_kernel(cores)
    assert_close("kernel", fast, naive, **EXACT)
    for k, (actual, expected) in enumerate(zip(gradients(fast, cores), gradients(naive, cores), strict=True)):
        assert_close(f"gradient of core {k}", actual, expected, **EXACT)


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 65])
@pytest.mark.parametrize("contract", [chain_from_left, chain_from_right])
@sizes
def test_contracted_chain_is_the_naive_product(in_features, out_features, ratio, length, contract, num_tokens):
    cores = random_cores(in_features, out_features, ratio, length)
    hidden_states = torch.randn(num_tokens, in_features, dtype=torch.float64, requires_grad=True)
    fast, naive = contract(hidden_states, cores), hidden_states @ naive_tensor_chain_kernel(cores)
    assert_close("output", fast, naive, **EXACT)
    inputs = [hidden_states, *cores]
    for k, (actual, expected) in enumerate(zip(gradients(fast, inputs), gradients(naive, inputs), strict=True)):
        assert_close(f"gradient {k}", actual, expected, **EXACT)


@pytest.mark.parametrize("num_tokens", [1, 63])
@pytest.mark.parametrize("mode", ["auto", "materialize", "chain"])
@sizes
def test_linear_is_the_naive_product_in_every_mode(in_features, out_features, ratio, length, mode, num_tokens):
    layer = linear(in_features, out_features, ratio, length, mode=mode)
    hidden_states = torch.randn(2, num_tokens, in_features, dtype=torch.float64, requires_grad=True)
    inputs = [hidden_states, layer.bias, *layer.cores]
    naive = hidden_states @ naive_tensor_chain_kernel(layer.cores) + layer.bias
    expected = gradients(naive, inputs)
    for training in (True, False):
        fast = layer.train(training)(hidden_states)
        assert_close("output", fast, naive, **EXACT)
        for k, gradient in enumerate(gradients(fast, inputs)):
            assert_close(f"gradient {k}", gradient, expected[k], **EXACT)
    with torch.no_grad():
        assert_close("evaluation", layer(hidden_states), naive, **EXACT)


def test_linear_without_bias():
    layer = TensorChainLinear(24, 36, 0.3, bias=False).double()
    layer.reset_parameters()
    hidden_states = torch.randn(5, 24, dtype=torch.float64)
    assert layer.bias is None and "bias" not in layer.state_dict()
    for mode in ("materialize", "chain"):
        layer.mode = mode
        assert_close("output", layer(hidden_states), hidden_states @ naive_tensor_chain_kernel(layer.cores), **EXACT)


@pytest.mark.parametrize(
    ("in_features", "out_features", "ratio", "from_left", "from_right"),
    [(512, 512, 0.07, 344_064, 344_064), (512, 1365, 0.005, 83_616, 123_200), (1365, 512, 0.005, 123_200, 83_616)],
)
def test_costs_are_the_multiplications_that_run(in_features, out_features, ratio, from_left, from_right):
    shapes = chain_core_shapes(in_features, out_features, ratio, 2)
    assert chain_costs(shapes) == (from_left, from_right)
    cores, hidden_states = [torch.randn(shape) for shape in shapes], torch.randn(3, in_features)
    for contract, cost in ((chain_from_left, from_left), (chain_from_right, from_right)):
        with FlopCounterMode(display=False) as counter:
            contract(hidden_states, cores)
        assert counter.get_total_flops() == 2 * 3 * cost


@pytest.mark.parametrize(
    ("in_features", "out_features", "ratio", "num_tokens", "runs_as"),
    [
        (512, 1365, 0.005, 1, "chain"),
        (512, 1365, 0.005, 600, "chain"),
        (1365, 512, 0.005, 600, "chain"),
        (512, 512, 0.07, 1, "chain"),  # in training the kernel would be built for this token alone
        (512, 512, 0.07, 600, "materialize"),
    ],
)
def test_auto_runs_the_cheaper_form(in_features, out_features, ratio, num_tokens, runs_as):
    hidden_states, flops = torch.randn(num_tokens, in_features), {}
    for mode in ("auto", "materialize", "chain"):
        layer = TensorChainLinear(in_features, out_features, ratio, mode=mode)
        layer.reset_parameters()
        with FlopCounterMode(display=False) as counter:
            layer(hidden_states)
        flops[mode] = counter.get_total_flops()
    assert flops["auto"] == flops[runs_as] == min(flops.values())


@sizes
def test_kernel_variance_is_glorots(in_features, out_features, ratio, length):
    layer, means = TensorChainLinear(in_features, out_features, ratio, length=length), []
    for _ in range(2000):
        layer.reset_parameters("variance_preserving")
        means.append(layer.materialize().detach().square().mean())
    assert_mean(torch.stack(means), 2 / (in_features + out_features))


def test_filter_and_row_variance():
    conv, table = TensorChainConv1d(12, 64, 3, 1, 0.5), TensorChainEmbedding(60, 24, 0.4)
    squares = {"conv": [], "table": []}
    for _ in range(200):
        conv.reset_parameters("variance_preserving")
        table.reset_parameters("variance_preserving", 0.05)
        squares["conv"].append(conv.materialize().detach().square().mean())
        squares["table"].append(table.materialize().detach().square().mean())
    assert_mean(torch.stack(squares["conv"]), 2 / (3 * (12 + 64)))
    assert_mean(torch.stack(squares["table"]), 0.05**2 / 3)


def assert_mean(samples: torch.Tensor, expected: float) -> None:
    """Within five standard errors, which must be small enough to tell anything."""
    error = samples.std().item() / math.sqrt(len(samples))
    assert error < 0.1 * expected
    assert abs(samples.mean().item() - expected) < 5 * error


@pytest.mark.parametrize("scheme", ["variance_preserving", "reference"])
def test_cores_are_drawn_independently(scheme):
    layer = TensorChainLinear(36, 36, 0.4)
    layer.reset_parameters(scheme)
    first, last = (core.flatten() for core in layer.cores)
    assert first.shape == last.shape
    assert not torch.equal(first, last)
    assert torch.corrcoef(torch.stack([first, last]))[0, 1].abs() < 5 / math.sqrt(len(first))
    conv = TensorChainConv1d(12, 6, 3, 1, 0.5)
    conv.reset_parameters(scheme)
    for core in conv.cores:
        assert len(core.flatten(1).unique(dim=0)) == 6


def keras_bound(core: torch.Tensor, bond: int) -> float:
    """Glorot's limit as Keras has it for one core of one chain, whose end cores are `[i, b, o]` there."""
    inputs, left, right, outputs = core.shape[-4:]
    bonds = bond if 1 in (left, right) else bond * bond
    return math.sqrt(6 / (inputs * bonds + inputs * bonds // bond * outputs))


@pytest.mark.parametrize("length", [2, 3, 4])
def test_reference_initialisation_is_that_of_keras(length):
    layer = TensorChainLinear(512, 512, 0.3, length=length)
    layer.reset_parameters("reference")
    for core in layer.cores:
        assert_uniform(core, keras_bound(core, layer.bond_dim))
    assert not layer.bias.any()


@pytest.mark.parametrize(("out_features", "ratio", "std"), [(512, 0.07, 0.0089), (1365, 0.005, 0.0031)])
def test_reference_initialisation_makes_small_kernels(out_features, ratio, std):
    layer = TensorChainLinear(512, out_features, ratio)
    layer.reset_parameters("reference")
    assert layer.materialize().std().item() == pytest.approx(std, rel=0.1)
    layer.reset_parameters("variance_preserving")
    assert layer.materialize().std().item() == pytest.approx(math.sqrt(2 / (512 + out_features)), rel=0.2)


def test_reference_initialisation_of_tables_and_filters():
    table = TensorChainEmbedding(1024, 512, 0.3)
    table.reset_parameters("reference", 0.05)
    for core in table.cores:
        assert_uniform(core, 0.05)
    conv = TensorChainConv1d(96, 64, 3, 1, 0.5)
    conv.reset_parameters("reference")
    for core in conv.cores:
        assert_uniform(core, keras_bound(core, conv.bond_dim))


def assert_uniform(sample: torch.Tensor, bound: float) -> None:
    largest = sample.detach().abs().max().item()
    assert 0.95 * bound < largest <= bound
    assert sample.detach().square().mean().item() == pytest.approx(bound**2 / 3, rel=0.2)


@pytest.mark.parametrize("scheme", ["variance_preserving", "reference"])
@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: TensorChainLinear(24, 36, 0.3), torch.randn(5, 24)),
        (lambda: TensorChainLinear(24, 30, 0.4, length=3, mode="chain"), torch.randn(5, 24)),
        (lambda: TensorChainLinear(24, 36, 0.5, length=4, mode="materialize"), torch.randn(5, 24)),
        (lambda: TensorChainConv1d(12, 8, 3, 2, 0.5), torch.randn(2, 12, 9)),
        (lambda: TensorChainEmbedding(60, 24, 0.4), torch.arange(60)),
        (lambda: TensorChainEmbedding(60, 24, 0.4, length=3), torch.arange(60)),
    ],
    ids=["linear", "linear-3-chain", "linear-4", "conv1d", "embedding", "embedding-3"],
)
def test_every_core_is_trained(layer, inputs, scheme):
    module = layer()
    module.reset_parameters(scheme)
    module(inputs).square().sum().backward()
    assert len(module.cores) >= 2
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.ne(0).all(), name


def write_data(layer: TensorChainLinear) -> None:
    layer.core_1.data.mul_(2)


def replace_data(layer: TensorChainLinear) -> None:
    layer.core_0.data = torch.randn_like(layer.core_0)


def write_in_place(layer: TensorChainLinear) -> None:
    with torch.no_grad():
        layer.core_0[0].add_(1)


def optimizer_step(layer: TensorChainLinear) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(3, 24, dtype=layer.bias.dtype)).square().sum().backward()
    optimizer.step()


def load(layer: TensorChainLinear, **options) -> None:
    layer.load_state_dict(linear(24, 36, 0.4).to(layer.bias.dtype).state_dict(), **options)


CHANGES = {
    "optimizer_step": optimizer_step,
    "in_place": write_in_place,
    "data_written": write_data,
    "data_replaced": replace_data,
    "load_state_dict": load,
    "load_state_dict_assign": lambda layer: load(layer, assign=True),
    "new_parameter": lambda layer: setattr(layer, "core_0", torch.nn.Parameter(torch.randn_like(layer.core_0))),
    "reset": lambda layer: layer.reset_parameters(),
    "train_between": lambda layer: (layer.train(), write_data(layer), layer.eval()),
    "to_float32": lambda layer: layer.to(torch.float32),
    "to_float32_and_back": lambda layer: layer.to(torch.float32).double(),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("device_kind", ["cpu", "accelerator"])
@pytest.mark.parametrize("change", CHANGES)
def test_cached_kernel_is_never_stale(change, device_kind, context, monkeypatch):
    if device_kind == "accelerator":
        if change == "data_written":
            pytest.skip("an accelerator sees such writes only after train() or eval()")
        monkeypatch.setattr(torch, "equal", lambda *tensors: True)  # cores are not compared there
    change = CHANGES[change]
    layer = linear(24, 36, 0.4, mode="materialize").eval()
    hidden_states = torch.randn(5, 24, dtype=torch.float64)
    for _ in range(2):  # what was cached after the first change goes stale by the second
        with context():
            layer(hidden_states.to(layer.bias.dtype))
        change(layer)
        naive = hidden_states.to(layer.bias.dtype) @ naive_tensor_chain_kernel(layer.cores) + layer.bias
        with context():
            output = layer(hidden_states.to(layer.bias.dtype))
        assert output.dtype == layer.bias.dtype
        assert_close("output", output, naive, relative=1e-6, absolute=1e-6)


@torch.no_grad()
def test_copies_have_kernels_of_their_own():
    layer = linear(24, 36, 0.4, mode="materialize").eval()
    hidden_states = torch.randn(5, 24, dtype=torch.float64)
    before = layer(hidden_states)
    other = copy.deepcopy(layer)
    assert torch.equal(other(hidden_states), before)
    other.core_0.data.mul_(3)
    assert_close("copy", other(hidden_states) - other.bias, 3 * (before - layer.bias), **EXACT)
    assert torch.equal(layer(hidden_states), before)
    layer.core_1.mul_(2)
    assert_close("original", layer(hidden_states) - layer.bias, 2 * (before - layer.bias), **EXACT)
    assert_close("copy", other(hidden_states) - other.bias, 3 * (before - other.bias), **EXACT)


@torch.no_grad()
def test_functional_call_leaves_no_kernel_behind():
    layer = linear(24, 36, 0.4, mode="materialize").eval()
    hidden_states = torch.randn(5, 24, dtype=torch.float64)
    before = layer(hidden_states)
    doubled = {name: parameter * 2 for name, parameter in layer.named_parameters()}
    output = torch.func.functional_call(layer, doubled, (hidden_states,))
    assert_close("swapped", output, 4 * (before - layer.bias) + 2 * layer.bias, **EXACT)
    assert torch.equal(layer(hidden_states), before)


def test_kernel_is_cached_in_evaluation_only(monkeypatch):
    built = []
    materialize = TensorChainLinear.materialize
    monkeypatch.setattr(TensorChainLinear, "materialize", lambda self: built.append(self) or materialize(self))
    layer, hidden_states = linear(24, 36, 0.4, mode="materialize"), torch.randn(5, 24, dtype=torch.float64)
    layer.train()
    for _ in range(3):
        layer(hidden_states)
    assert len(built) == 3
    with torch.no_grad():
        layer(hidden_states)
    assert len(built) == 4
    layer.eval()
    layer(hidden_states)  # gradients may be asked of the cores
    assert len(built) == 5
    with torch.no_grad():
        outputs = [layer(hidden_states) for _ in range(4)]
    assert len(built) == 6
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert torch.equal(outputs[0], layer(hidden_states))
    assert sorted(layer.state_dict()) == ["bias", "core_0", "core_1"]


@pytest.mark.parametrize("length", [2, 3, 4])
def test_embedding_rows_are_those_of_the_table(length):
    layer = TensorChainEmbedding(60, 24, 0.5, length=length).double()
    layer.reset_parameters()
    ids, table = torch.randperm(60).view(3, 20), naive_tensor_chain_kernel(layer.cores)
    rows, expected = layer(ids), table[ids]
    assert_close("rows", rows, expected, **EXACT)
    assert_close("table", layer.materialize(), table, **EXACT)
    for k, (actual, naive) in enumerate(
        zip(gradients(rows, layer.cores), gradients(expected, layer.cores), strict=True)
    ):
        assert_close(f"gradient of core {k}", actual, naive, **EXACT)
    assert_close("one row", layer(torch.tensor(59)), table[59], **EXACT)


@pytest.mark.parametrize("wrong", [60, 1000, -1])
def test_embedding_refuses_ids_outside_the_vocabulary(wrong):
    layer = TensorChainEmbedding(60, 24, 0.5)
    layer.reset_parameters()
    with pytest.raises(IndexError):
        layer(torch.tensor([3, wrong]))


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 65])
@pytest.mark.parametrize(
    ("in_channels", "kernel_size", "dilation", "length"), [(12, 3, 1, 3), (12, 3, 4, 3), (15, 4, 2, 2), (24, 6, 1, 4)]
)
def test_convolution_is_the_naive_one(in_channels, kernel_size, dilation, length, num_tokens):
    layer = TensorChainConv1d(in_channels, 5, kernel_size, dilation, 0.6, length=length).double()
    layer.reset_parameters()
    torch.nn.init.normal_(layer.bias)
    hidden_states = torch.randn(2, num_tokens, in_channels, dtype=torch.float64, requires_grad=True)
    kernels = [naive_tensor_chain_kernel([core[filter] for core in layer.cores]).T for filter in range(5)]
    naive = naive_causal_convolution(hidden_states, torch.stack(kernels), layer.bias, dilation)
    padded = torch.nn.functional.pad(hidden_states, (0, 0, dilation * (kernel_size - 1), 0))
    fast = layer(padded.transpose(1, 2)).transpose(1, 2)
    assert_close("output", fast, naive, **EXACT)
    inputs = [hidden_states, layer.bias, *layer.cores]
    for k, (actual, expected) in enumerate(zip(gradients(fast, inputs), gradients(naive, inputs), strict=True)):
        assert_close(f"gradient {k}", actual, expected, **EXACT)


@pytest.mark.parametrize("mode", ["auto", "chain", "materialize"])
@pytest.mark.parametrize("length", [2, 3, 4])
def test_no_tokens_give_no_outputs(length, mode):
    layer = TensorChainLinear(24, 36, 0.5, length, mode=mode)
    layer.reset_parameters()
    assert layer(torch.zeros(0, 24)).shape == (0, 36)
    assert layer(torch.zeros(2, 0, 24)).shape == (2, 0, 36)


def test_kernel_kept_under_autocast_serves_outside_of_it():
    layer = TensorChainLinear(24, 36, 0.5, mode="materialize").eval()
    layer.reset_parameters()
    hidden_states = torch.randn(5, 24)
    with torch.no_grad():
        expected = hidden_states @ layer.materialize() + layer.bias
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first = layer(hidden_states)
        assert first.dtype == torch.bfloat16
        assert torch.equal(layer(hidden_states), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(hidden_states), first)
