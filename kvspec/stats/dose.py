"""Dose and response: a logistic curve in the logarithm of the dose, between a ceiling and a floor.

    p(d) = c + (u - c) / (1 + (d / EC50)^h)

`u` is the accuracy without a dose, `c` that of a dose without end, EC50 the dose in the middle between the two and `h`
the steepness. Fitted by maximum likelihood of the binomial counts. `c` is 0 unless a likelihood-ratio test shows that
accuracy levels off above it: where it has only begun to fall, any level would fit, and half of the way to it would mean
nothing. The interval of EC50 is that of its profile likelihood, which stays open where the doses do not bound it.

Where a step describes the counts as well (likelihood-ratio test), no dose lies on the slope: EC50 is then anywhere
between two doses, and neither a value, nor a curve, nor the normal approximation of its band means anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import chdtrc, chdtri, expit, stdtrit

from kvspec.stats.intervals import CONFIDENCE, normal_quantile

FEWEST_DOSES = 3
CURVE_POINTS = 33
BEYOND = log(10.0)
"""How far outside the measured doses, in log dose, an end of the interval is believed: beyond only the model speaks."""
STEEPNESS = (0.1, 30.0)
"""A step is a steepness without end; beyond 30 no spacing of doses can tell."""
EDGE = 1e-9
RIDGE = 1e-6
"""Keeps the covariance finite where the doses say nothing about a parameter; its variance is then as good as none."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a fitted curve with its pointwise band."""

    dose: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DoseFit:
    """A fitted curve. Where EC50 lies outside the measured doses, or between two of them with none on the slope, there
    is no value, only what bounds it."""

    ec50: float | None
    low: float | None
    """Lower end of the interval of EC50; `None`: not bounded by these doses."""
    high: float | None
    """Upper end, likewise."""
    steepness: float
    ceiling: float
    floor: float
    deviance: float
    freedom: int
    """Doses and controls less parameters; 0: the curve goes through every point whatever they are."""
    p_fit: float | None
    """p-value of the deviance: small where the curve does not describe the counts. `None` without freedom."""
    curve: tuple[CurvePoint, ...]
    """Empty for a step."""
    step: bool = False
    """No dose is shown to lie on the slope: the ends of the interval are doses then."""
    inflation: float = 1.0
    """Variance of log EC50 over that of independent trials, at least 1; what prompts that differ cost."""


def fit_dose_response(
    dose: Sequence[float],
    k: Sequence[int],
    n: Sequence[int],
    controls: tuple[int, int] = (0, 0),
    clusters: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    confidence: float = CONFIDENCE,
) -> DoseFit | None:
    """Fit the curve to k of n successes per dose.

    Args:
        dose: above 0, in any unit.
        k: successes per dose.
        n: trials per dose; above 0.
        controls: (successes, trials) without a dose, which measure the ceiling.
        clusters: successes and trials per dose and prompt, `[D, P]` each. The variance between prompts, which answer
            at every dose, then widens the interval (the likelihood ratio is scaled as by Rotnitzky & Jewell 1990) and
            the band (sandwich covariance).
        confidence: of the interval and of the band.

    Returns:
        `None` for fewer than three doses, and where all of them have the same accuracy.
    """
    model = _Model.of(dose, k, n, controls)
    if len(set(dose)) < FEWEST_DOSES or np.ptp(model.k[: len(dose)] / model.n[: len(dose)]) == 0:
        return None
    threshold = float(chdtri(1, 1 - confidence))
    best = model.best(0.0)
    level = model.best(1.0)
    if levels_off := 2 * (model.loss(best)[0] - model.loss(level)[0]) > threshold:
        best = level
    spread = model.spread(best, clusters)
    if spread.inflation > 1.0:
        threshold = spread.inflation * float(stdtrit(spread.prompts - 1, (1 + confidence) / 2)) ** 2
    low, high = (model.bound(best, side, threshold, float(levels_off)) for side in (-1, 1))
    if step := 2 * (model.steepest(best, float(levels_off)) - model.loss(best)[0]) <= threshold:
        low, high = model.between(low, high)
    inside = model.first <= best[0] <= model.last
    deviance = 2 * (model.loss(best)[0] - model.saturated())
    freedom = len(model.n) - 3 - levels_off
    ceiling, floor = float(best[2]), float(best[2] * best[3])
    return DoseFit(
        ec50=exp(best[0]) if inside and not step else None,
        low=None if low is None else exp(low),
        high=None if high is None else exp(high),
        steepness=exp(best[1]),
        ceiling=ceiling,
        floor=floor,
        deviance=max(0.0, deviance),
        freedom=max(0, freedom),
        p_fit=float(chdtrc(freedom, max(0.0, deviance))) if freedom > 0 else None,
        curve=() if step else model.curve(best, spread, normal_quantile(confidence)),
        step=step,
        inflation=spread.inflation,
    )


@dataclass(frozen=True)
class _Spread:
    """How uncertain an estimate is."""

    covariances: tuple[Floats, ...]
    """Of the parameters `[4, 4]`: of independent trials and, where there are clusters, the sandwich over them."""
    inflation: float
    prompts: int


@dataclass(frozen=True)
class _Model:
    """Counts and the likelihood over (log EC50, log h, u, c / u); `floor` is 0 where the last one is held at 0."""

    x: Floats
    """Log dose `[D]`; the controls stand last, at minus infinity."""
    k: Floats
    n: Floats
    first: float
    last: float

    @classmethod
    def of(cls, dose: Sequence[float], k: Sequence[int], n: Sequence[int], controls: tuple[int, int]) -> _Model:
        x = np.log(np.asarray(dose, float))
        first, last = float(x.min(initial=np.inf)), float(x.max(initial=-np.inf))
        hits, sizes = np.asarray(k, float), np.asarray(n, float)
        if controls[1]:
            x, hits, sizes = np.append(x, -np.inf), np.append(hits, controls[0]), np.append(sizes, controls[1])
        return cls(x, hits, sizes, first, last)

    def share(self, theta: Floats) -> tuple[Floats, Floats]:
        """Accuracy `[D]` and its gradient `[4, D]` in (log EC50, log h, u, c / u)."""
        middle, steep, u, r = theta
        h = np.exp(steep)
        with np.errstate(invalid="ignore"):
            z = np.where(np.isinf(self.x), np.inf, -h * (self.x - middle))
        s = expit(z)
        slope = s * (1 - s)
        inner = np.where(slope > 0, np.where(np.isinf(z), 0.0, z), 0.0)
        p = u * (r + (1 - r) * s)
        gradient = np.array([u * (1 - r) * slope * h, u * (1 - r) * slope * inner, r + (1 - r) * s, u * (1 - s)])
        return p, gradient

    def loss(self, theta: Floats) -> tuple[float, Floats]:
        """Negative log likelihood and its gradient."""
        p, gradient = self.share(theta)
        p = np.clip(p, EDGE, 1 - EDGE)
        value = -(self.k * np.log(p) + (self.n - self.k) * np.log1p(-p)).sum()
        return float(value), (gradient * ((self.n - self.k) / (1 - p) - self.k / p)).sum(axis=1)

    def saturated(self) -> float:
        """Negative log likelihood of one free accuracy per dose."""
        p = np.clip(self.k / self.n, EDGE, 1 - EDGE)
        return float(-(self.k * np.log(p) + (self.n - self.k) * np.log1p(-p)).sum())

    def _minimum(
        self,
        starts: Sequence[Floats],
        middle: tuple[float, float],
        floor: float,
        steep: tuple[float, float] = (log(STEEPNESS[0]), log(STEEPNESS[1])),
    ) -> tuple[float, Floats]:
        bounds = [middle, steep, (EDGE, 1.0), (0.0, floor)]
        found = [minimize(self.loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
        best = min(found, key=lambda one: float(one.fun))
        return float(best.fun), np.asarray(best.x)

    def best(self, floor: float) -> Floats:
        """The maximum likelihood estimate with c / u up to `floor`, from starts between neighbouring doses."""
        share = self.k / self.n
        top = max(float(share.max()), 0.01)
        ratio = float(share.min()) / top
        middles = self._middles()
        pick = np.unique(np.linspace(0, len(middles) - 1, 6).round().astype(int))
        starts = [np.array([m, s, top, ratio * 0.9 * floor]) for m in middles[pick] for s in (0.0, 1.0)]
        # Rough values first: only the most likely start deserves a long search.
        starts.sort(key=lambda start: self.loss(start)[0])
        return self._minimum(starts[:3], (self.first - BEYOND, self.last + BEYOND), floor)[1]

    def _middles(self) -> Floats:
        edges = np.unique(self.x[np.isfinite(self.x)])
        middles: Floats = (edges[:-1] + edges[1:]) / 2
        return middles

    def steepest(self, best: Floats, floor: float) -> float:
        """Negative log likelihood of the best curve of the greatest steepness: a step, for any spacing of doses."""
        steep = log(STEEPNESS[1])
        starts = [np.array([m, steep, *best[2:]]) for m in (best[0], *self._middles())]
        # A step between the wrong doses stays there, so the search starts where it does best.
        starts.sort(key=lambda start: self.loss(start)[0])
        return self._minimum(starts[:3], (self.first - BEYOND, self.last + BEYOND), floor, (steep, steep))[0]

    def between(self, low: float | None, high: float | None) -> tuple[float | None, float | None]:
        """The interval, widened to the doses around it: only those were seen."""
        doses = np.unique(self.x[np.isfinite(self.x)])
        below = [] if low is None else doses[doses <= low].tolist()
        above = [] if high is None else doses[doses >= high].tolist()
        return max(below, default=None), min(above, default=None)

    def bound(self, best: Floats, side: int, threshold: float, floor: float) -> float | None:
        """Log dose at which the profile of log EC50 has fallen by `threshold` (twice the log likelihood)."""
        at_best = self.loss(best)[0]
        near = best.copy()

        def excess(middle: float) -> float:
            nonlocal near
            starts = [np.array([middle, *theta[1:]]) for theta in (near, best)]
            value, near = self._minimum(starts, (middle, middle), floor)
            return 2 * (value - at_best) - threshold

        step, inner, outer = log(2.0) / 2, float(best[0]), float(best[0])
        limit = self.first - BEYOND if side < 0 else self.last + BEYOND
        while side * (limit - inner) > 0:
            outer = inner + side * step
            if excess(outer) > 0:
                return float(brentq(excess, *sorted((inner, outer)), xtol=1e-4, rtol=1e-6))
            inner, step = outer, step * 1.6
        return None

    def spread(self, best: Floats, clusters: tuple[NDArray[np.int64], NDArray[np.int64]] | None) -> _Spread:
        """Covariances at the estimate.

        The variance of a count is that of (n p + 1/2) / (n + 1), so that a plateau at 0 or 1 keeps a width.
        """
        p, gradient = self.share(best)
        smooth = (self.n * p + 0.5) / (self.n + 1)
        weight = gradient / (smooth * (1 - smooth))
        information = (weight * self.n) @ gradient.T
        inverse = np.asarray(np.linalg.inv(information + RIDGE * np.eye(4)), np.float64)
        prompts = 0 if clusters is None else int(np.count_nonzero(np.asarray(clusters[1]).any(axis=0)))
        if clusters is None or prompts < 2:
            return _Spread((inverse,), 1.0, prompts)
        k, n = (np.asarray(part, float) for part in clusters)
        scores = weight[:, : len(k)] @ (k - n * p[: len(k), None])
        middle = scores @ scores.T * prompts / (prompts - 1)
        # A parameter at its bound does not move, so its score says nothing about log EC50.
        free = [0, 1] + [i for i in (2, 3) if EDGE < best[i] < 1 - EDGE]
        alone = np.linalg.inv(information[np.ix_(free, free)] + RIDGE * np.eye(len(free)))
        inflation = float((alone @ middle[np.ix_(free, free)] @ alone)[0, 0] / alone[0, 0])
        return _Spread((inverse, inverse @ middle @ inverse), max(1.0, inflation), prompts)

    def curve(self, best: Floats, spread: _Spread, z: float) -> tuple[CurvePoint, ...]:
        """Points between the least and the greatest dose, with a pointwise band by the delta method."""
        x = np.linspace(self.first, self.last, CURVE_POINTS)
        there = _Model(x, np.zeros_like(x), np.ones_like(x), self.first, self.last)
        share, slope = there.share(best)
        variances = [np.einsum("id,ij,jd->d", slope, covariance, slope) for covariance in spread.covariances]
        half = z * np.sqrt(np.maximum(0.0, np.max(variances, axis=0)))
        return tuple(
            CurvePoint(exp(a), float(b), max(0.0, float(b - w)), min(1.0, float(b + w)))
            for a, b, w in zip(x, share, half, strict=True)
        )
