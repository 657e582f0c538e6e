"""Listed faults on a device: which of them a forward writes or reads, as columns of `kvspec_kernels.events`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvspec.engine.events import WRITE
from kvspec.engine.vllm.step import FOREIGN
from kvspec.spec.model import TARGETS

if TYPE_CHECKING:
    from kvspec.engine.events import EventData
    from kvspec.engine.vllm.runner import Batch

I64 = NDArray[np.int64]


class Listed:
    """The faults of all entries of a table, found by the tokens that a batch writes and by the read events it makes."""

    def __init__(self, data: EventData, target: str = "values") -> None:
        """Of one target."""
        here = data.columns["target"] == TARGETS.index(target)
        columns = {name: column[here].astype(np.int64) for name, column in data.columns.items()}
        entry = np.repeat(np.arange(len(data)), np.diff(data.starts.astype(np.int64)))[here]
        reads = columns["step"] != WRITE
        self._prompt_len = data.prompt_len.astype(np.int64)
        self._written = _Sorted(entry, columns, ~reads, "token")
        self._read = _Sorted(entry, columns, reads, "step")
        self._len = len(entry)
        self.reads = bool(reads.any())
        """Whether there are faults of reads."""
        self.stuck_reads = bool((columns["op"][reads] != 0).any())
        """Whether there are stuck-ats among them."""

    def __len__(self) -> int:
        return self._len

    def writes_of(self, batch: Batch, entries: I64) -> tuple[I64, I64]:
        """(layer ascending, columns of `events.py`) of the faults in the tokens that a batch writes. `entries`: the
        table entry of each request, or `FOREIGN`."""
        at = np.flatnonzero(entries != FOREIGN)
        start, stop = batch.start[at], (batch.start + batch.count)[at]
        request, faults = self._written.between(entries[at], start, stop)
        first_row = (np.cumsum(batch.count) - batch.count)[at] - start
        return _columns(batch.slot[at][request], first_row[request] + faults["token"], faults, np.ones_like(request))

    def reads_of(self, batch: Batch, entries: I64) -> tuple[I64, I64]:
        """The same of the faults in what a batch reads: those of the read event of each request, in the tokens that are
        there. A forward with queries of several events makes none: the recompute of a preempted request."""
        at = np.flatnonzero(entries != FOREIGN)
        start, count, prompt = batch.start[at], batch.count[at], self._prompt_len[entries[at]]
        seen = start + count
        prefill = seen <= prompt
        event = np.maximum(seen, prompt)
        request, faults = self._read.between(entries[at], event, event + (prefill | (count == 1)))
        there = faults["token"] < seen[request]
        request, faults = request[there], {name: column[there] for name, column in faults.items()}
        # chunks of a prefill are one event: a fault lands in the first that shows it
        new = faults["token"] >= np.where(prefill, start, 0)[request]
        return _columns(batch.slot[at][request], at[request], faults, new)


class _Sorted:
    """Some of the faults, ascending by entry and the column `key`."""

    def __init__(self, entry: I64, columns: dict[str, I64], chosen: NDArray[np.bool_], key: str) -> None:
        place = (entry << 32 | columns[key])[chosen]
        order = np.argsort(place, kind="stable")
        self._place = place[order]
        self._columns = {name: column[chosen][order] for name, column in columns.items()}

    def between(self, entry: I64, first: I64, stop: I64) -> tuple[I64, dict[str, I64]]:
        """Faults with `first <= key < stop` of each entry: which of the entries each belongs to, and their columns;
        ascending by layer."""
        begin = np.searchsorted(self._place, entry << 32 | first)
        size = np.searchsorted(self._place, entry << 32 | stop) - begin
        owner = np.repeat(np.arange(len(size)), size)
        at = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size - begin, size)
        order = np.argsort(self._columns["layer"][at], kind="stable")
        return owner[order], {name: column[at[order]] for name, column in self._columns.items()}


def _columns(slot: I64, place: I64, faults: dict[str, I64], new: NDArray[Any]) -> tuple[I64, I64]:
    places = [faults[name] for name in ("token", "kv", "head", "elem")]
    bits = np.int64(1) << faults["bit"]
    return faults["layer"], np.stack([slot, place, *places, bits, faults["op"], new.astype(np.int64)])
