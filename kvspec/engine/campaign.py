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
from kvspec.engine.canary import LENGTH as CANARY_LENGTH
from kvspec.engine.canary import run_canary
from kvspec.engine.fingerprint import fingerprint
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.prompts import check_lengths, load_tokenizer, materialize, tokenize
from kvspec.engine.session import Finished, Session, Shape
from kvspec.engine.table import build_table
from kvspec.errors import Diagnostic, EngineError
from kvspec.models import Geometry, ModelInfo, describe
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
        raise EngineError(spec.placed(wrong))


def run_campaign(plan: Plan, out: Path, observer: Observer) -> Outcome:
    """Run every trial of the plan that the run folder does not hold yet.

    Raises `KvspecError`s: the spec cannot be injected (KVS401), the folder is not ours (5xx), something is missing
    (9xx), the canary disagrees (KVS403), the engine fails (KVS406). Finished trials are on disk whatever happens,
    Ctrl-C included; a campaign that cannot start leaves no folder behind.
    """
    refuse_unsupported(plan.spec)
    RunStore.check(out, plan)
    observer.phase("preparing the model")
    inputs = Inputs.of(plan)
    for warning in inputs.warnings:
        observer.warn(warning)
    with RunStore.create(out, plan, version=kvspec.__version__) as store:
        todo = _todo(plan, store.done())
        if not todo:
            return Outcome(store.path, len(plan), len(plan), (), 0.0)
        started = time.monotonic()
        observer.phase("starting vLLM")
        with _start(plan, inputs) as session:
            campaign = _Campaign(plan, inputs, session, store, observer)
            begun = time.monotonic()
            try:
                campaign.run(todo)
            finally:
                now = time.monotonic()
                store.finish(timings={"start_up": begun - started, "trials": now - begun})
        return Outcome(store.path, len(store.done()), len(plan), tuple(campaign.not_landed), now - begun)


def _start(plan: Plan, inputs: Inputs) -> Session:
    spec = plan.spec
    longest = max(CANARY_LENGTH, max(len(ids) for ids in inputs.prompts) + spec.generation.max_tokens)
    longest = min(longest, inputs.info.max_model_len or longest)
    shape = Shape(longest, len(plan), inputs.info.geometry)
    return Session(spec.model, inputs.source, spec.engine, spec.model.storage_format, shape)


def _todo(plan: Plan, done: set[str]) -> list[Trial]:
    todo = [trial for trial in plan.trials() if trial.id not in done]
    seed = plan.spec.engine.submission_seed
    if seed is not None:
        random.Random(seed).shuffle(todo)
    return todo


@dataclass(frozen=True)
class Inputs:
    """Everything that is known before the engine starts."""

    source: str
    """Folder or hub id that vLLM loads."""
    info: ModelInfo
    prompts: list[list[int]]
    """Token ids of every prompt."""
    estimate: Estimate | None
    """`None` while the geometry is not known; the engine learns it."""

    @classmethod
    def of(cls, plan: Plan) -> Inputs:
        """Find the model, tokenize the prompts, check what can be checked."""
        spec = plan.spec
        source = materialize(spec.model)
        prompts = tokenize(spec, load_tokenizer(spec.model, source))
        info = describe(spec.model)
        check_lengths(spec, info, prompts)
        return cls(source, info, prompts, _estimate(plan, info, prompts) if info.geometry else None)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """What the estimate warns of."""
        return self.estimate.warnings if self.estimate else ()

    def learn(self, plan: Plan, geometry: Geometry) -> Inputs:
        """Take in the geometry of the loaded model. Raises `EngineError` (KVS407) if it is not the expected one."""
        if self.info.geometry is None:
            info = replace(self.info, geometry=geometry)
            return replace(self, info=info, estimate=_estimate(plan, info, self.prompts))
        if self.info.geometry != geometry:
            raise EngineError.one(
                "KVS407",
                f"the model has {_words(geometry)}, its configuration says {_words(self.info.geometry)}",
                path="$.model.id",
            )
        return self


def _estimate(plan: Plan, info: ModelInfo, prompts: list[list[int]]) -> Estimate:
    return estimate(plan, info, [len(ids) for ids in prompts], exact=True)


class _Campaign:
    """A started engine that has passed its canary, and the bookkeeping of one session."""

    def __init__(self, plan: Plan, inputs: Inputs, session: Session, store: RunStore, observer: Observer) -> None:
        self._plan, self._session, self._store, self._observer = plan, session, store, observer
        spec = plan.spec
        self._geometry = session.geometry
        learned = inputs.learn(plan, self._geometry)
        assert learned.estimate is not None
        store.write_json("estimate.json", learned.estimate.to_json())
        self._prompts = inputs.prompts
        self._lengths = [len(ids) for ids in inputs.prompts]
        observer.phase("checking the injector")
        canary = run_canary(session, self._prompts[0], spec.model.storage_format, spec.seed)
        store.attach_environment(fingerprint(session, spec.model, inputs.source, canary))
        self.not_landed: list[str] = []
        self._golden: dict[int, list[int]] = _recorded_golden(store)

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

    def _records(self, ended: list[Finished], todo: Sequence[Trial], planned: PlannedFlips) -> Iterator[Record]:
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
