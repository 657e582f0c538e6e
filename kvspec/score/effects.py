"""What follows from the counts of a run: cells against controls, cells against each other, doses, vulnerability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from kvspec.score.anatomy import SINGLE_FLIP_MODELS
from kvspec.score.grid import EXACT, Grid, discordant
from kvspec.score.model import CellScore, Dose, DoseResponse, Effect, Estimate, Floor, PairTest, Trend, Vulnerability
from kvspec.stats.bootstrap import cluster_bootstrap, design_effect
from kvspec.stats.design import detectable_drop
from kvspec.stats.dose import fit_dose_response
from kvspec.stats.exact import ALPHA, Strata, holm, mcnemar
from kvspec.stats.intervals import Proportion, difference_independent, difference_paired, ratio_paired

MBIT = 2**20
"""Models in which a fault is one flip, so that a trial with one flip holds one fault."""


def with_effects(
    cells: Sequence[CellScore], floor: Floor, grid: Grid, looks: int
) -> tuple[tuple[CellScore, ...], float]:
    """The cells with their effects filled in, and the design effect of the run.

    Against controls: the exact test within prompts (`Strata`), one-sided for a lower accuracy, Holm over the cells.
    Where a cell could stop at one of several looks, its p-value is taken that often (Bonferroni).
    """
    counts = [grid.counts(cell.plan.index) for cell in cells]
    k = np.array([pair[0] for pair in counts]).reshape(len(cells), -1)
    n = np.array([pair[1] for pair in counts]).reshape(len(cells), -1)
    bootstrap = cluster_bootstrap(k, n)
    controls = grid.control_counts()
    tested = [c for c, cell in enumerate(cells) if cell.exact_match.n and floor.combined.n]
    p_values = [min(1.0, looks * Strata.of(k[c], n[c], *controls).less()) for c in tested]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    raw = dict(zip(tested, p_values, strict=True))
    found = []
    for c, cell in enumerate(cells):
        match, known = cell.exact_match, floor.combined
        low, high = bootstrap.interval[c].tolist() if len(cells) else (float("nan"), float("nan"))
        clustered = None
        if isfinite(low) and match.low is not None and match.high is not None:
            # A resampling of prompts that all agree has no width, which is no certainty.
            clustered = (min(low, match.low), max(high, match.high))
        effect = Effect(
            difference=difference_independent(match.k, match.n, known.k, known.n) if c in raw else None,
            p=raw.get(c),
            p_holm=adjusted.get(c),
            clustered=clustered,
            prompts=int(np.count_nonzero(n[c])),
            detectable_drop=detectable_drop(match.n, (known.k, known.n), ALPHA / (len(tested) * looks))
            if c in raw
            else None,
        )
        below = None if effect.p_holm is None else effect.p_holm < ALPHA
        found.append(replace(cell, effect=effect, below_floor=below))
    return tuple(found), design_effect(bootstrap.variance)


def pair_tests(cells: Sequence[CellScore], grid: Grid, looks: int) -> tuple[PairTest, ...]:
    """Cells that share their draws, each against the first of them: McNemar's exact test, Holm over all pairs.

    p-values are taken as often as the cells could stop (Bonferroni).
    """
    groups: dict[tuple[str, int], list[CellScore]] = defaultdict(list)
    for cell in cells:
        if cell.exact_match.n:
            groups[cell.plan.experiment, cell.plan.entry].append(cell)
    found: list[PairTest] = []
    for first, *others in groups.values():
        for second in others:
            both, only_first, only_second, pairs = discordant(
                grid.flags[first.plan.index], grid.flags[second.plan.index], EXACT
            )
            if not pairs:
                continue
            neither = pairs - both - only_first - only_second
            found.append(
                PairTest(
                    first=first.plan.index,
                    second=second.plan.index,
                    pairs=pairs,
                    only_first=only_first,
                    only_second=only_second,
                    difference=difference_paired(only_second, only_first, pairs),
                    # Of failures: a trial that only the first answers right fails in the second alone.
                    sensitivity=ratio_paired(neither, only_first, only_second),
                    p=min(1.0, looks * mcnemar(only_first, only_second)),
                    p_holm=1.0,
                )
            )
    adjusted = holm([pair.p for pair in found])
    return tuple(replace(pair, p_holm=p) for pair, p in zip(found, adjusted, strict=True))


def dose_responses(
    trends: Sequence[Trend], cells: Sequence[CellScore], floor: Floor, grid: Grid
) -> tuple[DoseResponse, ...]:
    """A curve per series of three rates or more in which a fall is shown, over each dose that is known."""
    found = []
    for trend in trends:
        mine = [cells[c] for c in trend.cells]
        if trend.p_falls is None or trend.p_falls >= ALPHA:
            continue
        counts = [grid.counts(cell.plan.index) for cell in mine]
        k, n = (np.array([pair[i] for pair in counts]) for i in (0, 1))
        rates = [float(cell.plan.fault["rate"]["value"]) for cell in mine]
        expected = [cell.plan.expected_per_trial for cell in mine]
        landed = [cell.flips.landed / cell.flips.trials if cell.flips.trials else None for cell in mine]
        over: dict[Dose, Sequence[float | None]] = {"rate": rates, "expected": expected, "landed": landed}
        for dose, values in over.items():
            some = [i for i, value in enumerate(values) if value is not None and value > 0]
            fit = fit_dose_response(
                [float(values[i]) for i in some],  # type: ignore[arg-type]
                [mine[i].exact_match.k for i in some],
                [mine[i].exact_match.n for i in some],
                (floor.combined.k, floor.combined.n),
                (k[some], n[some]),
            )
            if fit is not None:
                found.append(DoseResponse(trend.label, trend.cells, dose, fit))
    return tuple(found)


def vulnerabilities(cells: Sequence[CellScore]) -> tuple[Vulnerability, ...]:
    """AVF and FIT per series, from the trials in which exactly one flip landed."""
    series: dict[str, list[CellScore]] = defaultdict(list)
    for cell in cells:
        if cell.plan.fault["model"] in SINGLE_FLIP_MODELS and cell.single_flip.n:
            series[cell.plan.series].append(cell)
    found = []
    for mine in series.values():
        avf = Proportion.of(sum(c.single_flip.k for c in mine), sum(c.single_flip.n for c in mine))
        bits = [c.plan.eligible_bits for c in mine if c.plan.eligible_bits is not None]
        mbit = bits[0] / MBIT if bits else None
        rate = mine[0].plan.fault["rate"]
        raw = sorted({float(c.plan.fault["rate"]["value"]) for c in mine}) if rate["unit"] == "fit" else []
        found.append(
            Vulnerability(
                cells=tuple(c.plan.index for c in mine),
                avf=avf,
                mbit=mbit,
                fit_per_raw_fit=None if mbit is None else _scaled(avf, mbit),
                raw_fit_per_mbit=tuple(raw),
                fit=tuple(_scaled(avf, mbit * value) for value in raw) if mbit is not None else (),
            )
        )
    return tuple(found)


def _scaled(avf: Proportion, factor: float) -> Estimate:
    assert avf.rate is not None
    assert avf.low is not None
    assert avf.high is not None
    return Estimate(avf.rate * factor, avf.low * factor, avf.high * factor)
