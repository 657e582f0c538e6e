"""The start-up canary: one real request whose whole cache is compared with an independent expectation.

Everything that could be silently wrong is checked on real data before a campaign starts: the probed layout, the block
table, the row order, the layer index, the rounding to the storage format, and the flips themselves. The expectation
comes from the rounded projection outputs and from `Sampler.enumerate`; the cache is read by plain tensor indexing.
Neither uses the injector's own address arithmetic or its step sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec.engine.vllm.step import Step
from kvspec.engine.vllm.storage import Rows, Written

Read = Callable[[NDArray[Any], NDArray[Any]], Rows]
"""(rows of the batch `[n]`, positions `[n]`) -> these positions as they lie in the cache."""


class Watch(Protocol):
    """Looks at every cache write, right after its faults were injected."""

    def check(self, layer: int, step: Step, written: Written, read: Read) -> None:
        """Compare the cache of one layer with what has just been written, before its faults."""

    def check_read(self, layer: int, step: Step, read: Read, *, exposed: bool) -> None:
        """Look at the cache of one layer right before attention reads it, or right after (`exposed` false)."""

    def logits(self, step: Step, logits: torch.Tensor) -> None:
        """Look at the logits of a step, `[rows, vocabulary]`."""

    def result(self) -> dict[str, Any]:
        """What was seen so far."""


@dataclass
class CanaryWatch:
    """Follows one table entry through the engine and keeps, per layer, what its cache must hold."""

    entry: int
    storage_format: str
    masks: NDArray[np.uint32]
    """`[L, 2, T, H, D]`: planned flips of each element when it is written; D is 1 if they are of scales."""
    read_masks: dict[int, NDArray[np.uint32]] = field(default_factory=dict)
    """The same for the reads of each step, `[L, 2, step, H, D]`; empty where reads have no faults."""
    target: str = "values"
    """What the masks are of: values or scales."""
    checked: int = 0
    """Codes and scales compared after writes."""
    checked_reads: int = 0
    """Codes and scales compared before and after attention."""
    mismatches: int = 0
    first_mismatch: str | None = None
    _expected: dict[int, _State] = field(default_factory=dict)
    """By layer, the tokens so far."""

    def check(self, layer: int, step: Step, written: Written, read: Read) -> None:
        """Compare the entry's whole cache in one layer, right after the write and injection of a step.

        `written` is what the step stored, before the injection. Steps that ran inside a captured graph are not seen
        here; later ones are then left alone.
        """
        at = np.flatnonzero(step.entry == self.entry)
        if not len(at):
            return
        i = int(at[0])
        start, count = int(step.start[i]), int(step.count[i])
        before = self._expected.get(layer)
        if start != (0 if before is None else before.codes.shape[1]):
            return
        # Rows of the step are contiguous in the projection outputs, in row order; the canary runs alone.
        first = int(step.count[:i].sum())
        clean = self._state(written.rows.take(slice(first, first + count)))
        expected = clean.flipped(self.target, self.masks[layer, :, start : start + count])
        if before is not None:
            expected = before.followed_by(expected)
        self._expected[layer] = expected
        self.checked += self._compare(layer, int(step.row[i]), expected, read, "written")

    def of_heads(self, heads: slice) -> CanaryWatch:
        """The watch of a tensor-parallel rank that holds these KV heads."""
        reads = {step: masks[:, :, :, heads] for step, masks in self.read_masks.items()}
        return replace(self, masks=self.masks[:, :, :, heads], read_masks=reads)

    def check_read(self, layer: int, step: Step, read: Read, *, exposed: bool) -> None:
        """Compare the same cache right before the attention of a step, or right after it (`exposed` false).

        Before, it must hold the flips of the read event as well; after, exactly what was written.
        """
        at = np.flatnonzero(step.entry == self.entry)
        if not self.read_masks or not len(at):
            return
        i = int(at[0])
        seen = int(step.start[i] + step.count[i])
        expected = self._expected.get(layer)
        if expected is None or expected.codes.shape[1] != seen:
            return
        if exposed:
            # A chunk of the prefill reads the event of the whole prompt, as far as it is there.
            event = max(seen, min(self.read_masks))
            expected = expected.flipped(self.target, self.read_masks[event][layer, :, :seen])
        when = "read" if exposed else "left by the read"
        self.checked_reads += self._compare(layer, int(step.row[i]), expected, read, when)

    def _compare(self, layer: int, row: int, expected: _State, read: Read, when: str) -> int:
        tokens = np.arange(expected.codes.shape[1])
        found = self._state(read(np.full_like(tokens, row), tokens))
        checked = 0
        for what, stored, wanted in (("code", found.codes, expected.codes), ("scale", found.scales, expected.scales)):
            if stored is None or wanted is None:
                continue
            checked += stored.size
            wrong = stored != wanted
            self.mismatches += int(wrong.sum())
            if wrong.any() and self.first_mismatch is None:
                where = tuple(int(x) for x in np.argwhere(wrong)[0])
                kv, token, head, *dim = where
                self.first_mismatch = (
                    f"layer {layer}, {'KV'[kv]}, head {head}, token {token}"
                    + "".join(f", element {x}" for x in dim)
                    + f": {what} {stored[where]:#x} {when}, expected {wanted[where]:#x}"
                )
        return checked

    def _state(self, rows: Rows) -> _State:
        """Codes and scales. A value that they do not stand for is a mismatch."""
        codes, lost = rows.stored(self.storage_format)
        if lost.any():
            self.mismatches += int(lost.sum())
            self.first_mismatch = self.first_mismatch or f"{int(lost.sum())} values are not {self.storage_format}"
        return _State(codes, rows.scales)

    def logits(self, step: Step, logits: torch.Tensor) -> None:
        """The canary looks at the cache alone."""

    def result(self) -> dict[str, Any]:
        """Counts for the campaign and the fingerprint."""
        return {
            "checked": self.checked,
            "checked_reads": self.checked_reads,
            "mismatches": self.mismatches,
            "first_mismatch": self.first_mismatch,
        }


@dataclass(frozen=True)
class _State:
    """What a cache holds of some tokens."""

    codes: NDArray[np.uint32]
    """`[2, tokens, H, D]`"""
    scales: NDArray[np.uint32] | None
    """`[2, tokens, H]`"""

    def flipped(self, target: str, masks: NDArray[np.uint32]) -> _State:
        """With `[2, tokens, H, D]` bits of the codes flipped, or `[2, tokens, H, 1]` of the scales."""
        if target == "values":
            return _State(self.codes ^ masks, self.scales)
        assert self.scales is not None
        return _State(self.codes, self.scales ^ masks[..., 0])

    def followed_by(self, later: _State) -> _State:
        """The tokens of both."""
        codes = np.concatenate([self.codes, later.codes], axis=1)
        if self.scales is None or later.scales is None:
            return _State(codes, None)
        return _State(codes, np.concatenate([self.scales, later.scales], axis=1))
