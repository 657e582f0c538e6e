"""Design before the run: how many trials an answer takes, when a cell may stop, what the controls can show."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

from kvspec.stats.intervals import clopper_pearson, normal_quantile

MOST_PAIRS = 10_000_000
POWER = 0.8
"""Of what a report or a plan says that so many trials can show."""


def sample_size(confidence: float, margin: float) -> int:
    """Trials that bound the error of any proportion: n = (z / 2 margin)^2, Leveugle 2009 for many possible faults.

    385 for a confidence of 0.95 and a margin of 0.05.
    """
    return ceil((normal_quantile(confidence) / (2 * margin)) ** 2)


def paired_sample_size(first: float, second: float, alpha: float, power: float) -> int | None:
    """Pairs with which McNemar's exact test tells two success rates apart; `None` beyond `MOST_PAIRS`.

    The least n that the asymptotic formula of Miettinen (1968) and Connor (1987) gives, then raised until the exact
    test, which is more careful, has the power too. Answers of a pair are taken as independent; those of one prompt and
    one set of faults agree more often than that, so the power is at least the one asked for.
    """
    up, down = first * (1 - second), second * (1 - first)
    discordant, gap = up + down, abs(up - down)
    z_alpha, z_power = normal_quantile(1 - alpha), NormalDist().inv_cdf(power)
    root = z_alpha * sqrt(discordant) + z_power * sqrt(max(0.0, discordant - gap * gap))
    low = max(1, ceil((root / gap) ** 2) if gap * gap > root * root / MOST_PAIRS else MOST_PAIRS)
    if low >= MOST_PAIRS:
        return None
    high = low
    while mcnemar_power(first, second, alpha, high) < power and high < MOST_PAIRS:
        low, high = high, ceil(high * 1.1) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(first, second, alpha, middle) >= power else (middle, high)
    return high if high < MOST_PAIRS else None


def mcnemar_power(first: float, second: float, alpha: float, pairs: int) -> float:
    """Power of McNemar's exact two-sided test over `pairs` pairs of independent answers."""
    import numpy as np
    from scipy.special import bdtr, bdtrik, gammaln, xlog1py, xlogy

    up, down = first * (1 - second), second * (1 - first)
    p = up + down
    if p == 0.0:
        return 0.0
    # Numbers of discordant pairs that matter: all others together have less than 1e-12.
    spread = 8 * sqrt(pairs * p * (1 - p)) + 8
    d = np.arange(max(0, int(pairs * p - spread)), min(pairs, ceil(pairs * p + spread)) + 1)
    log_weight = gammaln(pairs + 1) - gammaln(d + 1) - gammaln(pairs - d + 1) + xlogy(d, p) + xlog1py(pairs - d, -p)
    # The largest count of one kind that still rejects: P(X <= c) <= alpha / 2 for Binomial(d, 1/2).
    c = np.floor(np.nan_to_num(bdtrik(alpha / 2, d, 0.5), nan=-1.0) + 1e-9)
    c = np.where(bdtr(np.maximum(c, 0), d, 0.5) > alpha / 2, c - 1, c)
    share = up / p
    low = np.where(c >= 0, bdtr(np.maximum(c, 0), d, share), 0.0)
    high = np.where(c >= 0, bdtr(np.maximum(c, 0), d, 1 - share), 0.0)
    return float((np.exp(log_weight) * (low + high)).sum())


def detectable_drop(trials: int, controls: tuple[int, int], alpha: float = 0.05, power: float = POWER) -> float | None:
    """The smallest fall of accuracy below that of the controls which so many trials show with `power`.

    Fisher's exact test at `alpha`, one-sided, rejects up to some number of successes; the fall is down to the accuracy
    that gives no more of them with probability `power`. `None` where even a trial set without any success is no
    proof, for want of controls or of trials.

    Args:
        trials: of the cell.
        controls: (successes, trials) of the controls.
        alpha: of one test; divide it by the number of tests for one effect alone among many cells (Holm).
        power: probability of seeing the fall.
    """
    from scipy.special import bdtri

    from kvspec.stats.exact import fisher_greater

    k, n = controls
    if not trials or not n or fisher_greater(k, n, 0, trials) >= alpha:
        return None
    low, high = 0, trials
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fisher_greater(k, n, middle, trials) < alpha else (low, middle)
    return k / n - float(bdtri(low, trials, power))


@dataclass(frozen=True, slots=True)
class Looks:
    """When the intervals of a cell are looked at: a design that is fixed before the run."""

    confidence: float
    """Of the interval with which a cell ends, whenever it ends."""
    margin: float
    """A cell ends once its interval is no wider than twice this."""
    rounds: tuple[int, ...]
    """Trials per prompt at each look, rising; the last one is the most that a cell gets."""

    @property
    def each(self) -> float:
        """Confidence of the interval at each look: the error is split evenly over the looks (Bonferroni)."""
        return 1 - (1 - self.confidence) / len(self.rounds)

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Repeated confidence interval (Jennison & Turnbull 1984): exact at every look, so that all of them hold
        together with `confidence`, and that of the look at which a cell stopped holds whatever made it stop."""
        return clopper_pearson(k, n, self.each)

    def narrow(self, k: int, n: int) -> bool:
        """Whether the interval is narrow enough to stop."""
        if n == 0:
            return False
        low, high = self.interval(k, n)
        return high - low <= 2 * self.margin


def plan_looks(confidence: float, margin: float, looks: int, prompts: int) -> Looks:
    """Looks for cells of any accuracy.

    The first is at the n with which a cell without any mismatch is done, the last at the n that the worst accuracy, one
    half, takes; those between are spaced evenly in log n. Looks are whole rounds over all prompts, each its own.
    """
    each = 1 - (1 - confidence) / looks

    def enough(half: bool) -> int:
        low, high = 0, 1
        while not _narrow(high // 2 if half else 0, high, each, margin):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _narrow(middle // 2 if half else 0, middle, each, margin) else (middle, high)
        return high

    first, last = enough(half=False), enough(half=True)
    ratio = (last / first) ** (1 / max(1, looks - 1))
    sizes = [first * ratio**i for i in range(looks - 1)] + [last]
    return Looks(confidence, margin, tuple(sorted({ceil(size / prompts - 1e-9) for size in sizes})))


def _narrow(k: int, n: int, confidence: float, margin: float) -> bool:
    low, high = clopper_pearson(k, n, confidence)
    return high - low <= 2 * margin
