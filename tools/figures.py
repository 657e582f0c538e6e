"""The JSON report read back into `Scores`: pages are made from committed figures alone, without their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from kvspec.score import CellScore, DoseResponse, Effect, Floor, PairTest, Proportion, Scores, Trend, Vulnerability
from kvspec.score.anatomy import Anatomy
from kvspec.score.cells import CellPlan, RunInfo
from kvspec.score.lengths import LengthEffect
from kvspec.score.model import Flips, LogprobScore, Sample
from kvspec.score.pooled import PooledPair
from kvspec.score.tasks import CleanTask, FaultedTask, TaskPair, TaskScores
from kvspec.score.trials import DRIFTS
from kvspec.score.verdict import verdict, warnings
from kvspec.stats.dose import DoseFit

T = TypeVar("T")
Data = Mapping[str, Any]


def scores(report: Data) -> Scores:
    """What `kvspec.report.to_json` wrote, as it was; verdict and warnings are those of today's code.

    The certificate of the run is left out, of which the JSON holds the words alone.
    """
    cells = tuple(_cell(index, cell) for index, cell in enumerate(report["cells"]))
    place = {cell.plan.name: cell.plan.index for cell in cells}
    tasks = report["tasks"]

    def named(hint: type[T], data: Data, *keys: str) -> T:
        """Cells are named in the JSON and numbered here."""
        found = {key: place[data[key]] for key in keys}
        made: T = build(hint, {**data, **found})
        return made

    found = Scores(
        run=build(RunInfo, {**report["run"], "certificate": None}),
        floor=_floor(report["floor"]),
        cells=cells,
        trends=tuple(_trend(trend, place) for trend in report["trends"]),
        pairs=tuple(named(PairTest, pair, "first", "second") for pair in report["pairs"]),
        dose_responses=tuple(_dose_response(one, place) for one in report["dose_responses"]),
        vulnerabilities=tuple(
            build(Vulnerability, {**one, "cells": [place[name] for name in one["cells"]]})
            for one in report["vulnerabilities"]
        ),
        anatomy=None if report["anatomy"] is None else build(Anatomy, report["anatomy"]),
        design_effect=report["design_effect"],
        tasks=TaskScores(
            clean=tuple(build(CleanTask, one) for one in tasks["clean"]),
            faulted=tuple(named(FaultedTask, one, "cell") for one in tasks["faulted"]),
            pairs=tuple(named(TaskPair, one, "cell") for one in tasks["pairs"]),
            lengths=tuple(build(LengthEffect, one) for one in tasks["lengths"]),
            # figures from before it was counted have none
            pooled=tuple(build(PooledPair, one) for one in tasks.get("pooled", ())),
        ),
        samples=tuple(build(Sample, one) for one in report["samples"]),
        verdict=(),
        warnings=(),
    )
    return replace(found, verdict=verdict(found), warnings=warnings(found))


def _floor(data: Data) -> Floor:
    return Floor(
        golden_repeats=Proportion.of(data["identical"], data["golden_repeats"]),
        null_trials=Proportion.of(data["null_identical"], data["null_trials"]),
        invalid=data["invalid"],
        unusable_golden=tuple(data["unusable_golden"]),
        missing_golden=data["missing_golden"],
    )


def _cell(index: int, data: Data) -> CellScore:
    plan = CellPlan(index, data["name"], data["fault"]["index"], data["fault"], data["expected_flips"])
    ends = data["effect"]["clustered"]
    return CellScore(
        plan=plan,
        recorded=data["trials"],
        exact_match=build(Proportion, data["exact_match"]),
        drift_means={name: data[f"{name}_mean"] for name in DRIFTS if f"{name}_mean" in data},
        first_divergence_median=data["first_divergence_median"],
        flips=Flips(**data["flips"], trials=data["finished"]),
        outcome=data["outcome"],
        due_reasons=data["due_reasons"],
        status=data["status"],
        invalid=data["invalid"],
        unscored=data["unscored"],
        preempted=data["preempted"],
        below_floor=data["below_floor"],
        logprobs=LogprobScore(
            data["logprob_trials"], data["kl_mean"], data["top1_agreement_mean"], data["logprob_unusable"]
        ),
        single_flip=build(Proportion, data["single_flip"]),
        effect=build(Effect, {**data["effect"], "clustered": ends and [ends["low"], ends["high"]]}),
    )


def _trend(data: Data, place: Mapping[str, int]) -> Trend:
    test = data["cochran_armitage"] or {"z": None, "p_falls": None}
    rises = tuple((place[rise["from"]], place[rise["to"]], rise["p_holm"]) for rise in data["rises"])
    return Trend(data["label"], tuple(place[name] for name in data["cells"]), test["z"], test["p_falls"], rises)


def _dose_response(data: Data, place: Mapping[str, int]) -> DoseResponse:
    ends = data["ec50"]
    fit = build(DoseFit, {**data, "ec50": ends["value"], "low": ends["low"], "high": ends["high"]})
    return DoseResponse(data["label"], tuple(place[name] for name in data["cells"]), data["dose"], fit)


def build(hint: Any, data: Any) -> Any:
    """A value of the annotated type from plain data: dataclasses from mappings, tuples from lists, the rest as it is.

    Keys that the type does not have are left out; one that it needs and the data lacks is a `TypeError`.
    """
    if data is None:
        return None
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is ...:
            return tuple(build(kinds[0], one) for one in data)
        return tuple(build(kind, one) for kind, one in zip(kinds, data, strict=True))
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{one.name: build(hints[one.name], data[one.name]) for one in fields(hint) if one.name in data})  # type: ignore[operator]
    return data
