"""Running a search: the grid of the spec, the bisection, and the state that was found, measured anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kvspec.engine.campaign import Observer, open_session, run_campaign
from kvspec.engine.fleet import Fleet
from kvspec.engine.session import Session
from kvspec.errors import RecordsError
from kvspec.plan import Plan, compile_plan
from kvspec.records.files import write_atomic
from kvspec.score import score_run
from kvspec.score.zombie import ZOMBIE_RULE, zombie_states
from kvspec.search.model import Point, Series, entry, same_but_rate, series_of
from kvspec.spec import load_spec
from kvspec.spec.load import load_tree
from kvspec.spec.model import Spec

PROFILE = "profile.yaml"
STATE = "state"


@dataclass(frozen=True)
class Found:
    """What a search found."""

    series: tuple[Series, ...]
    closest: Point
    """The cell that is nearest to the state, over the whole search."""
    confirmed: Point
    """The same fault with another seed: draws on which nothing was chosen."""
    profile: Path
    """A spec of `confirmed` alone."""
    state: Path
    """Its run folder."""

    @property
    def shown(self) -> bool:
        """Whether both intervals show the state, in the search and with the other seed."""
        return self.closest.closest.shown and self._again.shown

    @property
    def _again(self) -> Any:
        chosen = self.closest.closest
        same = [
            state
            for state in self.confirmed.states
            if (state.context, state.retrieval, state.reasoning) == (chosen.context, chosen.retrieval, chosen.reasoning)
        ]
        return same[0] if same else self.confirmed.closest

    def verdict(self) -> str:
        """The result in a sentence."""
        state = f"{self.closest.closest} under {self.closest.label}; with another seed {self._again}"
        if self.shown:
            spared = self.closest.spared
            late = f" These faults spare the first {spared} tokens of every answer, and what is asked for in them."
            return f"Found: a zombie state ({ZOMBIE_RULE}), shown by both intervals: {state}.{late if spared else ''}"
        if self.closest.closest.distance <= 0 and self._again.distance <= 0:
            return f"Undecided: a zombie state ({ZOMBIE_RULE}) by its shares, but not by their intervals: {state}."
        return f"None: no zombie state ({ZOMBIE_RULE}) is shown. The closest point is {state}."

    def to_json(self) -> dict[str, Any]:
        """Every point, by series."""
        return {
            "rule": ZOMBIE_RULE,
            "found": self.shown,
            "verdict": self.verdict(),
            "closest": self.closest.to_json(),
            "confirmed": self.confirmed.to_json(),
            "series": [series.to_json() for series in self.series],
        }


def search(path: Path, overrides: Sequence[str], out: Path, steps: int, observer: Observer) -> Found:
    """Search the faults of the spec at `path` for the state; run folders and profile go into `out`.

    The same command goes on where it was interrupted. Raises `KvspecError`s: those of `run_campaign`, and KVS506 if no
    answer of a retrieval task can be compared with one of a reasoning task.
    """
    spec = load_spec(path, overrides)
    series = series_of(spec.faults)
    grid = compile_plan(spec)
    with open_session(grid, observer) as session:
        _measure(series, grid, out / "grid", session, observer)
        for number in range(1, steps + 1):
            faults = tuple(fault for one in series if (fault := one.next_fault()) is not None)
            if not faults:
                break
            plan = compile_plan(replace(spec, name=f"{spec.name}_{number}", faults=faults))
            _measure(series, plan, out / f"step-{number}", session, observer)
        closest = min((point for one in series for point in one.points), key=lambda point: point.closest.order)
        plan = _profile(path, overrides, spec, closest, out / PROFILE)
        run_campaign(plan, out / STATE, observer, session)
    return Found(tuple(series), closest, _points(plan, out / STATE)[0], out / PROFILE, out / STATE)


def _measure(series: list[Series], plan: Plan, folder: Path, session: Session | Fleet, observer: Observer) -> None:
    run_campaign(plan, folder, observer, session)
    for point in _points(plan, folder):
        next(one for one in series if same_but_rate(one.fault, point.fault)).add(point)


def _points(plan: Plan, folder: Path) -> list[Point]:
    states = zombie_states(score_run(folder).tasks)
    points = [
        Point(cell.name, cell.fault, tuple(state for state in states if state.cell == cell.index))
        for cell in plan.cells
    ]
    for point in points:
        if not point.states:
            raise RecordsError.one(
                "KVS506",
                f"`{point.name}` has no answer of a retrieval task to compare with one of a reasoning task",
                expected="prompts of both kinds, some items of which the model solves without faults",
            )
    return points


def _profile(path: Path, overrides: Sequence[str], spec: Spec, closest: Point, target: Path) -> Plan:
    """Write the spec of one point with the next seed; its plan, read back from the file."""
    data = load_tree(path, overrides).plain()
    data |= {"name": f"{spec.name}_state", "seed": (spec.seed + 1) % 2**64, "faults": [entry(closest.fault)]}
    if file := data.get("prompts", {}).get("file"):
        data["prompts"]["file"] = os.path.relpath(path.parent / file, target.parent)
    buffer = BytesIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # flat lists and mappings on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keys stay in the order of the spec
    yaml.dump(data, buffer)
    head = f"# The closest point of a search (`kvspec search {path.name}`), with another seed: {closest.closest}\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, lambda stream: stream.write(head.encode() + buffer.getvalue()))
    return compile_plan(load_spec(target))
