# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a model costs: parameters, multiply-accumulates (MACs) and bytes of cache.

- A parameter reached by several names (tied tables, shared modules) counts once, on the meta device too.
- MACs are counted while the model runs, so they are those of the path that really runs (a contracted tensor chain, a
  cached kernel).
- Cache bytes are those of the storages that are held: a tensor seen by several layers counts once, a view of a buffer
  counts as the whole buffer.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


@dataclass(frozen=True)
class AccountTable:
    """Amounts per module group; `str()` gives an aligned table with shares and the total."""

    title: str
    rows: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def __str__(self) -> str:
        width = max(map(len, [*self.rows, "module", "total"]))
        header = f"{'module':<{width}}  {self.title:>16}  {'share':>7}"
        lines = [
            f"{name:<{width}}  {amount:>16,}  {amount / max(self.total, 1):>7.1%}"
            for name, amount in [*self.rows.items(), ("total", self.total)]
        ]
        rule = "-" * len(header)
        return "\n".join([header, rule, *lines[:-1], rule, lines[-1]])


def module_group(path: str, per_layer: bool = False) -> str:
    """The group of a module path, three names deep or one below the layer index; layers are one unless `per_layer`."""
    names = path.split(".")
    for position, name in enumerate(names[:4]):
        if name.isdigit():
            layer = name if per_layer else "*"
            return ".".join([*names[:position], layer, *names[position + 1 : position + 2]])
    return ".".join(names[:3])


def count_parameters(model: nn.Module) -> int:
    """The number of distinct parameters, trained or frozen; buffers are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_table(model: nn.Module, per_layer: bool = False) -> AccountTable:
    """Parameters per module group. A shared parameter is counted where it is met first."""
    rows: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        rows[module_group(name.rpartition(".")[0] or name, per_layer)] += parameter.numel()
    return AccountTable("parameters", dict(rows))


def macs(model: PreTrainedModel, source_length: int, target_length: int | None = None) -> int:
    """Multiply-accumulates of one inference forward for one row without padding or a key-value cache.

    Counted are the matrix products, triangular solves, convolutions and attention products that run; look-ups, norms,
    softmax and element-wise work are not. Attention counts every query-key pair, masked or not. A first, uncounted
    pass lets the model build what it keeps between calls (materialised tensor chains), so the figure is that of every
    later call; the table that DeLighT builds only after embedding as many tokens as its vocabulary has saves some of
    it.

    Args:
        source_length: tokens of the encoder's input, or of the input of a decoder-only model.
        target_length: tokens of the decoder's input; required for encoder-decoder models, else None.
    """
    return mac_table(model, source_length, target_length).total


def mac_table(
    model: PreTrainedModel, source_length: int, target_length: int | None = None, per_layer: bool = False
) -> AccountTable:
    """`macs` per module group."""
    inputs = _one_row(model, source_length, target_length)
    counter = FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED_BY_TORCH)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
            with counter:
                model(**inputs, use_cache=False)
    finally:
        model.train(was_training)
    return AccountTable("MACs", _own_macs(counter.get_flop_counts(), type(model).__name__, per_layer))


def translation_macs(model: PreTrainedModel, source_length: int, target_length: int) -> int:
    """MACs of one greedy translation as the published figures of DeLighT count them, for comparison with those.

    Unlike in `macs`, the decoder runs `target_length` times, each time on all target tokens so far, and makes the keys
    and values of cross-attention again: nothing is kept from one step to the next. The encoder runs once, and adding
    a bias counts as one MAC.
    """
    row = _one_row(model, source_length, target_length)
    counter = FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED_BY_TORCH | _WITH_BIASES)
    was_training = model.training
    model.eval()
    try:
        # With gradients, no model keeps what it makes of its weights.
        with torch.enable_grad(), counter:
            encoder_outputs = model.get_encoder()(row["input_ids"])
            for length in range(1, target_length + 1):
                prefix = row["decoder_input_ids"][:, :length]
                model(encoder_outputs=encoder_outputs, decoder_input_ids=prefix, use_cache=False)
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2


def _one_row(model: PreTrainedModel, source_length: int, target_length: int | None) -> dict[str, torch.Tensor]:
    if model.config.is_encoder_decoder != (target_length is not None):
        need = "needs" if model.config.is_encoder_decoder else "takes no"
        raise ValueError(f"{type(model).__name__} {need} target_length, but target_length={target_length}")
    lengths = {"input_ids": source_length}
    if target_length is not None:
        lengths["decoder_input_ids"] = target_length
    for name, length in lengths.items():
        if length < 1:
            raise ValueError(f"the length of {name} must be at least 1, not {length}")
    return {name: torch.ones(1, length, dtype=torch.long, device=model.device) for name, length in lengths.items()}


def _attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    batch, heads, query_length, head_dim = query_shape
    return 2 * batch * heads * query_length * key_shape[-2] * (head_dim + value_shape[-1])


def _triangular_solve_flops(matrix_shape, other_shape, *args, out_shape=None, **kwargs) -> int:
    return prod(other_shape) * (matrix_shape[-1] - 1)  # from whichever side


# torch counts fused attention on accelerators only, and no solves.
_NOT_COUNTED_BY_TORCH = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.linalg_solve_triangular: _triangular_solve_flops,
}


def _biased_flops(bias_shape, first_shape, second_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, rows, inner = first_shape
    return 2 * prod(batch) * rows * second_shape[-1] * (inner + 1)


_WITH_BIASES = {torch.ops.aten.addmm: _biased_flops, torch.ops.aten.baddbmm: _biased_flops}


def _own_macs(counts: dict[str, dict], root: str, per_layer: bool) -> dict[str, int]:
    """Per group: torch reports each module with all its children, so a child's share is taken from its parent's."""
    inclusive = {name: sum(by_operator.values()) // 2 for name, by_operator in counts.items() if name != "Global"}
    own = dict(inclusive)
    for name, amount in inclusive.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in inclusive:  # containers such as ModuleList are never called themselves
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= amount
    rows: Counter[str] = Counter()
    for name in inclusive:
        rows[module_group(name.removeprefix(root).removeprefix("."), per_layer) or root] += own[name]
    return {name: amount for name, amount in rows.items() if amount}


def cache_bytes(past_key_values: object) -> int:
    """Bytes held by a cache: `past_key_values` of any kind, its layers' states, dictionaries and lists included."""
    storages = {(storage.device, storage._cdata): storage for storage in _held_storages(past_key_values, set())}
    return sum(storage.nbytes() for storage in storages.values())


def _held_storages(held: object, seen: set[int]) -> Iterator[torch.UntypedStorage]:
    if isinstance(held, torch.Tensor):
        yield held.untyped_storage()
        return
    if id(held) in seen or isinstance(held, nn.Module | type):  # a cache may point at its model; weights are no cache
        return
    seen.add(id(held))
    if isinstance(held, dict):
        children = list(held.values())
    elif isinstance(held, list | tuple):
        children = list(held)
    else:
        children = list(getattr(held, "__dict__", {}).values())
    for child in children:
        yield from _held_storages(child, seen)
