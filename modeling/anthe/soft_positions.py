# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
SoftPOS and H-SoftPOS: positions that a token chooses by itself (arXiv 2305.10991, "SoftPOS").

SoftPOS reads `n` of a token's features as scores over `n` learned positions and appends their mixture:

    p_r = softmax(x[r n : (r+1) n]) S_r,    S_r in R^{n x u},    out = [x, p_0, ..., p_{R-1}]

H-SoftPOS stacks levels. Level 0 is the token embedding of width e with sinusoidal positions, and

    x_{i+1} = causal convolution of x_i (kernel 3, dilation 2^i),    out = concat over i of [x_i, softmax(x_i[:w]) S_i]

with `w = hidden_size / (2 n)` and `e` whatever is left, so that `hidden_size` is filled by narrow parts. What is
unusual here, against the original implementation:

- the inputs of the convolutions are kept in the key-value cache, so that decoding step by step is exact;
- tokens before the first real one are zeroed at every level, so that left padding changes nothing.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer, StaticLayer

from .tensor_chain import TensorChainConv1d

CONVOLUTION_KERNEL_SIZE = 3


def sinusoidal_positions(position_ids: torch.LongTensor, width: int) -> torch.Tensor:
    """
    Sines, then cosines, of `position / 10000^(2j / width)` (Vaswani et al. 2017, with the halves concatenated).

    Args:
        position_ids (`torch.LongTensor`): `[batch, length]`.
        width (`int`): even.

    Returns:
        `torch.Tensor` in float32, `[batch, length, width]`.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=position_ids.device) / half
    angles = position_ids[..., None].float() * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def naive_soft_positions(hidden_states: torch.Tensor, subpositions: torch.Tensor) -> torch.Tensor:
    """
    SoftPOS, line by line.

    Args:
        hidden_states (`torch.Tensor`): `[batch, length, width]`, `width >= R n`.
        subpositions (`torch.Tensor`): all `S_r`, `[R, n, u]`.

    Returns:
        `torch.Tensor`: `[batch, length, width + R u]`.
    """
    outputs = [hidden_states]
    for r, positions in enumerate(subpositions):
        n = positions.shape[0]
        scores = hidden_states[..., r * n : (r + 1) * n].exp()
        weights = scores / scores.sum(-1, keepdim=True)
        outputs.append(sum(weights[..., j : j + 1] * positions[j] for j in range(n)))
    return torch.cat(outputs, dim=-1)


def soft_positions(hidden_states: torch.Tensor, subpositions: torch.Tensor) -> torch.Tensor:
    """The same with matrix products. The softmax is taken in float32 at least."""
    repeats, n, _ = subpositions.shape
    scores = hidden_states[..., : repeats * n].unflatten(-1, (repeats, n))
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precision).to(hidden_states.dtype)
    return torch.cat([hidden_states, *(weights[..., r, :] @ subpositions[r] for r in range(repeats))], dim=-1)


def naive_causal_convolution(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int
) -> torch.Tensor:
    """
    `y_t = bias + sum over taps k of weight[:, :, k] x_{t - (K - 1 - k) dilation}`, with zeros before the first token.

    Args:
        hidden_states (`torch.Tensor`): `[batch, length, in_channels]`.
        weight (`torch.Tensor`): `[out_channels, in_channels, K]`.
        bias (`torch.Tensor`): `[out_channels]`.
        dilation (`int`): distance of neighbouring taps.

    Returns:
        `torch.Tensor`: `[batch, length, out_channels]`.
    """
    taps, outputs = weight.shape[-1], []
    for t in range(hidden_states.shape[1]):
        output = bias.expand(hidden_states.shape[0], -1)
        for k in range(taps):
            past = t - (taps - 1 - k) * dilation
            if past >= 0:
                output = output + hidden_states[:, past] @ weight[:, :, k].T
        outputs.append(output)
    return torch.stack(outputs, dim=1)


class ConvolutionInputs:
    """
    What the cache holds for H-SoftPOS: for each convolution the inputs that its next step reads. The first decoder
    layer's cache carries it along with keys and values through every operation on the batch.
    """

    def __init__(self):
        self.inputs: dict[int, torch.Tensor] = {}
        self.reach: dict[int, int] = {}
        self.record_past = False

    def update(self, inputs: torch.Tensor, level: int, reach: int) -> torch.Tensor:
        """
        Store the inputs `[batch, length, channels]` of convolution `level`, which reaches `reach` tokens back, and
        return them with that many earlier ones (zeros before the first token): `[batch, reach + length, channels]`.
        """
        past = self.inputs.get(level)
        if past is None:
            past = inputs.new_zeros(inputs.shape[0], reach, inputs.shape[-1])
        full = torch.cat([past, inputs], dim=1)
        self.reach[level] = reach
        self.inputs[level] = full if self.record_past else full[:, -reach:].contiguous()
        return full[:, -(reach + inputs.shape[1]) :]

    def crop(self, tokens_to_remove: int) -> None:
        """Step back by `-tokens_to_remove` tokens; what was not recorded cannot be restored."""
        for level, inputs in self.inputs.items():
            kept = inputs[:, : inputs.shape[1] + tokens_to_remove]
            if kept.shape[1] < self.reach[level]:
                raise RuntimeError(
                    f"The cache holds the last {inputs.shape[1]} inputs of convolution {level} and cannot step back "
                    f"{-tokens_to_remove}. Call `activate_past_recording` before decoding what is to be cropped."
                )
            self.inputs[level] = kept[:, -self.reach[level] :]

    def select(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a change of the batch dimension to all inputs."""
        self.inputs = {level: change(inputs) for level, inputs in self.inputs.items()}


class SoftPositionsLayer(DynamicLayer):
    """The first layer of an Anthe decoder in `DynamicCache(config=...)`."""

    _layer_type = "anthe_soft_positions"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolutions = ConvolutionInputs()

    def activate_past_recording(self) -> None:
        """Keep all inputs from here on until the next `crop`, so that it can step back (assisted decoding)."""
        self.convolutions.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.convolutions.crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.convolutions.inputs.clear()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.convolutions.select(lambda inputs: inputs.index_select(0, beam_idx.to(inputs.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.convolutions.select(lambda inputs: inputs.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.convolutions.select(lambda inputs: inputs[indices])


class StaticSoftPositionsLayer(StaticLayer):
    """The same in `StaticCache(config=...)`, which can neither be cropped nor change its batch size."""

    _layer_type = "anthe_soft_positions"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.convolutions = ConvolutionInputs()

    def reset(self) -> None:
        super().reset()
        self.convolutions.inputs.clear()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.convolutions.select(lambda inputs: inputs.index_select(0, beam_idx.to(inputs.device)))


class SoftPositions(nn.Module):
    """
    SoftPOS as a layer: appends `repeats * units` features.

    Args:
        num_subpositions (`int`): `n`, how many positions a token chooses among.
        units (`int`): `u`, width of each.
        repeats (`int`): `R`, how many choices.
    """

    def __init__(self, num_subpositions: int, units: int, repeats: int = 1):
        super().__init__()
        self.subpositions = nn.Parameter(torch.empty(repeats, num_subpositions, units))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fresh = torch.empty_like(self.subpositions, dtype=torch.float32)
        for positions in fresh:
            init.orthogonal_(positions)
        init.copy_(self.subpositions, fresh)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return soft_positions(hidden_states, self.subpositions)


class HierarchicalSoftPositions(nn.Module):
    """
    H-SoftPOS on top of token embeddings: `[batch, length, embedding_size]` -> `[batch, length, hidden_size]`.

    Args:
        embedding_size (`int`): width `e` of level 0.
        width (`int`): width `w` of the convolutions and of the soft positions.
        levels (`int`): number of levels `n`; there are `n - 1` convolutions.
        tc_ratio (`float`, *optional*): hold the convolutions as tensor chains of this ratio.
        tc_length (`int`): cores of such a chain.
        tc_reference_bond (`bool`): see `bond_from_ratio`.
    """

    def __init__(
        self,
        embedding_size: int,
        width: int,
        levels: int,
        tc_ratio: float | None = None,
        tc_length: int = 3,
        tc_reference_bond: bool = False,
    ):
        super().__init__()
        self.width = width
        self.levels = nn.ModuleList(SoftPositions(width, width) for _ in range(levels))
        self.convs = nn.ModuleList()
        for level in range(levels - 1):
            sizes = (embedding_size if level == 0 else width, width, CONVOLUTION_KERNEL_SIZE)
            if tc_ratio is None:
                self.convs.append(nn.Conv1d(*sizes, dilation=2**level))
            else:
                self.convs.append(TensorChainConv1d(*sizes, 2**level, tc_ratio, tc_length, tc_reference_bond))

    def forward(
        self,
        embeddings: torch.Tensor,
        is_real: torch.Tensor | None = None,
        past_inputs: ConvolutionInputs | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor`): `[batch, length, embedding_size]`, positions already added.
            is_real (`torch.Tensor`, *optional*): `[batch, length]`, False for padding before the first token.
            past_inputs (`ConvolutionInputs`, *optional*): earlier inputs of the convolutions, updated in place.
        """
        outputs, hidden_states = [], embeddings
        for level, positions in enumerate(self.levels):
            if is_real is not None:
                hidden_states = hidden_states * is_real[..., None].to(hidden_states.dtype)
            outputs.append(positions(hidden_states))
            if level < len(self.convs):
                hidden_states = self._convolve(hidden_states, level, past_inputs)
        return torch.cat(outputs, dim=-1)

    def _convolve(
        self, hidden_states: torch.Tensor, level: int, past_inputs: ConvolutionInputs | None
    ) -> torch.Tensor:
        reach = (CONVOLUTION_KERNEL_SIZE - 1) * 2**level
        if past_inputs is None:
            inputs = nn.functional.pad(hidden_states, (0, 0, reach, 0))
        else:
            inputs = past_inputs.update(hidden_states, level, reach)
        return self.convs[level](inputs.transpose(1, 2)).transpose(1, 2)
