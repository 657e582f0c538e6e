"""Repeated launches: the second one calls the compiled kernel by itself, with what Triton would have passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kvspec_kernels import CacheView, FaultTable, Injector, launch
from kvspec_kernels.inject import inject_reads_kernel, inject_writes_kernel
from kvspec_kernels.nonfinite import find_nonfinite_kernel
from kvspec_kernels.step import list_cells_kernel
from kvspec_kernels.store import store_kernel

REPEATED = {"list_cells_kernel": list_cells_kernel, "find_nonfinite_kernel": find_nonfinite_kernel,
            "store_kernel": store_kernel, "inject_writes_kernel": inject_writes_kernel,
            "inject_reads_kernel": inject_reads_kernel}  # fmt: skip


def plain(arguments: tuple[Any, ...]) -> list[Any]:
    return [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]


class Kernel:
    """Stands for a kernel: `compiled` and `called` hold the arguments of its launches."""

    def __init__(self, kernel: Any) -> None:
        self._names = kernel.arg_names
        self.compiled: list[tuple[Any, list[Any]]] = []
        self.called: list[tuple[Any, list[Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*arguments: Any, num_warps: int, **constants: Any) -> Any:
            assert list(constants) == self._names[len(arguments) :]
            self.compiled.append((grid, plain((*arguments, *constants.values()))))
            return self

        def again(*arguments: Any, **options: Any) -> Any:
            if options:
                return start(*arguments, **options)
            # a compiled kernel takes three sizes and no tensors
            assert len(grid) == 3
            assert not any(isinstance(x, torch.Tensor) for x in arguments)
            self.called.append((grid, list(arguments)))
            return None

        return again


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kernel]:
    found = {name: Kernel(kernel) for name, kernel in REPEATED.items()}
    for name, kernel in found.items():
        monkeypatch.setattr(launch, name, kernel)
    return found


def step(injector: Injector, cache: torch.Tensor, offset: int = 0) -> None:
    """A step of four requests; `offset` moves the row lengths in memory."""
    query, slots, lengths = (torch.zeros(n, dtype=torch.int32) for n in (5, 4, 4 + offset))
    injector.begin_step(query, slots, lengths[offset:], 4, reads=True)
    logits, hidden = (torch.zeros(4, width, dtype=torch.bfloat16) for width in (100, 64))
    injector.find_nonfinite(logits, slots, lengths[offset:], hidden)
    row = torch.zeros(8, 2, 64, dtype=torch.bfloat16)
    injector.store(0, row, row, *cache.unbind(1), torch.zeros(8, dtype=torch.int64))
    injector.writes(0, torch.zeros(8, dtype=torch.int64))
    blocks = torch.zeros(4, 6, dtype=torch.int32)
    for layer in range(3):
        injector.reads(layer, blocks)


def test_a_compiled_kernel_gets_the_arguments_of_the_launch_that_compiled_it(kernels):
    injector = Injector(FaultTable(slots=4, layers=2, heads=2, device="cpu"), max_rows=8, max_requests=4, read_tokens=8)
    caches = [torch.zeros(4, 2, 16, 2, 64, dtype=torch.bfloat16) for _ in range(2)]
    injector.bind([CacheView.of(*cache.unbind(1)) for cache in caches])
    step(injector, caches[0])
    assert [len(k.compiled) for k in kernels.values()] == [2, 1, 1, 1, 3]
    assert all(not k.called for k in kernels.values())
    step(injector, caches[0])
    assert [len(k.compiled) for k in kernels.values()] == [2, 1, 1, 1, 3]
    for kernel in kernels.values():
        for (grid, first), (again, second) in zip(kernel.compiled, kernel.called, strict=True):
            assert grid == again
            assert len(first) == len(second)
            numbers = [i for i, x in enumerate(first) if x < 2**20]
            assert [first[i] for i in numbers] == [second[i] for i in numbers]
    # an address that is no multiple of 16 is not what was compiled for
    step(injector, caches[0], offset=1)
    assert [len(k.compiled) for k in kernels.values()] == [4, 2, 1, 1, 3]
    assert [len(k.called) for k in kernels.values()] == [2, 1, 2, 2, 6]


def test_launches_of_other_caches_are_not_repeated(kernels):
    injector = Injector(FaultTable(slots=4, layers=1, heads=2, device="cpu"), max_rows=8, max_requests=4, read_tokens=8)
    for _ in range(2):
        cache = torch.zeros(4, 2, 16, 2, 64, dtype=torch.bfloat16)
        injector.bind([CacheView.of(*cache.unbind(1))])
        injector.reads(0, torch.zeros(4, 6, dtype=torch.int32))
    injector.keep_stuck_reads()
    injector.reads(0, torch.zeros(4, 6, dtype=torch.int32))
    assert [len(kernels["inject_reads_kernel"].compiled), len(kernels["inject_reads_kernel"].called)] == [3, 0]
