"""Whether a long context is hurt more than its larger dose explains (the "death spiral").

At one rate a longer context takes more flips, so it is compared with the shorter one at equal *dose*: trials of one
task and one kind of fault in which equally many flips landed, on items that the clean model solves. Up to 8 flips a
stratum has one number of them, above that numbers within 9 % of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kvspec.stats.exact import ALPHA, Strata, holm
from kvspec.stats.intervals import Difference

EXACT = 8
"""Flips up to which a stratum has one number of them."""
STEPS = 8
"""Strata per doubling above."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The trials of one task at one context, of items that the clean model solves. Arrays are `[N]`."""

    right: NDArray[np.bool_]
    series: NDArray[np.int64]
    """What trials must have in common to be compared: here the kind of fault, cells that differ in their rate only."""
    cell: NDArray[np.int64]
    flips: NDArray[np.int64]
    """Landed flips."""


@dataclass(frozen=True, slots=True)
class LengthEffect:
    """One task at two lengths of the context."""

    task: str
    shorter: int
    longer: int
    """Tokens of the contexts."""
    trials: tuple[int, int]
    """Trials of the shorter and the longer context that have a partner of equal dose."""
    at_equal_rates: Difference | None
    """Share right at the longer context less that at the shorter one, over cells; `None` if nothing is told apart."""
    at_equal_flips: Difference | None
    """The same over strata of equal landed flips: what is left of the effect once the dose is accounted for."""
    p: float
    """Of the latter: exact conditional test within the strata, two-sided."""
    p_holm: float
    """The same, adjusted over all tasks and pairs of contexts."""


def length_effects(samples: Mapping[tuple[int, str], Sample]) -> tuple[LengthEffect, ...]:
    """Every pair of contexts of every task, by (context, task)."""
    found = []
    for task in dict.fromkeys(task for _, task in samples):
        for shorter, longer in combinations(sorted(context for context, name in samples if name == task), 2):
            a, b = samples[shorter, task], samples[longer, task]
            by_rate, by_flips = _strata(b, a, b.cell, a.cell), at_equal_flips(b, a)
            trials = (int(by_flips.n2.sum()), int(by_flips.n1.sum()))
            found.append(((task, shorter, longer, trials), by_rate, by_flips, by_flips.different()))
    adjusted = holm([p for *_, p in found])
    return tuple(
        LengthEffect(*who, by_rate.difference(), by_flips.difference(), p, p_holm)
        for (who, by_rate, by_flips, p), p_holm in zip(found, adjusted, strict=True)
    )


def at_equal_flips(a: Sample, b: Sample) -> Strata:
    """Right answers of two samples, by series and numbers of landed flips."""
    return _strata(a, b, _dose(a), _dose(b))


def _dose(sample: Sample) -> NDArray[np.int64]:
    many = np.floor(STEPS * np.log2(np.maximum(sample.flips, 1) / EXACT)).astype(np.int64) + EXACT + 1
    doses: NDArray[np.int64] = sample.series * 10_000 + np.where(sample.flips <= EXACT, sample.flips, many)
    return doses


def _strata(a: Sample, b: Sample, of_a: NDArray[np.int64], of_b: NDArray[np.int64]) -> Strata:
    """Right answers of two samples, by the stratum of every trial."""
    names, index = np.unique(np.concatenate([of_a, of_b]), return_inverse=True)
    parts = ((a, index[: len(of_a)]), (b, index[len(of_a) :]))
    counts = [
        np.bincount(rows, minlength=len(names)) for sample, where in parts for rows in (where[sample.right], where)
    ]
    return Strata.of(*counts)


def length_sentences(effects: Sequence[LengthEffect]) -> list[str]:
    """What is left of the length once the dose is accounted for; nothing for runs of one context."""
    tested = sorted((effect for effect in effects if effect.trials[0]), key=lambda effect: effect.p)
    if not effects:
        return []
    if not tested:
        return ["No two contexts have trials of equal dose: what length does cannot be told from what its dose does."]
    apart = [effect for effect in tested if effect.p_holm < ALPHA]
    differ = f"{len(apart)} of {len(tested)} pairs differ" if apart else f"none of {len(tested)} pairs differs"
    shown = "; ".join(_words(effect) for effect in (apart or tested)[:4])
    how = "exact test within strata, Holm"
    return [f"Length of the context: at equal numbers of landed flips {differ} ({how}): {shown}."]


def _words(effect: LengthEffect) -> str:
    def signed(found: Difference | None) -> str:
        return "all alike" if found is None else f"{found.value:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"

    return (
        f"{effect.task} at {effect.longer:,} against {effect.shorter:,} tokens {signed(effect.at_equal_flips)} (p = "
        f"{effect.p_holm:.2g}, n = {effect.trials[1]:,} and {effect.trials[0]:,}), at equal rates "
        f"{signed(effect.at_equal_rates)}"
    )
