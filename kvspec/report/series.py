"""Cells as series of doses: what the dose-response charts draw. Doses and shares are taken as scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kvspec.report import words
from kvspec.report.safe import brief
from kvspec.score import DoseResponse, Scores

Dose = Literal["rate", "expected", "landed"]
DOSES: dict[Dose, str] = {
    "rate": "Declared rate",
    "expected": "Expected flips per request",
    "landed": "Landed flips per request",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One cell on a curve."""

    cell: int
    name: str
    rate: str
    """Declared rate in words."""
    doses: dict[Dose, float | None]
    k: int
    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted curve over one dose."""

    curve: tuple[tuple[float, float, float | None, float | None], ...]
    """(dose, accuracy, lower, upper)."""
    ec50: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Cells that differ in their rate only, by rising rate."""

    label: str
    unit: str
    points: tuple[Point, ...]
    fits: Mapping[Dose, Fit] = field(default_factory=dict)


def build_series(scores: Scores, name_limit: int = 90) -> tuple[Series, ...]:
    """All series with at least one measured cell, in plan order, with the curves that were fitted."""
    fits = _fits(scores)
    groups: dict[str, list[int]] = {}
    for number, cell in enumerate(scores.cells):
        if cell.exact_match.n:
            groups.setdefault(cell.plan.series, []).append(number)
    labels = {trend.cells[0]: trend.label for trend in scores.trends if trend.cells}
    found: list[Series] = []
    for numbers in groups.values():
        cells = sorted((scores.cells[n] for n in numbers), key=lambda c: float(c.plan.fault["rate"]["value"]))
        points = []
        for cell in cells:
            match = cell.exact_match
            if match.rate is None or match.low is None or match.high is None:
                continue
            points.append(
                Point(
                    cell=cell.plan.index,
                    name=brief(cell.plan.name, name_limit),
                    rate=words.rate(cell.plan.fault),
                    doses={
                        "rate": float(cell.plan.fault["rate"]["value"]),
                        "expected": cell.plan.expected_per_trial,
                        "landed": cell.flips.landed / cell.flips.trials if cell.flips.trials else None,
                    },
                    k=match.k,
                    n=match.n,
                    share=match.rate,
                    low=match.low,
                    high=match.high,
                )
            )
        label = labels.get(cells[0].plan.index, cells[0].plan.name)
        fitted = fits.get(cells[0].plan.index, {})
        unit = str(cells[0].plan.fault["rate"]["unit"])
        found.append(Series(brief(label, name_limit), unit, tuple(points), fitted))
    return _distinct(found)


def _distinct(series: list[Series]) -> tuple[Series, ...]:
    # Equal names would share a colour and a line: number them.
    seen: dict[str, int] = {}
    result = []
    for one in series:
        seen[one.label] = seen.get(one.label, 0) + 1
        number = seen[one.label]
        label = one.label if number == 1 else f"{one.label} ({number})"
        result.append(Series(label, one.unit, one.points, one.fits))
    return tuple(result)


def drawable(series: tuple[Series, ...], dose: Dose) -> tuple[tuple[Series, ...], int]:
    """The series with the points that a logarithmic axis can show, and how many points it cannot."""
    kept, left_out = [], 0
    for one in series:
        points = tuple(p for p in one.points if (p.doses[dose] or 0.0) > 0.0)
        left_out += len(one.points) - len(points)
        if points:
            kept.append(Series(one.label, one.unit, points, one.fits))
    return tuple(kept), left_out


def _fits(scores: Scores) -> Mapping[int, Mapping[Dose, Fit]]:
    """Curve, EC50 and a note per series and dose, by the first cell of the series, the one with the lowest rate."""
    found: dict[int, dict[Dose, Fit]] = defaultdict(dict)
    for response in scores.dose_responses:
        fit = response.fit
        curve = tuple((p.dose, p.accuracy, p.low, p.high) for p in fit.curve)
        found[response.cells[0]][response.dose] = Fit(curve, fit.ec50, fit.low, fit.high, _note(response))
    return found


def _note(response: DoseResponse) -> str:
    fit, notes = response.fit, []
    if fit.step:
        notes.append("a step fits as well as any slope")
    elif fit.ec50 is None:
        notes.append("outside the doses measured")
    if (fit.low is None or fit.high is None) and not fit.step:
        notes.append("not bounded by these doses")
    if fit.floor > 0:
        notes.append(f"levels off at {fit.floor:.1%}")
    if fit.p_fit is not None and fit.p_fit < 0.05:
        notes.append(f"the curve fits badly (p = {fit.p_fit:.2g})")
    return "; ".join(notes)
