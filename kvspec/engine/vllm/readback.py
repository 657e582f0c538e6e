"""Independent read-back: every position that a step writes, compared with the projections and the listed faults.

The other side of the proof of injection. It shares the probed layout with the injector and nothing else: faults are
looked up by numpy in the columns of the map, the cache is read by plain tensor indexing, and each element of each
written position is compared, so a stray bit is seen as well as a missing one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.vllm.canary import Read
from kvspec.engine.vllm.step import Step
from kvspec.engine.vllm.storage import Written

CHANGES = ("layer", "kv", "head", "token", "elem", "before", "after", "before_value", "after_value")
"""Codes of the storage format, and the float32 values that they stand for, as their bits."""


@dataclass
class ReadBack:
    """Follows all entries of a table of events through the engine."""

    storage_format: str
    starts: NDArray[np.uint64]
    columns: dict[str, NDArray[Any]]
    first_head: int = 0
    """Global index of the first KV head that is watched."""
    record: bool = False
    """Keep every element that was found changed, with its code before and after, and a hash of all logits."""
    checked: int = 0
    """Elements compared so far."""
    _layers: dict[int, tuple[NDArray[np.uint64], NDArray[np.intp]]] = field(default_factory=dict)
    """Of each layer: (entry << 32 | token) of its events ascending, and their rows."""
    _changes: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = len(self.starts) - 1
        self.landed = np.zeros(entries, dtype=np.int64)
        self.mismatches = np.zeros(entries, dtype=np.int64)
        self._logits: dict[int, list[bytes]] = {}
        self._lives = np.zeros(entries, dtype=np.int64)
        entry = np.repeat(np.arange(entries, dtype=np.uint64), np.diff(self.starts.astype(np.int64)))
        place = entry << np.uint64(32) | self.columns["token"].astype(np.uint64)
        order = np.lexsort((place, self.columns["layer"]))
        layers = self.columns["layer"][order]
        for layer in np.unique(layers).tolist():
            rows = order[slice(*np.searchsorted(layers, [layer, layer + 1]))]
            self._layers[layer] = place[rows], rows

    def of_heads(self, heads: slice) -> ReadBack:
        """The same for a tensor-parallel rank that holds these KV heads."""
        here = (self.columns["head"] >= heads.start) & (self.columns["head"] < heads.stop)
        before = np.concatenate([[0], np.cumsum(here)])
        columns = {name: column[here] for name, column in self.columns.items()}
        starts = before[self.starts.astype(np.int64)].astype(np.uint64)
        return ReadBack(self.storage_format, starts, columns, first_head=heads.start, record=self.record)

    def check(self, layer: int, step: Step, written: Written, read: Read) -> None:
        """Compare the cache of one layer with what has just been written, before its faults."""
        count = step.count.astype(np.int64)
        index = np.repeat(np.arange(len(count)), count)
        position = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count) + step.start[index]
        entry = step.entry[index].astype(np.int64)
        if layer == 0:
            self._restart(step.entry[step.start == 0])
        rows = slice(len(index))
        scales = None if written.scales is None else written.scales[:, rows]
        clean = torch.stack([written.key[rows], written.value[rows]])
        stored = read(step.row[index], position)
        before, _ = self._codes(clean, scales)
        after, lost = self._codes(stored, scales)
        expected = before.copy()
        self._apply(layer, entry, position, before, after, expected)
        self.checked += after.size
        wrong = (after != expected) | lost
        if wrong.any():
            np.add.at(self.mismatches, entry, wrong.sum(axis=(0, 2, 3)))
        if self.record:
            kv, n, head, elem = np.nonzero(before != after)
            at = kv, n, head, elem
            layers = np.full(len(n), layer)
            life = self._lives[entry[n]]
            values = [_bits(x.cpu()[at]) for x in (clean, stored)]
            found = [
                entry[n],
                life,
                layers,
                kv,
                head + self.first_head,
                position[n],
                elem,
                before[at],
                after[at],
                *values,
            ]
            self._changes.append(np.stack([np.asarray(c, dtype=np.int64) for c in found]))

    def check_read(self, layer: int, step: Step, read: Read, *, exposed: bool) -> None:
        """Listed faults are those of writes: reads have none to look for."""

    def logits(self, step: Step, logits: torch.Tensor) -> None:
        """Hash the logits that each entry sees in a step."""
        if self.record:
            for row, entry in zip(step.row.tolist(), step.entry.tolist(), strict=True):
                values = logits[row].detach().contiguous().view(torch.uint8).cpu().numpy()
                self._logits.setdefault(entry, []).append(hashlib.blake2b(values, digest_size=8).digest())

    def _apply(self, layer: int, entry: Any, position: Any, before: Any, after: Any, expected: Any) -> None:
        """Do to `expected` what is listed, and count the listed bits that `after` has as they must be."""
        if layer not in self._layers:
            return
        places, rows = self._layers[layer]
        place = entry.astype(np.uint64) << np.uint64(32) | position.astype(np.uint64)
        first, last = np.searchsorted(places, place, "left"), np.searchsorted(places, place, "right")
        size = last - first
        n = np.repeat(np.arange(len(place)), size)
        if not len(n):
            return
        row = rows[np.arange(len(n)) - np.repeat(np.cumsum(size) - size, size) + np.repeat(first, size)]
        kv, head, elem = (self.columns[name][row] for name in ("kv", "head", "elem"))
        head = head.astype(np.int64) - self.first_head
        at = kv, n, head, elem
        op, shift = self.columns["op"][row], self.columns["bit"][row].astype(np.uint32)
        bit = np.uint32(1) << shift
        for code, change, bits in (
            (0, np.bitwise_xor, bit),
            (1, np.bitwise_and, ~bit),
            (2, np.bitwise_or, bit),
        ):
            if (chosen := op == code).any():
                change.at(expected, tuple(c[chosen] for c in at), bits[chosen])
        found = after[at] >> shift & 1
        wanted = np.where(op == 0, before[at] >> shift & 1 ^ 1, op == 2)
        np.add.at(self.landed, entry[n], found == wanted)

    def _restart(self, entries: NDArray[np.uint32]) -> None:
        """A request that starts, perhaps after a preemption: its faults land anew."""
        self.landed[entries] = 0
        self.mismatches[entries] = 0
        self._lives[entries] += 1
        for entry in entries.tolist():
            self._logits.pop(entry, None)

    def _codes(
        self, values: torch.Tensor, scales: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Values, or codes as they are, as codes of the storage format, and where the format cannot hold them: rounding
        here would hide it."""
        if not values.is_floating_point():
            return values.cpu().numpy().astype(np.uint32), np.zeros(values.shape, bool)
        held = values.detach().to("cpu", torch.float32).contiguous().numpy()
        codes = _native.encode(self.storage_format, held, scales)
        lost = _native.decode(self.storage_format, codes, scales).view(np.uint32) != held.view(np.uint32)
        return codes, lost

    def result(self) -> dict[str, Any]:
        """Counts by entry, and with `record` the changes of each entry that has any."""
        found: dict[str, Any] = {"checked": self.checked, "landed": self.landed, "mismatches": self.mismatches}
        return found | {"changes": self._by_entry(), "logits": self._logits} if self.record else found

    def _by_entry(self) -> dict[int, dict[str, NDArray[np.int64]]]:
        if not self._changes:
            return {}
        table = np.concatenate(self._changes, axis=1)
        table = table[:, table[1] == self._lives[table[0]]]
        table = table[:, np.lexsort(table[[6, 5, 4, 3, 2, 0]])]
        entries, first = np.unique(table[0], return_index=True)
        parts = np.split(table[2:], first[1:], axis=1)
        return {int(e): dict(zip(CHANGES, part, strict=True)) for e, part in zip(entries, parts, strict=True)}


def _bits(values: torch.Tensor) -> NDArray[np.uint32]:
    """Values as the bits of their float32; codes of a device's cache stand for themselves."""
    found: NDArray[np.uint32] = values.to(torch.float32).contiguous().view(torch.int32).numpy().view(np.uint32)
    return found


def together(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of all tensor-parallel ranks as one: each watched heads of its own, and the first alone sees logits."""
    found = ranks[0] | {name: sum(rank[name] for rank in ranks) for name in ("checked", "landed", "mismatches")}
    if len(ranks) > 1 and "changes" in found:
        entries = sorted(set().union(*(rank["changes"] for rank in ranks)))
        found["changes"] = {e: _merged([r["changes"][e] for r in ranks if e in r["changes"]]) for e in entries}
    return found


def _merged(parts: list[dict[str, NDArray[np.int64]]]) -> dict[str, NDArray[np.int64]]:
    columns = {name: np.concatenate([part[name] for part in parts]) for name in CHANGES}
    order = np.lexsort([columns[name] for name in reversed(CHANGES[:5])])
    return {name: column[order] for name, column in columns.items()}
