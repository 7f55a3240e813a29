# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DExTra: the fast form against the equations, these against loops over single features, and the rules of shapes."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.activations import ACT2FN

from leanformers.modeling.delight import dextra
from leanformers.modeling.delight.dextra import (
    DExTra,
    activate,
    blockwise_depths,
    blockwise_widths,
    dextra_shapes,
    feature_shuffle,
    group_linear,
    naive_dextra,
    naive_group_linear,
)
from numerics import assert_close, assert_low_precision_close

EXACT = {"relative": 1e-9, "absolute": 1e-9}
ACTIVATIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: max(x, 0.0),
}
batches = pytest.mark.parametrize("batch", [(1,), (7,), (65,), (2, 3), (2, 1, 5)], ids=str)
shuffled = pytest.mark.parametrize("shuffle", [True, False], ids=["shuffle", "no_shuffle"])
# (layout, depth, max_groups): every count of groups and every depth, odd and even, in both layouts.
UNITS = [
    *(("dextra", depth, groups) for depth, groups in ((2, 2), (3, 4), (4, 8), (5, 4), (7, 8), (8, 32), (12, 32))),
    *(("define", depth, groups) for depth, groups in ((2, 2), (3, 1), (4, 8), (5, 4), (7, 4), (8, 32), (12, 4))),
    ("dextra", 4, 1),
]
units = pytest.mark.parametrize(("layout", "depth", "max_groups"), UNITS)


@pytest.fixture(params=[1, 1000], ids=["as_for_many_tokens", "as_for_few_tokens"])
def either_form(request, monkeypatch):
    """With gradients, a group linear transform has one form for few tokens and one for many."""
    monkeypatch.setattr(dextra, "MANY_TOKENS", request.param)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a loss that weighs every entry of the output differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


def assert_same(fast: torch.Tensor, naive: torch.Tensor, inputs: list[torch.Tensor], **tolerances: float) -> None:
    assert_close("output", fast, naive, **tolerances)
    for k, (actual, expected) in enumerate(zip(gradients(fast, inputs), gradients(naive, inputs), strict=True)):
        assert_close(f"gradient {k}", actual, expected, **tolerances)


def transform(num_groups: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Weight and bias of a group linear transform from 64 to 96 features."""
    shapes = (num_groups, 64 // num_groups, 96 // num_groups), (num_groups, 96 // num_groups)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def build(layout: str = "dextra", depth: int = 5, max_groups: int = 8, width: int = 64, **options) -> DExTra:
    """A unit in float64 whose parameters, norms and biases too, are nothing special."""
    unit = DExTra(width, width // 2, width // 2, 2.286, depth, max_groups, layout, **options).double().eval()
    for name, parameter in unit.named_parameters():
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    return unit


@batches
@shuffled
@pytest.mark.parametrize("num_groups", [1, 2, 4, 8, 32])
def test_group_linear_is_the_naive_one(num_groups, shuffle, batch, either_form):
    weight, bias = transform(num_groups)
    hidden_states = torch.randn(*batch, 64, dtype=torch.float64, requires_grad=True)
    fast = group_linear(hidden_states, weight, bias, shuffle)
    assert fast.shape == (*batch, num_groups, 96 // num_groups)
    assert_same(fast, naive_group_linear(hidden_states, weight, bias, shuffle), [hidden_states, weight, bias], **EXACT)


STRIDES = {
    "transposed": lambda: torch.randn(64, 7, 3, dtype=torch.float64).transpose(0, 2),
    "every_other": lambda: torch.randn(3, 14, 128, dtype=torch.float64)[:, ::2, ::2],
    "expanded": lambda: torch.randn(1, 7, 64, dtype=torch.float64).expand(3, 7, 64),
    "narrowed": lambda: torch.randn(3, 7, 80, dtype=torch.float64)[..., 9:73],
}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_inputs_have_any_strides(num_groups, strides, either_form):
    weight, bias = transform(num_groups)
    hidden_states = STRIDES[strides]().requires_grad_()
    assert not hidden_states.is_contiguous()
    fast, naive = (form(hidden_states, weight, bias) for form in (group_linear, naive_group_linear))
    assert_same(fast, naive, [hidden_states, weight, bias], **EXACT)
    unit = build()
    assert_same(unit(hidden_states), naive_dextra(hidden_states, unit), [hidden_states], **EXACT)


def group_linear_by_loops(inputs, weight, bias, shuffle: bool) -> np.ndarray:
    """One token's outputs: element i of group k stands at place `i * num_groups + k`, unshuffled at `k * size + i`."""
    num_groups, group_in, group_out = weight.shape
    outputs = np.full(num_groups * group_out, np.nan)
    for k in range(num_groups):
        for i in range(group_out):
            place = i * num_groups + k if shuffle else k * group_out + i
            outputs[place] = bias[k, i] + sum(inputs[k * group_in + j] * weight[k, j, i] for j in range(group_in))
    return outputs


@shuffled
@pytest.mark.parametrize("num_groups", [1, 2, 8, 32])
def test_naive_group_linear_is_its_definition(num_groups, shuffle):
    weight, bias = transform(num_groups)
    hidden_states = torch.randn(3, 64, dtype=torch.float64)
    rows = [
        group_linear_by_loops(token, weight.detach().numpy(), bias.detach().numpy(), shuffle)
        for token in hidden_states.numpy()
    ]
    output = naive_group_linear(hidden_states, weight, bias, shuffle)
    assert_close("output", output.flatten(-2), torch.from_numpy(np.stack(rows)), **EXACT)


def norm_and_activation_by_loops(chunk, norm, activation) -> list[float]:
    gain, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    mean = sum(chunk) / len(chunk)
    variance = sum((value - mean) ** 2 for value in chunk) / len(chunk)
    return [
        activation((value - mean) / math.sqrt(variance + 1e-5) * gain[i] + bias[i]) for i, value in enumerate(chunk)
    ]


def unit_by_loops(inputs, unit: DExTra, shapes, shuffle: bool, activation) -> list[float]:
    """One token through a unit, chunk by chunk."""

    def linear(features, layer, norm):
        features = layer.weight.detach().numpy() @ np.array(features) + layer.bias.detach().numpy()
        return norm_and_activation_by_loops(features, norm, activation)

    projected = linear(inputs, unit.in_proj, unit.in_norm)
    features = projected
    for depth, (layer, shape) in enumerate(zip(unit.layers, shapes, strict=True)):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        outputs = group_linear_by_loops(features, weight, bias, shuffle and shape.num_groups > 1)
        normed = []
        for chunk in outputs.reshape(shape.num_groups, -1):
            normed += norm_and_activation_by_loops(chunk, layer.norm, activation)
        chunks = shapes[depth + 1].num_groups if depth + 1 < len(shapes) else 1
        sizes, features = (len(projected) // chunks, len(normed) // chunks), []
        for k in range(chunks):
            features += projected[k * sizes[0] : (k + 1) * sizes[0]] + normed[k * sizes[1] : (k + 1) * sizes[1]]
    return linear(features, unit.out_proj, unit.out_norm)


@pytest.mark.parametrize(
    ("layout", "depth", "max_groups", "shuffle", "activation"),
    [
        ("dextra", 2, 2, True, "silu"),
        ("dextra", 5, 8, True, "silu"),
        ("dextra", 4, 4, False, "gelu"),
        ("dextra", 7, 8, True, "relu"),
        ("define", 5, 4, False, "silu"),
    ],
)
def test_naive_unit_is_its_definition(layout, depth, max_groups, shuffle, activation):
    unit = build(layout, depth, max_groups, shuffle=shuffle, activation=activation)
    shapes = dextra_shapes(64, 32, 32, 2.286, depth, max_groups, layout)
    hidden_states = torch.randn(2, 64, dtype=torch.float64)
    rows = [unit_by_loops(row, unit, shapes, shuffle, ACTIVATIONS[activation]) for row in hidden_states.numpy()]
    assert_close("output", naive_dextra(hidden_states, unit), torch.tensor(rows, dtype=torch.float64), **EXACT)


@units
@pytest.mark.parametrize("batch", [(1,), (7,), (1, 65), (2, 1, 5)], ids=str)
def test_unit_is_the_naive_one(layout, depth, max_groups, batch):
    unit = build(layout, depth, max_groups)
    hidden_states = torch.randn(*batch, 64, dtype=torch.float64, requires_grad=True)
    fast = unit(hidden_states)
    assert fast.shape == (*batch, 32)
    assert_same(fast, naive_dextra(hidden_states, unit), [hidden_states, *unit.parameters()], **EXACT)
    with torch.no_grad():
        assert_close("output without gradients", unit(hidden_states), fast, **EXACT)


@units
def test_unit_is_the_naive_one_in_float32(layout, depth, max_groups, either_form):
    unit = build(layout, depth, max_groups).float()
    hidden_states = torch.randn(3, 21, 64, requires_grad=True)
    inputs = [hidden_states, *unit.parameters()]
    assert_same(unit(hidden_states), naive_dextra(hidden_states, unit), inputs, relative=1e-4, absolute=1e-4)


@shuffled
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, shuffle, either_form):
    unit = build(activation=activation, shuffle=shuffle)
    hidden_states = torch.randn(2, 9, 64, dtype=torch.float64, requires_grad=True)
    inputs = [hidden_states, *unit.parameters()]
    assert_same(unit(hidden_states), naive_dextra(hidden_states, unit), inputs, **EXACT)


def test_second_gradients_are_right(either_form):
    unit = build(depth=3, max_groups=2, width=8)
    hidden_states = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = unit.layers[1].weight

    def call(hidden_states, weight):
        parameters = {**dict(unit.named_parameters()), "layers.1.weight": weight}
        return torch.func.functional_call(unit, parameters, (hidden_states,))

    assert torch.autograd.gradcheck(call, (hidden_states, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (hidden_states, weight), fast_mode=True)


def test_no_tokens_give_no_outputs(either_form):
    unit = build().float()
    for batch in ((0,), (2, 0), (0, 3)):
        output = unit(torch.zeros(*batch, 64, requires_grad=True))
        assert output.shape == (*batch, 32)
        output.sum().backward()


def test_a_token_knows_no_other():
    unit, hidden_states = build(), torch.randn(2, 5, 64, dtype=torch.float64)
    changed = hidden_states.clone()
    changed[1, 3] += 1
    moved = (unit(changed) - unit(hidden_states)).abs().amax(-1) > 1e-12
    assert moved.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("num_groups", [2, 4, 8])
def test_only_the_shuffle_leads_out_of_a_group(num_groups):
    weight, bias = transform(num_groups)
    hidden_states = torch.randn(1, 64, dtype=torch.float64)
    changed = hidden_states.clone()
    changed[:, : 64 // num_groups] += 1
    for shuffle in (False, True):
        moved = group_linear(changed, weight, bias, shuffle) != group_linear(hidden_states, weight, bias, shuffle)
        assert moved[0].any(-1).tolist() == ([True] * num_groups if shuffle else [True] + [False] * (num_groups - 1))


@pytest.mark.parametrize("num_groups", [1, 2, 4, 8, 32])
def test_feature_shuffle_is_an_index_map(num_groups):
    size = 96 // num_groups
    places = feature_shuffle(torch.arange(2 * 96).view(2, num_groups, size))
    assert places.shape == (2, num_groups, size)
    for place, source in enumerate(places[0].flatten().tolist()):
        element, group = divmod(place, num_groups)
        assert source == group * size + element
    assert torch.equal(places[1], places[0] + 96)


def test_feature_shuffle_is_the_recorded_one(shared):
    recorded = load_file(shared / "reference" / "delight" / "v3_dextra_units" / "io.safetensors")
    inputs, expected = recorded["shuffle_demo.x"], recorded["shuffle_demo.y"]
    assert torch.equal(feature_shuffle(inputs.unflatten(-1, (4, 6))).flatten(-2), expected)
    identity = torch.eye(6).repeat(4, 1, 1)
    for form in (naive_group_linear, group_linear):
        assert torch.equal(form(inputs, identity, torch.zeros(4, 6)).flatten(-2), expected)


def test_recorded_shapes(shared):
    config = json.loads((shared / "reference" / "delight" / "v3_dextra_units" / "config.json").read_text())
    for name, unit in config["units"].items():
        made = unit["resolved"]
        layout = "define" if name.startswith("e_") else "dextra"
        sizes = [made[key] for key in ("in_features", "in_proj_features", "out_features", "width_multiplier", "depth")]
        expected = [(layer["n_in"], layer["n_out"], layer["groups"]) for layer in made["glt_layers"]]
        assert dextra_shapes(*sizes, made["max_groups"], layout) == expected, name


def shapes_by_specification(in_features, projected, out_features, multiplier, depth, max_groups, layout):
    """numpy's `linspace` and lists, mirrored by hand."""
    widest = in_features * multiplier
    if layout == "define":
        groups, group = [], 1
        while len(groups) < depth:
            groups.append(group)
            group = 1 if group == max_groups else 2 * group
        groups.reverse()
        widths = np.linspace(projected, widest, depth).astype(int).tolist()[1:]
    else:
        middle = math.ceil(depth / 2)
        rising = [min(2 ** (i + 1), max_groups) for i in range(middle)]
        growing = np.linspace(projected, widest, middle).astype(int).tolist()
        skip = 1 if depth % 2 else 0  # an odd unit has one widest layer, an even one has two
        groups = rising + list(reversed(rising))[skip:]
        widths = growing + list(reversed(growing))[skip:]
    shapes, width_in = [], projected
    for i in range(depth - 1):
        quantum = max(groups[i], groups[i + 1], 8)
        width_out = -(-widths[i] // quantum) * quantum
        shapes.append((width_in, width_out, groups[i]))
        width_in = width_out + projected
    return [*shapes, (width_in, out_features, groups[-1])]


@pytest.mark.parametrize("layout", ["dextra", "define"])
@pytest.mark.parametrize("depth", range(2, 13))
def test_shapes_follow_the_specification(depth, layout):
    for width, max_groups in ((64, 2), (128, 4), (256, 8), (384, 16), (640, 32), (1024, 32)):
        for multiplier in (1.5, 2.0, 2.143, 2.714, 3.818, 4.0):
            arguments = (width, width // 2, width // 2, multiplier, depth, max_groups, layout)
            assert dextra_shapes(*arguments) == shapes_by_specification(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((512, 256, 256, 2.0, 4, 16), [(256, 256, 2), (512, 1024, 4), (1280, 1024, 4), (1280, 256, 2)]),
        ((512, 256, 256, 2.0, 2, 16), [(256, 256, 2), (512, 256, 2)]),
        ((512, 256, 256, 2.0, 3, 16), [(256, 256, 2), (512, 1024, 4), (1280, 256, 2)]),
        ((128, 320, 640, 2.0, 4, 32), [(320, 320, 2), (640, 256, 4), (576, 256, 4), (576, 640, 2)]),
        (
            (512, 256, 256, 2.857, 7, 16),
            [
                (256, 256, 2),
                (512, 664, 4),
                (920, 1072, 8),
                (1328, 1472, 16),
                (1728, 1064, 8),  # 1072 on the way up: the next layer has fewer groups
                (1320, 664, 4),
                (920, 256, 2),
            ],
        ),
        (
            (128, 64, 64, 3.0, 8, 4),
            [
                (64, 64, 2),
                (128, 176, 4),
                (240, 280, 4),
                (344, 384, 4),
                (448, 384, 4),
                (448, 280, 4),
                (344, 176, 4),
                (240, 64, 2),
            ],
        ),
    ],
    ids=["depth_4", "depth_2", "depth_3", "embedding", "depth_7", "depth_8"],
)
def test_shapes_of_the_specification(arguments, expected):
    assert dextra_shapes(*arguments) == expected


def test_groups_of_the_define_layout():
    groups = [shape.num_groups for shape in dextra_shapes(64, 32, 64, 2.0, 5, 4, "define")]
    assert groups == [2, 1, 4, 2, 1]


@pytest.mark.parametrize(
    ("blocks", "bounds", "depths", "widths"),
    [
        (8, (4, 8), [4, 4, 5, 5, 6, 6, 7, 8], [2.0, 2.143, 2.286, 2.429, 2.571, 2.714, 2.857, 3.0]),
        (
            12,
            (4, 12),
            [4, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12],
            [2.0, 2.182, 2.364, 2.545, 2.727, 2.909, 3.091, 3.273, 3.455, 3.636, 3.818, 4.0],
        ),
        (3, (4, 4), [4, 4, 4], [2.0, 2.0, 2.0]),
        (2, (3, 9), [3, 9], [2.0, 4.0]),
        (1, (4, 4), [4], [2.0]),
    ],
)
def test_blockwise_scaling(blocks, bounds, depths, widths):
    assert blockwise_depths(blocks, *bounds) == depths
    assert blockwise_widths(blocks, 2.0, *bounds) == widths


@pytest.mark.parametrize(("depth", "shown"), [(1, "1"), (0, "0"), (-3, "-3")])
def test_too_shallow(depth, shown):
    with pytest.raises(ValueError, match=f"depth of a DExTra unit must be at least 2, got {shown}"):
        DExTra(64, 32, 32, 2.0, depth, 4)


@pytest.mark.parametrize(("width", "max_groups"), [(63, 1), (65, 4), (48, 32)])
def test_wrong_input_width(width, max_groups):
    with pytest.raises(ValueError, match=rf"\({width}\) must be even and a multiple of its max_groups \({max_groups}"):
        DExTra(width, 32, 32, 2.0, 4, max_groups)


@pytest.mark.parametrize(
    ("projected", "out_features", "message"),
    [(30, 32, r"\d+ features cannot have 4 groups"), (32, 31, r"to 31 features cannot have 2 groups")],
)
def test_groups_that_do_not_divide(projected, out_features, message):
    with pytest.raises(
        ValueError, match=message + r", which must divide both widths: change max_groups or the hidden"
    ):
        DExTra(64, projected, out_features, 2.0, 4, 4)


@pytest.mark.parametrize("num_groups", [1, 2, 4, 8])
def test_initialisation_is_glorot_over_the_whole_tensor(num_groups):
    layout, depth = ("define", 3) if num_groups == 1 else ("dextra", 7)
    unit = DExTra(256, 128, 128, 2.286, depth, max(num_groups, 2), layout)
    for layer in unit.layers:
        nn.init.ones_(layer.bias)
        layer.reset_parameters()
    layer = next(layer for layer in unit.layers if layer.num_groups == num_groups)
    reference = torch.full(layer.weight.shape, math.nan)
    if num_groups == 1:
        nn.init.xavier_uniform_(reference[0])  # one group is a linear layer
    else:
        nn.init.xavier_uniform_(reference)
        per_group = math.sqrt(6 / (layer.weight.shape[1] + layer.weight.shape[2]))
        assert layer.weight.abs().max() < per_group / 3
    assert layer.weight.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.02)
    assert layer.weight.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert layer.bias.eq(0).all() and layer.norm.weight.eq(1).all() and layer.norm.bias.eq(0).all()


def test_loaded_weights_are_not_initialised_again():
    layer = build().layers[0]
    before = layer.weight.detach().clone()
    layer.weight._is_hf_initialized = True
    layer.reset_parameters()
    assert torch.equal(layer.weight, before)


def test_one_gain_and_bias_for_all_groups():
    for layer in build(depth=8, max_groups=32).layers:
        assert layer.norm.weight.shape == layer.norm.bias.shape == (layer.out_features // layer.num_groups,)
        assert layer.bias.shape == (layer.num_groups, layer.out_features // layer.num_groups)


@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_silu_overwrites_without_gradients_alone(name):
    fresh = torch.randn(5, 8)
    activation, before = ACT2FN[name], fresh.clone()
    output = activate(activation, fresh)
    assert torch.equal(output, activation(before)) and torch.equal(fresh, before)
    with torch.no_grad():
        assert torch.equal(activate(activation, fresh), output)
    assert torch.equal(fresh, output if name == "silu" else before)


def test_nothing_of_the_caller_is_overwritten():
    unit, hidden_states = build(), torch.randn(5, 64, dtype=torch.float64)
    seen = []
    for layer in unit.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.extend([(x, x.clone()) for x in (*inputs, output)]))
    seen.append((hidden_states, hidden_states.clone()))
    with torch.no_grad():
        unit(hidden_states)
    assert len(seen) == 2 * len(unit.layers) + 1
    assert all(torch.equal(now, before) for now, before in seen)


@pytest.mark.parametrize("place", ["input", "first", "last"])
def test_every_layer_of_a_unit_drops_out(place):
    unit = build(dropout=0.25, depth=3, width=256).train()
    seen = {}
    unit.layers[0].register_forward_hook(lambda _, inputs, output: seen.update(input=inputs[0], first=output))
    seen["last"] = unit(torch.randn(200, 256, dtype=torch.float64))
    dropped = seen[place].eq(0).double().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.02)


def test_dropout_scales_what_it_keeps():
    unit = build(dropout=0.25)
    layer, hidden_states = unit.layers[2], torch.randn(40, unit.layers[2].in_features, dtype=torch.float64)
    expected = layer(hidden_states)
    output = layer.train()(hidden_states)
    kept = output.ne(0)
    assert 0 < kept.sum() < kept.numel()
    assert_close("kept", output[kept], expected[kept] / 0.75, **EXACT)


def test_no_dropout_in_evaluation():
    unit, hidden_states = build(dropout=0.5), torch.randn(5, 64, dtype=torch.float64)
    assert torch.equal(unit(hidden_states), unit(hidden_states))
    assert_close("output", unit(hidden_states), naive_dextra(hidden_states, unit), **EXACT)


@pytest.mark.parametrize(
    ("layout", "depth", "max_groups"), [("dextra", 2, 2), ("dextra", 5, 4), ("dextra", 8, 8), ("define", 5, 4)]
)
def test_bfloat16_strays_no_further_than_the_naive_form(layout, depth, max_groups, either_form):
    unit = build(layout, depth, max_groups).bfloat16()
    hidden_states = torch.randn(3, 21, 64).bfloat16().requires_grad_()
    wide, wide_states = build(layout, depth, max_groups).float(), hidden_states.detach().float().requires_grad_()
    wide.load_state_dict(unit.state_dict())
    fast, naive, exact = unit(hidden_states), naive_dextra(hidden_states, unit), naive_dextra(wide_states, wide)
    assert fast.dtype == torch.bfloat16
    assert_low_precision_close("output", fast, naive, exact)
    # torch's layer norm sums the gradients of its gain and bias over the tokens in bfloat16, on CPU.
    inputs, wide_inputs = (
        [states, *(parameter for name, parameter in module.named_parameters() if "norm" not in name)]
        for states, module in ((hidden_states, unit), (wide_states, wide))
    )
    expected = gradients(exact, wide_inputs)
    # All at once: the worst entry of a bias with sixteen is chance.
    found = [
        torch.cat([(ours / theirs.abs().max()).flatten() for ours, theirs in zip(some, expected, strict=True)])
        for some in (gradients(fast, inputs), gradients(naive, inputs), expected)
    ]
    assert_low_precision_close("gradients", *found)


def test_autocast_computes_in_bfloat16(either_form):
    unit = build().float()
    hidden_states = torch.randn(4, 5, 64, requires_grad=True)
    expected = unit(hidden_states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unit(hidden_states)
    output.float().sum().backward()
    assert_close("output", output.float(), expected, relative=0.1, absolute=0.1)
    assert all(parameter.grad.dtype == torch.float32 for parameter in unit.parameters())


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="Dynamo of torch 2.6 cannot trace the activations of transformers"
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_unit_is_the_eager_one(backend):
    torch.compiler.reset()
    unit = build(depth=3)
    compiled = torch.compile(unit, backend=backend, fullgraph=True)
    hidden_states = torch.randn(2, 7, 64, dtype=torch.float64, requires_grad=True)
    inputs = [hidden_states, *unit.parameters()]
    assert_same(compiled(hidden_states), unit(hidden_states), inputs, **EXACT)
