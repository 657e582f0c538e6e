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

    The fall is tested by Cochran-Armitage over the ranks of the rates. A contradiction is a pair of neighbours whose
    accuracy rises: Fisher's exact test, one-sided, with Holm's adjustment over the pairs of the series.
    """
    series: dict[str, list[CellScore]] = defaultdict(list)
    for cell in cells:
        if cell.exact_match.n:
            series[cell.plan.series].append(cell)
    return tuple(_trend(found) for found in series.values() if len(found) > 1)


def _trend(cells: list[CellScore]) -> Trend:
    cells = sorted(cells, key=lambda cell: float(cell.plan.fault["rate"]["value"]))
    pairs = list(pairwise(cells))
    p_values = holm([_rise(low, high) for low, high in pairs])
    test = cochran_armitage([c.exact_match.k for c in cells], [c.exact_match.n for c in cells])
    return Trend(
        label=_label(cells),
        cells=tuple(cell.plan.index for cell in cells),
        z=test[0] if test else None,
        p_falls=test[1] if test else None,
        rises=tuple(
            (low.plan.index, high.plan.index, p) for (low, high), p in zip(pairs, p_values, strict=True) if p < ALPHA
        ),
    )


def _rise(low: CellScore, high: CellScore) -> float:
    return fisher_greater(high.exact_match.k, high.exact_match.n, low.exact_match.k, low.exact_match.n)


def _label(cells: list[CellScore]) -> str:
    # `BitRot[K, 1e-07]` and its sisters are `BitRot[K]`; the rate is the last thing a cell name lists.
    name, value = cells[0].plan.name, f"{float(cells[0].plan.fault['rate']['value']):g}]"
    if not name.endswith(value):
        return name
    head = name[: -len(value)].rstrip()
    return head[:-1] + "]" if head.endswith(",") else head.removesuffix("[")
