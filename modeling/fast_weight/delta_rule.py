# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Update rules of fast weight memories (arXiv 2102.11174, section 4), each as the recurrence and in chunks.

A memory is a matrix S per head, from keys to values. Every token writes one pair and reads one value:

    sum rule     S_t = S_{t-1} + k_t v_t^T                                  o_t = S_t^T q_t
    delta rule   S_t = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T       o_t = S_t^T q_t

The delta rule takes back part of what its key had stored. In a chunk of C tokens (rows of K, V, Q) the values u_t that
are written solve a triangular system, as each depends on those before it (WY form, arXiv 2406.06484):

    (I + tril(diag(beta) K K^T, -1)) [W | U] = diag(beta) [K | V]
    D = U - W S              what is written, S being the memory before the chunk
    O = Q S + tril(Q K^T) D
    S <- S + K^T D

Only the lines with S go chunk by chunk. Without the removal, D = V, this is the sum rule. Time and memory are linear
in the length: training keeps one S per chunk, never one per token.

Shapes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks. Arguments are `[B, T, H, ...]` and the
memory is `[B, H, K, V]`, as in flash-linear-attention.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import repeat

import torch
from torch.nn.functional import pad

try:
    from leanformers.kernels import chosen_backend, use_kernel
except ImportError:  # this code has come without leanformers
    use_kernel = None  # type: ignore[assignment]
try:
    from leanformers.kernels import delta_rule as kernels
except ImportError:  # without Triton
    kernels = None  # type: ignore[assignment]

# Tokens times heads, of all chunks that a processor computes at once.
ROWS_AT_ONCE = 4096
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.jit.is_tracing)  # new in torch 2.7


def naive_sum_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    document_ids: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`chunk_sum_rule`, token by token."""
    state, outputs = _initial_state(key, value, initial_state), []
    q, k, v = (tensor.to(state.dtype) for tensor in (query, key, value))
    for t in range(key.shape[1]):
        state = _forget_at_start(state, document_ids, t)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    output = torch.stack(outputs, dim=1) if outputs else v
    return output.to(value.dtype), state if output_final_state else None


def naive_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    document_ids: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`chunk_delta_rule`, token by token."""
    state, outputs = _initial_state(key, value, initial_state), []
    q, k, v, b = (tensor.to(state.dtype) for tensor in (query, key, value, beta[..., None]))
    for t in range(key.shape[1]):
        state = _forget_at_start(state, document_ids, t)
        old_value = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], b[:, t] * (v[:, t] - old_value))
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    output = torch.stack(outputs, dim=1) if outputs else v
    return output.to(value.dtype), state if output_final_state else None


def naive_fwm_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Fast weight memory (arXiv 2011.07831): the delta rule with the memory divided by its Frobenius norm where that is
    above 1, except after a first token, and every read normalised over the value's width. The division stands between
    one token and the next, so there is no chunked form. Arguments as for `chunk_delta_rule`.
    """
    state, outputs = _initial_state(key, value, initial_state), []
    q, k, v, b = (tensor.to(state.dtype) for tensor in (query, key, value, beta[..., None]))
    for t in range(key.shape[1]):
        old_value = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], b[:, t] * (v[:, t] - old_value))
        if t > 0 or initial_state is not None:
            norm = torch.linalg.matrix_norm(state, keepdim=True)
            state = state / ((norm - 1).relu() + 1)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    output = torch.stack(outputs, dim=1) if outputs else v
    output = torch.nn.functional.layer_norm(output, output.shape[-1:], eps=1e-5)
    return output.to(value.dtype), state if output_final_state else None


def chunk_sum_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    document_ids: torch.LongTensor | None = None,
    cu_seqlens: torch.LongTensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The sum rule. Arguments, results and errors are those of `chunk_delta_rule`, without `beta`.
    """
    _check(query, key, value, None, initial_state, document_ids, cu_seqlens, chunk_size)
    if takes_kernel("The sum rule", value, backend, chunk_size=chunk_size):
        return kernels.chunk_sum_rule(
            *(query, key, value),
            initial_state=initial_state,
            output_final_state=output_final_state,
            document_ids=document_ids,
            cu_seqlens=cu_seqlens,
            chunk_size=chunk_size,
        )
    if cu_seqlens is not None:
        options = {"output_final_state": output_final_state, "chunk_size": chunk_size, "backend": "torch"}
        return _apart(chunk_sum_rule, cu_seqlens, (query, key, value), initial_state, options)
    state = _initial_state(key, value, initial_state)
    with _full_precision(query):
        q, k, v = (tensor.to(state.dtype) for tensor in (query, key, value))
        output, state = _in_chunks(q, k, v, None, state, document_ids, chunk_size)
    return output.to(value.dtype), state if output_final_state else None


def chunk_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    document_ids: torch.LongTensor | None = None,
    cu_seqlens: torch.LongTensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The delta rule. Memory and solve are in float32 (float64 for float64), whatever the inputs are. On a GPU it runs
    as flash-linear-attention's kernel where that is installed and applies (`has_kernel`), else as leanformers' own.

    Args:
        query, key (`torch.Tensor`): `[B, T, H, K]`, behind the feature map and normalised.
        value (`torch.Tensor`): `[B, T, H, V]`.
        beta (`torch.Tensor`): `[B, T, H]`, how much of what the key had stored is replaced. With 0, or a zero key, a
            token leaves no trace.
        initial_state (`torch.Tensor`, *optional*): memory `[B, H, K, V]` before the first token, else zero.
        output_final_state (`bool`): return the memory after the last token.
        document_ids (`torch.LongTensor`, *optional*): `[B, T]`. Where the number changes another document begins, with
            an empty memory; the first one goes on from `initial_state`.
        cu_seqlens (`torch.LongTensor`, *optional*): `[N + 1]` for N sequences side by side in a batch of 1: sequence i
            is `cu_seqlens[i] : cu_seqlens[i + 1]`, and the memories are `[N, H, K, V]`.
        chunk_size (`int`, *optional*): tokens per chunk; None chooses by the key's width.
        backend (`str`, *optional*): "triton" for leanformers' kernel, "torch" for none, or "auto", see
            `leanformers.kernels`.

    Returns:
        `(output, final_state)`: `[B, T, H, V]` in the value's dtype, and the memory or None.

    Raises:
        `ValueError`: if the shapes do not fit together, or the backend is "triton" and the kernel does not apply.
    """
    _check(query, key, value, beta, initial_state, document_ids, cu_seqlens, chunk_size)
    is_plain = document_ids is None and query.dtype == value.dtype
    if is_plain and takes_fla(value, query.shape[-1], backend):
        return _kernel()(
            *(query, key, value, beta),
            scale=1.0,
            initial_state=None if initial_state is None else initial_state.float(),
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
        )
    if takes_kernel("The delta rule", value, backend, chunk_size=chunk_size):
        return kernels.chunk_delta_rule(
            *(query, key, value, beta),
            initial_state=initial_state,
            output_final_state=output_final_state,
            document_ids=document_ids,
            cu_seqlens=cu_seqlens,
            chunk_size=chunk_size,
        )
    if cu_seqlens is not None:
        options = {"output_final_state": output_final_state, "chunk_size": chunk_size, "backend": "torch"}
        return _apart(chunk_delta_rule, cu_seqlens, (query, key, value, beta), initial_state, options)
    state = _initial_state(key, value, initial_state)
    with _full_precision(query):
        q, k, v, b = (tensor.to(state.dtype) for tensor in (query, key, value, beta))
        output, state = _in_chunks(q, k, v, b, state, document_ids, chunk_size)
    return output.to(value.dtype), state if output_final_state else None


@cache
def _kernel():
    try:
        from fla.ops.delta_rule import chunk_delta_rule as kernel
    except ImportError:
        return None
    return kernel


def has_kernel(value: torch.Tensor, key_dim: int) -> bool:
    """
    Whether flash-linear-attention is there and has a kernel for this: on a GPU, half precision, keys up to 256. It
    warns of fewer tokens than heads, which are no work for it anyway.
    """
    is_half = value.is_cuda and value.dtype in (torch.float16, torch.bfloat16)
    return is_half and value.shape[1] > value.shape[2] and key_dim <= 256 and _kernel() is not None


def takes_fla(value: torch.Tensor, key_dim: int, backend: str | None = None) -> bool:
    """Whether flash-linear-attention's kernel runs, which a choice of backend rules out."""
    is_free = use_kernel is None or chosen_backend(backend) == "auto"
    return is_free and has_kernel(value, key_dim)


def takes_kernel(name: str, value: torch.Tensor, backend: str | None = None, *, chunk_size: int | None = None) -> bool:
    """Whether leanformers' kernel of that name runs. Nothing to compute and exported programs are torch's."""
    if use_kernel is None or is_exporting() or value.numel() == 0:
        return False
    obstacle = None
    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        obstacle = f"it takes float32, bfloat16 and float16, not {value.dtype}"
    elif chunk_size not in (None, 16, 32, 64):
        obstacle = f"chunk_size must be 16, 32 or 64, not {chunk_size}"
    return use_kernel(name, value, backend, obstacle)


def _full_precision(tensor: torch.Tensor) -> AbstractContextManager:
    device = tensor.device.type
    if is_exporting() and not torch.is_autocast_enabled(device):  # torch saves no program with a scan in autocast
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _initial_state(key: torch.Tensor, value: torch.Tensor, initial_state: torch.Tensor | None) -> torch.Tensor:
    dtype = torch.promote_types(value.dtype, torch.float32)
    if initial_state is not None:
        return initial_state.to(dtype)
    (batch, _, num_heads, key_dim), value_dim = key.shape, value.shape[-1]
    return torch.zeros(batch, num_heads, key_dim, value_dim, dtype=dtype, device=value.device)


def _forget_at_start(state: torch.Tensor, document_ids: torch.LongTensor | None, t: int) -> torch.Tensor:
    if document_ids is None or t == 0:
        return state
    return state * (document_ids[:, t] == document_ids[:, t - 1])[:, None, None, None]


def _in_chunks(query, key, value, beta, state, document_ids, chunk_size):
    """Both rules on tensors of one dtype; `beta` None means the sum rule."""
    batch, length, num_heads, key_dim = key.shape
    if length <= 1:  # a row's first document goes on from the memory: there is nothing to tell apart
        return _one_step(query, key, value, beta, state) if length else (value, state)
    if is_exporting():
        return _scan(query, key, value, beta, state, document_ids)
    if batch == 0:
        return value, state
    if isinstance(length, torch.SymInt):  # traced for any length, whose chunks cannot be counted: a single one
        size = at_once = length
    else:
        size, at_once = min(chunk_size or (64 if key_dim >= 64 else 32), length), length
        if key.device.type == "cpu":  # what is computed at once shall stay in the processor's cache
            at_once = size * max(1, ROWS_AT_ONCE // (batch * num_heads * size))
    inputs = (query, key, value) if beta is None else (query, key, value, beta[..., None])
    pieces = [inputs] if at_once >= length else zip(*(x.split(at_once, dim=1) for x in inputs), strict=True)
    documents = repeat(None) if document_ids is None else _documents(document_ids, at_once)
    outputs, state = [], state.flatten(0, 1)
    for piece, of_piece in zip(pieces, documents, strict=False):
        output, state = _chunks_at_once(*piece, state=state, documents=of_piece, size=size)
        outputs.append(output)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state.unflatten(0, (batch, num_heads))


def _chunks_at_once(query, key, value, beta=None, *, state, documents, size):
    batch, length, num_heads, key_dim = key.shape

    # Part 1: everything that needs no memory, for all chunks at once, [B * H * N, C, ...].
    q, k, v = (_cut(tensor, size) for tensor in (query, key, value))
    same, carried, leaving = (None, None, None) if documents is None else _shared(*documents, size, num_heads)
    within = torch.bmm(q, k.mT).tril_()
    if same is not None:
        within, q = within * same, q * carried
    erased, written = None, v
    if beta is not None:
        b = _cut(beta, size)
        weighted_key = b * k
        overlap = torch.bmm(weighted_key, k.mT)  # the solve reads nothing but its lower triangle
        if same is not None:
            overlap, weighted_key = overlap * same, weighted_key * carried
        both = torch.cat([weighted_key, b * v], dim=-1)
        # Solved from the right, as BLAS counts by columns: from the left, torch would copy both sides.
        both = torch.linalg.solve_triangular(overlap.mT, both.mT, upper=True, left=False, unitriangular=True).mT
        erased, written = both.split([key_dim, value.shape[-1]], dim=-1)

    # Part 2: from chunk to chunk, [B * H, C, ...].
    keys = (k if leaving is None else k * leaving).mT
    per_chunk = [tensor.unflatten(0, (len(state), -1)).unbind(1) for tensor in (keys, written)]
    erased_per_chunk = None if erased is None else erased.unflatten(0, (len(state), -1)).unbind(1)
    goes_on = None if carried is None else carried[:, -1:].unflatten(0, (len(state), -1)).unbind(1)
    states, values = [], []
    for n, (key_n, value_n) in enumerate(zip(*per_chunk, strict=True)):
        states.append(state)
        if erased_per_chunk is not None:
            value_n = torch.baddbmm(value_n, erased_per_chunk[n], state, alpha=-1)
            values.append(value_n)
        state = torch.baddbmm(state if goes_on is None else state * goes_on[n], key_n, value_n)

    # Part 3: what is read, from the chunk itself and from the memory before it.
    output = torch.bmm(within, torch.stack(values, dim=1).flatten(0, 1) if values else v)
    output = torch.baddbmm(output, q, torch.stack(states, dim=1).flatten(0, 1))
    output = output.unflatten(0, (batch, num_heads, -1)).flatten(2, 3)[:, :, :length]
    return output.transpose(1, 2), state


def _one_step(query, key, value, beta, state):
    """One token: the recurrence itself."""
    k, q, written = key[:, 0, :, None], query[:, 0, :, None], value[:, 0, :, None]  # [B, H, 1, ...]
    if beta is not None:
        written = beta[:, 0, :, None, None] * (written - k @ state)
    state = state + k.mT * written
    return (q @ state).transpose(1, 2), state


def _scan(query, key, value, beta, state, document_ids):
    """The recurrence as one operator that exporters know, for any length. ONNX has none for a triangular system."""
    from torch._higher_order_ops.scan import scan

    goes_on = torch.ones_like(key[..., 0])
    if document_ids is not None:
        goes_on = goes_on * pad(document_ids[:, 1:] == document_ids[:, :-1], (1, 0), value=True)[..., None]
    inputs = (query, key, value, goes_on) if beta is None else (query, key, value, goes_on, beta)
    if not torch.is_grad_enabled():  # what decomposes the program later forgets that, and would differentiate it
        state, inputs = state.detach(), tuple(tensor.detach() for tensor in inputs)

    def step(state, token):
        q, k, v, goes_on, *b = token
        state = state * goes_on[..., None, None]
        written = v[..., None, :]
        if b:
            written = b[0][..., None, None] * (written - k[..., None, :] @ state)
        state = state + k[..., None] * written
        return state, (q[..., None, :] @ state).squeeze(-2)

    state, output = scan(step, state, tuple(tensor.transpose(0, 1) for tensor in inputs))
    return output.transpose(0, 1), state


def _cut(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """`[B, T, H, D]` -> `[B * H * N, C, D]`, the last chunk filled with zeros, which leave no trace."""
    if tensor.shape[1] % size:
        tensor = pad(tensor, (0, 0, 0, 0, 0, -tensor.shape[1] % size))
    return tensor.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4).flatten(0, 2)


def _documents(document_ids: torch.LongTensor, at_once: int):
    """For each piece, numbers of the documents that only rise `[B, T]`, and that of the token before it `[B, 1]`."""
    numbers = pad((document_ids[:, 1:] != document_ids[:, :-1]).long(), (1, 0)).cumsum(-1)
    before = numbers[:, :1]  # the first document goes on from the initial memory
    for piece in numbers.split(at_once, dim=1):
        yield piece, before
        before = piece[:, -1:]


def _shared(numbers: torch.LongTensor, before: torch.LongTensor, size: int, num_heads: int):
    """
    Who shares a document: tokens of a chunk with each other `[B * H * N, C, C]`, with the last token before the chunk,
    and with its own last token `[B * H * N, C, 1]`.
    """
    filled = pad(numbers[:, None].float(), (0, -numbers.shape[1] % size), mode="replicate")[:, 0].long()
    chunks = filled.unflatten(1, (-1, size))
    before = torch.cat([before[..., None], chunks[:, :-1, -1:]], dim=1)
    number, last = (tensor.repeat_interleave(num_heads, dim=0).flatten(0, 1)[..., None] for tensor in (chunks, before))
    return number == number.mT, number == last, number == number[:, -1:]


def _apart(rule, cu_seqlens, inputs, initial_state, options):
    """Sequences side by side in one row, as rows of a batch filled with zeros, and back again."""
    lengths = cu_seqlens.diff()
    places = torch.arange(int(lengths.max()) if len(lengths) else 0, device=cu_seqlens.device)
    is_real = places < lengths[:, None]  # [N, longest]
    rows = []
    for tensor in inputs:
        row = tensor.new_zeros(*is_real.shape, *tensor.shape[2:])
        rows.append(row.masked_scatter(is_real.view(*is_real.shape, *[1] * (tensor.dim() - 2)), tensor[0]))
    output, state = rule(*rows, initial_state=initial_state, **options)
    return output[is_real][None], state


def _check(query, key, value, beta, initial_state, document_ids, cu_seqlens, chunk_size) -> None:
    if key.dim() != 4 or query.shape != key.shape or value.dim() != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            "query and key must be [batch, length, heads, key_dim] and value [batch, length, heads, value_dim], got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}."
        )
    if not all(tensor.is_floating_point() for tensor in (query, key, value)):
        dtypes = ", ".join(str(tensor.dtype) for tensor in (query, key, value))
        raise ValueError(f"query, key and value must be floating point, got {dtypes}.")
    if beta is not None and beta.shape != key.shape[:3]:
        raise ValueError(f"beta must be [batch, length, heads] = {list(key.shape[:3])}, got {list(beta.shape)}.")
    num_rows = key.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    shape = [num_rows, key.shape[2], key.shape[3], value.shape[3]]
    if initial_state is not None and (list(initial_state.shape) != shape or not initial_state.is_floating_point()):
        raise ValueError(
            f"initial_state must be floating point [batch, heads, key_dim, value_dim] = {shape}, got "
            f"{initial_state.dtype} {list(initial_state.shape)}."
        )
    if document_ids is not None and document_ids.shape != key.shape[:2]:
        raise ValueError(f"document_ids must be {list(key.shape[:2])}, got {list(document_ids.shape)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, key.shape[:2], document_ids)


def _check_cu_seqlens(cu_seqlens, shape, document_ids) -> None:
    if document_ids is not None:
        raise ValueError("Pass either document_ids or cu_seqlens, and not both.")
    steps = cu_seqlens.tolist()
    if shape[0] != 1 or not steps or steps[0] != 0 or steps[-1] != shape[1] or steps != sorted(steps):
        raise ValueError(
            f"cu_seqlens must rise from 0 to the length ({shape[1]}) of a batch of 1 (here {shape[0]}), got {steps}."
        )
