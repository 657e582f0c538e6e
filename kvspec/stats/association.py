"""Does an outcome depend on a group or an order, within strata of like trials? Asymptotic; `exact` has two groups."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc


@dataclass(frozen=True, slots=True)
class Association:
    """A generalised Cochran-Mantel-Haenszel test."""

    chi2: float
    freedom: int
    """Groups that can be told apart, less one."""
    p: float


@dataclass(frozen=True, slots=True)
class Slope:
    """Mantel's extension of it to ordered groups."""

    z: float
    """Above 0 if the outcome is more frequent at higher scores."""
    p: float
    """Two-sided."""


def association(hits: ArrayLike, group: ArrayLike, stratum: ArrayLike) -> Association | None:
    """General association of a binary outcome with a group, within strata (Landis, Heyman & Koch 1978).

    Inside a stratum the hits fall on the trials by lot under the null, whatever group they are in. Arguments are
    `[N]`: whether the trial is a hit; its group and its stratum, as integers. `None` if no stratum has two groups,
    hits and misses.
    """
    hit, where, rows = np.asarray(hits, float), np.asarray(group), np.asarray(stratum)
    _, of_stratum = np.unique(rows, return_inverse=True)
    _, of_group = np.unique(where, return_inverse=True)
    shape = int(of_stratum.max(initial=-1)) + 1, int(of_group.max(initial=-1)) + 1
    table = np.zeros(shape)
    np.add.at(table, (of_stratum, of_group), 1.0)
    total, marked = table.sum(1), np.bincount(of_stratum, hit, shape[0])
    mixed = (total > 1) & (marked > 0) & (marked < total)
    table, total, marked = table[mixed], total[mixed], marked[mixed]
    if not len(total):
        return None
    inside = mixed[of_stratum]
    seen = np.bincount(of_group[inside], hit[inside], shape[1])
    distance = seen - (table * (marked / total)[:, None]).sum(0)
    weight = marked * (total - marked) / (total**2 * (total - 1))
    covariance = np.diag((table * (weight * total)[:, None]).sum(0)) - table.T @ (table * weight[:, None])
    freedom = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if not freedom:
        return None
    chi2 = float(distance @ np.linalg.pinv(covariance, hermitian=True) @ distance)
    return Association(chi2, freedom, float(chdtrc(freedom, chi2)))


def slope(hits: ArrayLike, score: ArrayLike, stratum: ArrayLike) -> Slope | None:
    """Trend of a binary outcome along a score, within strata (Mantel 1963): arguments as of `association`.

    `None` if no stratum has hits, misses and different scores.
    """
    hit, scores = np.asarray(hits, float), np.asarray(score, float)
    _, row = np.unique(np.asarray(stratum), return_inverse=True)
    strata = int(row.max(initial=-1)) + 1

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(row, values, strata).astype(float)
        return sums

    total, marked, first, second = (summed(v) for v in (np.ones_like(hit), hit, scores, scores**2))
    distance = summed(scores * hit) - first * marked / total
    many = np.maximum(total - 1, 1)
    variance = float((marked * (total - marked) / many * (second / total - (first / total) ** 2)).sum())
    if variance <= 1e-12:
        return None
    z = float(distance.sum()) / variance**0.5
    return Slope(z, 2 * NormalDist().cdf(-abs(z)))
