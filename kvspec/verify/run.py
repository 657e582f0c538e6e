"""The self-test on the engine: three batches of requests; every write and every read of the cache is compared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np

from kvspec import _native
from kvspec.engine.events import SITE_COLUMNS, TYPES, WRITE, Answer, Columns, Request, no_events, run_requests
from kvspec.engine.fingerprint import facts
from kvspec.engine.prompts import load_tokenizer, materialize, tokenize
from kvspec.engine.session import Session, Shape
from kvspec.engine.table import build_table
from kvspec.maps import MapGeometry
from kvspec.maps.generate import events_of
from kvspec.maps.model import OPS
from kvspec.maps.trial import maps_of_trial
from kvspec.models import describe
from kvspec.plan import Plan, Trial
from kvspec.plan.dose import SCALE_BITS, eligible_mask, sampler_parameters
from kvspec.plan.events import read_events
from kvspec.spec.model import TARGETS, Fault, ModelSpec, Selector, Spec
from kvspec.verify import measure
from kvspec.verify.certificate import Certificate, Check, FaultRow
from kvspec.verify.plan import NEW_TOKENS, READS, SEED, SEQUENCES, WRITES, self_test

VALUES, SCALES = (TARGETS.index(target) for target in ("values", "scales"))
SHOWN = 6
"""Sites that a finding names."""


class Observer(Protocol):
    """Hears how it goes."""

    def phase(self, text: str) -> None:
        """A long step begins."""

    def start(self, total: int) -> None:
        """Requests begin."""

    def done(self) -> None:
        """A request has ended."""


def verify(model: ModelSpec, own: Spec | None, observer: Observer) -> Certificate:
    """Test the injector with a model, and with the faults of a spec beside the standard ones.

    The start-up canary of a campaign is left out: each of its properties is measured here.
    Raises `EngineError` (KVS402, KVS406), `PlanError` (KVS303, KVS304), `PrerequisiteError` (9xx).
    """
    begun = time.monotonic()
    observer.phase("preparing the model")
    info = describe(model)
    for fault in () if own is None else own.faults:
        # before the engine starts, and with the places of the user's spec: in the plan others come before them
        if info.geometry is None:
            eligible_mask(fault, model.storage_format)
        else:
            sampler_parameters(fault, model.storage_format, info.geometry)
    plan = self_test(model, own)
    source = materialize(model)
    prompts = tokenize(plan.spec, load_tokenizer(model, source))
    longest = max(map(len, prompts)) + NEW_TOKENS
    observer.phase("starting vLLM")
    shape = Shape(min(longest, info.max_model_len or longest), 10**6, info.geometry)
    stuck = any(fault.site != "KV_WRITE" and fault.op != "flip" for fault in plan.spec.faults)
    storage, scales = model.storage_format, any(fault.target == "scales" for fault in plan.spec.faults)
    with Session(
        model, source, plan.spec.engine, storage, shape, reads=True, stuck_reads=stuck, scales=scales, eager=True
    ) as session:
        suite = _Suite(plan, prompts, session, observer)
        rows, checks = suite.run()
        return Certificate(
            model={"id": model.id, "revision": model.revision},
            geometry=asdict(MapGeometry.of(session.geometry, model.storage_format)),
            environment=facts(session),
            seed=SEED,
            alpha=measure.ALPHA,
            faults=tuple(rows),
            checks=tuple(checks),
            seconds=time.monotonic() - begun,
        )


class _Suite:
    def __init__(self, plan: Plan, prompts: list[list[int]], session: Session, observer: Observer) -> None:
        self._plan, self._prompts, self._session, self._observer = plan, prompts, session, observer
        self._geometry = session.geometry
        self._format = plan.spec.model.storage_format
        self._golden: dict[int, Answer] = {}

    def run(self) -> tuple[list[FaultRow], list[Check]]:
        """All checks. The first batch also gives the golden answers that the others are compared with."""
        self._observer.phase("fault models, policies and controls")
        trials, answers = self._campaign()
        self._golden = {t.request: a for t, a in zip(trials, answers, strict=True) if t.kind == "golden"}
        rows = [self._fault_row(i, trials, answers) for i in range(len(self._plan.cells))]
        checks = [
            self._as_planned(trials, answers),
            self._only_eligible(rows),
            self._plausible(rows),
            self._independent(trials, answers),
            self._controls(trials, answers),
        ]
        self._observer.phase("every site")
        checks.append(self._sites())
        self._observer.phase("isolation")
        checks.append(self._isolation())
        return rows, checks

    # The first batch: faults as a campaign draws them.

    def _campaign(self) -> tuple[list[Trial], list[Answer]]:
        trials = list(self._plan.trials())
        lengths = [len(ids) for ids in self._prompts]
        requests = [
            Request(
                self._prompts[t.request], self._plan.spec.generation, 0, self._expected(t), t.kind in ("fault", "null")
            )
            for t in trials
        ]
        table = build_table(self._plan, trials, lengths, self._geometry)
        return trials, self._run(requests, drawn=table)

    def _expected(self, trial: Trial) -> Columns:
        """The flips of a trial, by the enumeration that fault maps use."""
        if trial.kind != "fault":
            return no_events()
        length = len(self._prompts[trial.request])
        return events_of(
            maps_of_trial(self._plan, trial, self._geometry, prompt_len=length, written=length + NEW_TOKENS - 1)
        )

    def _fault_row(self, cell: int, trials: Sequence[Trial], answers: Sequence[Answer]) -> FaultRow:
        fault = self._plan.cells[cell].fault
        mine = [a for t, a in zip(trials, answers, strict=True) if t.cell == cell]
        parameters = sampler_parameters(fault, self._format, self._geometry)
        found = self._draws(cell, trials, answers)
        tested = measure.rate(found, parameters, self._geometry) if _everywhere(fault) else None
        stray, proven = measure.stray_bits(found, parameters.mask), all(a.proven for a in mine)
        return FaultRow(
            fault=self._plan.cells[cell].name,
            mask=f"{parameters.mask:x}",
            trials=len(mine),
            flips_planned=sum(a.planned for a in mine),
            flips_measured=measure.flips(found),
            unit=None if tested is None else tested.unit,
            exposed=None if tested is None else tested.exposed,
            expected=None if tested is None else round(float(tested.expected), 3),
            measured=None if tested is None else tested.measured,
            p_value=None if tested is None else tested.p_value,
            stray_bits=stray,
            as_planned=proven,
            passed=proven and stray == 0 and (tested is None or tested.passed),
        )

    def _draws(self, cell: int, trials: Sequence[Trial], answers: Sequence[Answer]) -> list[measure.Draw]:
        """What was read back of the trials of a cell: a draw for all writes, one for each read event."""
        site = self._plan.cells[cell].fault.site
        found = []
        for trial, answer in zip(trials, answers, strict=True):
            if trial.cell != cell:
                continue
            changes = _changes(answer)
            events = read_events(len(self._prompts[trial.request]), answer.written)
            covers = {} if site == "KV_READ" else {WRITE: answer.written}
            covers |= {} if site == "KV_WRITE" else {step: step for step in events}
            for step, tokens in covers.items():
                here = changes["step"] == step
                found.append(measure.Draw({name: column[here] for name, column in changes.items()}, tokens))
        return found

    def _as_planned(self, trials: Sequence[Trial], answers: Sequence[Answer]) -> Check:
        wrong = [t.id for t, a in zip(trials, answers, strict=True) if not a.proven]
        planned, landed = sum(a.planned for a in answers), sum(a.landed for a in answers)
        found = f"{planned} flips planned, {landed} counted, {sum(a.read_back for a in answers)} read back in place; "
        found += f"reads changed {sum(a.exposed for a in answers)} bits and put back {sum(a.restored for a in answers)}"
        if wrong:
            found += f"; {sum(a.mismatches for a in answers)} elements wrong, in {_some(wrong)}"
        return Check(
            "read-back",
            "writes and reads see exactly what was written and planned, and no read leaves a trace",
            not wrong and planned > 0,
            found,
        )

    def _only_eligible(self, rows: Sequence[FaultRow]) -> Check:
        wrong = [f"{row.fault}: {row.stray_bits} bits" for row in rows if row.stray_bits]
        found = _some(wrong) if wrong else f"{len(rows)} masks, no other bit changed"
        return Check("masks", "a fault touches only the bits of its mask", not wrong, found)

    def _plausible(self, rows: Sequence[FaultRow]) -> Check:
        tested = [row for row in rows if row.p_value is not None]
        wrong = [f"{row.fault} (p = {row.p_value:.2g})" for row in tested if (row.p_value or 0) < measure.ALPHA]
        least = min((row.p_value for row in tested if row.p_value is not None), default=1.0)
        found = _some(wrong) if wrong else f"{len(tested)} exact binomial tests, least p {least:.2g}"
        return Check("rates", "faults are as frequent as declared", not wrong, found)

    def _independent(self, trials: Sequence[Trial], answers: Sequence[Answer]) -> Check:
        cells = {cell.name: cell for cell in self._plan.cells}
        shape = self._geometry
        per_layer = shape.rows_per_token * shape.head_size * _native.format_bits(self._format)

        def test(name: str, along: str, draws: Sequence[measure.Draw], pairs: int) -> measure.Rate:
            return measure.coincidences(draws, along, cells[name].fault.rate.value, pairs * per_layer)

        writes = self._draws(cells[WRITES].index, trials, answers)
        tokens = sum(d.tokens - 1 for d in writes) * shape.layers
        layers = sum(d.tokens for d in writes) * (shape.layers - 1)
        tests = [test(WRITES, "token", writes, tokens), test(WRITES, "layer", writes, layers)]
        if READS in cells:
            read = [(t, a) for t, a in zip(trials, answers, strict=True) if t.cell == cells[READS].index]
            reads = [measure.Draw(_changes(a), a.written) for _, a in read]
            # An event shares with the next one all tokens that it reads.
            steps = sum(sum(read_events(len(self._prompts[t.request]), a.written)[:-1]) for t, a in read)
            tests.append(test(READS, "step", reads, steps * shape.layers))
        words = [f"{t.measured} of {t.exposed} {t.unit} coincide, {t.expected:.1f} expected" for t in tests]
        return Check(
            "independence", "no token, layer or read repeats another", all(t.passed for t in tests), "; ".join(words)
        )

    def _controls(self, trials: Sequence[Trial], answers: Sequence[Answer]) -> Check:
        controls = [(t, a) for t, a in zip(trials, answers, strict=True) if t.kind in ("null", "golden_repeat")]
        wrong = [t.id for t, a in controls if not self._same(a, t.request)]
        found = (
            f"{len(controls) - len(wrong)} of {len(controls)} have the tokens and, bit for bit, the logits of golden"
        )
        if wrong:
            found += f"; not {_some(wrong)}"
        return Check("controls", "requests without faults are not changed", not wrong, found)

    # The second batch: one site at a time.

    def _sites(self) -> Check:
        shape, prompt = self._geometry, len(self._prompts[0])
        bits, width, scaled = _native.format_bits(self._format), shape.head_size, _native.format_scaled(self._format)
        names: list[str] = []
        requests: list[Request] = []

        def add(
            name: str,
            step: int,
            row: tuple[int, int, int],
            token: int,
            elems: Iterable[int],
            bit: int,
            target: int = VALUES,
        ) -> None:
            names.append(name)
            # The prefill shows it, or the first token of the answer does.
            decode = max(token + 1, step) > prompt
            sites = [(0, step, *row, token, elem, bit, OPS.index("flip"), target) for elem in elems]
            requests.append(self._listed(sites, new_tokens=2 if decode else 1))

        for number, (layer, kv, head) in enumerate(np.ndindex(shape.layers, 2, shape.kv_heads)):
            name, row, token = f"layer {layer} {'KV'[kv]} head {head}", (layer, kv, head), number % prompt
            # The sign of K turns a score around; that of V may be rounded away beside the residual, its exponent not.
            bit = bits - 1 if kv == 0 or scaled else bits - 2
            add(f"{name} token {token}", WRITE, row, token, range(width), bit)
            add(f"{name} token {prompt}", WRITE, row, prompt, range(width), bit)
            step = prompt + number % 2
            add(f"{name} read event {step}", step, row, token, range(width), bit)
            if scaled and head == layer % shape.kv_heads:
                add(f"{name} token {token} scale", WRITE, row, token, [0], SCALE_BITS - 1, SCALES)  # its sign
        for bit in range(bits):
            add(f"bit {bit}", WRITE, (0, 1, 0), prompt - 1, range(width), bit)
        for elem in range(width):
            # Not the sign: that of a zero changes nothing.
            add(f"element {elem}", WRITE, (0, 1, 0), prompt - 1, [elem], bits - 2)
        answers = self._run(requests)
        golden = self._golden[0].logits
        lost = [n for n, a in zip(names, answers, strict=True) if not a.proven]
        silent = [n for n, a in zip(names, answers, strict=True) if a.logits == golden[: len(a.logits)]]
        found = f"{len(names) - len(silent)} of {len(names)} sites change the logits: {shape.layers} layers x K, V x "
        found += f"{shape.kv_heads} heads in prompt, decode and reads, {bits} bits, {width} elements"
        found += f", scales of {shape.layers} layers x K, V" if scaled else ""
        if lost:
            found += f"; not as listed: {_some(lost)}"
        if silent:
            found += f"; no effect: {_some(silent)}"
        return Check(
            "sites", "every layer, plane, head, element and bit reaches the logits", not lost and not silent, found
        )

    def _listed(self, sites: Sequence[tuple[int, ...]], new_tokens: int = NEW_TOKENS) -> Request:
        columns = dict(zip(SITE_COLUMNS, zip(*sites, strict=True), strict=True))
        events = {n: np.array(columns[n], dtype) for n, dtype in zip(SITE_COLUMNS, TYPES, strict=True)}
        generation = replace(self._plan.spec.generation, max_tokens=new_tokens)
        return Request(self._prompts[0], generation, 0, events)

    # The third batch: what must not leak.

    def _isolation(self) -> Check:
        claim = "a NaN in a freed block reaches no other request"
        if _native.format_scaled(self._format):
            return Check("isolation", claim, None, f"{self._format} holds no NaN")
        ids, shape = self._prompts[0], self._geometry
        ones = range(_native.format_bits(self._format) - 1)
        sites = [
            (0, WRITE, layer, 1, head, token, elem, bit, OPS.index("set1"), VALUES)
            for layer, head, token, elem, bit in np.ndindex(shape.layers, shape.kv_heads, len(ids), 1, len(ones))
        ]
        poisoned = [self._listed(sites)] * (2 * SEQUENCES)
        clean = Request(ids, self._plan.spec.generation, 0, armed=False)
        answers = self._run([*poisoned, *[clean] * (2 * SEQUENCES)])
        broken = sum(a.nonfinite_at is not None for a in answers[: len(poisoned)])
        same = sum(self._same(a, 0) for a in answers[len(poisoned) :])
        found = f"{broken} of {len(poisoned)} requests made NaN, {same} of {2 * SEQUENCES} that followed equal golden"
        return Check("isolation", claim, broken == len(poisoned) and same == 2 * SEQUENCES, found)

    def _same(self, answer: Answer, request: int) -> bool:
        golden = self._golden[request]
        return (answer.token_ids, answer.logits) == (golden.token_ids, golden.logits)

    def _run(self, requests: Sequence[Request], **how: Any) -> list[Answer]:
        found: dict[int, Answer] = {}
        self._observer.start(len(requests))
        for index, answer in run_requests(self._session, self._format, requests, record=True, **how):
            found[index] = answer
            self._observer.done()
        return [found[index] for index in range(len(requests))]


def _changes(answer: Answer) -> measure.Changes:
    """All that was read back changed."""
    return answer.changes or {name: np.zeros(0, np.int64) for name in (*measure.PLACE, "before", "after")}


def _everywhere(fault: Fault) -> bool:
    """Whether a rate can be tested by counting: a selector hides flips, a stuck-at changes about half of its bits."""
    return fault.where == Selector() and fault.op == "flip"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
