# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The kernels of selective attention at the sizes they are for, on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_forms.selective_sequences import check_sequence
from ops.test_selective_attention import OPTIONS, build, results

from leanformers.kernels import selective_votes
from leanformers.modeling.selective_attn.selective_attention import selective_attention
from numerics import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("option", ["plain", *OPTIONS])
def test_every_option(option, dtype):
    check_sequence("cuda", dtype, option, 513, 70, block_size=None, heads=4, shared=2, head_dim=64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (8, 8), (8, 2), (8, 1)])
@pytest.mark.parametrize("length", [1, 127, 1000])
def test_any_heads(length, heads, shared, dtype):
    check_sequence("cuda", dtype, length=length, block_size=None, heads=heads, shared=shared, head_dim=64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (80, 96), (128, 128), (192, 128), (256, 256)])
def test_any_widths(head_dim, value_dim, dtype):
    if dtype == torch.float32 and head_dim > 128:
        pytest.skip("heads of float32 are up to 128 wide")
    check_sequence("cuda", dtype, length=300, block_size=None, head_dim=head_dim, value_dim=value_dim)


@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_size_of_blocks(block_size, dtype):
    check_sequence("cuda", dtype, "padded_documents", 300, 20, block_size=block_size, head_dim=64)


@pytest.mark.parametrize("option", ["plain", "padded_documents", "padded_window"])
def test_strips(option, monkeypatch):
    monkeypatch.setattr(selective_votes, "SELECTION_BYTES", 2 * 4 * 2112 * 512)
    check_sequence("cuda", torch.bfloat16, option, 2000, 100, block_size=None, heads=4, shared=2, head_dim=64)


def test_long_sequences():
    check_sequence("cuda", torch.bfloat16, length=4100, block_size=None, batch=1, heads=2, shared=1, head_dim=128)


def test_results_do_not_vary():
    inputs = [tensor.cuda() for tensor in build(length=1000, dtype=torch.bfloat16, head_dim=64)]
    first, second = (results(selective_attention, inputs, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gpus_take_the_kernels_by_default(monkeypatch):
    monkeypatch.delenv("LEANFORMERS_KERNELS", raising=False)
    inputs = [tensor.cuda() for tensor in build(length=200, dtype=torch.bfloat16, head_dim=64)]
    by_default, kernel = (results(selective_attention, inputs, backend=backend) for backend in (None, "triton"))
    assert all(torch.equal(by_default[name], kernel[name]) for name in kernel)


@pytest.mark.parametrize("length", [8192, 16384])
def test_memory_is_not_of_all_pairs_of_all_heads(length):
    inputs = [torch.randn(1, length, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    for tensor in inputs:
        tensor.requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    selective_attention(*inputs, backend="triton")[0].float().square().sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    rows_of_votes = 4 * length * length // 128
    assert used < 2 * selective_votes.SELECTION_BYTES + 4 * rows_of_votes + 20 * inputs[0].nbytes


def test_compiled_is_eager():
    torch.compiler.reset()
    inputs = [tensor.cuda() for tensor in build(length=200, dtype=torch.bfloat16, head_dim=64)]
    compiled = torch.compile(selective_attention, fullgraph=True)
    expected = results(selective_attention, inputs, backend="triton")
    for name, tensor in results(compiled, inputs, backend="triton").items():
        assert_close(name, tensor, expected[name], relative=1e-2)


def test_a_graph_of_launches_can_be_replayed():
    inputs = [torch.randn(1, 500, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def step():
        output, votes = selective_attention(*inputs, backend="triton")
        return torch.autograd.grad(output.float().square().sum() + votes.sum(), inputs)

    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    for actual, expected in zip(recorded, step(), strict=True):
        assert torch.equal(actual, expected)
