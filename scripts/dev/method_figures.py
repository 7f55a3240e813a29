# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The figures of the methods' pages, computed from the operators and presets that they explain.

    python scripts/dev/method_figures.py --output docs/figures

Nothing here is measured or trained: every number is a count of a preset, or what an operator makes of random or chosen
inputs. Needs matplotlib (extra `bench`).
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

import leanformers
from leanformers.accounting import parameter_table
from leanformers.modeling.anthe.soft_positions import HierarchicalSoftPositions
from leanformers.modeling.anthe.tensor_chain import TensorChainLinear, chain_core_shapes, chain_costs
from leanformers.modeling.delight.dextra import (
    DExTra,
    GroupLinear,
    blockwise_depths,
    blockwise_widths,
    group_linear,
    mix,
)
from leanformers.modeling.fast_weight.delta_rule import naive_delta_rule, naive_sum_rule
from leanformers.modeling.fast_weight.feature_maps import build_feature_map, dpfp
from leanformers.modeling.selective_attn.selective_attention import naive_selective_attention
from leanformers.plots import GRID, INK, SERIES, blank_figure, dress, save

ROOT = Path(__file__).resolve().parents[2]
ORANGE, BLUE, GREEN, VIOLET = (SERIES[index] for index in (2, 1, 3, 4))
PARTS = {  # of a model, by what the names of their parameters contain
    "tables, positions": ("embeddings",),
    "DExTra": ("dextra",),
    "attention": ("attn",),
    "feed-forward": ("mlp",),
    "output": ("lm_head", "output_proj"),
}

MAPS = {  # feature map, nu and colour
    "elu + 1": ("elu_plus_one", 1, BLUE),
    "DPFP-1": ("dpfp", 1, ORANGE),
    "DPFP-2": ("dpfp", 2, GREEN),
    "DPFP-3": ("dpfp", 3, VIOLET),
}


def empty_model(preset: str) -> PreTrainedModel:
    """The translator of a preset without its weights."""
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(ROOT / f"configs/model/{preset}.json"))


def parts_of(model: torch.nn.Module) -> Counter[str]:
    """Parameters by part, norms with what they follow."""
    counts: Counter[str] = Counter()
    for name, number in parameter_table(model).rows.items():
        counts[next(part for part, names in PARTS.items() if any(word in name for word in names))] += number
    return counts


def anthe(path: Path) -> Path:
    """Where the parameters are, what a chain costs and what it can express, and how far H-SoftPOS looks back."""
    figure = blank_figure(9.6, 7.0)
    axes = figure.subplots(2, 2).flatten()
    draw_parameters(axes[0])
    draw_chain_costs(axes[1])
    draw_singular_values(axes[2])
    draw_reach_back(axes[3])
    return save(figure, path)


def draw_parameters(axis) -> None:
    """A bar for each preset, of its parts."""
    presets = ("transformer_base", "dense_gated_base", "anthe_base", "anthe_base_7x")
    counts = [parts_of(empty_model(f"anthe/{preset}")) for preset in presets]
    lefts = [0.0] * len(presets)
    colors = {"tables, positions": SERIES[5], "attention": BLUE, "feed-forward": GREEN, "output": VIOLET}
    for part, color in colors.items():
        widths = [count[part] / 1e6 for count in counts]
        axis.barh(presets, widths, left=lefts, color=color, label=part, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axis.invert_yaxis()
    axis.legend(fontsize=8, frameon=False)
    dress(axis, "where the parameters are", "parameters, in millions")


def draw_chain_costs(axis) -> None:
    """Weights of a chain, and multiplications without building its kernel, over those of the dense matrix."""
    ratios = [10 ** (exponent / 20) for exponent in range(-50, 0)]
    for (inputs, outputs), color in {(512, 512): BLUE, (512, 1365): GREEN}.items():
        shapes = [chain_core_shapes(inputs, outputs, ratio, length=2) for ratio in ratios]
        weights = [sum(map(prod, cores)) / (inputs * outputs) for cores in shapes]
        costs = [min(chain_costs(cores)) / (inputs * outputs) for cores in shapes]
        axis.step(ratios, weights, color=color, where="post", label=f"weights, {inputs} x {outputs}")
        axis.step(ratios, costs, color=color, where="post", linestyle="--", label="multiplications per token")
    axis.plot(ratios, ratios, color=INK, linewidth=0.8, linestyle=":", label="the ratio itself")
    config = AutoConfig.from_pretrained(ROOT / "configs/model/anthe/anthe_base.json")
    for ratio, part in ((config.tc_attn_ratio, "attention"), (config.tc_ffn_ratio, "feed-forward")):
        axis.axvline(ratio, color=INK, linewidth=0.6)
        axis.text(ratio, 2.4e-3, f" {part} of anthe_base", fontsize=8, color=INK)
    axis.set(xscale="log", yscale="log", ylim=(2e-3, 2e3))
    axis.legend(fontsize=8, facecolor="white", edgecolor="white", framealpha=1.0)
    dress(axis, "a chain of two cores, over the dense matrix", "ratio asked for")


def draw_singular_values(axis) -> None:
    """Of a chain's kernel, and of a product of two thin matrices with as many weights."""
    size = 512
    for ratio, color in ((0.07, ORANGE), (0.02, SERIES[5])):
        chain = TensorChainLinear(size, size, ratio, bias=False)
        chain.reset_parameters()
        number = sum(core.numel() for core in chain.cores)
        rank = number // (2 * size)
        thin = torch.randn(size, rank) @ torch.randn(rank, size)
        for kernel, style, label in (
            (chain.materialize().detach(), "-", f"chain of {number:,} weights"),
            (thin, "--", f"rank {rank}, as many weights"),
        ):
            values = torch.linalg.svdvals(kernel)
            axis.plot(range(1, size + 1), (values / values[0]).clamp(min=1e-4), style, color=color, label=label)
    axis.set_ylim(bottom=-0.02)
    axis.legend(fontsize=8, frameon=False)
    dress(axis, "singular values of a 512 x 512 kernel", "index")
    axis.set_ylabel("over the largest", fontsize=9, color=INK)


def draw_reach_back(axis, levels: int = 4, width: int = 16, length: int = 20) -> None:
    """How strongly the features of each level at the last token depend on the token so many places before."""
    module = HierarchicalSoftPositions(width, width, levels)
    for level in module.levels:
        level.reset_parameters()
    tokens = torch.randn(1, length, width)
    jacobian = torch.autograd.functional.jacobian(lambda inputs: module(inputs)[0, -1], tokens)[:, 0]
    strengths = torch.stack([rows.square().sum((0, 2)).sqrt() for rows in jacobian.split(2 * width)])
    image = (strengths / strengths.amax(dim=1, keepdim=True)).flip(1)
    axis.imshow(image.masked_fill(image == 0, float("nan")).numpy(), cmap="viridis", aspect="auto")
    axis.set_xticks(range(0, length, 2))
    axis.set_yticks(range(levels), [f"level {level}" for level in range(levels)])
    dress(axis, "what the levels of H-SoftPOS see", "tokens before the present one")
    axis.grid(False)


def delight(path: Path) -> Path:
    """A unit layer by layer, what its groups save and its shuffle is for, and how blocks grow."""
    figure = blank_figure(9.6, 7.4)
    axes = figure.subplots(2, 2).flatten()
    preset = "wmt14_en_de_640"
    model = empty_model(f"delight/{preset}")
    layers = model.model.decoder.layers
    draw_unit(axes[0], layers[-1].dextra)
    dress(axes[0], f"the unit of the last block, {preset}", "features, cut into groups")
    axes[0].grid(False)
    draw_reach(axes[1], list(layers[-1].dextra.layers))
    draw_scaling(axes[2], model.config)
    draw_blocks(axes[3], layers)
    return save(figure, path)


def draw_unit(axis, unit: DExTra) -> None:
    """A bar for each layer, as wide as what comes out of it and cut into its groups."""
    layers = [("W_in", unit.in_proj.out_features, 1)]
    layers += [(f"GLT {n}", layer.out_features, layer.num_groups) for n, layer in enumerate(unit.layers, start=1)]
    layers += [("W_out", unit.out_proj.out_features, 1)]
    for row, (_, width, groups) in enumerate(layers):
        size = width / groups
        color = ORANGE if groups > 1 else GRID
        lefts = [group * size - width / 2 for group in range(groups)]
        axis.barh(row, size, left=lefts, color=color, edgecolor="white", linewidth=0.8, height=0.75, align="center")
        text = f"{width:,}" if groups == 1 else f"{width:,} in {groups}"
        axis.text(width / 2 + 25, row, text, fontsize=8, color=INK, va="center")
    axis.set_yticks(range(len(layers)), [name for name, _, _ in layers])
    widest = max(width for _, width, _ in layers)
    axis.set_xlim(-widest / 2 - 40, widest / 2 + 560)
    axis.set_xticks([])
    axis.invert_yaxis()


def draw_reach(axis, transforms: list[GroupLinear]) -> None:
    order = range(1, len(transforms) + 1)
    dense = [layer.weight.numel() / (layer.in_features * layer.out_features) for layer in transforms]
    axis.bar(order, dense, color=GRID, label="weights, of those of a dense layer")
    for shuffle, color in ((True, ORANGE), (False, BLUE)):
        label = f"inputs that reach a feature, {'shuffled' if shuffle else 'not shuffled'}"
        axis.plot(order, reached(transforms, shuffle), "o-", color=color, markersize=4, label=label)
    axis.set(ylim=(0, 1.5), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    dress(axis, "what groups save, and what the shuffle is for", "group linear transform")


def reached(layers: list[GroupLinear], shuffle: bool) -> list[float]:
    """Share of the unit's projected inputs that a feature depends on, mean over features, after each transform."""
    projected = hidden_states = torch.eye(layers[0].in_features)  # row i is fed with input i alone
    shares = []
    for layer in layers:
        weight, bias = torch.ones(layer.weight.shape), torch.zeros(layer.bias.shape)
        outputs = group_linear(hidden_states, weight, bias, shuffle).flatten(1).sign()
        shares.append(outputs.mean().item())
        hidden_states = mix(projected, outputs.unflatten(1, (layer.out_chunks, -1)))
    return shares


def draw_scaling(axis, config: PreTrainedConfig) -> None:
    num_blocks = config.num_decoder_layers
    depths = blockwise_depths(num_blocks, config.min_depth, config.max_depth)
    widths = blockwise_widths(num_blocks, config.width_multiplier, config.min_depth, config.max_depth)
    axis.bar(range(num_blocks), depths, color=GREEN, label="group linear transforms, N_b")
    axis.plot(range(num_blocks), widths, "o-", color=INK, markersize=4, label="width multiplier, w_b")
    axis.legend(fontsize=8, frameon=False)
    dress(axis, "block-wise scaling", "block of the decoder")


def draw_blocks(axis, layers: torch.nn.ModuleList) -> None:
    counts = [parts_of(layer) for layer in layers]
    below = [0.0] * len(layers)
    for part, color in {"DExTra": ORANGE, "attention": BLUE, "feed-forward": GREEN}.items():
        heights = [count[part] / 1e6 for count in counts]
        axis.bar(range(len(layers)), heights, bottom=below, color=color, label=part)
        below = [start + height for start, height in zip(below, heights, strict=True)]
    axis.set_ylim(0, 1.2 * max(below))
    axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    dress(axis, "parameters of a block, in millions", "block of the decoder")


def fast_weight(path: Path) -> Path:
    """What DPFP's features look like, how much keys overlap behind each map, and what memories then lose."""
    figure = blank_figure(9.6, 7.0)
    axes = figure.subplots(2, 2).flatten()
    draw_dpfp(axes[0])
    draw_overlaps(axes[1])
    numbers = [10, 20, 40, 60, 80, 100, 120, 160, 200, 240]
    for label, rule, style in rules_behind("elu + 1", "DPFP-1", "DPFP-3"):
        errors = [read_error(rule, unit_keys(number, label), 1)[-1] for number in numbers]
        axes[2].plot(numbers, errors, **style)
    dress(axes[2], "each pair written once", "pairs in the memory")
    axes[2].set_ylabel("error of what is read", fontsize=9, color=INK)
    for label, rule, style in rules_behind("elu + 1", "DPFP-1"):
        axes[3].plot(range(1, 21), read_error(rule, unit_keys(20, label), 20), **style)
    dress(axes[3], "20 keys, written with new values again and again", "times that each key was written")
    axes[3].set_ylabel("error of the latest values", fontsize=9, color=INK)
    axes[3].set_xticks(range(0, 21, 5))
    for axis in axes[2:]:
        axis.set(yscale="log", ylim=(3e-2, 2e4))
        axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    return save(figure, path)


def draw_dpfp(axis) -> None:
    angles = torch.linspace(0, 2 * torch.pi, 361)
    features = dpfp(torch.stack([angles.cos(), angles.sin()], dim=-1), nu=1)
    for number, color in enumerate((ORANGE, BLUE, GREEN, VIOLET)):
        axis.plot(angles.rad2deg(), features[:, number], color=color, label=f"feature {number + 1}")
    axis.set(xticks=range(0, 361, 90), ylim=(0, 0.75))
    axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    dress(axis, "DPFP-1 of (cos a, sin a)", "angle a, in degrees")


def draw_overlaps(axis, number: int = 500) -> None:
    for label, (_, _, color) in MAPS.items():
        keys = unit_keys(number, label)
        overlaps = (keys @ keys.T)[torch.ones(number, number).triu(1).bool()]
        label = f"{label}, {keys.shape[1]} features"
        axis.hist(overlaps, bins=60, range=(0, 1), density=True, histtype="step", color=color, label=label)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.24, 1.0))
    dress(axis, "overlap of two random keys, 64 wide", "cosine of their features")
    axis.set_ylabel("density", fontsize=9, color=INK)


def rules_behind(*labels: str) -> Iterator[tuple[str, Callable, dict[str, str]]]:
    """Feature map, update rule, and how their curve looks."""
    for label in labels:
        for name, rule, line in (("delta", naive_delta_rule, "-"), ("sum", naive_sum_rule, "--")):
            yield label, rule, {"color": MAPS[label][2], "linestyle": line, "label": f"{label}, {name} rule"}


def unit_keys(number: int, label: str, head_dim: int = 64) -> torch.Tensor:
    """Features of random keys behind a map, `[number, features]`, divided by their length."""
    name, nu, _ = MAPS[label]
    module, _ = build_feature_map(name, head_dim, nu=nu)
    return torch.nn.functional.normalize(module(torch.randn(number, head_dim)), dim=-1)


def read_error(rule: Callable, keys: torch.Tensor, rounds: int, head_dim: int = 64) -> list[float]:
    """After each round of writing all keys with new random values, beta being 1: the squared error of the values read
    under all keys, over that of reading zeros."""
    state, errors = None, []
    for _ in range(rounds):
        values = torch.randn(len(keys), head_dim)
        beta = [torch.ones(1, len(keys), 1)] if rule is naive_delta_rule else []
        key, value = keys[None, :, None], values[None, :, None]
        _, state = rule(key, key, value, *beta, initial_state=state, output_final_state=True)
        errors.append(((keys @ state[0, 0] - values).square().sum() / values.square().sum()).item())
    return errors


def selective_attn(path: Path) -> Path:
    """Votes, what they add up to, what is then attended to, and what is held, on a text of assignments."""
    text = ["<s>", "x = 1", "y = 5", "x = 2", "z = 7", "y = 3", "x = 4", "print x"]
    names = torch.tensor([[token.removeprefix("print ")[0] == name for name in "xyz"] for token in text]).float()
    # Two heads: the first votes, and looks for its own name; the second has no preference, and shows what votes do.
    key = torch.stack([names, names], dim=1)[None]
    query = torch.stack([4 * names, 0 * names], dim=1)[None]
    budget = 5
    _, _, details = naive_selective_attention(query, key, key, scale=1.0, output_details=True)
    held = torch.zeros(len(text), len(text))
    for length in range(1, len(text) + 1):
        inputs = (query[:, :length], key[:, :length], key[:, :length])
        _, _, after = naive_selective_attention(*inputs, scale=1.0, memory_budget=budget, output_details=True)
        held[length - 1, :length] = after.held[0].float()

    figure = blank_figure(9.6, 8.4)
    axes = figure.subplots(2, 2).flatten()
    later = torch.ones(len(text), len(text)).triu(1).bool()
    for axis, matrix, title in (
        (axes[0], details.votes[0], "S: votes that a token casts"),
        (axes[1], details.selection[0], "F: votes cast before it"),
        (axes[2], details.probabilities[0, 1], "attention of a head without preferences"),
        (axes[3], held, f"held under a budget of {budget}"),
    ):
        image = matrix.masked_fill(later, float("nan")).numpy()
        axis.imshow(image, cmap="Blues", vmin=0, vmax=1.4 * float(matrix.max()))  # numbers stay readable
        for row in range(len(text)):
            for column in range(row + 1):
                if number := float(matrix[row, column]):
                    axis.text(column, row, f"{round(number, 2):g}", fontsize=8, color=INK, ha="center", va="center")
        dress(axis, title, "earlier token")
        axis.set_xticks(range(len(text)), text, rotation=45, ha="right")
        axis.set_yticks(range(len(text)), text)
        axis.grid(False)
    return save(figure, path)


FIGURES = (anthe, delight, fast_weight, selective_attn)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/figures", help="folder to write to")
    arguments = parser.parse_args(argv)
    assert set(leanformers.FAMILIES) == {draw.__name__ for draw in FIGURES}
    for draw in tqdm(FIGURES, desc="figures"):
        torch.manual_seed(0)
        draw(arguments.output / f"{draw.__name__}.png")


if __name__ == "__main__":
    main()
