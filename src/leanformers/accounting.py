# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a model costs: parameters, multiply-accumulates (MACs), and bytes in training and of cache.

- A parameter reached by several names (tied tables, shared modules) counts once, on the meta device too.
- MACs are counted while the model runs, so they are those of the path that really runs (a contracted tensor chain, a
  cached kernel).
- Bytes in training are those of one process, whatever is shared out between several.
- Cache bytes are those of the storages that are held: a tensor seen by several layers counts once, a view of a buffer
  counts as the whole buffer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
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


def training_memory(
    model: PreTrainedModel,
    source_length: int,
    target_length: int | None = None,
    *,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    optimizer_states: int = 2,
    sharding: str = "ddp",
    num_processes: int = 1,
) -> AccountTable:
    """
    Bytes that a process holds at the peak of a training step, early in the backward pass.

    One forward pass runs, with loss. All gradients count, though most come later, when some of what was kept is gone;
    and nothing counts that an operator needs for a moment.

    Args:
        source_length: tokens of the encoder's input, or of the input of a decoder-only model.
        target_length: tokens of the decoder's input; required for encoder-decoder models, else None.
        batch_size: rows of the process.
        dtype: of the products, by autocast. Weights, gradients and optimizer states are as the model's parameters.
        optimizer_states: numbers that the optimizer holds for each weight: 2 for Adam, 1 for SGD with momentum.
        sharding: what the processes share out: "ddp" nothing, "zero2" gradients and optimizer states, "fsdp2" the
            weights as well.
        num_processes: of which this is one.

    Raises:
        ValueError: If a value is impossible.
    """
    shares = {"ddp": (1, 1), "zero2": (1, num_processes), "fsdp2": (num_processes, num_processes)}
    if sharding not in shares or num_processes < 1 or batch_size < 1 or optimizer_states < 0:
        raise ValueError(
            f"sharding must be one of {', '.join(shares)}, num_processes and batch_size at least 1, optimizer_states "
            f"at least 0, not {sharding!r}, {num_processes}, {batch_size} and {optimizer_states}."
        )
    row = _one_row(model, source_length, target_length)
    inputs = {name: tensor.repeat(batch_size, 1) for name, tensor in row.items()}
    kept, logits = _kept_for_backward(model, inputs, dtype)
    weight_shares, state_shares = shares[sharding]
    trained = _num_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    rows = {
        "weights": _num_bytes(model.parameters()) // weight_shares + _num_bytes(model.buffers()),
        "gradients": trained // state_shares,
        "optimizer states": optimizer_states * trained // state_shares,
        "kept for the backward pass": kept,
        "gradients of the logits": 2 * logits,  # of the loss, and of the softmax before it
    }
    if num_processes > 1 and sharding == "ddp":
        rows["gradients on their way"] = trained  # DDP's buckets
    if num_processes > 1 and sharding == "fsdp2":
        rows["gathered weights"] = _gathered(model)
    return AccountTable("bytes", rows)


def layer_classes(model: PreTrainedModel) -> list[str]:
    """Names of the classes of layers, which FSDP shards one by one: those that no device map splits, without what has
    the token table, which accelerate shards by itself."""
    table = model.get_input_embeddings()
    beside = {type(module).__name__ for module in model.modules() if table in module.modules()}
    return sorted(set(model._no_split_modules or ()) - beside)


def _kept_for_backward(model: PreTrainedModel, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass, weights aside, and those of its logits in float32."""
    held = [*model.parameters(), *model.buffers(), *inputs.values()]
    known = {tensor.untyped_storage()._cdata for tensor in held}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    labels = inputs["decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"]
    was_training, uses_autocast = model.training, dtype != torch.float32
    model.train()
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast(model.device.type, dtype=dtype if uses_autocast else None, enabled=uses_autocast),
        ):
            output = model(**inputs, labels=labels, use_cache=False)
    finally:
        model.train(was_training)
    logits = 0 if output.logits is None else 4 * output.logits.numel()
    return sum(storage.nbytes() for storage in kept.values()), logits


def _gathered(model: PreTrainedModel) -> int:
    """Bytes of whole weights and gradients that FSDP2 has at once: of the largest layer, and of all beside layers."""
    names = layer_classes(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    sizes = [_num_bytes(layer.parameters()) for layer in layers]
    return 2 * (_num_bytes(model.parameters()) - sum(sizes) + max(sizes, default=0))


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
