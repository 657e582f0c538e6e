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

from kvspec import _native
from kvspec.engine.vllm.step import Step
from kvspec.engine.vllm.storage import Written

Read = Callable[[NDArray[Any], NDArray[Any]], torch.Tensor]
"""(rows of the batch `[n]`, positions `[n]`) -> these positions as they lie in the cache, `[2, n, H, D]`."""


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
    """`[L, 2, T, H, D]`: planned flips of each element when it is written."""
    read_masks: dict[int, NDArray[np.uint32]] = field(default_factory=dict)
    """The same for the reads of each step, `[L, 2, step, H, D]`; empty where reads have no faults."""
    checked: int = 0
    """Elements compared after writes."""
    checked_reads: int = 0
    """Elements compared before and after attention."""
    mismatches: int = 0
    first_mismatch: str | None = None
    _expected: dict[int, NDArray[np.uint32]] = field(default_factory=dict)
    """Stored codes by layer, `[2, tokens so far, H, D]`."""
    _scales: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Scales of scaled formats by layer, `[2, tokens so far, H]`."""

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
        if start != (0 if before is None else before.shape[1]):
            return
        # Rows of the step are contiguous in the projection outputs, in row order; the canary runs alone.
        first = int(step.count[:i].sum())
        rows = slice(first, first + count)
        scales = None if written.scales is None else written.scales[:, rows]
        values = torch.stack([written.key[rows], written.value[rows]])
        codes = self._codes(values, scales) ^ self.masks[layer, :, start : start + count]
        expected = codes if before is None else np.concatenate([before, codes], axis=1)
        self._expected[layer] = expected
        if scales is not None:
            scales = scales if before is None else np.concatenate([self._scales[layer], scales], axis=1)
            self._scales[layer] = scales
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
        if expected is None or expected.shape[1] != seen:
            return
        if exposed:
            # A chunk of the prefill reads the event of the whole prompt, as far as it is there.
            event = max(seen, min(self.read_masks))
            expected = expected ^ self.read_masks[event][layer, :, :seen]
        when = "read" if exposed else "left by the read"
        self.checked_reads += self._compare(layer, int(step.row[i]), expected, read, when)

    def _compare(self, layer: int, row: int, expected: NDArray[np.uint32], read: Read, when: str) -> int:
        tokens = np.arange(expected.shape[1])
        stored = self._codes(read(np.full_like(tokens, row), tokens), self._scales.get(layer))
        wrong = stored != expected
        if wrong.any():
            self.mismatches += int(wrong.sum())
            if self.first_mismatch is None:
                where = tuple(int(x) for x in np.argwhere(wrong)[0])
                kv, token, head, dim = where
                self.first_mismatch = (
                    f"layer {layer}, {'KV'[kv]}, head {head}, token {token}, element {dim}: "
                    f"code {stored[where]:#x} {when}, expected {expected[where]:#x}"
                )
        return int(wrong.size)

    def _codes(self, values: torch.Tensor, scales: NDArray[np.float32] | None) -> NDArray[np.uint32]:
        """Values `[..., D]`, or codes as they are, as codes of the storage format. A value that the format cannot hold
        is a mismatch: it would be rounded here and hide a difference."""
        if not values.is_floating_point():
            codes: NDArray[np.uint32] = values.cpu().numpy().astype(np.uint32)
            return codes
        held = values.detach().to("cpu", torch.float32).contiguous().numpy()
        codes = _native.encode(self.storage_format, held, scales)
        decoded = _native.decode(self.storage_format, codes, scales)
        if lost := int((decoded.view(np.uint32) != held.view(np.uint32)).sum()):
            self.mismatches += lost
            self.first_mismatch = self.first_mismatch or f"{lost} values are not {self.storage_format}"
        return codes

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
