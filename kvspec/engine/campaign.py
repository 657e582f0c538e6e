"""The campaign: every trial of a plan through one engine, in one continuous batch, into the run folder."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import kvspec
from kvspec.engine.canary import run_canary
from kvspec.engine.fingerprint import fingerprint
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.prompts import check_lengths, load_tokenizer, materialize, tokenize
from kvspec.engine.session import Finished, Session, Shape, require_vllm
from kvspec.engine.table import TableData, build_table
from kvspec.errors import Diagnostic, EngineError
from kvspec.models import Geometry, describe
from kvspec.plan import Plan, Trial
from kvspec.plan.estimate import Estimate, estimate
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.spec.model import Spec

QUEUE_FACTOR = 4
"""Requests kept in the engine per batch slot: enough that a slot never waits, few enough for any campaign size."""


class Observer(Protocol):
    """Hears what a campaign does, for progress displays. All methods are called from one thread."""

    def phase(self, text: str) -> None:
        """A long step begins: converting the model, starting the engine, ..."""

    def warn(self, warning: Diagnostic) -> None:
        """Something that the user should know but that stops nothing."""

    def start(self, total: int, done: int) -> None:
        """Trials begin; `done` of `total` were recorded by an earlier session."""

    def trial(self, record: Record, identical: bool | None) -> None:
        """A trial ended; `identical` tells whether it equals its golden run, `None` if that is not known yet."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a campaign ended."""

    store_path: Path
    recorded: int
    """Trials in the run folder."""
    total: int
    not_landed: tuple[str, ...]
    """Ids of trials whose flips did not land as planned."""
    seconds: float
    """Time spent on trials in this session, without start-up."""


def refuse_unsupported(spec: Spec) -> None:
    """Faults that the schema knows and this engine does not inject yet. Raises `EngineError` (KVS401)."""
    wrong = [
        Diagnostic(
            "KVS401",
            f"site `{fault.site}` of `{fault.name}` is not injected by this engine yet",
            path=f"$.faults[{fault.index}].site",
            expected="KV_WRITE",
        )
        for fault in spec.faults
        if fault.site != "KV_WRITE"
    ]
    if wrong:
        raise EngineError(dict.fromkeys(wrong))


def run_campaign(plan: Plan, out: Path, observer: Observer) -> Outcome:
    """Run every trial of the plan that the run folder does not hold yet.

    Raises `KvspecError`s: the spec cannot be injected (KVS401), the folder is not ours (5xx), something is missing
    (9xx), the canary disagrees (KVS403), the engine fails (KVS406). Finished trials are on disk whatever happens,
    Ctrl-C included.
    """
    refuse_unsupported(plan.spec)
    require_vllm()
    with RunStore.create(out, plan, version=kvspec.__version__) as store:
        todo = _todo(plan, store.done())
        if not todo:
            return Outcome(store.path, len(plan), len(plan), (), 0.0)
        started = time.monotonic()
        campaign = _Campaign(plan, store, observer)
        begun = time.monotonic()
        try:
            campaign.run(todo)
        finally:
            now = time.monotonic()
            store.finish(timings={"start_up": begun - started, "trials": now - begun})
        return Outcome(store.path, len(store.done()), len(plan), tuple(campaign.not_landed), now - begun)


def _todo(plan: Plan, done: set[str]) -> list[Trial]:
    todo = [trial for trial in plan.trials() if trial.id not in done]
    seed = plan.spec.engine.submission_seed
    if seed is not None:
        random.Random(seed).shuffle(todo)
    return todo


class _Campaign:
    """A started engine with the trial table loaded, and the bookkeeping of one session."""

    def __init__(self, plan: Plan, store: RunStore, observer: Observer) -> None:
        self._plan, self._store, self._observer = plan, store, observer
        spec = plan.spec
        observer.phase("preparing the model")
        source = materialize(spec.model)
        tokenizer = load_tokenizer(spec.model, source)
        self._prompts = tokenize(spec, tokenizer)
        info = describe(spec.model)
        check_lengths(spec, info, self._prompts)
        self._lengths = [len(ids) for ids in self._prompts]
        if info.geometry is not None:
            self._check_estimate(estimate(plan, info, self._lengths, exact=True))
        observer.phase("starting vLLM")
        shape = Shape(max(self._lengths) + spec.generation.max_tokens, len(plan), info.geometry)
        self._session = Session(spec.model, source, spec.engine, spec.model.storage_format, shape)
        self._geometry = self._session.geometry
        if info.geometry is None:
            self._check_estimate(
                estimate(plan, replace(info, geometry=self._geometry), self._lengths, exact=True)
            )
        elif info.geometry != self._geometry:
            raise EngineError.one(
                "KVS407",
                f"the model has {_words(self._geometry)}, its configuration says {_words(info.geometry)}",
                path="$.model.id",
            )
        observer.phase("checking the injector")
        canary = run_canary(self._session, self._prompts[0], spec.model.storage_format, spec.seed)
        store.attach_environment(fingerprint(self._session, spec, source, canary))
        self.not_landed: list[str] = []
        self._golden: dict[int, list[int]] = _recorded_golden(store)

    def _check_estimate(self, expected: Estimate) -> None:
        for warning in expected.warnings:
            self._observer.warn(warning)
        self._store.write_json("estimate.json", expected.to_json())

    def run(self, todo: Sequence[Trial]) -> None:
        """Run trials until none is left."""
        plan, session = self._plan, self._session
        table = build_table(plan, todo, self._lengths, self._geometry)
        planned = PlannedFlips(table, self._geometry)
        session.rpc("kvspec_load", table)
        self._observer.start(len(plan), len(plan) - len(todo))
        queue = iter(enumerate(todo))
        room = QUEUE_FACTOR * plan.spec.engine.max_num_seqs
        with RecordWriter(self._store) as writer:
            self._submit(queue, room)
            while session.pending:
                ended = session.step()
                if ended:
                    for record in self._records(ended, todo, planned):
                        writer.add(record)
                        self._observer.trial(record, self._identical(record))
                    self._submit(queue, room - session.pending)
                writer.tick()

    def _submit(self, queue: Iterator[tuple[int, Trial]], room: int) -> None:
        spec = self._plan.spec
        seed = spec.generation.seed if spec.generation.seed is not None else spec.seed
        for entry, trial in itertools.islice(queue, max(0, room)):
            self._session.submit(entry, self._prompts[trial.request], spec.generation, seed + trial.request)

    def _records(
        self, ended: list[Finished], todo: Sequence[Trial], planned: PlannedFlips
    ) -> Iterator[Record]:
        tally = self._session.rpc("kvspec_tally", [f.entry for f in ended])
        for i, finished in enumerate(ended):
            trial = todo[finished.entry]
            written, landed = tally["written"][i], tally["landed"][i]
            flips = planned.count(finished.entry, written)
            error = None
            if flips != landed:
                error = f"{landed} flips landed, {flips} were planned"
                self.not_landed.append(trial.id)
            at = tally["nonfinite_at"][i]
            yield Record(
                trial_id=trial.id,
                kind=trial.kind,
                cell=trial.cell,
                request=trial.request,
                trial=trial.trial,
                prompt_tokens=self._lengths[trial.request],
                token_ids=finished.token_ids,
                text=finished.text,
                finish_reason=finished.finish_reason,
                tokens_written=written,
                flips_planned=flips,
                flips_landed=landed,
                preemptions=tally["preemptions"][i],
                nonfinite_at=at if at >= 0 else None,
                error=error,
            )

    def _identical(self, record: Record) -> bool | None:
        if record.kind == "golden":
            self._golden[record.request] = list(record.token_ids)
        golden = self._golden.get(record.request)
        return None if golden is None else golden == record.token_ids


def _recorded_golden(store: RunStore) -> dict[int, list[int]]:
    golden: dict[int, list[int]] = {}
    for batch in store.iter_batches(["kind", "request", "token_ids"]):
        for row in batch.to_pylist():
            if row["kind"] == "golden":
                golden[row["request"]] = row["token_ids"]
    return golden


def _words(geometry: Geometry) -> str:
    return f"{geometry.layers} layers x {geometry.kv_heads} KV heads x {geometry.head_size}"


__all__ = ["Observer", "Outcome", "TableData", "refuse_unsupported", "run_campaign"]
