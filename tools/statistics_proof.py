"""Simulated campaigns with known truth: what the intervals and tests of kvspec/stats keep.

    python tools/statistics_proof.py [--cells 10000] [--seed 1]

Prints the tables of docs/statistics.md, and ends with 1 if one of them misses its bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, log10

import numpy as np
from numpy.typing import NDArray

from kvspec.search.window import next_rates
from kvspec.stats.bootstrap import cluster_bootstrap
from kvspec.stats.crossing import crossing
from kvspec.stats.design import detectable_drop, mcnemar_power, paired_sample_size, plan_looks
from kvspec.stats.dose import fit_dose_response
from kvspec.stats.exact import Strata, cochran_armitage, fisher_greater, holm, mcnemar
from kvspec.stats.intervals import difference_independent, difference_paired, ratio_paired, wilson_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One figure with the bounds that it has to keep."""

    what: str
    figure: float
    low: float
    high: float
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether it lies inside."""
        return self.low <= self.figure <= self.high


def wilson(cells: int, rng: np.random.Generator) -> list[Line]:
    """Coverage over cells whose accuracy is anything, at the n of small and of planned cells."""
    lines = []
    for n in (40, 100, 385):
        p = rng.uniform(0, 1, cells)
        ends = {k: wilson_interval(k, n) for k in range(n + 1)}
        low, high = np.array([ends[int(k)] for k in rng.binomial(n, p)]).T
        covered = float(((low <= p) & (p <= high)).mean())
        lines.append(Line(f"Wilson, n = {n}", covered, 0.94, 0.96, f"{cells:,} cells, p uniform"))
    return lines


def differences(cells: int, rng: np.random.Generator) -> list[Line]:
    """Coverage of differences and of the sensitivity ratio."""
    p1, p2 = rng.uniform(0, 1, (2, cells))
    k1, k2 = rng.binomial(100, p1), rng.binomial(60, p2)
    found = [difference_independent(int(a), 100, int(b), 60) for a, b in zip(k1, k2, strict=True)]
    hit = np.mean([d.low <= x <= d.high for d, x in zip(found, p1 - p2, strict=True)])
    lines = [Line("difference, independent", float(hit), 0.94, 0.96, "n = 100 and 60")]
    share = rng.dirichlet(np.ones(4), cells)
    counts = np.array([rng.multinomial(100, row) for row in share])
    pairs = [difference_paired(int(b), int(c), 100) for _, b, c, _ in counts]
    hit = np.mean([d.low <= row[1] - row[2] <= d.high for d, row in zip(pairs, share, strict=True)])
    lines.append(Line("difference, paired", float(hit), 0.94, 0.965, "100 pairs"))
    covered = []
    for (both, first, second, _), row in zip(counts.tolist(), share, strict=True):
        ratio = ratio_paired(both, first, second)
        truth = (row[0] + row[1]) / (row[0] + row[2])
        covered.append(ratio is not None and ratio.low <= truth <= (np.inf if ratio.high is None else ratio.high))
    lines.append(Line("sensitivity ratio, paired", float(np.mean(covered)), 0.94, 0.975, "100 pairs"))
    return lines


def type_one(cells: int, rng: np.random.Generator) -> list[Line]:
    """How often a fault that does nothing is called an effect at 5 %."""
    p = rng.uniform(0.05, 0.95, cells)
    agree = rng.uniform(0, 1, cells)
    base = rng.random((cells, 100)) < p[:, None]
    again = rng.random((cells, 100)) < p[:, None]
    kept = rng.random((cells, 100)) < agree[:, None]
    other = np.where(kept, base, again)
    b, c = (base & ~other).sum(axis=1), (other & ~base).sum(axis=1)
    rate = np.mean([mcnemar(int(x), int(y)) < 0.05 for x, y in zip(b, c, strict=True)])
    lines = [Line("McNemar, no effect", float(rate), 0.0, 0.05, "100 pairs that agree more or less")]
    for name, controls in (("clean floor", 1.0), ("floor of 90 %", 0.9), ("prompts unlike each other", None)):
        share = rng.beta(1, 1, (cells, 10)) if controls is None else np.full((cells, 10), controls)
        trials, floor = rng.binomial(40, share), rng.binomial(8, share)
        n, m = np.full(10, 40), np.full(10, 8)
        rate = np.mean([Strata.of(k, n, q, m).less() < 0.05 for k, q in zip(trials, floor, strict=True)])
        lines.append(Line(f"within prompts, {name}", float(rate), 0.0, 0.05, "10 prompts, 40 trials, 8 controls each"))
    return lines


def trend(cells: int, rng: np.random.Generator) -> list[Line]:
    """How often a series of rates that all do nothing is called a fall, or a step of it a rise, at 5 %."""
    lines = []
    shape = "5 rates, 10 prompts x 4 trials each"
    for name, share in (
        ("alike prompts", np.repeat(rng.uniform(0.05, 1, (cells, 1)), 10, axis=1)),
        ("near 1", np.full((cells, 10), 0.97)),
        ("prompts unlike each other", rng.beta(1, 1, (cells, 10))),
    ):
        k = rng.binomial(4, share[:, None, :], (cells, 5, 10)).sum(axis=2)
        falls, rises = [], []
        for row in k.tolist():
            found = cochran_armitage(row, [40] * 5)
            falls.append(found is not None and found[1] < 0.05)
            steps = holm([fisher_greater(b, 40, a, 40) for a, b in pairwise(row)])
            rises.append(min(steps) < 0.05)
        # Of the normal approximation, hence not exactly 5 %.
        lines.append(Line(f"trend, {name}", float(np.mean(falls)), 0.0, 0.06, f"{shape}; asymptotic"))
        lines.append(Line(f"rise, {name}", float(np.mean(rises)), 0.0, 0.05, shape))
    return lines


def power(cells: int, rng: np.random.Generator) -> list[Line]:
    """Power at the n that the plan gives, answers of a pair independent."""
    lines = []
    for first, second in ((1.0, 0.9), (0.9, 0.8)):
        n = paired_sample_size(first, second, 0.05, 0.8)
        assert n is not None
        a, b = rng.random((cells, n)) < first, rng.random((cells, n)) < second
        only = zip((a & ~b).sum(axis=1), (b & ~a).sum(axis=1), strict=True)
        rate = float(np.mean([mcnemar(int(x), int(y)) <= 0.05 for x, y in only]))
        note = f"n = {n}, computed {mcnemar_power(first, second, 0.05, n):.3f}"
        lines.append(Line(f"power {first:g} against {second:g}", rate, 0.785, 0.83, note))
    return lines + falls(cells, rng)


def falls(cells: int, rng: np.random.Generator) -> list[Line]:
    """How often the test within prompts shows the fall that a report says 80 % power for."""
    lines = []
    for prompts, trials, controls, tests in ((10, 40, 8, 1), (5, 8, 8, 8)):
        drop = detectable_drop(prompts * trials, (prompts * controls,) * 2, 0.05 / tests)
        assert drop is not None
        n, floor = np.full(prompts, trials), np.full(prompts, controls)
        setting = f"{drop:.1%}, {tests} tests; {prompts} prompts, {trials} trials, {controls} controls each"
        hurt = np.where(np.arange(prompts) % 2, 2 * drop, 0.0) * prompts / (2 * (prompts // 2))
        for name, fall in (("in all prompts", np.full(prompts, drop)), ("in half of the prompts", hurt)):
            k = rng.binomial(trials, 1 - fall, (cells, prompts))
            seen = float(np.mean([Strata.of(row, n, floor, floor).less() < 0.05 / tests for row in k]))
            lines.append(Line(f"fall shown, {name}", seen, 0.72, 0.9, setting))
    return lines


def looks(cells: int, rng: np.random.Generator) -> list[Line]:
    """Coverage of the interval with which a cell stops, and the trials that it took."""
    lines = []
    design = plan_looks(0.95, 0.05, 5, 10)
    sizes = np.array([10 * r for r in design.rounds])
    ends = {(k, int(n)): design.interval(k, int(n)) for n in sizes for k in range(int(n) + 1)}
    wide = {key: high - low for key, (low, high) in ends.items()}
    for name, p in (
        ("p uniform", rng.uniform(0, 1, cells)),
        ("p = 0.02", np.full(cells, 0.02)),
        ("p = 0.5", np.full(cells, 0.5)),
        ("p = 0.93", np.full(cells, 0.93)),
    ):
        steps = rng.binomial(np.diff(sizes, prepend=0), p[:, None]).cumsum(axis=1)
        covered, used = [], []
        for row, truth in zip(steps.tolist(), p, strict=True):
            k, n = next(((k, int(n)) for k, n in zip(row, sizes, strict=True) if wide[k, int(n)] <= 0.1))
            low, high = ends[k, n]
            covered.append(low <= truth <= high)
            used.append(n)
        note = f"{np.mean(used):.0f} trials a cell on average, fixed design 385"
        lines.append(Line(f"stopped early, {name}", float(np.mean(covered)), 0.95, 1.0, note))
    return lines


def curves(fits: int, rng: np.random.Generator) -> list[Line]:
    """EC50: coverage of the interval and bias, with and without a floor and alike prompts; coverage of the band."""
    dose, truth = np.logspace(-8, -4, 9), 3e-7
    lines = []
    for name, floor, spread in (("", 0.0, 0.0), (", levels off at 0.2", 0.2, 0.0), (", prompts unlike", 0.0, 1.0)):
        covered, errors, inside = [], [], []
        for _ in range(fits):
            shift = rng.normal(0, spread, 20)
            p = floor + (1 - floor) / (1 + (dose[:, None] / (truth * np.exp(shift))) ** 1.5)
            k = rng.binomial(5, p)
            n = np.full(k.shape, 5)
            found = fit_dose_response(dose.tolist(), k.sum(axis=1).tolist(), n.sum(axis=1).tolist(), (40, 40), (k, n))
            if found is None:
                continue
            covered.append((found.low or 0.0) <= truth <= (found.high or np.inf))
            errors.append(np.log((found.ec50 or np.nan) / truth))
            where = np.array([(q.dose, q.low, q.high) for q in found.curve]).reshape(-1, 3)
            exact = floor + (1 - floor) / (1 + (where[:, 0] / truth) ** 1.5)
            inside.append(((where[:, 1] <= exact) & (exact <= where[:, 2])).mean())
        note = f"median EC50 {np.exp(np.nanmedian(errors)) * truth:.3g}, truth {truth:g}; {fits} fits of 9 doses x 100"
        lines.append(Line(f"EC50{name}", float(np.mean(covered)), 0.92, 0.99, note))
        if not spread:
            lines.append(Line(f"band{name}", float(np.mean(inside)), 0.90, 0.99, "pointwise"))
    return lines + sparse(fits, rng)


def sparse(fits: int, rng: np.random.Generator) -> list[Line]:
    """The same where doses lie a decade apart, so that few or none of them is on the slope."""
    dose = np.logspace(-7, -3, 5)
    lines = []
    for steepness in (1.0, 2.0, 4.0):
        covered, inside = [], []
        for _ in range(fits):
            truth = 10 ** rng.uniform(-5.5, -4.5)
            k = rng.binomial(100, 1 / (1 + (dose / truth) ** steepness))
            found = fit_dose_response(dose.tolist(), k.tolist(), [100] * 5, (40, 40))
            if found is None:
                continue
            covered.append((found.low or 0.0) <= truth <= (found.high or np.inf))
            if not found.step:
                exact = [1 / (1 + (q.dose / truth) ** steepness) for q in found.curve]
                inside.append(np.mean([q.low <= p <= q.high for q, p in zip(found.curve, exact, strict=True)]))
        name = f"steepness {steepness:g}, a dose a decade"
        lines.append(Line(f"EC50, {name}", float(np.mean(covered)), 0.92, 1.0, f"{fits} fits of 5 doses x 100"))
        note = f"shown in {len(inside)} fits; in the others a step fits as well"
        lines.append(Line(f"band, {name}", float(np.mean(inside)), 0.90, 1.0, note))
    return lines


def clusters(cells: int, rng: np.random.Generator) -> list[Line]:
    """Coverage over prompts that were not run, by their number."""
    lines = []
    for prompts, low in ((5, 0.80), (10, 0.88), (30, 0.92), (100, 0.93)):
        p = rng.beta(2, 2, (cells, prompts))
        n = np.full(p.shape, 20)
        k = rng.binomial(n, p)
        ends = cluster_bootstrap(k, n).interval
        hit = float(((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).mean())
        plain = [wilson_interval(int(x), 20 * prompts) for x in k.sum(axis=1)]
        naive = np.mean([a <= 0.5 <= b for a, b in plain])
        lines.append(
            Line(f"clustered, {prompts} prompts", hit, low, 0.98, f"Wilson {naive:.3f}; beta(2, 2) x 20 trials")
        )
    return lines


def crossings(searches: int, rng: np.random.Generator) -> list[Line]:
    """Whole searches of the rate 3e-7 at which a share passes a level, at the rates that `kvspec search` would try."""
    curves: tuple[tuple[str, float, Callable[[float], float]], ...] = (
        ("half, steepness 1", 0.5, lambda rate: 1 / (1 + rate / 3e-7)),
        ("half, steepness 4", 0.5, lambda rate: 1 / (1 + (rate / 3e-7) ** 4)),
        ("95 %, one hit", 0.95, lambda rate: 0.95 ** (rate / 3e-7)),
        ("95 %, steepness 1/2", 0.95, lambda rate: 1 / (1 + 0.05 / 0.95 * (rate / 3e-7) ** 0.5)),
    )
    lines = []
    for name, level, share in curves:
        for n, low in ((200, 0.93), (40, 0.9)):
            hit, errors = 0, []
            for _ in range(searches):
                right: dict[float, int] = {}
                rates = [1e-8, 1e-4]
                for _ in range(5):  # the grid and four steps
                    right |= {rate: int(rng.binomial(n, share(rate))) for rate in rates}
                    tried = sorted(right)
                    found = crossing([(rate, right[rate], n) for rate in tried], level)
                    rates = next_rates(found, tried)
                hit += (found.low or 0.0) <= 3e-7 <= (found.high or inf)
                errors += [abs(log10(found.value / 3e-7))] if found.value else []
            note = (
                f"n = {n}, {len(tried)} rates; estimate off by a factor {10 ** float(np.median(errors)):.2f} (median)"
            )
            lines.append(Line(f"crossing, {name}", hit / searches, low, 1.0, note))
    return lines


def main() -> int:
    """Simulate, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="simulated cells per line")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    parts: list[tuple[Callable[[int, np.random.Generator], list[Line]], int]] = [
        (part, options.cells) for part in (wilson, differences, type_one, trend, power, looks)
    ]
    parts += [(clusters, ceil(options.cells / 5)), (curves, ceil(options.cells / 20))]
    parts += [(crossings, ceil(options.cells / 10))]
    failed = 0
    print("| figure | measured | bounds | |\n|---|---|---|---|")
    for part, size in parts:
        started = time.monotonic()
        for line in part(size, np.random.default_rng(options.seed)):
            failed += not line.kept
            mark = "" if line.kept else "**missed**; "
            print(
                f"| {line.what} | {line.figure:.4f} | {line.low:g} to {line.high:g} | {mark}{line.note} |", flush=True
            )
        print(f"{part.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
