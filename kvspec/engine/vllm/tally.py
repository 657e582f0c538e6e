"""What happened to each trial, counted where it happened."""

from __future__ import annotations

import numpy as np

from kvspec import _native
from kvspec.engine.vllm.step import U32, Step

COUNTS = ("landed", "changed", "exposed", "restored", "written", "preemptions", "nonfinite_at")
FLIPS = COUNTS[:4]
"""Counts of bits."""


class Tally:
    """What happened to each table entry, counted where it happened."""

    def __init__(self, entries: int) -> None:
        self.landed = np.zeros(entries, dtype=np.uint64)
        """Sites that were read back in their faulty state; those of reads once per read event."""
        self.changed = np.zeros(entries, dtype=np.uint64)
        """Bits among them that differ between the stored code before the injection and the code read back after it."""
        self.exposed = np.zeros(entries, dtype=np.uint64)
        """Bits that reads changed, in every forward."""
        self.restored = np.zeros(entries, dtype=np.uint64)
        """Bits that were put back after the read."""
        self.written = np.zeros(entries, dtype=np.uint32)
        """Token positions written to the cache."""
        self.preemptions = np.zeros(entries, dtype=np.uint32)
        self.nonfinite_at = np.full(entries, -1, dtype=np.int32)
        """First generated token whose logits were not finite, -1 if all were."""

    def begin(self, step: Step) -> None:
        """Count the positions of a step. A request that starts over was preempted: its faults land anew."""
        again = step.entry[(step.start == 0) & (self.written[step.entry] > 0)]
        self.preemptions[again] += 1
        for name in FLIPS:
            getattr(self, name)[again] = 0
        self.nonfinite_at[again] = -1
        self.written[step.entry] = step.start + step.count

    def add(self, entry: U32, faults: _native.StepFaults) -> None:
        """Take in what the faults of a step did, one row per entry."""
        for name in FLIPS:
            np.add.at(getattr(self, name), entry, getattr(faults, name))

    def of(self, entries: list[int]) -> dict[str, list[int]]:
        """The counts of some entries as plain lists."""
        return {name: getattr(self, name)[entries].tolist() for name in COUNTS}
