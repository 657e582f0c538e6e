"""Requests with listed faults: what a fault map holds, run exactly as listed. The counterpart of `table.py`.

A campaign draws its faults from keys while it runs. Here every fault comes from columns (docs/faultmap.md), so that
replay, shrinking and self-tests inject the flips that they were given and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.session import Finished, Session
from kvspec.engine.table import TableData
from kvspec.engine.vllm.readback import ReadBack, together
from kvspec.models import Geometry
from kvspec.plan.events import read_events
from kvspec.spec.model import GenerationSpec

Columns = dict[str, NDArray[Any]]
"""Sites in the columns of a fault map, canonical order, with the columns `op` and `target`."""

OPS = ("flip", "set0", "set1")
SITE_COLUMNS = ("request", "step", "layer", "kv", "head", "token", "elem", "bit", "op", "target")
"""`step` is the read event, or `WRITE`. `target` is 1 where a row strikes a scale, element 0 of its row, and 0 for
values."""
TYPES = (np.uint32, np.uint32, np.uint16, np.uint8, np.uint16, np.uint32, np.uint16, np.uint8, np.uint8, np.uint8)
WRITE = 0
"""The step of a write: no read event has it, since an event reads the tokens below its step."""
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

    @property
    def scales(self) -> bool:
        """Whether any fault strikes scales."""
        return bool(self.columns["target"].any())

    def build(self, geometry: Geometry) -> _native.EventTable:
        """The native table."""
        return _native.EventTable(
            layers=geometry.layers,
            bits=_native.format_bits(self.storage_format),
            starts=self.starts,
            prompt_len=self.prompt_len,
            columns={name: self.columns[name] for name in SITE_COLUMNS if name not in ("op", "target")},
            op=self.columns["op"],
            target=self.columns["target"],
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
        """Faults of a request that wrote positions `0 .. written - 1`; those of reads once per read event."""
        step = self.events["step"]
        events = read_events(len(self.prompt), written)
        shown = np.where(step == WRITE, self.events["token"] < written, step < events.stop)
        return int(np.count_nonzero(shown))

    @property
    def reads(self) -> bool:
        """Whether it has faults of reads."""
        return bool((self.events["step"] != WRITE).any())


@dataclass(frozen=True)
class Answer:
    """What a request did."""

    token_ids: list[int]
    text: str
    finish_reason: str
    written: int
    """Token positions that reached the cache."""
    planned: int
    """Listed faults in these positions and in the read events that they make."""
    landed: int
    """Faults that the injector counted in the cache words."""
    read_back: int
    """Faults that an independent reading of the cache found in place."""
    exposed: int
    """Bits that reads changed, in every forward."""
    restored: int
    """Bits that were put back after the reads."""
    mismatches: int
    """Elements of the cache that held anything but what was written and listed, or were left changed by a read."""
    preemptions: int
    nonfinite_at: int | None
    reruns: int = 0
    """1 if it was preempted and run again alone."""
    changes: Columns | None = None
    """With `record`: every element that differs from what was written: the columns of
    `readback.CHANGES`."""

    logits: tuple[bytes, ...] = ()
    """With `record`: a hash of the logits of each step."""

    @property
    def proven(self) -> bool:
        """Whether exactly the listed faults were injected."""
        landed = self.planned == self.landed == self.read_back
        return landed and self.exposed == self.restored and self.mismatches == 0


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

    On a GPU the session must be `eager`, and no request may list faults of reads. Every cache write is read back and
    compared, element by element; where reads have faults, so is the whole cache of a request, before and after each
    attention. A request with faults of reads that was preempted runs again, alone: its tokens came back as one
    prefill, which no read event describes. `record` keeps the changes that were found.
    `drawn` is loaded in place of the lists of faults, which then only say what is expected; the requests must fit
    into one load.
    `order` rearranges the indices of a load before they are submitted. Raises `EngineError` (KVS406).
    """
    first = 0
    for load in _loads(requests):
        data = EventData.of(storage_format, load)
        session.rpc("kvspec_load", data if drawn is None else drawn)
        watch = ReadBack(storage_format, data.starts, data.columns, data.prompt_len, record=record)
        session.rpc("kvspec_watch", watch)
        try:
            for entry, answer in _drive(session, load, order(list(range(len(load))))):
                yield first + entry, answer
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


def _drive(session: Session, requests: Sequence[Request], order: Sequence[int]) -> Iterator[tuple[int, Answer]]:
    queue = iter(order)
    room = 4 * int(session.settings["max_num_seqs"])
    preempted: dict[int, int] = {}
    """Entries that must run again, with the preemptions that do not count against the second run."""
    waiting: list[int] = []

    def submit(entries: Iterable[int]) -> None:
        for entry in entries:
            request = requests[entry]
            session.submit(entry, request.prompt, request.generation, request.seed)

    submit(itertools.islice(queue, room))
    while session.pending:
        ended = session.step()
        for finished, answer in zip(ended, _answers(session, requests, ended), strict=True) if ended else ():
            entry = finished.entry
            if entry in preempted:
                answer = replace(answer, preemptions=answer.preemptions - preempted[entry], reruns=1)
            elif answer.preemptions and requests[entry].reads:
                # The tally will take its second submission for one more preemption.
                preempted[entry] = answer.preemptions + 1
                waiting.append(entry)
                continue
            yield entry, answer
        submit(itertools.islice(queue, max(0, room - session.pending)))
        if waiting and not session.pending:
            # Alone in the engine a request has the whole cache, so nothing takes its blocks away.
            submit([waiting.pop()])


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
            exposed=tally["exposed"][i],
            restored=tally["restored"][i],
            mismatches=int(seen["mismatches"][finished.entry]),
            preemptions=tally["preemptions"][i],
            nonfinite_at=at if at >= 0 else None,
            changes=seen.get("changes", {}).get(finished.entry),
            logits=tuple(seen.get("logits", {}).get(finished.entry, ())),
        )
