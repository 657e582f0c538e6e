"""Where a share that falls with the dose passes a level: order-restricted likelihood, no curve assumed.

The shares are fitted by isotonic regression (pool adjacent violators: Barlow, Bartholomew, Bremner & Brunk 1972), so
that a dose out of order, as chance makes some, is pooled with its neighbours. Between two doses the fit is taken to be
straight in the logarithm of the dose.

The interval holds every gap between neighbouring doses in which the crossing may lie by a likelihood-ratio test at
5 %: the best fit with all shares before the gap at the level or above and all behind it at the level or below, against
the best fit of all (a fit under such bounds is the isotonic fit of each side, clipped). It ends at doses that were
measured, and is open where the crossing may lie outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log

CRITICAL = 3.841459
"""95 % quantile of chi-squared with one degree of freedom."""

Count = tuple[float, int, int]
"""Dose, and k of n."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """The dose at which a share falls below a level."""

    value: float | None
    """By the fit; `None` if it does not pass the level between two of the doses."""
    low: float | None
    """Lower end of the interval, a dose that was measured; `None`: it may lie below all of them."""
    high: float | None
    """Upper end; `None`: it may lie above all of them."""
    before: float | None
    """The last dose at which the fit still holds the level; `None`: it holds it at none."""
    after: float | None
    """The first dose at which it does not; `None`: it holds it at all of them."""

    @property
    def never(self) -> bool:
        """Whether the fit holds the level at all doses."""
        return self.after is None


def crossing(counts: Sequence[Count], level: float, *, holds_at: bool = True) -> Crossing:
    """Where k / n falls below `level`, over doses in rising order; `holds_at`: a share equal to the level holds it.

    Raises `ValueError` for no dose, a dose out of order or not positive, and for n = 0.
    """
    doses = [dose for dose, _, _ in counts]
    if not counts or doses != sorted(set(doses)) or doses[0] <= 0 or min(n for _, _, n in counts) < 1:
        raise ValueError(f"{list(counts)} are not counts at rising doses")
    fit = isotonic(counts)
    fallen = [share < level or (share == level and not holds_at) for share in fit]
    split = fallen.index(True) if True in fallen else len(counts)
    value = None
    if 0 < split < len(counts):
        part = (fit[split - 1] - level) / (fit[split - 1] - fit[split])
        value = exp(log(doses[split - 1]) * (1 - part) + log(doses[split]) * part)
    fits = [_likelihood(counts, _bounded(counts, gap, level)) for gap in range(len(counts) + 1)]
    may = [gap for gap, found in enumerate(fits) if 2 * (max(fits) - found) <= CRITICAL]
    first, last = min(may[0], split), max(may[-1], split)
    return Crossing(
        value=value,
        low=doses[first - 1] if first else None,
        high=doses[last] if last < len(counts) else None,
        before=doses[split - 1] if split else None,
        after=doses[split] if split < len(counts) else None,
    )


def isotonic(counts: Sequence[Count]) -> list[float]:
    """The falling shares that fit the counts best, one a dose."""
    blocks: list[tuple[int, int, int]] = []  # k, n, doses
    for _, k, n in counts:
        blocks.append((k, n, 1))
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] < blocks[-1][0] * blocks[-2][1]:
            later, earlier = blocks.pop(), blocks.pop()
            blocks.append((earlier[0] + later[0], earlier[1] + later[1], earlier[2] + later[2]))
    return [k / n for k, n, doses in blocks for _ in range(doses)]


def _bounded(counts: Sequence[Count], gap: int, level: float) -> list[float]:
    """The best fit that passes the level in a gap: before the first dose (0), ..., behind the last one."""
    before, behind = isotonic(counts[:gap]), isotonic(counts[gap:])
    return [max(share, level) for share in before] + [min(share, level) for share in behind]


def _likelihood(counts: Sequence[Count], shares: Sequence[float]) -> float:
    """Logarithm of the binomial likelihood, without what does not depend on the shares."""
    found = 0.0
    for (_, k, n), share in zip(counts, shares, strict=True):
        for times, chance in ((k, share), (n - k, 1 - share)):
            if times:
                found += times * log(chance) if chance > 0 else -inf
    return found
