# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Tensor chains: matrices held as a product of small cores (arXiv 2305.10991, "TC" layers; the field's matrix product
operator, or tensor train).

A kernel of logical shape `[I, O]`, applied as `y = x K + b`, has `I = i_0 ... i_{L-1}` and `O = o_0 ... o_{L-1}`.
Core `k` is `[i_k, b_k, b_{k+1}, o_k]` with outer bonds `b_0 = b_L = 1`, and

    K[(a_0 .. a_{L-1}), (x_0 .. x_{L-1})] = sum over b_1 .. b_{L-1} of prod_k core_k[a_k, b_k, b_{k+1}, x_k]

with the first index of each group the slowest. What is unusual here, against the original implementation:

- cores are contracted in `forward`, so that every one of them is trained;
- cores are drawn independently, by default with the variance that a Glorot matrix of shape `[I, O]` would have;
- the bond of four cores follows the formula that was meant (`reference_bond=True` gives the one that was coded).

Legend: T tokens, I/O logical sizes, L length, b bond.
"""

import math
from contextlib import nullcontext
from math import prod

import torch
from torch import nn
from transformers import initialization as init

# How much longer a multiplication takes in the thin products of a chain than in one large matrix product. On a CPU,
# forward and backward break even between 2 and 5 (`anthe_tensor_chain` of scripts/benchmarks).
THIN_PRODUCT_COST = 4.0
# Reading a kernel that has left the processor's cache takes as long as multiplying this many tokens with it: a single
# sentence is decoded faster through the cores, which stay there.
KERNEL_READ_COST = 16


def prime_factors(number: int) -> list[int]:
    """Prime factors of `number`, ascending, with multiplicity."""
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors + [number] if number > 1 else factors


def _snake(primes: list[int], num_bins: int) -> tuple[int, ...]:
    """Deal ascending primes to bins left to right, then right to left, and so on, multiplying."""
    bins = [1] * num_bins
    order = [*range(num_bins), *reversed(range(num_bins))]
    for index, prime in enumerate(primes):
        bins[order[index % len(order)]] *= prime
    return tuple(bins)


def _factorize_in_three(number: int) -> tuple[int, ...]:
    rest, power = number, 0
    while rest % 2 == 0:
        rest, power = rest // 2, power + 1
    primes = prime_factors(rest)
    if power == 0:
        if len(primes) == 1:
            return (1, rest, 1)
        return (primes[0], prod(primes[1:-1]), primes[-1])
    if rest == 1:
        first = 2 ** ((power - 1) // 2)
        return (first, 2, number // 2 // first)
    if power == 1:
        return (2, rest, 1) if len(primes) == 1 else (prod(primes[:-1]), 2, primes[-1])
    return (2 ** (power // 2), rest, 2 ** (power - power // 2))


def factorize(size: int, length: int) -> tuple[int, ...]:
    """
    Split a layer size into `length` factors the way the original does.

    Raises:
        `ValueError`: if `size` has no such split, as a prime has none of two factors.
    """
    primes = prime_factors(size)
    if length not in (2, 3, 4):
        raise ValueError(f"A tensor chain has 2, 3 or 4 cores, not {length}.")
    if not primes or (len(primes) == 1 and length != 3):
        raise ValueError(
            f"A size of {size} does not factor into a tensor chain of length {length}. Use a composite size, length 3 "
            "(which also takes primes), or a dense layer."
        )
    if length == 3:
        return _factorize_in_three(size)
    if length == 2 and len(primes) == 3:
        return (primes[0] * primes[1], primes[2])
    if length == 4 and len(primes) == 2:
        return (primes[0], 1, 1, primes[1])
    if length == 4 and len(primes) == 3:
        return (primes[0], 1, primes[1], primes[2])
    return _snake(primes, length)


def bond_from_ratio(
    in_factors: tuple[int, ...], out_factors: tuple[int, ...], ratio: float, reference_bond: bool = False
) -> int:
    """
    The bond at which the cores hold `ratio` times the weights of the dense matrix, rounded down, at least 2.

    Args:
        in_factors, out_factors (`tuple[int, ...]`): the factors of both sizes.
        ratio (`float`): share of the dense weights, in (0, 1).
        reference_bond (`bool`): for four cores, divide only the root in the solution of the quadratic equation, as
            the original does by a slip of precedence: it practically always gives 2.

    Raises:
        `ValueError`: if `ratio` is outside (0, 1).
    """
    if not 0 < ratio < 1:
        raise ValueError(f"The ratio of a tensor chain must be between 0 and 1, got {ratio}.")
    cells = [i * o for i, o in zip(in_factors, out_factors, strict=True)]
    weights = prod(in_factors) * prod(out_factors) * ratio
    ends, middle = cells[0] + cells[-1], sum(cells[1:-1])
    if not middle:
        return max(2, int(weights / ends))
    root = math.sqrt(ends**2 + 4 * middle * weights)
    if len(cells) == 4 and reference_bond:
        return max(2, int(-ends + root / (2 * middle)))
    return max(2, int((-ends + root) / (2 * middle)))


def chain_core_shapes(
    in_features: int, out_features: int, ratio: float, length: int, reference_bond: bool = False
) -> list[tuple[int, int, int, int]]:
    """Shapes `(i_k, b_k, b_{k+1}, o_k)` of the cores of a kernel `[in_features, out_features]`."""
    in_factors, out_factors = factorize(in_features, length), factorize(out_features, length)
    bond = bond_from_ratio(in_factors, out_factors, ratio, reference_bond)
    bonds = [1] + [bond] * (length - 1) + [1]
    return [(in_factors[k], bonds[k], bonds[k + 1], out_factors[k]) for k in range(length)]


def naive_tensor_chain_kernel(cores: list[torch.Tensor]) -> torch.Tensor:
    """
    The kernel `[I, O]` of a chain: the equation at the head of this file as one sum over all bonds.

    Args:
        cores (list of `torch.Tensor`): `[i_k, b_k, b_{k+1}, o_k]` each, outer bonds 1.
    """
    rows, bonds, columns = "abcd"[: len(cores)], "pqrst"[: len(cores) + 1], "wxyz"[: len(cores)]
    terms = [rows[k] + bonds[k] + bonds[k + 1] + columns[k] for k in range(len(cores))]
    kernel = torch.einsum(f"{','.join(terms)}->{rows + columns}", *cores)
    return kernel.reshape(prod(core.shape[0] for core in cores), prod(core.shape[-1] for core in cores))


def tensor_chain_kernel(cores: list[torch.Tensor]) -> torch.Tensor:
    """
    The same kernel, one core after the other, in `I * O * b` multiplications. Cores may share leading dimensions
    (one chain per convolution filter): `[..., i_k, b_k, b_{k+1}, o_k]` give `[..., I, O]`.
    """
    kernel = cores[0].squeeze(-3).transpose(-1, -2)
    for core in cores[1:]:
        kernel = torch.einsum("...iob,...jbcp->...ijopc", kernel, core)
        kernel = kernel.flatten(-5, -4).flatten(-3, -2)
    return kernel.squeeze(-1)


def chain_from_right(hidden_states: torch.Tensor, cores: list[torch.Tensor]) -> torch.Tensor:
    """`[T, I]` times the chain, last core first, without building the kernel: gives `[T, O]`."""
    state, columns = hidden_states.unsqueeze(-1), 1
    for core in reversed(cores):
        inputs, bond, next_bond, outputs = core.shape
        matrix = core.permute(1, 3, 0, 2).reshape(bond * outputs, inputs * next_bond)
        rows = state.shape[0] * state.shape[1] // (inputs * next_bond)
        state = matrix @ state.reshape(rows, inputs * next_bond, columns)
        columns *= outputs
        state = state.reshape(rows, bond, columns)
    return state.reshape(hidden_states.shape[0], columns)


def chain_from_left(hidden_states: torch.Tensor, cores: list[torch.Tensor]) -> torch.Tensor:
    """The same, first core first: the chain read backwards, on inputs and outputs whose axes are turned round."""
    num_tokens, axes = hidden_states.shape[0], [0, *range(len(cores), 0, -1)]
    turned = hidden_states.reshape(num_tokens, *(core.shape[0] for core in cores)).permute(axes).flatten(1)
    output = chain_from_right(turned, [core.transpose(1, 2) for core in reversed(cores)])
    return output.reshape(num_tokens, *(core.shape[-1] for core in reversed(cores))).permute(axes).flatten(1)


def chain_costs(core_shapes: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Multiplications per token of `chain_from_left` and of `chain_from_right`."""
    sizes_in, sizes_out = [shape[0] for shape in core_shapes], [shape[-1] for shape in core_shapes]
    left = sum(prod(s) * prod(sizes_out[:k]) * prod(sizes_in[k + 1 :]) for k, s in enumerate(core_shapes))
    right = sum(prod(s) * prod(sizes_in[:k]) * prod(sizes_out[k + 1 :]) for k, s in enumerate(core_shapes))
    return left, right


def init_chain(cores: list[nn.Parameter], variance: float, scheme: str, limit: float | None = None) -> None:
    """
    Draw all cores, each on its own.

    Args:
        cores (list of `nn.Parameter`): `[..., i_k, b_k, b_{k+1}, o_k]` each.
        variance (`float`): what each element of the kernel should have under `"variance_preserving"`: it sums
            `b^(L-1)` products of one element of each core.
        scheme (`str`): `"variance_preserving"`, or `"reference"`: Glorot uniform by Keras' fans of a single core, or
            U(-limit, limit) if `limit` is given (embeddings).
    """
    bonds = prod(core.shape[-2] for core in cores)
    for position, core in enumerate(cores):
        inputs, bond, next_bond, outputs = core.shape[-4:]
        if scheme == "variance_preserving":
            init.normal_(core, std=(variance / bonds) ** (0.5 / len(cores)))
            continue
        # Keras sees the end cores as [i, b, o] and takes all axes but the last two for the receptive field.
        left, right = (1, bond) if position == len(cores) - 1 else (bond, next_bond)
        bound = limit or math.sqrt(6 / (inputs * left * right + inputs * left * outputs))
        init.uniform_(core, -bound, bound)


class TensorChain(nn.Module):
    """
    A module with the cores of a chain as its parameters `core_0`, `core_1`, ...

    Args:
        core_shapes (list of `tuple[int, int, int, int]`): `(i_k, b_k, b_{k+1}, o_k)` each.
        num_chains (`tuple[int, ...]`): leading dimensions of every core, for several chains of one shape.
    """

    def __init__(self, core_shapes: list[tuple[int, int, int, int]], num_chains: tuple[int, ...] = ()):
        super().__init__()
        self.core_shapes = core_shapes
        # Not a ParameterList: transformers takes a module without parameters of its own for one that is loaded.
        for k, shape in enumerate(core_shapes):
            self.register_parameter(f"core_{k}", nn.Parameter(torch.empty(*num_chains, *shape)))

    @property
    def cores(self) -> list[nn.Parameter]:
        return [getattr(self, f"core_{k}") for k in range(len(self.core_shapes))]

    @property
    def bond_dim(self) -> int:
        return self.core_shapes[0][2]


class TensorChainLinear(TensorChain):
    """
    A linear layer `y = x K + b` whose kernel is a tensor chain.

    Either the kernel is built and multiplied with, or it is never built and the input is contracted with one core
    after the other, whichever costs less for the tokens at hand. In evaluation without gradients a built kernel is
    kept, as long as the cores are what they were.

    Args:
        in_features, out_features (`int`): logical sizes `I`, `O`; both must factor into `length` parts.
        ratio (`float`): weights of the cores as a share of `I * O`, in (0, 1).
        length (`int`): number of cores, 2, 3 or 4.
        bias (`bool`): add a bias `[O]`.
        mode (`str`): `"auto"`, `"materialize"` or `"chain"`.
        reference_bond (`bool`): see `bond_from_ratio`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ratio: float,
        length: int = 2,
        bias: bool = True,
        mode: str = "auto",
        reference_bond: bool = False,
    ):
        super().__init__(chain_core_shapes(in_features, out_features, ratio, length, reference_bond))
        self.in_features, self.out_features, self.mode = in_features, out_features, mode
        left, right = chain_costs(self.core_shapes)
        self._contract = chain_from_left if left < right else chain_from_right
        self._chain_cost = THIN_PRODUCT_COST * min(left, right)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._kernel: torch.Tensor | None = None
        self._kernel_cores: list[torch.Tensor] = []
        self._kernel_versions: list[tuple] = []

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bond_dim={self.bond_dim}"

    @torch.no_grad()
    def reset_parameters(self, scheme: str = "variance_preserving") -> None:
        init_chain(self.cores, 2 / (self.in_features + self.out_features), scheme)
        if self.bias is not None:
            init.zeros_(self.bias)

    def materialize(self) -> torch.Tensor:
        """The kernel `[in_features, out_features]`, differentiable with respect to the cores."""
        return tensor_chain_kernel(self.cores)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states` `[..., in_features]` -> `[..., out_features]`, in the dtype of the input."""
        flat = hidden_states.reshape(-1, self.in_features)
        if self._chain_is_cheaper(flat.shape[0]):
            output = self._contract(flat, self.cores)
            output = output if self.bias is None else output + self.bias
        else:
            kernel = self._cached_kernel() if self._may_cache() else self.materialize()
            output = flat @ kernel if self.bias is None else torch.addmm(self.bias, flat, kernel)
        return output.view(*hidden_states.shape[:-1], self.out_features)

    def _chain_is_cheaper(self, num_tokens: int) -> bool:
        if self.mode != "auto":
            return self.mode == "chain"
        dense_cost = self.in_features * self.out_features
        # A choice by the number of tokens would tie a compiled or exported graph to its example's shape.
        if torch.compiler.is_compiling():
            return self._chain_cost < dense_cost
        overhead = KERNEL_READ_COST if self._may_cache() else KERNEL_READ_COST + self.bond_dim
        return num_tokens * self._chain_cost < (num_tokens + overhead) * dense_cost

    def _may_cache(self) -> bool:
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _cached_kernel(self) -> torch.Tensor:
        if self._kernel is None or not self._kernel_is_fresh():
            device = self.core_0.device.type
            # In the precision of the cores: what autocast would make of it is of no use outside of autocast.
            exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
            with exact:
                self._kernel = self.materialize()
            self._kernel_cores = [core.detach().clone() for core in self.cores]
            self._kernel_versions = self._versions()
        return self._kernel

    def _kernel_is_fresh(self) -> bool:
        if self._versions() != self._kernel_versions:
            return False
        # Writes through `.data` leave the version counter alone. On a CPU the small cores are compared for little; an
        # accelerator would have to wait for the answer, so there the call to `train()` or `eval()` clears the kernel.
        on_cpu = self._kernel.device.type == "cpu"
        return not on_cpu or all(map(torch.equal, self.cores, self._kernel_cores))

    def _versions(self) -> list[tuple]:
        return [(core.data_ptr(), None if core.is_inference() else core._version) for core in self.cores]

    def _drop_kernel(self) -> None:
        self._kernel, self._kernel_cores, self._kernel_versions = None, [], []

    def train(self, mode: bool = True):
        self._drop_kernel()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._drop_kernel()
        return super()._apply(*args, **kwargs)


class TensorChainConv1d(TensorChain):
    """
    A one-dimensional convolution in which every filter holds its `[kernel_size, in_channels]` taps as a tensor chain
    of its own. The caller pads.

    Args:
        in_channels, out_channels, kernel_size, dilation (`int`): as `nn.Conv1d`.
        ratio (`float`): weights of one filter's cores as a share of `kernel_size * in_channels`, in (0, 1).
        length (`int`): number of cores; a prime `kernel_size` (such as 3) needs 3.
        reference_bond (`bool`): see `bond_from_ratio`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int,
        ratio: float,
        length: int = 3,
        reference_bond: bool = False,
    ):
        super().__init__(chain_core_shapes(kernel_size, in_channels, ratio, length, reference_bond), (out_channels,))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation = kernel_size, dilation
        self.bias = nn.Parameter(torch.empty(out_channels))

    @torch.no_grad()
    def reset_parameters(self, scheme: str = "variance_preserving") -> None:
        init_chain(self.cores, 2 / (self.kernel_size * (self.in_channels + self.out_channels)), scheme)
        init.zeros_(self.bias)

    def materialize(self) -> torch.Tensor:
        """The kernel in `nn.Conv1d`'s layout, `[out_channels, in_channels, kernel_size]`."""
        return tensor_chain_kernel(self.cores).transpose(-1, -2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, in_channels, length]` -> `[batch, out_channels, length - dilation * (kernel_size - 1)]`."""
        return nn.functional.conv1d(hidden_states, self.materialize(), self.bias, dilation=self.dilation)


class TensorChainEmbedding(TensorChain):
    """
    A table `[num_embeddings, embedding_dim]` held as a tensor chain. Rows are computed when asked for; the table is
    never built.

    Args:
        num_embeddings, embedding_dim (`int`): logical sizes; both must factor into `length` parts.
        ratio (`float`): weights of the cores as a share of the table, in (0, 1).
        length (`int`): number of cores, 2, 3 or 4.
        reference_bond (`bool`): see `bond_from_ratio`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        ratio: float,
        length: int = 2,
        reference_bond: bool = False,
    ):
        super().__init__(chain_core_shapes(num_embeddings, embedding_dim, ratio, length, reference_bond))
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    @torch.no_grad()
    def reset_parameters(self, scheme: str = "variance_preserving", initializer_range: float = 0.05) -> None:
        init_chain(self.cores, initializer_range**2 / 3, scheme, limit=initializer_range)

    def materialize(self) -> torch.Tensor:
        """The table `[num_embeddings, embedding_dim]`."""
        return tensor_chain_kernel(self.cores)

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """`input_ids` `[...]` -> `[..., embedding_dim]`: the digits of an id pick one slice of each core."""
        remaining, place = input_ids.reshape(-1), self.num_embeddings
        rows = None
        for core in self.cores:
            inputs, bond, next_bond, outputs = core.shape
            place //= inputs
            digit, remaining = remaining // place, remaining % place
            slices = nn.functional.embedding(digit, core.reshape(inputs, -1)).view(-1, bond, next_bond, outputs)
            if rows is None:
                rows = slices.squeeze(1).transpose(1, 2)
            else:
                rows = torch.einsum("tob,tbcp->topc", rows, slices).flatten(1, 2)
        return rows.view(*input_ids.shape, self.embedding_dim)
