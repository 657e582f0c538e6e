"""Planned flips of a finished trial, counted from its key over the tokens that it really wrote.

This is the other side of the proof of injection (`rust/kvspec-core/src/planned.rs`): it shares neither the step logic
nor the address arithmetic with what counts the landed flips in the cache. It does share the trial table and, on a CPU,
the draws; docs/sampling.md's golden cases and tests/test_planned.py hold those.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvspec.engine.table import TableData
from kvspec.models import Geometry

POSITIONS = 2048
"""Positions that one task counts, of as many entries as have no more together: a task takes the interpreter from the
engine twice, and whoever waits for one of its entries waits for all."""


class PlannedFlips:
    """Counts the flips that entries of a trial table must have received."""

    def __init__(self, table: TableData, geometry: Geometry) -> None:
        self._table = table
        self._native = table.build(geometry)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, tuple[int, Future[NDArray[np.uint64]], int]] = {}
        """Entries that are being counted: positions assumed, the counts of a group, place in the group."""

    def ahead(self, entries: Sequence[int], written: Sequence[int]) -> None:
        """Start to count, in the background, entries that are expected to write so many positions: at dense rates it
        takes longer than the requests do on a GPU."""
        group: list[tuple[int, int]] = []
        positions = 0
        for entry, length in zip(entries, written, strict=True):
            if not self._table.faulty[entry]:
                continue
            mine = self._positions(entry, length)
            if group and positions + mine > POSITIONS:
                self._start(group)
                group, positions = [], 0
            group.append((entry, length))
            positions += mine
        if group:
            self._start(group)

    def _positions(self, entry: int, written: int) -> int:
        """Positions in which faults of an entry are drawn, at most: those of reads once per read event."""
        events = max(written - int(self._table.prompt_len[entry]), 0) + 1
        return written * (1 + events if self._table.reads(entry) else 1)

    def _start(self, group: list[tuple[int, int]]) -> None:
        """Count entries, each with its positions, as one task."""
        if self._pool is None:
            # Half of the cores: the others' share of caches and execution units is the engine's, whose steps are
            # bound by the host on a GPU.
            self._pool = ThreadPoolExecutor(max(1, _cores() // 2), initializer=_step_back)
        columns = np.array(group, np.uint32).T
        future = self._pool.submit(self._native.planned, columns[0], columns[1])
        self._ahead.update({entry: (length, future, i) for i, (entry, length) in enumerate(group)})

    def count_all(self, entries: Sequence[int], written: Sequence[int]) -> list[int]:
        """Flips of entries whose requests wrote positions `0 .. written - 1`, those of reads once per read event, on
        several cores; what was counted ahead with the right length is only looked up. Raises `ValueError` for an entry
        that is named twice."""
        if len(set(entries)) < len(entries):
            raise ValueError("an entry is named twice")
        wrong = [(e, w) for e, w in zip(entries, written, strict=True) if self._ahead.get(e, (None,))[0] != w]
        self.ahead([e for e, _ in wrong], [w for _, w in wrong])
        found: list[int] = []
        for entry in entries:
            _, future, place = self._ahead.pop(entry, (0, None, 0))
            found.append(0 if future is None else int(future.result()[place]))
        return found

    def __enter__(self) -> Self:
        """The counter itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting ahead; a count that has begun ends by itself, and nobody waits for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step_back() -> None:
    """Let this thread run when the engine does not want the core."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
