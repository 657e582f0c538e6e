"""Proportions and the few tests the report rests on. Plain formulas, checked against scipy in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import gammaln

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Proportion:
    """k of n with its Wilson interval. Where n is 0 there is no rate and no interval."""

    k: int
    n: int
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the 95 % interval."""

    @classmethod
    def of(cls, k: int, n: int) -> Proportion:
        """k of n, with the interval at 95 %."""
        low, high = wilson_interval(k, n) if n else (None, None)
        return cls(int(k), int(n), low, high)

    @property
    def rate(self) -> float | None:
        """k / n, or `None` if n is 0."""
        return self.k / self.n if self.n else None


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927), without continuity correction.

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, z2n = successes / trials, z * z / trials
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * sqrt(p * (1 - p) / trials + z2n / (4 * trials)) / (1 + z2n)
    # At 0 and n the end is 0 and 1 exactly; rounding must not leave it a hair inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def fisher_greater(k1: int, n1: int, k2: int, n2: int) -> float:
    """Fisher's exact test, one-sided: p-value of seeing k1 of n1 or more if both groups share one probability."""
    total, marked = n1 + n2, k1 + k2
    k = np.arange(k1, min(n1, marked) + 1)
    log_p = _log_choose(n1, k) + _log_choose(n2, marked - k) - _log_choose(total, np.array([marked]))
    return float(min(1.0, np.exp(log_p).sum()))


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    result: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.where((k < 0) | (k > n), -np.inf, result)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
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
