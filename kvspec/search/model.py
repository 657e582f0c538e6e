"""The points of a search, by series: one fault with everything but its rate fixed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvspec.models import Geometry
from kvspec.plan.compile import describe_ranges, describe_selector
from kvspec.plan.dose import highest_rate
from kvspec.score.zombie import ZombieState
from kvspec.search.window import CLOSE, Window, rounded
from kvspec.spec.model import Fault, Range

PARAMETERS = {"burst": ("burst_len",), "msb_biased": ("msb_policy",), "page_local": ("page_tokens", "page_density")}
"""What a fault model has of its own. A profile says all of it, so that no default can change it."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one cell showed."""

    name: str
    """Of the cell."""
    fault: Fault
    states: tuple[ZombieState, ...]
    """Every retrieval task against every reasoning task, by answers and silent."""
    missing: int = 0
    """Trials that were planned and not recorded, for the run was interrupted."""

    @property
    def label(self) -> str:
        """The fault with its selector and rate."""
        fault = self.fault
        return f"{fault.name}[{_place(fault)}, {self.rate:g} {fault.rate.unit}]"

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

    def closest(self, silent: bool) -> ZombieState:
        """The state that is nearest to a zombie's, by one of the two definitions."""
        return min((state for state in self.states if state.silent == silent), key=lambda state: state.order)

    def order(self, silent: bool) -> tuple[bool, bool, float]:
        """The state that is shown first, then the closest one. A cell that lacks trials stands back: those that it
        has are no random part, for they had ended when the run was interrupted."""
        state = self.closest(silent)
        return not state.shown, self.missing > 0, state.distance

    def like(self, other: ZombieState) -> ZombieState | None:
        """The state of the same tasks by the same definition."""
        key = (other.context, other.retrieval, other.reasoning, other.silent)
        same = [s for s in self.states if (s.context, s.retrieval, s.reasoning, s.silent) == key]
        return same[0] if same else None

    def to_json(self) -> dict[str, Any]:
        """The cell and all its states."""
        return {
            "cell": self.name,
            "rate": self.rate,
            "missing": self.missing,
            "fault": entry(self.fault),
            "states": [state_json(state) for state in self.states],
        }


@dataclass(slots=True)
class Series:
    """A fault whose rate is searched."""

    fault: Fault
    """Any of its points; the rate is of no account."""
    points: list[Point] = field(default_factory=list)

    def add(self, point: Point) -> None:
        """Take in a point."""
        self.points = sorted([*self.points, point], key=lambda p: p.rate)

    @property
    def label(self) -> str:
        """The fault without its rate."""
        return f"{self.fault.name}[{_place(self.fault)}]"

    def windows(self, silent: bool) -> list[Window]:
        """The window of every pair of tasks by one definition, the widest first."""
        pairs: dict[tuple[int, str, str], list[tuple[float, ZombieState]]] = defaultdict(list)
        for point in self.points:
            for state in point.states:
                if state.silent == silent:
                    pairs[state.context, state.retrieval, state.reasoning].append((point.rate, state))
        return sorted((Window.of(pair) for pair in pairs.values()), key=lambda window: -window.width)

    def closest(self, silent: bool) -> Point:
        """The cell that is nearest to the state."""
        return min(self.points, key=lambda point: point.order(silent))

    def next_faults(self, storage_format: str, geometry: Geometry) -> list[Fault]:
        """The fault at the rates that would place the widest window better, by each of the two definitions. Where one
        is above what the fault may have in a cache of that format and geometry, the highest that it may have."""
        taken, found = [point.rate for point in self.points], []
        highest = highest_rate(self.fault, storage_format, geometry)
        for silent in (False, True):
            for wanted in self.windows(silent)[0].next_rates():
                rate = min(rounded(wanted), highest)
                # rates of the other definition are as good where they are about as high
                if all(max(rate / one, one / rate) > CLOSE for one in taken):
                    taken.append(rate)
                    found.append(replace(self.fault, rate=replace(self.fault.rate, value=rate)))
        return found

    def to_json(self) -> dict[str, Any]:
        """The windows of all pairs by both definitions, and the points by rising rate."""
        return {
            "fault": {key: value for key, value in entry(self.fault).items() if key != "rate"},
            "unit": self.fault.rate.unit,
            "windows": [window.to_json() for silent in (False, True) for window in self.windows(silent)],
            "points": [point.to_json() for point in self.points],
        }


def state_json(state: ZombieState) -> dict[str, Any]:
    """A state with the shares that decide it."""
    data = asdict(state) | {"recalled": asdict(state.recalled), "reasoned": asdict(state.reasoned)}
    data["ends"] = {"retrieval": data["ends"][0], "reasoning": data["ends"][1]}
    return data | {"shown": state.shown, "distance": state.distance}


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


def _place(fault: Fault) -> str:
    """Site, bits where they are chosen, and selector."""
    bits = "" if fault.bits == "all" or fault.model == "msb_biased" else f"bits {_bits(fault)}, "
    return f"{fault.site}, {bits}{describe_selector(fault.where)}"


def _bits(fault: Fault) -> str:
    if isinstance(fault.bits, str):
        return fault.bits
    ranges: list[tuple[int, int]] = []
    for bit in fault.bits:
        start = ranges.pop()[0] if ranges and ranges[-1][1] == bit else bit
        ranges.append((start, bit + 1))
    return describe_ranges(tuple(ranges))


def _ranges(ranges: tuple[Range, ...]) -> list[str | int]:
    words = describe_ranges(ranges).split(",")
    return [int(word) if word.isdigit() else word for word in words]
