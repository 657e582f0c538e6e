"""The table of cells."""

from __future__ import annotations

from typing import Any

from kvspec.report import words
from kvspec.report.limits import Limits
from kvspec.report.safe import brief, visible
from kvspec.report.series import DOSES, Dose, Series
from kvspec.score import CellScore, Scores


def cell_rows(scores: Scores, limits: Limits) -> tuple[list[dict[str, Any]], int]:
    """One row per cell, and how many are left out."""
    cells = scores.cells[: limits.rows]
    return [_row(cell, limits) for cell in cells], len(scores.cells) - len(cells)


def _row(cell: CellScore, limits: Limits) -> dict[str, Any]:
    match, fault = cell.exact_match, cell.plan.fault
    n = match.n
    return {
        "name": brief(cell.plan.name, limits.name),
        "model": visible(str(fault["model"])),
        "site": visible(str(fault["site"])),
        "rate": words.rate(fault),
        "rate_value": float(fault["rate"]["value"]),
        "n": n,
        "accuracy": words.percent(match),
        "interval": words.interval(match),
        "share": None
        if match.rate is None
        else [round(x * 100, 1) for x in (match.rate, match.low or 0.0, match.high or 0.0)],
        "drift": words.chars(cell.drift_means["char_drift"]),
        "drift_value": cell.drift_means["char_drift"],
        "flips": words.flips(cell),
        "landed": cell.flips.landed,
        "outcomes": words.outcomes(cell),
        "mix": [round(100 * cell.outcome[kind] / n, 1) for kind in ("masked", "sdc", "due")] if n else None,
        "mix_words": ", ".join(f"{cell.outcome[kind]:,} {kind}" for kind in ("masked", "sdc", "due")) if n else "",
        "status": words.status(cell),
        "below": cell.below_floor,
        "bad": bool(cell.invalid),
    }


def ec50_table(series: tuple[Series, ...], dose: Dose, limits: Limits) -> list[tuple[str, ...]]:
    """The half-effect dose of every fitted series."""
    rows: list[tuple[str, ...]] = []
    for one in series:
        if (fit := one.fits.get(dose)) is not None:
            span = words.DASH if fit.low is None or fit.high is None else f"{fit.low:.3g} to {fit.high:.3g}"
            ec50 = words.DASH if fit.ec50 is None else f"{fit.ec50:.3g}"
            rows.append((one.label, ec50, span, visible(fit.note)))
    return rows[: limits.rows]


def dose_table(series: tuple[Series, ...], limits: Limits) -> list[tuple[str, ...]]:
    """The numbers of the dose-response charts."""
    rows = [
        (
            point.name,
            point.rate,
            *(words.DASH if point.doses[d] is None else f"{point.doses[d]:.3g}" for d in DOSES if d != "rate"),
            f"{point.share:.1%}",
            f"{point.low * 100:.1f}-{point.high * 100:.1f}%",
            f"{point.n:,}",
        )
        for one in series
        for point in one.points
    ]
    return rows[: limits.rows]
