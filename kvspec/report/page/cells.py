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
        "against": words.against_controls(cell),
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
        "bad": bool(cell.invalid),
    }


def ec50_table(series: tuple[Series, ...], dose: Dose, limits: Limits) -> list[tuple[str, ...]]:
    """The half-effect dose of every fitted series."""
    rows: list[tuple[str, ...]] = []
    for one in series:
        if (fit := one.fits.get(dose)) is not None:
            span = " to ".join("open" if end is None else f"{end:.3g}" for end in (fit.low, fit.high))
            ec50 = words.DASH if fit.ec50 is None else f"{fit.ec50:.3g}"
            rows.append((one.label, ec50, span, visible(fit.note)))
    if not any(note for *_, note in rows):
        rows = [row[:-1] for row in rows]
    return rows[: limits.rows]


def pair_table(scores: Scores, limits: Limits) -> list[tuple[str, ...]]:
    """Cells that share their faults, each against the first of them."""
    names = {cell.plan.index: brief(cell.plan.name, limits.name) for cell in scores.cells}
    return [
        (
            names[pair.second],
            names[pair.first],
            f"{pair.pairs:,}",
            f"{pair.only_first:,} / {pair.only_second:,}",
            f"{pair.difference.value:+.1%} [{pair.difference.low:+.1%}, {pair.difference.high:+.1%}]",
            words.DASH if pair.sensitivity is None else str(pair.sensitivity),
            words.p_value(pair.p_holm).removeprefix("p = ").removeprefix("p "),
        )
        for pair in scores.pairs[: limits.rows // 4]
    ]


def vulnerability_table(scores: Scores, limits: Limits) -> list[tuple[str, ...]]:
    """AVF and FIT of every series."""
    names = {cell.plan.index: cell.plan.name for cell in scores.cells}
    names |= {cell: trend.label for trend in scores.trends for cell in trend.cells}
    rows: list[tuple[str, ...]] = []
    for found in scores.vulnerabilities[: limits.rows // 4]:
        scaled = found.fit_per_raw_fit
        rows.append(
            (
                brief(names[found.cells[0]], limits.name),
                f"{found.avf.n:,}",
                words.percent(found.avf),
                words.interval(found.avf),
                words.DASH if found.mbit is None else f"{found.mbit:.3g}",
                words.DASH if scaled is None else f"{scaled.value:.2g} [{scaled.low:.2g}, {scaled.high:.2g}]",
                ", ".join(f"{one.value:.2g}" for one in found.fit) or words.DASH,
            )
        )
    return rows


def logprob_table(scores: Scores, limits: Limits) -> list[tuple[str, ...]]:
    """How far the distributions moved, where logprobs were recorded."""
    rows: list[tuple[str, ...]] = []
    for cell in scores.cells:
        if (found := cell.logprobs).trials:
            kl = words.DASH if found.kl_mean is None else f"{found.kl_mean:.3g}"
            top1 = words.DASH if found.top1_agreement_mean is None else f"{found.top1_agreement_mean:.1%}"
            rows.append((brief(cell.plan.name, limits.name), f"{found.trials:,}", kl, top1))
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
