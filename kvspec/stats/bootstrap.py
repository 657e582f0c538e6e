"""Clusters: trials of one prompt resemble each other, so whole prompts are resampled, not single trials."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from kvspec.stats.intervals import CONFIDENCE

DRAWS = 2_000
MOST_CLUSTERS = 2_000
"""More prompts are joined into so many groups of whole prompts, which are as independent and far cheaper."""
SEED = 20_230_901
"""Of the resampling alone: the same run gives the same report."""
CHUNK = 256

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Clustered:
    """Cluster bootstrap of many cells. Both arrays are `[C, 2]`, NaN where a cell has fewer than two prompts."""

    interval: Floats
    """Lower and upper end of the share."""
    variance: Floats
    """Variance of the share between prompts, and the binomial one that independent trials would have."""


def cluster_bootstrap(k: Counts, n: Counts, confidence: float = CONFIDENCE) -> Clustered:
    """Interval of sum(k) / sum(n) per cell with prompts as clusters (Davison & Hinkley 1997, section 3.8).

    Prompts are drawn with replacement, the same draws for every cell; the ends are expanded percentiles (Hesterberg
    2015), which make up for the few clusters of small campaigns.

    Args:
        k: successes `[C, P]` per cell and prompt.
        n: trials `[C, P]`.
        confidence: of the intervals.
    """
    k, n = _join(np.asarray(k, np.int64)), _join(np.asarray(n, np.int64))
    cells, clusters = k.shape
    interval, variance = np.full((cells, 2), np.nan), np.full((cells, 2), np.nan)
    if clusters < 2:
        return Clustered(interval, variance)
    weights = np.random.default_rng(SEED).multinomial(clusters, np.full(clusters, 1 / clusters), DRAWS).astype(float)
    tail = _expanded_tail(clusters, confidence)
    for start in range(0, cells, CHUNK):
        rows = slice(start, start + CHUNK)
        hits, sizes = weights @ k[rows].T.astype(float), weights @ n[rows].T.astype(float)
        share = np.divide(hits, sizes, out=np.full_like(hits, np.nan), where=sizes > 0)
        measured = np.count_nonzero(n[rows], axis=1) > 1
        if measured.any():
            ends = np.nanquantile(share[:, measured], (tail, 1 - tail), axis=0).T
            interval[rows][measured] = ends
    _variances(k, n, variance)
    return Clustered(interval, variance)


def cluster_difference(k: Counts, n: Counts, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Interval of sum(k) / sum(n) of the first of two cells less that of the second, with prompts as clusters.

    As `cluster_bootstrap`: whole prompts are drawn, each with its trials in both cells. `k` and `n` are `[2, P]`.
    `None` with fewer than two prompts that both cells asked.
    """
    k, n = _join(np.asarray(k, np.int64)), _join(np.asarray(n, np.int64))
    clusters = int(np.count_nonzero((n > 0).all(axis=0)))
    if clusters < 2:
        return None
    weights = np.random.default_rng(SEED).multinomial(k.shape[1], np.full(k.shape[1], 1 / k.shape[1]), DRAWS)
    hits, sizes = (weights @ counts.T for counts in (k, n))
    share = np.divide(hits, sizes, out=np.full(hits.shape, np.nan), where=sizes > 0)
    tail = _expanded_tail(clusters, confidence)
    low, high = np.nanquantile(share[:, 0] - share[:, 1], (tail, 1 - tail)).tolist()
    return low, high


def clusters_differ(k: Counts, n: Counts, weights: tuple[float, float]) -> float:
    """Two-sided p-value of weights[0] * sum(k) / sum(n) of the first of two cells being as large as weights[1] times
    that of the second, with prompts as clusters: the paired t-test over prompts, each with its trials in both cells.

    Prompts asked unequally often count by their trials, with the variance of a ratio estimate (Cochran 1977, section
    6.3). The variance is never taken to be less than that of independent trials, half a success and half a failure
    added to both cells: few prompts that are alike by chance prove nothing. `k` and `n` are `[2, P]`. 1 with fewer
    than two prompts that both cells asked, which say nothing of others.
    """
    k, n = np.asarray(k, np.int64), np.asarray(n, np.int64)
    asked = (n > 0).all(axis=0)
    clusters = int(np.count_nonzero(asked))
    if clusters < 2:
        return 1.0
    k, n, weight = k[:, asked], n[:, asked], np.asarray(weights, float)
    total = n.sum(axis=1)
    share, added = k.sum(axis=1) / total, (k.sum(axis=1) + 0.5) / (total + 1)
    residual = (weight / total * np.array([1, -1])) @ (k - share[:, None] * n)
    between = float((residual**2).sum()) * clusters / (clusters - 1)
    independent = float((weight**2 * added * (1 - added) / (total + 1)).sum())
    difference = float(weight[0] * share[0] - weight[1] * share[1])
    return float(2 * stdtr(clusters - 1, -abs(difference) / sqrt(max(between, independent))))


def _variances(k: Counts, n: Counts, out: Floats) -> None:
    total, measured = n.sum(axis=1).astype(float), np.count_nonzero(n, axis=1)
    some = measured > 1
    share = np.divide(k.sum(axis=1), total, out=np.zeros(len(total)), where=some)
    residual = ((k - share[:, None] * n) ** 2).sum(axis=1)
    out[some, 0] = (residual * measured / np.maximum(measured - 1, 1))[some] / total[some] ** 2
    out[some, 1] = (share * (1 - share))[some] / total[some]


def _expanded_tail(clusters: int, confidence: float) -> float:
    t = float(stdtrit(clusters - 1, (1 + confidence) / 2))
    return float(ndtr(-t * sqrt(clusters / (clusters - 1))))


def _join(counts: Counts) -> Counts:
    cells, clusters = counts.shape
    if clusters <= MOST_CLUSTERS:
        return counts
    # By lot, so that no order of the prompts can line up with the groups.
    order = np.random.default_rng(SEED).permutation(clusters)
    joined = np.zeros((cells, MOST_CLUSTERS), np.int64)
    for start in range(0, clusters, MOST_CLUSTERS):
        part = counts[:, order[start : start + MOST_CLUSTERS]]
        joined[:, : part.shape[1]] += part
    return joined


def design_effect(variance: Floats) -> float:
    """How much larger the variance is than that of independent trials, over all cells together; at least 1.

    `variance` is that of `Clustered`; cells in which nothing varies say nothing.
    """
    known = np.isfinite(variance).all(axis=1) & (variance[:, 1] > 0)
    if not known.any():
        return 1.0
    return max(1.0, float((variance[known, 0] / variance[known, 1]).mean()))
