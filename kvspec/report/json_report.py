"""The report as plain data, in the shape of `schemas/report.schema.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvspec.score import CellScore, Floor, Proportion, Scores, Trend

REPORT_VERSION = 1


def to_json(scores: Scores) -> dict[str, Any]:
    """Everything the scores hold. Values that do not exist are null, never 0 or NaN."""
    return {
        "report": REPORT_VERSION,
        "run": asdict(scores.run),
        "sound": scores.sound,
        "verdict": list(scores.verdict),
        "warnings": list(scores.warnings),
        "floor": _floor(scores.floor),
        "cells": [_cell(cell) for cell in scores.cells],
        "trends": [_trend(trend, scores) for trend in scores.trends],
        "samples": [asdict(sample) for sample in scores.samples],
    }


def _floor(floor: Floor) -> dict[str, Any]:
    return {
        "golden_repeats": floor.golden_repeats.n,
        "identical": floor.golden_repeats.k,
        "null_trials": floor.null_trials.n,
        "null_identical": floor.null_trials.k,
        "clean": floor.clean,
        "combined": _proportion(floor.combined),
        "invalid": floor.invalid,
        "unusable_golden": list(floor.unusable_golden),
        "missing_golden": floor.missing_golden,
    }


def _cell(cell: CellScore) -> dict[str, Any]:
    fault = cell.plan.fault
    return {
        "name": cell.plan.name,
        "site": fault["site"],
        "model": fault["model"],
        "rate": _rate(fault["rate"]),
        "trials": cell.recorded,
        "exact_match": _proportion(cell.exact_match),
        **{f"{name}_mean": mean for name, mean in cell.drift_means.items()},
        "first_divergence_median": cell.first_divergence_median,
        "flips": asdict(cell.flips),
        "outcome": dict(cell.outcome),
        "due_reasons": dict(cell.due_reasons),
        "status": dict(cell.status),
        "invalid": cell.invalid,
        "unscored": cell.unscored,
        "preempted": cell.preempted,
        "below_floor": cell.below_floor,
        "expected_flips_per_trial": cell.plan.expected_per_trial,
        "dose": cell.plan.dose,
        "fault": fault,
    }


def _rate(rate: dict[str, Any]) -> dict[str, Any]:
    # Both ways people look it up: by unit and value, and under the word that the spec uses.
    data = {"unit": rate["unit"], "value": rate["value"], rate["unit"]: rate["value"]}
    if rate.get("residency_hours") is not None:
        data["residency_hours"] = rate["residency_hours"]
    return data


def _proportion(proportion: Proportion) -> dict[str, Any]:
    return asdict(proportion)


def _trend(trend: Trend, scores: Scores) -> dict[str, Any]:
    names = {cell.plan.index: cell.plan.name for cell in scores.cells}
    return {
        "label": trend.label,
        "cells": [names[c] for c in trend.cells],
        "cochran_armitage": None if trend.z is None else {"z": trend.z, "p_falls": trend.p_falls},
        "monotone": trend.monotone,
        "rises": [{"from": names[a], "to": names[b], "p_holm": p} for a, b, p in trend.rises],
    }
