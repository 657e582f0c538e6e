"""The campaign's loop without an engine: what is submitted, recorded and resumed. tests/engine has the real thing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from kvspec.engine import campaign
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.session import Finished
from kvspec.engine.session import _likeliest as likeliest_tokens
from kvspec.engine.table import TableData, build_table
from kvspec.errors import PrerequisiteError
from kvspec.models import Geometry, ModelInfo
from kvspec.plan import Plan, compile_plan
from kvspec.plan.estimate import estimate
from kvspec.records import RunStore
from kvspec.score import score_run
from kvspec.spec.model import EngineSpec, Fault, Rate, TrialSpec
from kvspec.stats.design import plan_looks
from tests.run_folders import FINGERPRINT, make_plan

SMALL = Geometry(layers=2, kv_heads=1, head_size=32)
PROMPT = [1, 2, 3, 4]
WRITTEN = 13


class Answers:
    """Stands for a session: a request differs from golden if one of its flips is among the first 100."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._rng = random.Random(seed)
        self._slots = plan.spec.engine.max_num_seqs
        self._queue: list[int] = []
        self._ends: dict[int, list[int] | None] = {}
        self.most = 0
        self.geometry = SMALL
        self.engines = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, entry: int, *_: object, token_ends: bool) -> None:
        self._queue.append(entry)
        self._ends[entry] = [2, 4] if token_ends else None
        self.most = max(self.most, len(self._queue))

    @property
    def pending(self) -> int:
        return len(self._queue)

    def each(self, function: Any, *args: Any) -> list[Any]:
        return [function(self, *args)]

    def rpc(self, method: str, data: Any) -> Any:
        if method == "kvspec_load":
            self._table: TableData = data
            self._planned = PlannedFlips(data, SMALL)
            return None
        raise AssertionError(method)

    def tally(self, entries: list[int]) -> dict[str, list[int]]:
        """Every planned flip landed, and changed its bit."""
        flips = self._planned.count_all(entries, [WRITTEN] * len(entries))
        none = [0] * len(entries)
        return {
            "written": [WRITTEN] * len(entries), "nonfinite_at": [-1] * len(entries), "preemptions": none,
            "landed": flips, "changed": flips, "exposed": none, "restored": none,
        }  # fmt: skip

    def step(self) -> list[Finished]:
        """End some of the running requests, whichever."""
        running = self._queue[: self._slots]
        ended = self._rng.sample(running, self._rng.randint(1, len(running)))
        self._queue = [entry for entry in self._queue if entry not in ended]
        return [self._answer(entry) for entry in ended]

    def _answer(self, entry: int) -> Finished:
        request = int(self._table.request[entry])
        differs = self._planned.count_all([entry], [1])[0] > 0
        return Finished(entry, [10 + request, 99 if differs else 20], "text", "length", token_ends=self._ends[entry])


class Listener:
    """Remembers, and can interrupt."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.totals: list[int] = []
        self._left = stop_after

    def phase(self, _: str) -> None: ...

    def warn(self, _: object) -> None: ...

    def start(self, total: int, _: int) -> None:
        self.totals.append(total)

    def step(self) -> None: ...

    def shrink(self, total: int) -> None:
        self.totals.append(total)

    def trial(self, *_: object) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def inputs(plan: Plan) -> campaign.Inputs:
        prompts = [PROMPT] * plan.requests
        info = ModelInfo("m", None, SMALL, 100, None)
        return campaign.Inputs("m", info, prompts, estimate(plan, info, [len(p) for p in prompts], exact=True))

    sessions: list[Answers] = []

    def start(plan: Plan, _: object) -> Answers:
        sessions.append(Answers(plan, seed=len(sessions)))
        return sessions[-1]

    monkeypatch.setattr(campaign.Inputs, "of", staticmethod(inputs))
    monkeypatch.setattr(campaign, "_start", start)
    monkeypatch.setattr(campaign, "run_canaries", lambda *_, **__: None)
    monkeypatch.setattr(campaign, "fingerprint", lambda *_: FINGERPRINT)

    def go(plan: Plan, out: Path, listener: Listener | None = None) -> campaign.Outcome:
        return campaign.run_campaign(plan, out, listener or Listener())

    go.sessions = sessions  # type: ignore[attr-defined]
    return go


def plan_of(*, looks: bool, slots: int = 16, shuffle: int | None = None) -> Plan:
    """Cells without a flip, with one in about half of the trials, and in all of them."""
    spec = make_plan(prompts=3, per_prompt=12).spec
    # A token holds 2 layers x 2 planes x 1 head x 32 elements x 16 bits = 2,048 bits; only the first one decides.
    rates = (1e-9, 3.4e-4, 0.1)
    faults = tuple(Fault("A", 0, "KV_WRITE", "random", Rate("per_bit", rate)) for rate in rates)
    design = plan_looks(0.9, 0.12, 4, 3)
    trials = TrialSpec(design.rounds[-1], design) if looks else TrialSpec(12)
    engine = EngineSpec(max_num_seqs=slots, submission_seed=shuffle)
    return compile_plan(replace(spec, faults=faults, trials=trials, engine=engine))


def rows(out: Path) -> dict[str, tuple[int, ...]]:
    return {row["trial_id"]: tuple(row["token_ids"]) for row in RunStore.open(out).table().to_pylist()}


def sizes(ids: Sequence[str] | dict[str, Any]) -> Counter[str]:
    return Counter(trial.split("/")[0] for trial in ids)


def test_every_trial_of_a_plan_runs_once(run: Any, tmp_path: Path) -> None:
    plan = plan_of(looks=False)
    outcome = run(plan, tmp_path / "run")
    assert outcome.recorded == outcome.total == len(plan)
    assert set(rows(tmp_path / "run")) == {trial.id for trial in plan.trials()}
    assert RunStore.open(tmp_path / "run").status == "complete"
    assert run.sessions[0].most <= campaign.QUEUE_FACTOR * 16
    ends = RunStore.open(tmp_path / "run").table(["kind", "token_ends"]).to_pylist()
    assert all(row["token_ends"] == ([2, 4] if row["kind"] == "golden" else None) for row in ends)


def test_shuffled_trials_come_after_all_golden_ones(run: Any, tmp_path: Path) -> None:
    plan = plan_of(looks=False, slots=1, shuffle=5)
    run(plan, tmp_path / "run")
    order, planned = list(rows(tmp_path / "run")), [trial.id for trial in plan.trials()]
    assert sorted(order) == sorted(planned)
    assert order != planned
    assert {name.split("/")[0] for name in order[:3]} == {"golden"}
    assert {"c0", "c1", "c2"} <= {name.split("/")[0] for name in order[3:30]}  # cells in turn


def test_looks_spare_trials_and_the_campaign_is_complete(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(looks=True)
    listener = Listener()
    outcome = run(plan, tmp_path / "run", listener)
    found = rows(tmp_path / "run")
    assert outcome.recorded == outcome.total == len(found) < len(plan)
    assert listener.totals == sorted(set(listener.totals), reverse=True)
    assert (listener.totals[0], listener.totals[-1]) == (len(plan), len(found))
    counts = sizes(found)
    assert counts["c0"] == counts["c2"] == plan.spec.trials.looks.rounds[0] * 3 < counts["c1"]  # type: ignore[union-attr]
    scores = score_run(tmp_path / "run")
    assert (scores.run.status, scores.run.recorded) == ("complete", scores.run.planned)
    assert scores.cells[0].exact_match.rate == 1.0
    assert scores.cells[2].exact_match.rate == 0.0
    assert 0.3 < (scores.cells[1].exact_match.rate or 0.0) < 0.7
    monkeypatch.setattr(campaign.Inputs, "of", None)
    again = run(plan, tmp_path / "run")
    assert again.recorded == again.total == outcome.recorded
    assert len(run.sessions) == 1  # nothing is left, so no model is asked for and no engine starts
    assert RunStore.open(tmp_path / "run").status == "complete"


def test_a_resume_that_is_refused_leaves_the_run_as_it_stood(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, manifest = plan_of(looks=False), tmp_path / "run" / "run.json"
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "run", Listener(40))
    before = manifest.read_bytes()

    def refuse(_: Plan) -> campaign.Inputs:
        raise PrerequisiteError.one("KVS902", "the model is gone")

    monkeypatch.setattr(campaign.Inputs, "of", staticmethod(refuse))
    with pytest.raises(PrerequisiteError, match="the model is gone"):
        run(plan, tmp_path / "run")
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("stop_after", [2, 40, 90, 110])
def test_batch_order_and_interruptions_change_nothing(run: Any, tmp_path: Path, stop_after: int) -> None:
    run(plan_of(looks=True), tmp_path / "whole")
    other = plan_of(looks=True, slots=3, shuffle=5)
    with pytest.raises(KeyboardInterrupt):
        run(other, tmp_path / "parts", Listener(stop_after))
    assert RunStore.open(tmp_path / "parts").status == "interrupted"
    run(other, tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert RunStore.open(tmp_path / "parts").status == "complete"


def test_the_k_likeliest_tokens_are_kept_whatever_was_sampled() -> None:
    """vLLM lists the sampled token too, first and beyond the k likeliest where it is none of them."""

    def position(*tokens: tuple[int, int, float]) -> dict[int, SimpleNamespace]:
        return {token: SimpleNamespace(rank=rank, logprob=value) for token, rank, value in tokens}

    first = position((7, 1, -0.1), (3, 2, -2.0))
    second = position((5, 40, -9.0), (1, 1, -0.2), (2, 2, -1.0))
    assert likeliest_tokens([first, second], 2) == ([7, 3, 1, 2], [-0.1, -2.0, -0.2, -1.0])
    assert likeliest_tokens([second], 2) == ([1, 2], [-0.2, -1.0])
    assert likeliest_tokens(None, 0) == (None, None)


def test_flips_counted_ahead_are_those_of_the_tokens_really_written() -> None:
    plan = plan_of(looks=False)
    trials = list(plan.trials())
    table = build_table(plan, trials, [len(PROMPT)] * plan.requests, SMALL)
    entries = list(range(len(trials)))
    written = [WRITTEN - (entry % 3) for entry in entries]
    with PlannedFlips(table, SMALL) as planned:
        planned.ahead(entries, [WRITTEN] * len(entries))
        found = planned.count_all(entries, written)
        with PlannedFlips(table, SMALL) as fresh:
            assert found == fresh.count_all(entries, written)
        assert found != planned.count_all(entries, [WRITTEN] * len(entries))
        assert planned.count_all(entries, written) == found  # nothing of before is left
        with pytest.raises(ValueError, match="twice"):
            planned.count_all([0, 0], written[:2])


@pytest.mark.parametrize("many", [1, 7, 10**6])
@pytest.mark.parametrize("patience", [0.0, 3600.0])
def test_requests_that_wait_for_their_records_get_them_all(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int, patience: float
) -> None:
    monkeypatch.setattr(campaign, "MANY", many)
    monkeypatch.setattr(campaign, "PATIENCE", patience)
    plan = plan_of(looks=False)
    run(plan, tmp_path / "run")
    assert set(rows(tmp_path / "run")) == {trial.id for trial in plan.trials()}
    # an engine that fails loses nothing that ended before
    failing = Answers.step

    def step(self: Answers) -> list[Finished]:
        if len(self._queue) < 20:
            raise RuntimeError("the engine failed")
        return failing(self)

    monkeypatch.setattr(Answers, "step", step)
    with pytest.raises(RuntimeError, match="the engine failed"):
        run(plan, tmp_path / "failed")
    assert len(rows(tmp_path / "failed")) == len(plan) - len(run.sessions[-1]._queue)
