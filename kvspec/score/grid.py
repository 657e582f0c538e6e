"""Every fault trial in one byte: what paired tests, clusters and comparisons of runs are counted from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvspec.score.outcome import DUE
from kvspec.score.trials import TrialScores

SCORED, EXACT, WAS_DUE = 1, 2, 4

Counts = NDArray[np.int64]


class Grid:
    """What became of each trial, by its identity, and of the controls of each request."""

    def __init__(self, cells: int, prompts: Sequence[str], per_prompt: int) -> None:
        """Start with no trial. `per_prompt` is the most trials of a cell and prompt."""
        self.flags = np.zeros((cells, len(prompts), per_prompt), np.uint8)
        """`[cells, requests, per_prompt]`: sum of `SCORED`, `EXACT` and `WAS_DUE`; 0 for a trial without a score."""
        self.controls = np.zeros((2, len(prompts)), np.int64)
        """Controls that equal golden, and all scored controls, per request."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        self.cluster = np.array([numbers[text] for text in prompts], np.int64)
        """`[requests]`: requests with the same text are one cluster, for their answers are one answer."""

    @property
    def clusters(self) -> int:
        """Number of different prompts."""
        return int(self.cluster.max(initial=-1)) + 1

    def add(self, batch: TrialScores, scored: NDArray[np.bool_], trial: NDArray[np.uint32]) -> None:
        """Take in the fault trials `scored` of a batch, which are in the plan."""
        value = SCORED + EXACT * batch.exact + WAS_DUE * (batch.outcome == DUE)
        self.flags[batch.cell[scored], batch.request[scored], trial[scored]] = value[scored].astype(np.uint8)

    def add_controls(self, request: NDArray[np.uint32], exact: NDArray[np.bool_]) -> None:
        """Take in scored controls."""
        requests = self.controls.shape[1]
        self.controls[0] += np.bincount(request[exact], minlength=requests)
        self.controls[1] += np.bincount(request, minlength=requests)

    def counts(self, cell: int, flag: int = EXACT) -> tuple[Counts, Counts]:
        """(trials with `flag`, scored trials) of a cell per cluster, `[clusters]`."""
        flags = self.flags[cell]
        flagged = np.count_nonzero(flags & flag, axis=1)
        return self._join(flagged), self._join(np.count_nonzero(flags & SCORED, axis=1))

    def control_counts(self) -> tuple[Counts, Counts]:
        """(controls that equal golden, scored controls) per cluster, `[clusters]`."""
        return self._join(self.controls[0]), self._join(self.controls[1])

    def _join(self, per_request: NDArray[np.int64]) -> Counts:
        return np.bincount(self.cluster, weights=per_request, minlength=self.clusters).astype(np.int64)


def discordant(first: NDArray[np.uint8], second: NDArray[np.uint8], flag: int) -> tuple[int, int, int, int]:
    """Compare two cells trial by trial: (both, only the first, only the second, pairs) with `flag`.

    Pairs are the trials that are scored on both sides. Both arrays are `[requests, trials]`; trials that only one of
    them has are left out.
    """
    trials = min(first.shape[1], second.shape[1])
    a, b = first[:, :trials], second[:, :trials]
    pairs = (a & b & SCORED) > 0
    in_a, in_b = pairs & ((a & flag) > 0), pairs & ((b & flag) > 0)
    both = int(np.count_nonzero(in_a & in_b))
    return both, int(np.count_nonzero(in_a)) - both, int(np.count_nonzero(in_b)) - both, int(np.count_nonzero(pairs))
