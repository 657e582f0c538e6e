"""Tests of proportions. Exact wherever that is affordable; every one says what is exchangeable under its null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, gammaln

from kvspec.stats.intervals import Difference, difference_independent, normal_quantile

ALPHA = 0.05
EXACT_UP_TO = 2_000
"""Largest count whose exact distribution `Strata` builds up; beyond it the normal approximation is as good."""

Counts = NDArray[np.int64]


def fisher_greater(k1: int, n1: int, k2: int, n2: int) -> float:
    """Fisher's exact test, one-sided: p-value of seeing k1 of n1 or more if both groups share one probability."""
    total, marked = n1 + n2, k1 + k2
    k = np.arange(k1, min(n1, marked) + 1)
    log_p = _log_choose(n1, k) + _log_choose(n2, marked - k) - _log_choose(total, np.array([marked]))
    return float(min(1.0, np.exp(log_p).sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test (1947), two-sided: do two treatments of the same trials succeed equally often?

    Conditional on the discordant pairs, either kind is as likely under the null: Binomial(b + c, 1/2), doubled.
    """
    fewer, discordant = min(only_first, only_second), only_first + only_second
    return float(min(1.0, 2 * bdtr(fewer, discordant, 0.5))) if discordant else 1.0


@dataclass(frozen=True, slots=True)
class Strata:
    """Successes of two groups per stratum, each `[S]`: trials of one prompt against controls of the same prompt.

    The exact conditional test of a common odds ratio of 1 (Gart 1970): inside a stratum trials and controls are
    exchangeable under the null, so its successes fall on them as in a draw without replacement, and their sum over
    the strata is a convolution of hypergeometric distributions. With one trial and one control in every stratum it is
    McNemar's exact test; it needs no stratum to be like another, and uses no control twice.
    """

    k1: Counts
    n1: Counts
    k2: Counts
    n2: Counts

    @classmethod
    def of(cls, k1: ArrayLike, n1: ArrayLike, k2: ArrayLike, n2: ArrayLike) -> Strata:
        """Take counts in; strata that hold only one group say nothing and are left out."""
        columns = [np.asarray(column, np.int64) for column in (k1, n1, k2, n2)]
        kept = (columns[1] > 0) & (columns[3] > 0)
        return cls(*(column[kept] for column in columns))

    def less(self) -> float:
        """One-sided p-value of the first group succeeding as rarely as it did, or more rarely."""
        if not len(self.k1):
            return 1.0
        # Counting the failures of the second group keeps the distribution short: controls rarely fail.
        return _few(self.n2 - self.k2, self.n2, self.n1 - self.k1, self.n1)

    def greater(self) -> float:
        """One-sided p-value of the first group succeeding as often as it did, or more often."""
        return Strata(self.k2, self.n2, self.k1, self.n1).less()

    def different(self) -> float:
        """Two-sided p-value: the smaller of the two sides, doubled."""
        return min(1.0, 2 * min(self.less(), self.greater()))

    def least(self) -> float:
        """The least two-sided p that these margins can give: that of all successes on one side."""
        marked, total = self.k1 + self.k2, self.n1 + self.n2
        ends = []
        for k in (np.maximum(0, marked - self.n2), np.minimum(marked, self.n1)):
            log_p = _log_choose(self.n1, k) + _log_choose(self.n2, marked - k) - _log_choose(total, marked)
            ends.append(float(np.exp(log_p.sum())))
        return min(1.0, 2 * min(ends))

    def difference(self) -> Difference | None:
        """Success of the first group less that of the second, common to all strata, with its 95 % interval.

        Mantel-Haenszel weights; the variance of Sato (1989) holds for few large strata and for many small ones. Where
        it is 0, as no stratum holds two answers in one group, the interval spans that of independent samples.
        `None` without a stratum in which one trial succeeds and one fails: such strata tell nothing apart.
        """
        marked = self.k1 + self.k2
        if not ((marked > 0) & (marked < self.n1 + self.n2)).any():
            return None
        k1, n1, k2, n2 = (column.astype(float) for column in (self.k1, self.n1, self.k2, self.n2))
        total = n1 + n2
        weight = (n1 * n2 / total).sum()
        value = float(((k1 * n2 - k2 * n1) / total).sum() / weight)
        spread = (n1**2 * k2 - n2**2 * k1 + n1 * n2 * (n2 - n1) / 2) / total**2
        rest = (k1 * (n2 - k2) + k2 * (n1 - k1)) / (2 * total)
        variance = float(value * spread.sum() + rest.sum()) / weight**2
        if variance <= 0:
            pooled = difference_independent(*(int(column.sum()) for column in (self.k1, self.n1, self.k2, self.n2)))
            return Difference(value, min(value, pooled.low), max(value, pooled.high))
        half = normal_quantile(0.95) * sqrt(variance)
        return Difference(value, max(-1.0, value - half), min(1.0, value + half))


def _few(x1: Counts, n1: Counts, x2: Counts, n2: Counts) -> float:
    """P(sum of hypergeometric counts of group 1 <= the observed sum), given both margins of every stratum."""
    marked, total = x1 + x2, n1 + n2
    open_ = (marked > 0) & (marked < total)
    x1, n1, n2, marked, total = (column[open_] for column in (x1, n1, n2, marked, total))
    least = np.maximum(0, marked - n2)
    if not len(x1):
        return 1.0
    seen = int(x1.sum() - least.sum())
    if seen > EXACT_UP_TO:
        return _few_normal(int(x1.sum()), n1, marked, total)
    if seen == 0:
        log_p = _log_choose(n1, least) + _log_choose(n2, marked - least) - _log_choose(total, marked)
        return float(min(1.0, np.exp(log_p.sum())))
    alive = np.ones(1)
    for low, n, other, m in zip(least.tolist(), n1.tolist(), n2.tolist(), marked.tolist(), strict=True):
        k = np.arange(low, min(n, m, low + seen) + 1)
        log_p = _log_choose(n, k) + _log_choose(other, m - k) - _log_choose(n + other, np.array([m]))
        alive = np.convolve(alive, np.exp(log_p))[: seen + 1]
    return float(min(1.0, alive.sum()))


def _few_normal(seen: int, n1: Counts, marked: Counts, total: Counts) -> float:
    """Mantel & Haenszel (1959) with continuity correction."""
    n, m, t = n1.astype(float), marked.astype(float), total.astype(float)
    mean = (n * m / t).sum()
    variance = (n * m * (t - n) * (t - m) / (t * t * np.maximum(t - 1, 1))).sum()
    return NormalDist().cdf((seen + 0.5 - mean) / np.sqrt(variance)) if variance > 0 else 1.0


def _log_choose(n: int | Counts, k: Counts) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.where((k < 0) | (k > n), -np.inf, result)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def cochran_armitage(k: Sequence[int], n: Sequence[int]) -> tuple[float, float] | None:
    """Cochran-Armitage trend test over ordered groups scored 0, 1, 2, ...

    Returns:
        (z, p): z below 0 if the proportion falls along the order, p one-sided for falling. `None` if all groups
        together hold only successes or only failures, so that there is nothing to test.
    """
    hits, sizes = np.asarray(k, float), np.asarray(n, float)
    scores = np.arange(len(sizes), dtype=float)
    total, p = sizes.sum(), hits.sum() / sizes.sum()
    spread = (sizes * scores**2).sum() - (sizes * scores).sum() ** 2 / total
    variance = p * (1 - p) * spread
    if variance <= 0:
        return None
    z = float((scores * (hits - sizes * p)).sum() / np.sqrt(variance))
    return z, NormalDist().cdf(z)
