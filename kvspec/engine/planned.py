"""Planned flips of a finished trial, counted from its key over the tokens that it really wrote.

This is the other side of the proof of injection: it shares neither the step logic nor the address arithmetic with
what counts the landed flips in the cache (`rust/kvspec-core/src/planned.rs`).
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

GROUP = 32
"""Entries that are counted by one task: it takes the interpreter from the engine twice, and at the densest rates
holds a core for a fraction of a second."""


class PlannedFlips:
    """Counts the flips that entries of a trial table must have received."""

    def __init__(self, table: TableData, geometry: Geometry) -> None:
        self._faulty = table.faulty
        self._native = table.build(geometry)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, tuple[int, Future[NDArray[np.uint64]], int]] = {}
        """Entries that are being counted: positions assumed, the counts of a group, place in the group."""

    def ahead(self, entries: Sequence[int], written: Sequence[int]) -> None:
        """Start to count, in the background, entries that are expected to write so many positions: at dense rates it
        takes longer than the requests do on a GPU."""
        faulty = [(e, w) for e, w in zip(entries, written, strict=True) if self._faulty[e]]
        if faulty and self._pool is None:
            # Half of the cores: the others' share of caches and execution units is the engine's, whose steps are
            # bound by the host on a GPU.
            self._pool = ThreadPoolExecutor(max(1, _cores() // 2), initializer=_step_back)
        for first in range(0, len(faulty), GROUP):
            group = faulty[first : first + GROUP]
            assert self._pool is not None
            columns = np.array(group, np.uint32).T
            future = self._pool.submit(self._native.planned, columns[0], columns[1])
            self._ahead.update({e: (w, future, i) for i, (e, w) in enumerate(group)})

    def count_all(self, entries: Sequence[int], written: Sequence[int]) -> list[int]:
        """Flips of entries whose requests wrote positions `0 .. written - 1`, those of reads once per read event, on
        several cores; what was counted ahead with the right length is only looked up."""
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
        """Stop counting ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step_back() -> None:
    """Let this thread run when the engine does not want the core."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
