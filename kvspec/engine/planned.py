"""Planned flips of a finished trial, enumerated from its key over the tokens that it really wrote.

This is the other side of the proof of injection: it shares neither the step logic nor the address arithmetic with
what counts the landed flips in the cache.
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

from kvspec import _native
from kvspec.engine.table import TableData, native_selector
from kvspec.models import Geometry
from kvspec.plan.events import read_events, shown_events

GROUP = 8
"""Entries that are counted by one task: a task costs about as much as counting an entry with few flips."""
ENGINE_CORES = 2
"""Cores that are left to the engine: its steps are bound by the host on a GPU."""


class PlannedFlips:
    """Counts the flips that entries of a trial table must have received."""

    def __init__(self, table: TableData, geometry: Geometry) -> None:
        self._table = table
        self._layers = (0, geometry.layers)
        self._samplers = table.samplers(geometry)
        self._selectors = [native_selector(where) for where in table.selectors]
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, tuple[int, Future[list[int]], int]] = {}
        """Entries that are being counted: positions assumed, the counts of a group, place in the group."""

    def ahead(self, entries: Sequence[int], written: Sequence[int]) -> None:
        """Start to count, in the background, entries that are expected to write so many positions: at dense rates it
        takes longer than the requests do on a GPU."""
        faulty = [(e, w) for e, w in zip(entries, written, strict=True) if self._table.faulty[e]]
        if faulty and self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, _cores() - ENGINE_CORES), initializer=_step_back)
        for first in range(0, len(faulty), GROUP):
            group = faulty[first : first + GROUP]
            assert self._pool is not None
            future = self._pool.submit(lambda group: [self.count(*pair) for pair in group], group)
            self._ahead.update({e: (w, future, i) for i, (e, w) in enumerate(group)})

    def count_all(self, entries: Sequence[int], written: Sequence[int]) -> list[int]:
        """`count` of several entries, on all cores; what was counted ahead with the right length is only looked up."""
        wrong = [(e, w) for e, w in zip(entries, written, strict=True) if self._ahead.get(e, (None,))[0] != w]
        self.ahead([e for e, _ in wrong], [w for _, w in wrong])
        found: list[int] = []
        for entry in entries:
            _, future, place = self._ahead.pop(entry, (0, None, 0))
            found.append(0 if future is None else future.result()[place])
        return found

    def __enter__(self) -> Self:
        """The counter itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def count(self, entry: int, written: int) -> int:
        """Flips of an entry whose request wrote positions `0 .. written - 1`; those of reads once per read event."""
        table = self._table
        if not table.faulty[entry]:
            return 0
        fault = int(table.fault[entry])
        site, where = table.sites[fault], table.selectors[fault]
        request, prompt = int(table.request[entry]), int(table.prompt_len[entry])
        draws = []
        if site != "KV_READ":
            draws.append((_key(table.write_key[entry]), written))
        if site != "KV_WRITE":
            master = _key(table.read_master[entry])
            events = shown_events(where, read_events(prompt, written))
            draws += [(_native.read_key(master, request, step), step) for step in events]
        return sum(
            self._samplers[fault].count(
                key=key,
                request=request,
                layers=self._layers,
                tokens=(0, tokens),
                prompt_len=prompt,
                selector=self._selectors[fault],
            )
            for key, tokens in draws
        )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step_back() -> None:
    """Let this thread run when the engine does not want the core."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _key(words: NDArray[np.uint32]) -> tuple[int, int]:
    return int(words[0]), int(words[1])
