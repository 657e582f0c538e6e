"""Independent read-back: every position that a step writes, compared with the projections and the listed faults; and
around each attention what it reads, compared with what was there.

The other side of the proof of injection. It shares the probed layout with the injector and nothing else: faults are
looked up by numpy in the columns of the map, the cache is read by plain tensor indexing, and each element of each
position is compared, so a stray bit is seen as well as a missing one.
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
from kvspec.engine.vllm.storage import TORCH_DTYPES, Rows, Written

CHANGES = ("step", "layer", "kv", "head", "token", "elem", "before", "after", "before_value", "after_value", "target")
"""Read event, or 0 for a write; codes of the storage format, and the float32 values that they stand for, as their
bits; 1 where all of these are of a scale, which is element 0 of its row, and 0 for values."""


VALUES, SCALES = 0, 1


@dataclass(frozen=True)
class Positions:
    """Positions of requests whose codes `[2, n, H, D]` and scales `[2, n, H]` are compared; fields have `n` values."""

    row: NDArray[Any]
    entry: NDArray[np.int64]
    token: NDArray[Any]
    step: NDArray[np.int64]
    """Read event, 0 for a write."""
    new: NDArray[np.bool_]
    """Whether no earlier forward of the event showed this position: what is found there counts."""


@dataclass
class ReadBack:
    """Follows all entries of a table of events through the engine."""

    storage_format: str
    starts: NDArray[np.uint64]
    columns: dict[str, NDArray[Any]]
    prompt_len: NDArray[np.uint32]
    """Tokens, by entry."""
    first_head: int = 0
    """Global index of the first KV head that is watched."""
    record: bool = False
    """Keep every element that was found changed, with its code before and after, and a hash of all logits."""
    checked: int = 0
    """Elements compared so far."""
    _listed: dict[int, tuple[NDArray[Any], NDArray[np.intp]]] = field(default_factory=dict)
    """Of each layer: the places of its events ascending, and their rows."""
    _before: dict[int, Rows] = field(default_factory=dict)
    """By layer, from its write to the end of its attention, if reads have faults: what lies there."""
    _changes: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = len(self.starts) - 1
        self.landed = np.zeros(entries, dtype=np.int64)
        self.mismatches = np.zeros(entries, dtype=np.int64)
        self._logits: dict[int, list[bytes]] = {}
        self._lives = np.zeros(entries, dtype=np.int64)
        self._reads = bool((self.columns["step"] != 0).any())
        entry = np.repeat(np.arange(entries), np.diff(self.starts.astype(np.int64)))
        self._events = np.unique(_pair(entry, self.columns["step"]))
        places = self._places(entry, self.columns["step"], self.columns["token"])
        order = np.lexsort((places, self.columns["layer"]))
        layers = self.columns["layer"][order]
        for layer in np.unique(layers).tolist():
            rows = order[slice(*np.searchsorted(layers, [layer, layer + 1]))]
            self._listed[layer] = places[rows], rows

    def of_heads(self, heads: slice) -> ReadBack:
        """The same for a tensor-parallel rank that holds these KV heads."""
        here = (self.columns["head"] >= heads.start) & (self.columns["head"] < heads.stop)
        before = np.concatenate([[0], np.cumsum(here)])
        columns = {name: column[here] for name, column in self.columns.items()}
        starts = before[self.starts.astype(np.int64)].astype(np.uint64)
        return ReadBack(
            self.storage_format, starts, columns, self.prompt_len, first_head=heads.start, record=self.record
        )

    def check(self, layer: int, step: Step, written: Written, read: Read) -> None:
        """Compare the cache of one layer with what has just been written, before its faults."""
        index, token = _tokens(step.start, step.count)
        entry = step.entry[index].astype(np.int64)
        if layer == 0:
            self._restart(step.entry[step.start == 0])
        at = Positions(step.row[index], entry, token, np.zeros_like(entry), np.ones(len(entry), bool))
        self._compare(layer, at, written.rows.take(slice(len(index))), read(at.row, at.token))
        if self._reads:
            seen = self._seen(step)
            self._before[layer] = read(seen.row, seen.token)

    def check_read(self, layer: int, step: Step, read: Read, *, exposed: bool) -> None:
        """Compare what the attention of one layer reads with what lay there before its faults; and afterwards, bit for
        bit, with the same."""
        if layer not in self._before:
            return
        before, at = self._before[layer], self._seen(step)
        found = read(at.row, at.token)
        if exposed:
            self._compare(layer, at, before, found)
            return
        del self._before[layer]
        for wrong in found.differences(before):
            self._count(at, wrong)

    def _seen(self, step: Step) -> Positions:
        """The whole cache of every request of a step, with the read event that each makes."""
        seen = step.start.astype(np.int64) + step.count
        prompt = self.prompt_len[step.entry].astype(np.int64)
        prefill = seen <= prompt
        # A forward with queries of several events makes none: only the recompute of a preempted request.
        event = np.where(prefill | (step.count == 1), np.maximum(seen, prompt), -1)
        index, token = _tokens(np.zeros_like(seen), seen)
        new = token >= np.where(prefill, step.start, 0)[index]
        return Positions(step.row[index], step.entry[index].astype(np.int64), token, event[index], new)

    def _compare(self, layer: int, at: Positions, clean: Rows, found: Rows) -> None:
        """Hold what is found against what was there before, and what is listed."""
        before, _ = clean.stored(self.storage_format)
        after, lost = found.stored(self.storage_format)
        self._hold(layer, at, VALUES, before, after, lost)
        if self.record:
            values = (_bits(self.storage_format, x.values, c) for x, c in ((clean, before), (found, after)))
            self._note(layer, at, VALUES, (before, after), tuple(values))
        if clean.scales is not None and found.scales is not None:
            pair = clean.scales[..., None], found.scales[..., None]
            self._hold(layer, at, SCALES, *pair)
            if self.record:
                self._note(layer, at, SCALES, pair, pair)

    def _hold(self, layer: int, at: Positions, target: int, before: Any, after: Any, lost: Any = False) -> None:
        """Compare codes `[2, n, H, D]`, or scales `[2, n, H, 1]`, with what they were and what is listed for them."""
        expected = before.copy()
        self._apply(layer, at, target, before, after, expected)
        self._count(at, (after != expected) | lost)

    def _count(self, at: Positions, wrong: NDArray[np.bool_]) -> None:
        self.checked += wrong.size
        if wrong.any():
            np.add.at(self.mismatches, at.entry, wrong.sum(axis=(0, 2, 3)))

    def _note(self, layer: int, at: Positions, target: int, codes: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        """Keep what changed."""
        kv, n, head, elem = where = np.nonzero((codes[0] != codes[1]) & at.new[:, None, None])
        layers, entry = np.full(len(n), layer), at.entry[n]
        place = [at.step[n], layers, kv, head + self.first_head, at.token[n], elem]
        found = [entry, self._lives[entry], *place, *(x[where] for x in (*codes, *values)), np.full(len(n), target)]
        self._changes.append(np.stack([np.asarray(c, dtype=np.int64) for c in found]))

    def logits(self, step: Step, logits: torch.Tensor) -> None:
        """Hash the logits that each entry sees in a step."""
        if self.record:
            for row, entry in zip(step.row.tolist(), step.entry.tolist(), strict=True):
                values = logits[row].detach().contiguous().view(torch.uint8).cpu().numpy()
                self._logits.setdefault(entry, []).append(hashlib.blake2b(values, digest_size=8).digest())

    def _apply(self, layer: int, at: Positions, target: int, before: Any, after: Any, expected: Any) -> None:
        """Do to `expected` what is listed, and count the listed bits that `after` has as they must be."""
        if layer not in self._listed:
            return
        places, rows = self._listed[layer]
        place = self._places(at.entry, at.step, at.token)
        first, last = np.searchsorted(places, place, "left"), np.searchsorted(places, place, "right")
        n, number = _tokens(first, last - first)
        mine = self.columns["target"][rows[number]] == target
        n, row = n[mine], rows[number[mine]]
        kv, head, elem = (self.columns[name][row] for name in ("kv", "head", "elem"))
        head = head.astype(np.int64) - self.first_head
        where = kv, n, head, elem
        op, shift = self.columns["op"][row], self.columns["bit"][row].astype(np.uint32)
        bit = np.uint32(1) << shift
        for code, change, bits in (
            (0, np.bitwise_xor, bit),
            (1, np.bitwise_and, ~bit),
            (2, np.bitwise_or, bit),
        ):
            if (chosen := op == code).any():
                change.at(expected, tuple(c[chosen] for c in where), bits[chosen])
        found = after[where] >> shift & 1
        wanted = np.where(op == 0, before[where] >> shift & 1 ^ 1, op == 2)
        np.add.at(self.landed, at.entry[n], (found == wanted) & at.new[n])

    def _places(self, entry: Any, step: Any, token: Any) -> NDArray[np.uint64]:
        """(entry, step, token) as one number that orders like it; beyond all listed ones if the event is not listed."""
        pair = _pair(entry, step)
        event, behind = (np.searchsorted(self._events, pair, side) for side in ("left", "right"))
        event = np.where(event == behind, len(self._events), event)
        return _pair(event, token)

    def _restart(self, entries: NDArray[np.uint32]) -> None:
        """A request that starts, perhaps after a preemption: its faults land anew."""
        self.landed[entries] = 0
        self.mismatches[entries] = 0
        self._lives[entries] += 1
        for entry in entries.tolist():
            self._logits.pop(entry, None)

    def result(self) -> dict[str, Any]:
        """Counts by entry, and with `record` the changes of each entry that has any."""
        found: dict[str, Any] = {"checked": self.checked, "landed": self.landed, "mismatches": self.mismatches}
        return found | {"changes": self._by_entry(), "logits": self._logits} if self.record else found

    def _by_entry(self) -> dict[int, dict[str, NDArray[np.int64]]]:
        if not self._changes:
            return {}
        table = np.concatenate(self._changes, axis=1)
        table = table[:, table[1] == self._lives[table[0]]]
        table = table[:, np.lexsort(table[[7, 6, 5, 4, 3, 2, 0]])]
        entries, first = np.unique(table[0], return_index=True)
        parts = np.split(table[2:], first[1:], axis=1)
        return {int(e): dict(zip(CHANGES, part, strict=True)) for e, part in zip(entries, parts, strict=True)}


def _bits(storage_format: str, values: torch.Tensor, codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Values as the bits of their float32; codes of a device's quantized cache stand for themselves."""
    if values.dtype == TORCH_DTYPES.get(storage_format):
        return _native.decode(storage_format, codes, None).view(np.uint32)
    found: NDArray[np.uint32] = values.cpu().to(torch.float32).contiguous().view(torch.int32).numpy().view(np.uint32)
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
    order = np.lexsort([columns[name] for name in reversed(CHANGES[:6])])
    return {name: column[order] for name, column in columns.items()}


def _pair(high: Any, low: Any) -> NDArray[np.uint64]:
    """Two 32-bit numbers as one that orders like them."""
    pair: NDArray[np.uint64] = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    return pair


def _tokens(start: Any, count: Any) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The numbers `start[i] .. start[i] + count[i] - 1` of all i, one after the other, each with its i."""
    count = count.astype(np.int64)
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count) + start[index]
