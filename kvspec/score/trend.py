"""Does accuracy fall with the rate? Asked of every set of cells that differ in their rate only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from kvspec.score.model import CellScore, Trend
from kvspec.stats.exact import cochran_armitage, fisher_greater, holm

ALPHA = 0.05


def trends(cells: Sequence[CellScore]) -> tuple[Trend, ...]:
    """One trend per series of two or more measured cells.

    The fall is tested by Cochran-Armitage over the ranks of the rates, with Holm's adjustment over all series. A
    contradiction is a pair of neighbours whose accuracy rises: Fisher's exact test, one-sided, with Holm's adjustment
    over the pairs of all series.
    """
    series: dict[str, list[CellScore]] = defaultdict(list)
    for cell in cells:
        if cell.exact_match.n:
            series[cell.plan.series].append(cell)
    swept = [sorted(found, key=_rate) for found in series.values() if len(found) > 1]
    tests = [cochran_armitage([c.exact_match.k for c in s], [c.exact_match.n for c in s]) for s in swept]
    falls = iter(holm([test[1] for test in tests if test]))
    pairs = [list(pairwise(s)) for s in swept]
    rises = iter(holm([_rise(low, high) for found in pairs for low, high in found]))
    return tuple(
        Trend(
            label=series_label(s),
            cells=tuple(cell.plan.index for cell in s),
            z=test[0] if test else None,
            p_falls=next(falls) if test else None,
            rises=tuple(
                (low.plan.index, high.plan.index, p) for (low, high), p in zip(found, rises, strict=False) if p < ALPHA
            ),
        )
        for s, test, found in zip(swept, tests, pairs, strict=True)
    )


def _rate(cell: CellScore) -> float:
    return float(cell.plan.fault["rate"]["value"])


def _rise(low: CellScore, high: CellScore) -> float:
    return fisher_greater(high.exact_match.k, high.exact_match.n, low.exact_match.k, low.exact_match.n)


def series_label(cells: Sequence[CellScore]) -> str:
    """What a series is called: the name of its cells without the rate."""
    # `BitRot[K, 1e-07]` and its sisters are `BitRot[K]`; the rate is the last thing a cell name lists.
    name, value = cells[0].plan.name, f"{float(cells[0].plan.fault['rate']['value']):g}]"
    if not name.endswith(value):
        return name
    head = name[: -len(value)].rstrip()
    return head[:-1] + "]" if head.endswith(",") else head.removesuffix("[")
