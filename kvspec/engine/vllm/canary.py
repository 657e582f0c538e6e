"""The start-up canary: one real request whose whole cache is compared with an independent expectation.

Everything that could be silently wrong is checked on real data before a campaign starts: the probed layout, the block
table, the row order, the layer index, the rounding to the storage format, and the flips themselves. The expectation
comes from the projection outputs and from `Sampler.enumerate`; the cache is read by plain tensor indexing. Neither
uses the injector's own address arithmetic or its step sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.vllm.layout import Layout
from kvspec.engine.vllm.step import Step


@dataclass
class CanaryWatch:
    """Follows one table entry through the engine and keeps, per layer, what its cache must hold."""

    entry: int
    storage_format: str
    masks: NDArray[np.uint32]
    """`[L, 2, T, H, D]`: planned flips of each element."""
    checked: int = 0
    """Elements compared so far."""
    flipped: int = 0
    """Elements among them that differ from the fault-free value."""
    mismatches: int = 0
    first_mismatch: str | None = None
    _expected: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def check(
        self,
        layer: int,
        step: Step,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: NDArray[np.int32],
        layout: Layout,
    ) -> None:
        """Compare the entry's whole cache in one layer, right after the write and injection of a step."""
        at = np.flatnonzero(step.entry == self.entry)
        if not len(at):
            return
        i = int(at[0])
        start, count = int(step.start[i]), int(step.count[i])
        # Rows of the step are contiguous in the projection outputs, in row order; the canary runs alone.
        first = int(step.count[:i].sum())
        written = torch.stack([key[first : first + count], value[first : first + count]]).numpy()
        faulty = self._flip(written, self.masks[layer, :, start : start + count])
        self.flipped += int((faulty.view(np.uint32) != written.view(np.uint32)).sum())
        before = self._expected.get(layer)
        expected = faulty if before is None or start == 0 else np.concatenate([before, faulty], axis=1)
        self._expected[layer] = expected
        tokens = np.arange(expected.shape[1])
        blocks = block_table[step.row[i], tokens // layout.block_tokens]
        inside = layout.offsets[:, tokens % layout.block_tokens]
        flat = kv_cache.reshape(-1)
        address = torch.from_numpy(blocks.astype(np.int64))[None, :, None, None] * kv_cache.stride(0)
        stored = flat[address + torch.from_numpy(inside)].numpy()
        wrong = stored.view(np.uint32) != expected.view(np.uint32)
        self.checked += wrong.size
        if wrong.any():
            self.mismatches += int(wrong.sum())
            if self.first_mismatch is None:
                kv, token, head, dim = (int(x) for x in np.argwhere(wrong)[0])
                self.first_mismatch = (
                    f"layer {layer}, {'KV'[kv]}, head {head}, token {token}, element {dim}: "
                    f"stored {stored[kv, token, head, dim]!r}, expected {expected[kv, token, head, dim]!r}"
                )

    def _flip(self, values: NDArray[np.float32], masks: NDArray[np.uint32]) -> NDArray[np.float32]:
        codes = _native.encode(self.storage_format, np.ascontiguousarray(values).reshape(-1))
        flipped = _native.decode(self.storage_format, codes ^ masks.reshape(-1))
        return flipped.reshape(values.shape)

    def result(self) -> dict[str, int | str | None]:
        """Counts for the campaign and the fingerprint."""
        return {
            "checked": self.checked,
            "flipped": self.flipped,
            "mismatches": self.mismatches,
            "first_mismatch": self.first_mismatch,
        }
