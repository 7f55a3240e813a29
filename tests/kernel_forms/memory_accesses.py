# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
What Triton's interpreter does not show, as it runs one program after another, each with a single thread: which memory
every program reads and writes, whether that is of the tensors it was given, and whether results hang on an order that
a GPU does not keep.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


class Access(NamedTuple):
    addresses: np.ndarray
    program: int
    barriers: int  # that the program had passed
    is_store: bool
    is_late: bool  # after the program's atomic operation


class Launch:
    """The accesses of all programs of one launch of a kernel."""

    def __init__(self, kernel: str, tensors: list[torch.Tensor]):
        self.kernel = kernel
        spans = [(tensor.data_ptr(), tensor.data_ptr() + span(tensor)) for tensor in tensors if tensor.numel()]
        self.starts, self.ends = (np.array(ends, dtype=np.uint64) for ends in zip(*spans, strict=True))
        self.accesses: list[Access] = []
        self.arrivals: dict[int, tuple[int, int]] = {}  # of a program: the counter that it added to, and when
        self.program = self.barriers = 0
        self.order = np.zeros(0, dtype=int)

    def add(self, addresses: np.ndarray, mask: np.ndarray, is_store: bool) -> None:
        """Before it is done, as what is outside may be nobody's."""
        touched = np.atleast_1d(addresses)[np.atleast_1d(np.broadcast_to(mask, addresses.shape)).astype(bool)].ravel()
        inside = (self.starts <= touched[:, None]) & (touched[:, None] < self.ends)
        assert inside.any(axis=1).all(), f"{self.kernel} reads or writes outside of all tensors"
        self.accesses.append(Access(touched, self.program, self.barriers, is_store, self.program in self.arrivals))

    def check(self) -> None:
        sizes = [len(access.addresses) for access in self.accesses]
        address = np.concatenate([access.addresses for access in self.accesses])
        program, barriers, is_store, is_late, step = (
            np.repeat(column, sizes)
            for column in (*zip(*(access[1:] for access in self.accesses), strict=True), np.arange(len(sizes)))
        )
        # Threads of a program: what is computed from a load waits for it, but nothing waits for a store.
        order = np.lexsort((step, address, barriers, program))
        same = [np.diff(column[order]) == 0 for column in (program, barriers, address)]
        again = np.logical_and.reduce(same) & is_store[order][:-1]
        assert not again.any(), f"{self.kernel}: {again.sum()} accesses to what was stored, with no barrier between"

        early = ~is_late
        shared = are_shared(address[early], program[early], is_store[early])
        assert not shared.any(), f"{self.kernel}: programs race for {shared.sum()} places"
        for last in np.unique(program[is_late]):
            counter, time = self.arrivals[last]
            own = is_late & (program == last)
            others = (program != last) & np.isin(address, address[own])
            for other in np.unique(program[others & (is_store | np.isin(address, address[own & is_store]))]):
                there, then = self.arrivals[other]
                is_ordered = there == counter and then < time and not (is_late & others & (program == other)).any()
                assert is_ordered, (
                    f"{self.kernel}: program {last} does not wait for what program {other} reads and writes"
                )


def span(tensor: torch.Tensor) -> int:
    """Bytes from the first element to behind the last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def are_shared(address: np.ndarray, program: np.ndarray, is_store: np.ndarray) -> np.ndarray:
    """At which places several programs meet, one of them to write."""
    order = np.argsort(address, kind="stable")
    address, program, is_store = address[order], program[order], is_store[order]
    first = np.flatnonzero(np.append(True, np.diff(address) != 0))
    lowest, highest = (function.reduceat(program, first) for function in (np.minimum, np.maximum))
    return (lowest != highest) & np.logical_or.reduceat(is_store, first)


ORDERS = {
    "in order": lambda programs: programs,
    "reversed": lambda programs: programs[::-1],
    "shuffled": np.random.default_rng(0).permutation,
}


@contextmanager
def watched(order: str = "in order") -> Iterator[list[Launch]]:
    """Check what is launched inside; `order`, of `ORDERS`, is that of the programs of a launch."""
    launches: list[Launch] = []
    builder, call = InterpreterBuilder, GridExecutor.__call__
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    barrier, set_sizes, set_place = builder.create_barrier, builder.set_grid_dim, builder.set_grid_idx

    def loaded(self, pointers, mask, *others):
        launches[-1].add(pointers.data, mask.data, is_store=False)
        return load(self, pointers, mask, *others)

    def stored(self, pointers, value, mask, *others):
        launches[-1].add(pointers.data, mask.data, is_store=True)
        return store(self, pointers, value, mask, *others)

    def added(self, operation, pointer, *others):
        arrivals = launches[-1].arrivals
        arrivals[launches[-1].program] = int(pointer.data.item()), len(arrivals)
        return atomic(self, operation, pointer, *others)

    def passed(self):
        launches[-1].barriers += 1
        return barrier(self)

    def sized(self, *sizes):
        launches[-1].order = ORDERS[order](np.arange(np.prod(sizes)))
        set_sizes(self, *sizes)

    def placed(self, *place):
        program = launches[-1].order[np.ravel_multi_index(place, self.grid_dim)]
        launches[-1].program, launches[-1].barriers = int(program), 0
        set_place(self, *(int(index) for index in np.unravel_index(program, self.grid_dim)))

    def called(self, *arguments, **options):
        given = (*arguments, *options.values())
        launches.append(Launch(self.fn.__name__, [tensor for tensor in given if isinstance(tensor, torch.Tensor)]))
        call(self, *arguments, **options)
        launches[-1].check()

    replaced = {"create_masked_load": loaded, "create_masked_store": stored, "create_atomic_rmw": added}
    replaced |= {"create_barrier": passed, "set_grid_dim": sized, "set_grid_idx": placed}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", called)
        for name, function in replaced.items():
            patch.setattr(builder, name, function)
        yield launches
