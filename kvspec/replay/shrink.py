"""The fewest flips of a map that keep an outcome, found on the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from kvspec.engine.events import Answer, Columns
from kvspec.errors import EngineError
from kvspec.maps import FaultMap, explicit
from kvspec.maps.generate import events_of
from kvspec.maps.model import OPS
from kvspec.maps.trial import subset
from kvspec.replay.bench import Bench
from kvspec.replay.case import Case, refused
from kvspec.replay.ddmin import Rows, ddmin
from kvspec.spec.model import TARGETS, EngineSpec, ModelSpec

Until = Literal["sdc", "due", "nan", "differs", "wrong", "same"]
UNTIL: dict[Until, str] = {
    "sdc": "the answer is finished, finite, and not the fault-free one",
    "due": "logits are not finite, or the answer does not finish",
    "nan": "logits are not finite",
    "differs": "the answer is not the fault-free one, or does not finish as that does",
    "wrong": "the answer is not right, while the fault-free one is",
    "same": "the answer is the one that the whole map gives, token by token",
}
Right = Callable[[str], bool]
"""Whether the text of an answer is right."""
FOUND = ("before", "after", "before_value", "after_value")
AT_ONCE = 64
"""Candidates in one batch."""


class Observer(Protocol):
    """Hears how it goes."""

    def phase(self, text: str) -> None:
        """A long step or a round begins."""

    def start(self, total: int) -> None:
        """Requests begin."""

    def done(self) -> None:
        """A request has ended."""


@dataclass(frozen=True)
class Flip:
    """One flip of the reduced map, with the value of its element before and after all flips of that element."""

    step: int
    """Read event, 0 for a write."""
    layer: int
    kv: str
    head: int
    token: int
    elem: int
    bit: int
    op: str
    target: str
    """values, or scales: the value is then that of the scale."""
    before: float | None
    """`None` if no flip of this element changed it: a stuck-at that found the bit as it leaves it."""
    after: float | None
    before_code: int | None
    """As stored, in the format of the cache."""
    after_code: int | None


@dataclass(frozen=True)
class Shrunk:
    """The reduced map and what it does."""

    fault_map: FaultMap
    """Explicit, with its record: `kvspec replay` gives the same answer."""
    until: Until
    whole: int
    """Flips of the map before."""
    minimal: bool
    """Whether no single flip can be left out. False after Ctrl-C."""
    runs: int
    """Requests that it took."""
    flips: tuple[Flip, ...]
    text: str
    golden_text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "until": self.until,
            "flips_before": self.whole,
            "flips": [{name: _plain(value) for name, value in asdict(flip).items()} for flip in self.flips],
            "minimal": self.minimal,
            "runs": self.runs,
            "id": self.fault_map.id,
            "derived_from": self.fault_map.header.derived_from,
            "text": self.text,
            "golden_text": self.golden_text,
        }


def shrink(
    case: Case,
    until: Until,
    model: ModelSpec,
    observer: Observer,
    *,
    right: Right | None = None,
    engine: EngineSpec | None = None,
) -> Shrunk:
    """Reduce the map of a case by delta debugging. Ctrl-C ends it with the best so far. `wrong` needs `right`.

    Raises what `Bench` raises, and `RecordsError` (KVS515) if the whole map does not give the outcome, or the request
    without faults has it too.
    """
    if len(case.maps) > 1:
        raise refused(f"{' and '.join(case.files)} are two maps of one trial", "one map: of its writes or of its reads")
    if case.flips == 0:
        raise refused(f"`{case.files[0]}` holds no flips", "a map with flips")
    with Bench([case], model, engine or EngineSpec(), observer, requests=AT_ONCE) as bench:
        return _Shrinking(case, until, bench, observer, right).run()


class _Shrinking:
    def __init__(self, case: Case, until: Until, bench: Bench, observer: Observer, right: Right | None) -> None:
        self._until, self._bench, self._observer, self._right = until, bench, observer, right
        self._map = explicit(case.maps[0])
        self._events = events_of([self._map])
        self._case = case
        self._answers: dict[bytes, Answer] = {}
        """Of candidates of the round that pass."""
        self._runs = 0

    def run(self) -> Shrunk:
        """Shrink, then tell."""
        size = len(self._map)
        everything = np.arange(size, dtype=np.intp)
        self._golden, self._whole = self._answer([None, everything])
        if not self._passes(self._whole):
            raise refused(
                f"with all {size} flips of `{self._case.files[0]}` the outcome is not `{self._until}`",
                UNTIL[self._until],
            )
        if self._passes(self._golden):
            raise refused(
                f"the request of `{self._case.files[0]}` has the outcome `{self._until}` without any flip",
                UNTIL[self._until],
            )
        best, answer, minimal = everything, self._whole, False
        try:
            for step in ddmin(size, self._test, at_once=AT_ONCE):
                if len(step.rows) < len(best):
                    best, answer = step.rows, self._answers[step.rows.tobytes()]
                minimal = step.parts == 0
                self._observer.phase(f"{len(best)} of {size} flips keep `{self._until}`, {self._runs} runs so far")
        except KeyboardInterrupt:
            self._observer.phase("interrupted, keeping the best so far")
        return self._shrunk(best, answer, minimal)

    def _test(self, candidates: Sequence[Rows]) -> list[bool]:
        answers = self._answer(candidates)
        passed = [self._passes(answer) for answer in answers]
        for rows, answer, kept in zip(candidates, answers, passed, strict=True):
            if kept:
                self._answers[rows.tobytes()] = answer
        return passed

    def _answer(self, candidates: Sequence[Rows | None]) -> list[Answer]:
        requests = [
            self._bench.request(0, None if rows is None else {n: c[rows] for n, c in self._events.items()})
            for rows in candidates
        ]
        found: dict[int, Answer] = {}
        self._observer.start(len(requests))
        for index, answer in self._bench.run(requests, record=True):
            if not answer.proven:
                raise EngineError.one(
                    "KVS404",
                    f"{answer.landed} of {answer.planned} flips of a part of the map landed, "
                    f"{answer.mismatches} elements of the cache are not as they must be",
                )
            found[index] = answer
            self._observer.done()
        self._runs += len(requests)
        return [found[index] for index in range(len(requests))]

    def _passes(self, answer: Answer) -> bool:
        due = answer.nonfinite_at is not None or answer.finish_reason not in ("length", "stop")
        match self._until:
            case "due":
                return due
            case "nan":
                return answer.nonfinite_at is not None
            case "sdc":
                return not due and answer.token_ids != self._golden.token_ids
            case "differs":
                golden = self._golden
                return due or (answer.token_ids, answer.finish_reason) != (golden.token_ids, golden.finish_reason)
            case "wrong":
                assert self._right is not None
                return not self._right(answer.text)
            case "same":
                return answer.token_ids == self._whole.token_ids

    def _shrunk(self, rows: Rows, answer: Answer, minimal: bool) -> Shrunk:
        reduced = subset(self._map, rows)
        record = {
            "token_ids": answer.token_ids,
            "golden_token_ids": self._golden.token_ids,
            "finish_reason": answer.finish_reason,
            "flips_landed": answer.landed,
            "environment": self._bench.environment,
        }
        last = max(int(self._events["token"][rows].max()) + 1, int(self._events["step"][rows].max()))
        coverage = replace(reduced.header.coverage, tokens=max(answer.written, last))
        header = replace(reduced.header, record=record, coverage=coverage)
        return Shrunk(
            fault_map=replace(reduced, header=header),
            until=self._until,
            whole=len(self._map),
            minimal=minimal,
            runs=self._runs,
            flips=_flips({n: c[rows] for n, c in self._events.items()}, answer),
            text=answer.text,
            golden_text=self._golden.text,
        )


def _flips(events: Columns, answer: Answer) -> tuple[Flip, ...]:
    """The flips with the values that the read-back found. An element that no flip changed is not among the changes."""
    changes = answer.changes or {}
    names = ("step", "layer", "kv", "head", "token", "elem", "target")
    count = len(changes["before"]) if changes else 0
    places = {tuple(int(changes[n][i]) for n in names): i for i in range(count)}
    flips = []
    for i in range(len(events["bit"])):
        at = places.get(tuple(int(events[n][i]) for n in names))
        found = {name: None if at is None else int(changes[name][at]) for name in FOUND}
        flips.append(
            Flip(
                **{n: int(events[n][i]) for n in ("step", "layer", "head", "token", "elem", "bit")},
                kv="KV"[int(events["kv"][i])],
                op=OPS[int(events["op"][i])],
                target=TARGETS[int(events["target"][i])],
                before=_value(found["before_value"]),
                after=_value(found["after_value"]),
                before_code=found["before"],
                after_code=found["after"],
            )
        )
    return tuple(flips)


def _value(bits: int | None) -> float | None:
    return None if bits is None else float(np.uint32(bits).view(np.float32))


def _plain(value: Any) -> Any:
    """JSON has no words for NaN and infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
