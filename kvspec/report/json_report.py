"""The report as plain data, in the shape of `schemas/report.schema.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvspec.score import (
    CellScore,
    DoseResponse,
    Effect,
    Floor,
    PairTest,
    Proportion,
    Scores,
    Trend,
    Vulnerability,
)
from kvspec.score.anatomy import Anatomy
from kvspec.score.cells import RunInfo

REPORT_VERSION = 1
FLIPS = ("expected", "planned", "landed", "changed", "exposed", "reruns")


def to_json(scores: Scores) -> dict[str, Any]:
    """Everything the scores hold. Values that do not exist are null, never 0 or NaN."""
    return {
        "report": REPORT_VERSION,
        "run": _run(scores.run),
        "sound": scores.sound,
        "verdict": list(scores.verdict),
        "warnings": list(scores.warnings),
        "floor": _floor(scores.floor),
        "cells": [_cell(cell) for cell in scores.cells],
        "trends": [_trend(trend, scores) for trend in scores.trends],
        "pairs": [_pair(pair, scores) for pair in scores.pairs],
        "dose_responses": [_dose_response(found, scores) for found in scores.dose_responses],
        "vulnerabilities": [_vulnerability(found, scores) for found in scores.vulnerabilities],
        "anatomy": None if scores.anatomy is None else _anatomy(scores.anatomy),
        "design_effect": scores.design_effect,
        "tasks": _tasks(scores),
        "samples": [asdict(sample) for sample in scores.samples],
    }


def _run(run: RunInfo) -> dict[str, Any]:
    return {**asdict(run), "certificate": None if run.certificate is None else str(run.certificate)}


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
        "kl_mean": cell.logprobs.kl_mean,
        "top1_agreement_mean": cell.logprobs.top1_agreement_mean,
        "logprob_trials": cell.logprobs.trials,
        "logprob_unusable": cell.logprobs.unusable,
        "first_divergence_median": cell.first_divergence_median,
        "flips": {name: getattr(cell.flips, name) for name in FLIPS},
        "finished": cell.flips.trials,
        "outcome": dict(cell.outcome),
        "due_reasons": dict(cell.due_reasons),
        "status": dict(cell.status),
        "invalid": cell.invalid,
        "unscored": cell.unscored,
        "preempted": cell.preempted,
        "below_floor": cell.below_floor,
        "effect": _effect(cell.effect),
        "single_flip": _proportion(cell.single_flip),
        "expected_flips": cell.plan.expected_flips,
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


def _effect(effect: Effect) -> dict[str, Any]:
    data = asdict(effect)
    if effect.clustered is not None:
        data["clustered"] = {"low": effect.clustered[0], "high": effect.clustered[1]}
    return data


def _names(scores: Scores) -> dict[int, str]:
    return {cell.plan.index: cell.plan.name for cell in scores.cells}


def _pair(pair: PairTest, scores: Scores) -> dict[str, Any]:
    names = _names(scores)
    return {**asdict(pair), "first": names[pair.first], "second": names[pair.second]}


def _dose_response(found: DoseResponse, scores: Scores) -> dict[str, Any]:
    names, fit = _names(scores), asdict(found.fit)
    unit = scores.cells[found.cells[0]].plan.fault["rate"]["unit"] if found.dose == "rate" else "flips per request"
    return {
        "label": found.label,
        "cells": [names[c] for c in found.cells],
        "dose": found.dose,
        "unit": unit,
        "ec50": {key: fit[key] for key in ("low", "high")} | {"value": fit["ec50"]},
        **{
            key: fit[key]
            for key in ("steepness", "ceiling", "floor", "deviance", "freedom", "p_fit", "step", "inflation")
        },
        "curve": fit["curve"],
    }


def _vulnerability(found: Vulnerability, scores: Scores) -> dict[str, Any]:
    names, data = _names(scores), asdict(found)
    data["cells"] = [names[c] for c in found.cells]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def _anatomy(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "trials": anatomy.trials,
        "unlocated": anatomy.unlocated,
        "maps": [{**asdict(one), "squares": [asdict(square) for square in one.squares]} for one in anatomy.maps],
        "tests": [asdict(test) for test in anatomy.tests],
    }


def _tasks(scores: Scores) -> dict[str, Any]:
    names, tasks = _names(scores), scores.tasks
    return {
        "clean": [asdict(found) for found in tasks.clean],
        "faulted": [{**asdict(found), "cell": names[found.cell]} for found in tasks.faulted],
        "pairs": [{**asdict(pair), "cell": names[pair.cell]} for pair in tasks.pairs],
        "lengths": [{**asdict(found), "trials": list(found.trials)} for found in tasks.lengths],
        "pooled": [{**asdict(pair), "lost": list(pair.lost), "detected": list(pair.detected)} for pair in tasks.pooled],
    }


def _trend(trend: Trend, scores: Scores) -> dict[str, Any]:
    names = _names(scores)
    return {
        "label": trend.label,
        "cells": [names[c] for c in trend.cells],
        "cochran_armitage": None if trend.z is None else {"z": trend.z, "p_falls": trend.p_falls},
        "monotone": trend.monotone,
        "rises": [{"from": names[a], "to": names[b], "p_holm": p} for a, b, p in trend.rises],
    }
