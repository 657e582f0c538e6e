"""Two tasks of the same operands over all cells together: what no single comparison has the trials to show.

A comparison under one fault of some hundred pairs shows differences of about ten points. All cells together bound the
difference within one or two, and say whether a retrieval that is only longer fails as often as reasoning does. Trials
of one item resemble each other, under one fault and under many: items are the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvspec.stats.bootstrap import cluster_difference
from kvspec.stats.intervals import Difference


@dataclass(frozen=True, slots=True)
class PooledPair:
    """Failures of two tasks on the items that the clean model solves in both, over all cells."""

    context: int
    first: str
    """A retrieval task."""
    second: str
    """A reasoning task, or another retrieval task, that needs the same operands."""
    pairs: int
    """Trial t of an item in the one, and in the other."""
    items: int
    lost: tuple[int, int]
    """Pairs in which the first, and in which the second is wrong."""
    detected: tuple[int, int]
    """Of these the detected errors (due): most are logits that are not finite."""
    difference: Difference | None
    """Share lost of the second less that of the first, whole items resampled (`kvspec.stats.bootstrap`); `None` with
    fewer than two items."""

    def __str__(self) -> str:
        """`+1.0% [-0.1%, +2.1%]`."""
        found = self.difference
        return "-" if found is None else f"{found.value:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def pooled(
    context: int, names: tuple[str, str], seen: NDArray[np.bool_], wrong: NDArray[np.bool_], due: NDArray[np.bool_]
) -> PooledPair:
    """Of trials `seen` in both `[C, I, T]` (cells, items, trials), and of those that are wrong, and detected errors, in
    either `[2, C, I, T]`."""
    lost = (wrong & seen).sum(axis=(1, 3))
    n = seen.sum(axis=(0, 2))
    pairs, (first, second) = int(n.sum()), lost.sum(axis=1).tolist()
    ends = cluster_difference(lost[::-1], np.stack([n, n]))
    detected = (wrong & due & seen).sum(axis=(1, 2, 3)).tolist()
    return PooledPair(
        context, *names, pairs, int(np.count_nonzero(n)), (first, second), (detected[0], detected[1]),
        None if ends is None else Difference((second - first) / pairs, *ends),
    )  # fmt: skip
