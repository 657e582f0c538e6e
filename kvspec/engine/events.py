"""Requests with listed faults: what a fault map holds, run exactly as listed. The counterpart of `table.py`.

A campaign draws its faults from keys while it runs. Here every fault comes from columns (docs/faultmap.md), so that
replay, shrinking and self-tests inject the flips that they were given and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.session import Finished, Session
from kvspec.engine.table import TableData
from kvspec.engine.vllm.readback import ReadBack, together
from kvspec.models import Geometry
from kvspec.spec.model import GenerationSpec

Columns = dict[str, NDArray[Any]]
"""Sites in the columns of a fault map, canonical order, with the column `op`."""

OPS = ("flip", "set0", "set1")
SITE_COLUMNS = ("request", "layer", "kv", "head", "token", "elem", "bit", "op")
TYPES = (np.uint32, np.uint16, np.uint8, np.uint16, np.uint32, np.uint16, np.uint8, np.uint8)
EVENTS_AT_ONCE = 1 << 23
"""Listed faults in the engine at a time; more requests wait for the next load."""


def no_events() -> Columns:
    """The columns of a request without faults."""
    return {name: np.zeros(0, dtype) for name, dtype in zip(SITE_COLUMNS, TYPES, strict=True)}


@dataclass(frozen=True)
class EventData:
    """Listed faults of all requests in the engine; index i is the entry that a request carries. Plain data, so that
    it can be sent to worker processes; `build` makes the native table on the other side."""

    storage_format: str
    starts: NDArray[np.uint64]
    """`[n + 1]`: entry i has the rows `starts[i] .. starts[i + 1] - 1` of the columns."""
    columns: Columns
    prompt_len: NDArray[np.uint32]
    """Tokens."""
    armed: NDArray[np.bool_]
    """Whether the request goes through the injector."""
    faulty: NDArray[np.bool_]
    """Whether it has a fault, hence whether its blocks must be scrubbed."""

    @classmethod
    def of(cls, storage_format: str, requests: Sequence[Request]) -> EventData:
        """The table of some requests, in their order."""
        sizes = [len(r.events["bit"]) for r in requests]
        columns = {name: np.concatenate([r.events[name] for r in requests]) for name in SITE_COLUMNS}
        return cls(
            storage_format=storage_format,
            starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64),
            columns=columns,
            prompt_len=np.array([len(r.prompt) for r in requests], dtype=np.uint32),
            armed=np.array([r.armed for r in requests], dtype=bool),
            faulty=np.array(sizes) > 0,
        )

    def __len__(self) -> int:
        return len(self.prompt_len)

    def build(self, geometry: Geometry) -> _native.EventTable:
        """The native table."""
        return _native.EventTable(
            layers=geometry.layers,
            bits=_native.format_bits(self.storage_format),
            starts=self.starts,
            columns={name: self.columns[name] for name in SITE_COLUMNS if name != "op"},
            op=self.columns["op"],
        )


@dataclass(frozen=True)
class Request:
    """One request and its faults."""

    prompt: list[int]
    """Token ids."""
    generation: GenerationSpec
    seed: int
    """Sampling seed, used if the temperature is above 0."""
    events: Columns = field(default_factory=no_events)
    armed: bool = True
    """Golden requests are not; null controls are armed and have no events."""

    def planned(self, written: int) -> int:
        """Faults in positions `0 .. written - 1`."""
        return int(np.count_nonzero(self.events["token"] < written))


@dataclass(frozen=True)
class Answer:
    """What a request did."""

    token_ids: list[int]
    text: str
    finish_reason: str
    written: int
    """Token positions that reached the cache."""
    planned: int
    """Listed faults in these positions."""
    landed: int
    """Faults that the injector counted in the cache words."""
    read_back: int
    """Faults that an independent reading of the cache found in place."""
    mismatches: int
    """Elements of the cache that held anything but what was written and listed."""
    preemptions: int
    nonfinite_at: int | None
    changes: Columns | None = None
    """With `record`: every element that differs from what was written: the columns of
    `readback.CHANGES`."""

    logits: tuple[bytes, ...] = ()
    """With `record`: a hash of the logits of each step."""

    @property
    def proven(self) -> bool:
        """Whether exactly the listed faults were injected."""
        return self.planned == self.landed == self.read_back and self.mismatches == 0


def run_requests(
    session: Session,
    storage_format: str,
    requests: Iterable[Request],
    *,
    record: bool = False,
    drawn: TableData | None = None,
    order: Callable[[list[int]], list[int]] = list,
) -> Iterator[tuple[int, Answer]]:
    """Run requests through a started engine; (index, answer) as they end. Requests are taken as there is room for
    their faults, so an iterator need not hold all of them.

    On a GPU the session must be `eager`. Every cache write is read back and compared, element by element. `record`
    keeps the changes that were found.
    `drawn` is loaded in place of the lists of faults, which then only say what is expected; the requests must fit
    into one load.
    `order` rearranges the indices of a load before they are submitted. Raises `EngineError` (KVS406).
    """
    first = 0
    for load in _loads(requests):
        data = EventData.of(storage_format, load)
        session.rpc("kvspec_load", data if drawn is None else drawn)
        session.rpc("kvspec_watch", ReadBack(storage_format, data.starts, data.columns, record=record))
        try:
            for ended in _drive(session, load, order(list(range(len(load))))):
                for finished, answer in zip(ended, _answers(session, load, ended), strict=True):
                    yield first + finished.entry, answer
        finally:
            session.rpc("kvspec_watch", None)
        first += len(load)


def _loads(requests: Iterable[Request]) -> Iterator[list[Request]]:
    load: list[Request] = []
    events = 0
    for request in requests:
        size = len(request.events["bit"])
        if load and events + size > EVENTS_AT_ONCE:
            yield load
            load, events = [], 0
        load.append(request)
        events += size
    if load:
        yield load


def _drive(session: Session, requests: Sequence[Request], order: Sequence[int]) -> Iterator[list[Finished]]:
    queue = iter(order)
    room = 4 * int(session.settings["max_num_seqs"])

    def submit(number: int) -> None:
        for entry in itertools.islice(queue, max(0, number)):
            request = requests[entry]
            session.submit(entry, request.prompt, request.generation, request.seed)

    submit(room)
    while session.pending:
        if ended := session.step():
            yield ended
            submit(room - session.pending)


def _answers(session: Session, requests: Sequence[Request], ended: list[Finished]) -> Iterator[Answer]:
    entries = [f.entry for f in ended]
    tally = session.tally(entries)
    seen = together(session.rpc_all("kvspec_canary"))
    for i, finished in enumerate(ended):
        written, at = tally["written"][i], tally["nonfinite_at"][i]
        yield Answer(
            token_ids=finished.token_ids,
            text=finished.text,
            finish_reason=finished.finish_reason,
            written=written,
            planned=requests[finished.entry].planned(written),
            landed=tally["landed"][i],
            read_back=int(seen["landed"][finished.entry]),
            mismatches=int(seen["mismatches"][finished.entry]),
            preemptions=tally["preemptions"][i],
            nonfinite_at=at if at >= 0 else None,
            changes=seen.get("changes", {}).get(finished.entry),
            logits=tuple(seen.get("logits", {}).get(finished.entry, ())),
        )
