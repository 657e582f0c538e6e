"""Run all cases, and their fault-free requests, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from kvspec.engine.events import Answer, Request
from kvspec.errors import RecordsError
from kvspec.maps import FaultMap, write_map
from kvspec.maps.generate import events_of
from kvspec.maps.runs import file_name
from kvspec.replay.bench import Bench
from kvspec.replay.case import Case, refused
from kvspec.replay.compare import Replay, Replayed, around, first_divergence
from kvspec.spec.model import EngineSpec, ModelSpec


class Observer(Protocol):
    """Hears what a replay does."""

    def phase(self, text: str) -> None:
        """A long step begins."""

    def start(self, total: int) -> None:
        """Requests begin."""

    def done(self) -> None:
        """A request has ended."""


def replay(
    cases: Sequence[Case],
    model: ModelSpec,
    observer: Observer,
    *,
    engine: EngineSpec | None = None,
    order: Callable[[list[int]], list[int]] = list,
) -> Replay:
    """Run the trials of maps with exactly their flips. `engine` and `order` change how, never what.

    Raises what `Bench` and `explicit` raise, and `RecordsError` (KVS515) for a record of more flips than there are.
    """
    for case in cases:
        _require_whole(case)
    golden_of = _golden_requests(cases)
    golden = sorted(set(golden_of))
    total = len(golden) + len(cases)
    with Bench(cases, model, engine or EngineSpec(), observer, requests=total) as bench:
        observer.start(total)
        answers: dict[int, Answer] = {}

        def requests() -> Iterator[Request]:
            yield from (bench.request(case, None) for case in golden)
            # One case at a time: its maps are enumerated when its turn comes.
            yield from (bench.request(i, events_of(case.maps)) for i, case in enumerate(cases))

        for index, answer in bench.run(requests(), order=order):
            answers[index] = answer
            observer.done()
        fault_free = {case: answers[i].token_ids for i, case in enumerate(golden)}
        trials = [
            _replayed(case, answers[len(golden) + i], fault_free[golden_of[i]], bench.text)
            for i, case in enumerate(cases)
        ]
        return Replay(model.id, bench.environment, tuple(trials))


def _require_whole(case: Case) -> None:
    """One map of a trial at BOTH cannot give the answer of the whole trial."""
    landed = (case.header.record or {}).get("flips_landed", 0)
    if len(case.maps) == 1 and landed > case.flips:
        site = "reads" if case.header.site == "write" else "writes"
        raise refused(
            f"the record of `{case.files[0]}` is of a trial with {landed} flips, the map holds {case.flips}",
            f"the map of its {site} as well, as for a trial at BOTH",
            "$.record.flips_landed",
        )


def _golden_requests(cases: Sequence[Case]) -> list[int]:
    """For each case the first one with the same request: it stands for all of them without faults."""
    first: dict[Any, int] = {}
    return [first.setdefault((case.text, case.generation, case.seed), i) for i, case in enumerate(cases)]


def _replayed(case: Case, answer: Answer, golden: list[int], decode: Callable[[Sequence[int]], str]) -> Replayed:
    recorded = case.recorded
    at = None if recorded.token_ids is None else first_divergence(recorded.token_ids, answer.token_ids)
    if at is None and recorded.finish_reason not in (None, answer.finish_reason):
        at = len(answer.token_ids)
    sides: dict[str, Any] = {}
    if at is not None and recorded.token_ids is not None:
        sides = {
            "recorded_side": around(recorded.token_ids, at, decode),
            "here_side": around(answer.token_ids, at, decode),
        }
    return Replayed(
        case=case,
        token_ids=answer.token_ids,
        text=answer.text,
        finish_reason=answer.finish_reason,
        golden=golden,
        planned=answer.planned,
        landed=answer.landed,
        read_back=answer.read_back,
        exposed=answer.exposed,
        restored=answer.restored,
        mismatches=answer.mismatches,
        written=answer.written,
        preemptions=answer.preemptions,
        reruns=answer.reruns,
        nonfinite_at=answer.nonfinite_at,
        divergence=at,
        **sides,
    )


def with_record(trial: Replayed, environment: dict[str, str]) -> list[FaultMap]:
    """The maps of a trial with what it answered here in place of what they recorded."""
    record = {
        "token_ids": trial.token_ids,
        "golden_token_ids": trial.golden,
        "finish_reason": trial.finish_reason,
        "flips_landed": trial.landed,
        "environment": environment,
    }
    return [replace(m, header=replace(m.header, record=record)) for m in trial.case.maps]


def make_folder(folder: Path) -> None:
    """Make a folder for maps. Raises KVS501."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordsError.one("KVS501", f"cannot make `{folder}`: {error.strerror or error}") from error


def write_records(result: Replay, folder: Path) -> list[Path]:
    """Write every map with its new record into a folder. Raises KVS501."""
    written: list[Path] = []
    make_folder(folder)
    for trial in result.trials:
        for fault_map in with_record(trial, result.environment):
            path = folder / file_name(fault_map)
            number = 1
            while path in written:
                number += 1
                path = folder / f"{path.name.split('.')[0]}-{number}.{fault_map.header.site}.parquet"
            write_map(fault_map, path)
            written.append(path)
    return written
