"""Intervals of proportions, of their differences and of their ratios. Two-sided, 95 % unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Proportion:
    """k of n with its interval. Where n is 0 there is no rate and no interval."""

    k: int
    n: int
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""

    @classmethod
    def of(cls, k: int, n: int) -> Proportion:
        """k of n, with Wilson's interval at 95 %."""
        low, high = wilson_interval(k, n) if n else (None, None)
        return cls(int(k), int(n), low, high)

    @property
    def rate(self) -> float | None:
        """k / n, or `None` if n is 0."""
        return self.k / self.n if self.n else None


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two proportions with its interval, between -1 and 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of two proportions with its interval.

    `value` is `None` where the denominator is 0: the ratio is then infinite, and all that is known is that it lies
    above `low`. `high` is `None` where no upper bound follows from the counts.
    """

    value: float | None
    low: float
    high: float | None

    def __str__(self) -> str:
        """`3.2 [2.1, 5.0]`; `> 2.1` where the ratio is infinite."""
        if self.value is None:
            return f"> {self.low:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {'inf' if self.high is None else format(self.high, '.3g')}]"


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927), without continuity correction.

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)
    """
    _check(successes, trials)
    return _score_ends(successes, trials, normal_quantile(confidence))


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval of a binomial proportion (Clopper & Pearson 1934): covers at least `confidence` for every p."""
    from scipy.special import betaincinv

    _check(successes, trials)
    tail, k, n = (1 - confidence) / 2, successes, trials
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def difference_independent(k1: int, n1: int, k2: int, n2: int, confidence: float = CONFIDENCE) -> Difference:
    """k1/n1 - k2/n2 of two independent samples: hybrid score interval (Newcombe 1998, method 10)."""
    p1, p2 = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = wilson_interval(k1, n1, confidence), wilson_interval(k2, n2, confidence)
    d = p1 - p2
    return Difference(
        d,
        max(-1.0, d - sqrt((p1 - low1) ** 2 + (high2 - p2) ** 2)),
        min(1.0, d + sqrt((high1 - p1) ** 2 + (p2 - low2) ** 2)),
    )


def difference_paired(only_first: int, only_second: int, pairs: int, confidence: float = CONFIDENCE) -> Difference:
    """p1 - p2 of two answers to the same `pairs` questions: adjusted Wald interval (Bonett & Price 2012).

    Args:
        only_first: pairs in which only the first succeeded.
        only_second: pairs in which only the second did.
        pairs: all of them.
        confidence: of the interval.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > pairs or pairs == 0:
        raise ValueError(f"{only_first} and {only_second} of {pairs} are not discordant pairs")
    a, b = (only_first + 1) / (pairs + 2), (only_second + 1) / (pairs + 2)
    half = normal_quantile(confidence) * sqrt((a + b - (a - b) ** 2) / (pairs + 2))
    centre, value = a - b, (only_first - only_second) / pairs
    return Difference(value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)))


def ratio_paired(both: int, only_first: int, only_second: int, confidence: float = CONFIDENCE) -> Ratio | None:
    """p1 / p2 of two events watched in the same trials: hybrid score interval (Bonett & Price 2006).

    The sensitivity ratio of two tasks on common items is `p1` = share of items that the first task fails, `p2` = share
    that the second one fails: above 1 the first breaks first. Trials in which neither happens do not enter the ratio.

    Returns:
        `None` if neither event ever happened: there is no ratio then, nor a bound of one.
    """
    n, x1, x2 = both + only_first + only_second, both + only_first, both + only_second
    if min(both, only_first, only_second) < 0:
        raise ValueError("a count of trials is negative")
    if n == 0:
        return None
    spread = sqrt((only_first + only_second + 2) / ((x1 + 1) * (x2 + 1)))
    return _ratio(x1, n, x2, n, spread, 2, confidence)


def ratio_independent(k1: int, n1: int, k2: int, n2: int, confidence: float = CONFIDENCE) -> Ratio | None:
    """(k1/n1) / (k2/n2) of two independent samples: the same hybrid as `ratio_paired`, without a covariance.

    Returns:
        `None` if k1 and k2 are both 0.
    """
    _check(k1, n1)
    _check(k2, n2)
    if k1 == k2 == 0:
        return None
    a, b = (k1 + 1) / (n1 + 2), (k2 + 1) / (n2 + 2)
    spread = sqrt((1 - a) / (k1 + 1) + (1 - b) / (k2 + 1))
    return _ratio(k1, n1, k2, n2, spread, 2, confidence)


def _ratio(x1: int, n1: int, x2: int, n2: int, spread: float, added: int, confidence: float) -> Ratio:
    """Score intervals of both proportions, at a confidence such that their corners give that of the log ratio."""
    separate = sqrt((1 - (x1 + 1) / (n1 + added)) / (x1 + 1)) + sqrt((1 - (x2 + 1) / (n2 + added)) / (x2 + 1))
    z = normal_quantile(confidence) * spread / separate
    (low1, high1), (low2, high2) = _score_ends(x1, n1, z), _score_ends(x2, n2, z)
    value = (x1 / n1) / (x2 / n2) if x2 else None
    return Ratio(value, low1 / high2, high1 / low2 if low2 > 0 else None)


def normal_quantile(confidence: float) -> float:
    """z with P(|Z| <= z) = confidence: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _score_ends(k: int, n: int, z: float) -> tuple[float, float]:
    p, z2n = k / n, z * z / n
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * sqrt(p * (1 - p) / n + z2n / (4 * n)) / (1 + z2n)
    # At 0 and n the end is 0 and 1 exactly; rounding must not leave it a hair inside.
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


def _check(k: int, n: int) -> None:
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a proportion")
