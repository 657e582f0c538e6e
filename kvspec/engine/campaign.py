"""The campaign: every trial of a plan through one engine, in one continuous batch, into the run folder."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

import kvspec
from kvspec.engine.canary import LENGTH as CANARY_LENGTH
from kvspec.engine.canary import run_canaries
from kvspec.engine.fingerprint import fingerprint
from kvspec.engine.fleet import Fleet, require_alike
from kvspec.engine.judge import Judge
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.prompts import check_lengths, load_tokenizer, materialize, tokenize
from kvspec.engine.session import MANY, PATIENCE, Finished, Session, Shape
from kvspec.engine.table import TableData, build_table
from kvspec.errors import Diagnostic, EngineError
from kvspec.models import Geometry, ModelInfo, describe
from kvspec.plan import Plan, Trial
from kvspec.plan.estimate import Estimate, estimate
from kvspec.plan.lengths import choice_ids
from kvspec.plan.schedule import Schedule
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.spec.model import ModelSpec

QUEUE_FACTOR = 4
"""Requests kept in the engine per batch slot: enough that a slot never waits, few enough for any campaign size."""

SEEDS = 2**63
"""vLLM takes signed 64-bit seeds for sampling."""


class Observer(Protocol):
    """Hears what a campaign does, for progress displays. All methods are called from one thread."""

    def phase(self, text: str) -> None:
        """A long step begins: converting the model, starting the engine, ..."""

    def warn(self, warning: Diagnostic) -> None:
        """Something that the user should know but that stops nothing."""

    def start(self, total: int, done: int) -> None:
        """Trials begin; `done` of `total` were recorded by an earlier session."""

    def step(self) -> None:
        """The engine made a step, which gives every running request a token; trials may be far from their end."""

    def shrink(self, total: int) -> None:
        """A cell ended early: so many trials remain in the whole campaign, those that have ended included."""

    def trial(self, record: Record, identical: bool | None) -> None:
        """A trial ended; `identical` tells whether it equals its golden run, `None` if that is not known yet."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a campaign ended."""

    store_path: Path
    recorded: int
    """Trials in the run folder."""
    total: int
    """Trials of the campaign; fewer than planned where cells stopped early."""
    seconds: float
    """Time spent on trials in this session, without start-up."""


@contextmanager
def open_session(plan: Plan, observer: Observer) -> Iterator[Session | Fleet]:
    """What runs several campaigns with the model and prompts of `plan`, without faults of reads if it has none."""
    observer.phase("starting vLLM")
    with _start(plan, Inputs.of(plan)) as session:
        yield session


def run_campaign(plan: Plan, out: Path, observer: Observer, session: Session | Fleet | None = None) -> Outcome:
    """Run every trial of the plan that the run folder does not hold yet, in `session` or in an engine of its own.

    Raises `KvspecError`s: this device does not take the spec (KVS401), the folder is not ours (5xx), a prerequisite is
    missing (9xx), the canary disagrees (KVS403), the engine fails (KVS406). Finished trials are on disk whatever
    happens, Ctrl-C included; a campaign that cannot start leaves no folder behind.
    """
    RunStore.check(out, plan)
    if (ended := _ended(plan, out)) is not None:
        return ended
    observer.phase("preparing the model")
    inputs = Inputs.of(plan)
    for warning in inputs.warnings:
        observer.warn(warning)
    with RunStore.create(out, plan, version=kvspec.__version__) as store:
        todo = _todo(plan, store.done())
        judge = Judge()
        schedule = _schedule(plan, todo, judge, store)
        started = time.monotonic()
        if session is None:
            observer.phase("starting vLLM")
        with nullcontext(session) if session is not None else _start(plan, inputs) as engine:
            campaign = _Campaign(plan, inputs, engine, store, observer, judge)
            begun = time.monotonic()
            try:
                campaign.run(todo, schedule)
            finally:
                now = time.monotonic()
                complete = len(store.done()) == schedule.total
                timings = {"start_up": begun - started, "trials": now - begun}
                store.finish("complete" if complete else "interrupted", timings=timings)
        return Outcome(store.path, len(store.done()), schedule.total, now - begun)


def _ended(plan: Plan, out: Path) -> Outcome | None:
    """How a campaign ended that has nothing left to run; to say so takes neither its model nor vLLM."""
    if not (out / "run.json").exists():
        return None
    run = RunStore.open(out)
    total = _schedule(plan, _todo(plan, run.done()), Judge(), run).total
    if len(run.done()) < total:
        return None
    if run.status != "complete":  # it was killed between its last trial and its end
        with RunStore.create(out, plan, version=kvspec.__version__) as store:
            store.finish("complete")
    return Outcome(out, total, total, 0.0)


def _start(plan: Plan, inputs: Inputs) -> Session | Fleet:
    spec = plan.spec
    longest = max(CANARY_LENGTH, max(len(ids) for ids in inputs.prompts) + spec.generation.max_tokens)
    longest = min(longest, inputs.info.max_model_len or longest)
    shape = Shape(longest, len(plan), inputs.info.geometry)
    reads = [fault.op for fault in spec.faults if fault.site != "KV_WRITE"]
    stuck = any(op != "flip" for op in reads)
    what = (spec.model, inputs.source, spec.engine, spec.model.storage_format, shape)
    start = partial(Session, *what, reads=bool(reads), stuck_reads=stuck, scales=_strikes_scales(plan))
    engines, gpus = spec.engine.data_parallel, spec.engine.tensor_parallel
    return start() if engines == 1 else Fleet(start, engines, gpus_each=gpus, patience=_patience(plan))


def _patience(plan: Plan) -> float:
    """How long ended requests may wait: a look decides what runs next, so it must hear of every end at once."""
    return 0.0 if plan.spec.trials.looks else PATIENCE


def _checked(
    session: Session, prompt: list[int], model: ModelSpec, seed: int, scales: bool, source: str
) -> dict[str, Any]:
    """The fingerprint of an engine that has passed its canaries."""
    canary = run_canaries(session, prompt, model.storage_format, seed, scales=scales)
    return fingerprint(session, model, source, canary)


def _strikes_scales(plan: Plan) -> bool:
    return any(fault.target == "scales" for fault in plan.spec.faults)


def _todo(plan: Plan, done: set[str]) -> list[Trial]:
    todo = [trial for trial in plan.trials() if trial.id not in done]
    seed = plan.spec.engine.submission_seed
    if seed is None:
        return todo
    # Golden stays first: without its golden answer no other trial of an interrupted run could be scored.
    golden = [trial for trial in todo if trial.kind == "golden"]
    others = [trial for trial in todo if trial.kind != "golden"]
    random.Random(seed).shuffle(golden)
    random.Random(seed).shuffle(others)
    return golden + others


def _schedule(plan: Plan, todo: Sequence[Trial], judge: Judge, store: RunStore) -> Schedule:
    """The schedule of what is left, after all that is on disk."""
    schedule = Schedule(plan, todo)
    # Without looks only golden answers matter, which are few.
    kinds = pa.array(("golden", "fault") if plan.spec.trials.looks else ("golden",))
    for batch in store.iter_batches():
        for row in batch.filter(pc.is_in(batch.column("kind"), kinds)).to_pylist():
            for trial, matched in judge.take(Record(**row)):
                schedule.end(trial, matched)
    return schedule


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
        tokenizer = load_tokenizer(spec.model, source)
        choice_ids(tokenizer.encode, spec.generation.choices)  # refuses what is no token before the engine starts
        prompts = tokenize(spec, tokenizer)
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


@dataclass(frozen=True)
class _Work:
    """The trials of a session and what they become."""

    trials: Sequence[Trial]
    """By entry of the table."""
    table: TableData
    planned: PlannedFlips


class _Campaign:
    """A started engine that has passed its canary, and the bookkeeping of one session."""

    def __init__(
        self, plan: Plan, inputs: Inputs, session: Session | Fleet, store: RunStore, observer: Observer, judge: Judge
    ) -> None:
        self._judge = judge
        self._plan, self._session, self._store, self._observer = plan, session, store, observer
        spec = plan.spec
        self._geometry = session.geometry
        learned = inputs.learn(plan, self._geometry)
        assert learned.estimate is not None
        store.write_json("estimate.json", learned.estimate.to_json())
        self._prompts = inputs.prompts
        self._lengths = [len(ids) for ids in inputs.prompts]
        observer.phase("checking the injector")
        scales = _strikes_scales(plan)
        checked = session.each(_checked, self._prompts[0], spec.model, spec.seed, scales, inputs.source)
        store.attach_environment(require_alike(checked))
        self._preempted: dict[int, int] = {}
        """Entries that must run again, with the preemptions that do not count against the second run."""
        self._waiting: list[int] = []
        """Those among them that have not been submitted again."""

    def run(self, todo: Sequence[Trial], schedule: Schedule) -> None:
        """Run trials until none is due."""
        plan, session = self._plan, self._session
        table = build_table(plan, todo, self._lengths, self._geometry)
        work = _Work(todo, table, PlannedFlips(table, self._geometry))
        session.rpc("kvspec_load", table)
        if isinstance(session, Fleet):
            session.name = lambda entry: f"trial `{todo[entry].id}`"
        self._observer.start(schedule.total, len(plan) - len(todo))
        room = QUEUE_FACTOR * plan.spec.engine.max_num_seqs * session.engines
        patience = _patience(plan)
        with RecordWriter(self._store) as writer, work.planned:
            self._submit(work, schedule.next(room))
            ended: list[Finished] = []
            oldest = 0.0
            try:
                while session.pending:
                    found = session.step()
                    self._observer.step()
                    if found:
                        oldest = oldest if ended else time.monotonic()
                        ended += found
                        self._submit(work, schedule.next(room - session.pending))
                    late = bool(ended) and time.monotonic() - oldest >= patience
                    if late or len(ended) >= MANY or not session.pending:
                        batch, ended = ended, []
                        self._end(batch, work, writer, schedule)
                        self._submit(work, schedule.next(room - session.pending))
                        if self._waiting and not session.pending:
                            # Alone in the engine a request has the whole cache, so nothing takes its blocks away.
                            self._submit(work, [self._waiting.pop()])
                    writer.tick()
            except BaseException:
                # What ended before is kept, if the engine can still tell about it.
                with suppress(Exception):
                    self._end(ended, work, writer, schedule)
                raise

    def _end(self, ended: list[Finished], work: _Work, writer: RecordWriter, schedule: Schedule) -> None:
        """Record requests that ended."""
        total = schedule.total
        for record in self._records(ended, work):
            writer.add(record)
            for trial, matched in self._judge.take(record):
                schedule.end(trial, matched)
            self._observer.trial(record, self._judge.identical(record))
        if schedule.total < total:
            self._observer.shrink(schedule.total)

    def _submit(self, work: _Work, entries: Sequence[int]) -> None:
        spec = self._plan.spec
        seed = spec.generation.seed if spec.generation.seed is not None else spec.seed
        for entry in entries:
            trial = work.trials[entry]
            asked = self._prompts[trial.request], spec.generation, (seed + trial.request) % SEEDS
            self._session.submit(entry, *asked, token_ends=trial.kind == "golden")
        if spec.generation.ignore_eos and not spec.generation.stop:
            # The last token that is sampled is never written.
            more = spec.generation.max_tokens - 1
            work.planned.ahead(entries, [self._lengths[work.trials[entry].request] + more for entry in entries])

    def _records(self, ended: list[Finished], work: _Work) -> Iterator[Record]:
        tally = self._session.tally([f.entry for f in ended])
        counted = work.planned.count_all([f.entry for f in ended], tally["written"])
        for i, finished in enumerate(ended):
            entry, preemptions = finished.entry, tally["preemptions"][i]
            trial, rerun = work.trials[entry], entry in self._preempted
            if rerun:
                preemptions -= self._preempted[entry]
            elif preemptions and work.table.reads(entry):
                # Its generated tokens came back as one prefill, which no read event describes: not a valid trial.
                # The tally will take its second submission for one more preemption.
                self._preempted[entry] = preemptions + 1
                self._waiting.append(entry)
                continue
            written, landed = tally["written"][i], tally["landed"][i]
            exposed, restored = tally["exposed"][i], tally["restored"][i]
            planned = counted[i]
            error = None
            if planned != landed:
                error = f"{landed} flips landed, {planned} were planned"
            elif exposed != restored:
                error = f"reads changed {exposed} bits and put back {restored}"
            elif rerun and preemptions:
                error = "preempted again when it ran alone"
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
                flips_planned=planned,
                flips_landed=landed,
                flips_changed=tally["changed"][i],
                flips_exposed=exposed,
                flips_restored=restored,
                preemptions=preemptions,
                reruns=int(rerun),
                nonfinite_at=at if at >= 0 else None,
                error=error,
                logprob_ids=finished.logprob_ids,
                logprobs=finished.logprobs,
                token_ends=finished.token_ends,
            )


def _words(geometry: Geometry) -> str:
    return f"{geometry.layers} layers x {geometry.kv_heads} KV heads x {geometry.head_size}"
