"""The plan: every trial of a campaign, fixed before anything runs, without torch or vLLM.

A plan is a pure function of the resolved spec. Its trials are enumerated by one rule (`Plan.trials`), so the plan
itself stays small however many trials it has, and its sha256 digest names the campaign.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from kvspec.spec.model import Fault, Spec

PLAN_VERSION = 1
SAMPLING_VERSION = 2
"""Version of the sampling specification that defines where faults fall (`docs/sampling.md`)."""

TrialKind = Literal["golden", "golden_repeat", "null", "fault"]
NO_CELL = -1


@dataclass(frozen=True, slots=True)
class Cell:
    """All trials of one concrete fault: one row of the report."""

    index: int
    name: str
    """Name of the fault entry; where a sweep makes several cells of it, followed by what was swept."""
    fault: Fault
    experiment: int
    """64-bit id in the Philox counter. Equal ids share their draws (common random numbers)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One request of the campaign. Its identity alone decides its faults."""

    kind: TrialKind
    cell: int
    """Index of the cell, `NO_CELL` for golden and null trials."""
    request: int
    """Index of the prompt."""
    trial: int
    """0 .. per_prompt - 1 within (cell, request)."""

    @property
    def id(self) -> str:
        """Stable name, unique in the plan: `golden/p0`, `null/p3/t1`, `c2/p0/t4`."""
        if self.kind == "fault":
            return f"c{self.cell}/p{self.request}/t{self.trial}"
        if self.kind == "golden":
            return f"golden/p{self.request}"
        return f"{self.kind}/p{self.request}/t{self.trial}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, ASCII only and no NaN: equal values give equal bytes on every platform."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def experiment_id(fault: Fault) -> int:
    """The 64-bit experiment id of a fault: what defines its draws, without name, selector and op.

    Leaving the name out makes renaming harmless; leaving `where` out makes a narrower selector hide flips
    without moving the others (sampling.md, section 1); leaving `op` out puts stuck-ats where the flips are (section 7).
    """
    identity = {key: value for key, value in asdict(fault).items() if key not in ("name", "index", "where", "op")}
    if fault.target == "values":
        del identity["target"]  # as it was before there were faults of scales
    digest = hashlib.sha256(canonical_json(identity).encode()).digest()
    return int.from_bytes(digest[:8], "little")


@dataclass(frozen=True)
class Plan:
    """A campaign, ready to run."""

    spec: Spec
    cells: tuple[Cell, ...]

    @property
    def requests(self) -> int:
        """Number of prompts."""
        return len(self.spec.prompts.texts)

    @property
    def trials_per_cell(self) -> int:
        """The n of every cell."""
        return self.requests * self.spec.trials.per_prompt

    def __len__(self) -> int:
        controls = 1 + self.spec.controls.golden_repeats + self.spec.controls.null_trials
        return self.requests * (controls + len(self.cells) * self.spec.trials.per_prompt)

    def trials(self) -> Iterator[Trial]:
        """All trials in plan order: golden first, then rounds that visit every cell, the controls spread over them.

        An interrupted run therefore has nearly equal n in all cells, and the golden floor is measured in every
        batch composition rather than only in the first.
        """
        prompts = range(self.requests)
        yield from (Trial("golden", NO_CELL, p, 0) for p in prompts)
        rounds = self.spec.trials.per_prompt
        controls = self.spec.controls
        kinds: tuple[tuple[TrialKind, int], ...] = (
            ("golden_repeat", controls.golden_repeats),
            ("null", controls.null_trials),
        )
        for t in range(rounds):
            for kind, count in kinds:
                for number in range(t * count // rounds, (t + 1) * count // rounds):
                    yield from (Trial(kind, NO_CELL, p, number) for p in prompts)
            for cell in self.cells:
                yield from (Trial("fault", cell.index, p, t) for p in prompts)

    def to_json(self) -> dict[str, Any]:
        """The canonical form: what is asked and injected, not how or where it runs."""
        spec = self.spec.to_json()
        for how in ("engine", "source", "description", "metrics"):
            del spec[how]
        return {
            "plan": PLAN_VERSION,
            "sampling": SAMPLING_VERSION,
            "spec": spec,
            "cells": [{"index": c.index, "name": c.name, "experiment": f"{c.experiment:016x}"} for c in self.cells],
            "trials": len(self),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()
