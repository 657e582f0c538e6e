"""The points of a search, by series: one fault with everything but its rate fixed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvspec.plan.compile import describe_ranges, describe_selector
from kvspec.score.zombie import ZOMBIE_RETRIEVAL, ZombieState
from kvspec.spec.model import Fault, Range

CLOSE = 1.1
"""Neighbouring rates whose ratio is at most this are not parted any more."""
PARAMETERS = {"burst": ("burst_len",), "msb_biased": ("msb_policy",), "page_local": ("page_tokens", "page_density")}
"""What a fault model has of its own. A profile says all of it, so that no default can change it."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one cell showed."""

    name: str
    """Of the cell."""
    fault: Fault
    states: tuple[ZombieState, ...]
    """Every retrieval task against every reasoning task."""

    @property
    def label(self) -> str:
        """The fault with its selector and rate."""
        fault = self.fault
        return f"{fault.name}[{fault.site}, {describe_selector(fault.where)}, {self.rate:g} {fault.rate.unit}]"

    @property
    def rate(self) -> float:
        """The dose in the unit of the fault."""
        return self.fault.rate.value

    @property
    def spared(self) -> int:
        """Tokens at the start of every answer that are sampled before a fault of reads can strike: step s samples
        token s, the first one being 0."""
        steps = self.fault.where.steps
        if self.fault.site != "KV_READ" or not isinstance(steps, tuple):
            return 0
        return min(start for start, _ in steps)

    @property
    def recall(self) -> ZombieState:
        """The state of the retrieval task that holds best: where it is lost, no retrieval holds."""
        return max(self.states, key=lambda state: state.recalled.rate or 0.0)

    @property
    def closest(self) -> ZombieState:
        """The state that is nearest to a zombie's."""
        return min(self.states, key=lambda state: state.order)

    @property
    def recalls(self) -> bool:
        """Whether retrieval holds, by its share."""
        return (self.recall.recalled.rate or 0.0) >= ZOMBIE_RETRIEVAL

    def to_json(self) -> dict[str, Any]:
        """The cell and all its states."""
        return {
            "cell": self.name,
            "rate": self.rate,
            "fault": entry(self.fault),
            "states": [asdict(state) | {"shown": state.shown} for state in self.states],
        }


@dataclass(slots=True)
class Series:
    """A fault whose rate is searched. Retrieval is taken to fall with the rate."""

    fault: Fault
    """Any of its points; the rate is of no account."""
    points: list[Point] = field(default_factory=list)

    def add(self, point: Point) -> None:
        """Take in a point."""
        self.points = sorted([*self.points, point], key=lambda p: p.rate)

    @property
    def label(self) -> str:
        """The fault without its rate."""
        fault = self.fault
        return f"{fault.name}, {fault.site}, {describe_selector(fault.where)}, {fault.rate.unit}"

    @property
    def bracket(self) -> tuple[Point | None, Point | None]:
        """The last point before retrieval is lost for the first time, and that one."""
        holds: Point | None = None
        for point in self.points:
            if not point.recalls:
                return holds, point
            holds = point
        return holds, None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Rates between which retrieval falls below the limit, by the 95 % intervals of its points: the highest one up
        to which all of them lie above, and the lowest one that lies below."""
        low: float | None = None
        for point in self.points:
            if (point.recall.recalled.low or 0.0) < ZOMBIE_RETRIEVAL:
                break
            low = point.rate
        lost = [p.rate for p in self.points if (p.recall.recalled.high or 0.0) < ZOMBIE_RETRIEVAL]
        return low, min(lost, default=None)

    def to_json(self) -> dict[str, Any]:
        """The points by rising rate, and where retrieval is lost."""
        return {
            "fault": {key: value for key, value in entry(self.fault).items() if key != "rate"},
            "unit": self.fault.rate.unit,
            "retrieval_lost_between": list(self.interval),
            "points": [point.to_json() for point in self.points],
        }

    def next_fault(self) -> Fault | None:
        """The fault at the middle of the bracket on a logarithmic scale; `None` if there is nothing to part."""
        holds, lost = self.bracket
        if holds is None or lost is None or lost.rate / holds.rate <= CLOSE:
            return None
        middle = float(f"{math.sqrt(holds.rate * lost.rate):.4g}")  # as it will stand in the profile
        return replace(self.fault, rate=replace(self.fault.rate, value=middle))


def series_of(faults: Iterable[Fault]) -> list[Series]:
    """Faults that differ in their rate only make one series; in order of first appearance."""
    found: dict[Fault, Series] = {}
    for fault in faults:
        key = replace(fault, rate=replace(fault.rate, value=0.0))
        found.setdefault(key, Series(fault))
    return list(found.values())


def same_but_rate(a: Fault, b: Fault) -> bool:
    """Whether two faults differ in nothing but the value of their rate."""
    return replace(a, rate=replace(a.rate, value=b.rate.value)) == b


def entry(fault: Fault) -> dict[str, Any]:
    """A concrete fault as an entry of a spec."""
    rate: Any = fault.rate.value
    if fault.rate.unit == "fit":
        rate = {"raw_fit_per_mbit": rate, "residency_hours": fault.rate.residency_hours}
    data: dict[str, Any] = {
        "name": fault.name,
        "model": fault.model,
        "site": fault.site,
        "rate": {fault.rate.unit: rate},
    }
    data |= {name: getattr(fault, name) for name in PARAMETERS.get(fault.model, ())}
    if fault.op != "flip":
        data["op"] = fault.op
    if fault.target != "values":
        data["target"] = fault.target
    if fault.bits != "all" and fault.model != "msb_biased":
        data["bits"] = list(fault.bits) if isinstance(fault.bits, tuple) else fault.bits
    where = fault.where
    chosen: dict[str, Any] = {}
    for name in ("layers", "heads", "tokens", "steps"):
        value = getattr(where, name)
        if value not in (None, "all"):
            chosen[name] = value if isinstance(value, str) else _ranges(value)
    if where.cache != ("K", "V"):
        chosen["cache"] = list(where.cache)
    return {**data, "where": chosen} if chosen else data


def _ranges(ranges: tuple[Range, ...]) -> list[str | int]:
    words = describe_ranges(ranges).split(",")
    return [int(word) if word.isdigit() else word for word in words]
