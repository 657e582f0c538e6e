"""Several engines: campaigns over stand-ins for engines in processes of their own, and once over real ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvspec.engine import campaign, fleet
from kvspec.engine.fleet import Fleet, require_alike
from kvspec.engine.session import Finished
from kvspec.errors import EngineError
from kvspec.models import ModelInfo
from kvspec.plan import Plan
from kvspec.plan.estimate import estimate
from kvspec.records import RunStore
from kvspec.spec.model import GenerationSpec
from tests.fleet_engines import SMALL, Engine, checked, seen
from tests.test_campaign_loop import PROMPT, Listener, plan_of

GENERATION = GenerationSpec(max_tokens=4)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def inputs(plan: Plan) -> campaign.Inputs:
        prompts = [PROMPT] * plan.requests
        info = ModelInfo("m", None, SMALL, 100, None)
        return campaign.Inputs("m", info, prompts, estimate(plan, info, [len(p) for p in prompts], exact=True))

    monkeypatch.setattr(campaign.Inputs, "of", staticmethod(inputs))
    monkeypatch.setattr(campaign, "_checked", checked)
    monkeypatch.setattr(campaign, "PATIENCE", 0.0)

    def go(name: str, engines: int, listener: Any = None, trouble: str = "", hang: float = 60.0) -> dict[str, Any]:
        plan = plan_of(looks=False, slots=4)
        start = partial(Engine, trouble, seconds=0.02, slots=2)
        with Fleet(start, engines, patience=0.0, hang=hang) as many:
            campaign.run_campaign(plan, tmp_path / name, listener or Listener(), many)
        return {row["trial_id"]: row for row in RunStore.open(tmp_path / name).table().to_pylist()}

    return go


def test_records_do_not_depend_on_the_number_of_engines(run: Any) -> None:
    alone = run("alone", 1)
    assert len(alone) > 100
    assert len({tuple(row["token_ids"]) for row in alone.values()}) > 30
    assert run("three", 3) == alone


class Striking(Listener):
    """Strikes the engines once, when a trial has ended."""

    def __init__(self, strike: Callable[[], None]) -> None:
        super().__init__()
        self._strike: Callable[[], None] | None = strike

    def trial(self, *_: object) -> None:
        if self._strike is not None:
            strike, self._strike = self._strike, None
            strike()


def test_a_dead_engine_is_told_and_the_run_goes_on_with_fewer(run: Any, tmp_path: Path) -> None:
    alone = run("alone", 1)

    def kill() -> None:
        multiprocessing.active_children()[0].kill()

    with pytest.raises(EngineError, match=r"engine [123] of 3 is gone \(exit code -9\)") as caught:
        run("killed", 3, Striking(kill))
    assert caught.value.diagnostics[0].code == "KVS406"
    assert multiprocessing.active_children() == []
    store = RunStore.open(tmp_path / "killed")
    kept = {row["trial_id"]: row for row in store.table().to_pylist()}
    assert store.status == "failed"
    assert 0 < len(kept) < len(alone)
    assert all(alone[trial] == row for trial, row in kept.items())
    assert run("killed", 2) == alone
    assert RunStore.open(tmp_path / "killed").status == "complete"


def test_an_engine_that_hangs_is_named_with_its_last_requests_and_the_run_goes_on(run: Any, tmp_path: Path) -> None:
    alone = run("alone", 1)
    words = r"engine [12] of 2 hangs: no step has ended for 1 s\. It has \d+ requests; the last that it was given is "
    with pytest.raises(EngineError, match=words + r"trial `[^`]+`, the last that ended is trial `[^`]+`") as caught:
        run("hangs", 2, trouble="hangs at 7", hang=1.0)
    assert caught.value.diagnostics[0].code == "KVS406"
    assert multiprocessing.active_children() == []
    store = RunStore.open(tmp_path / "hangs")
    assert store.status == "failed"
    assert 0 < store.count() < len(alone)
    assert run("hangs", 2) == alone


def test_an_engine_that_is_slow_does_not_hang() -> None:
    """No request ends for three times the deadline, but steps do; and the parent may look away for as long."""
    with Fleet(partial(Engine, seconds=0.05, slots=0), 1, hang=0.5) as many:
        many.submit(0, PROMPT, GENERATION, 0)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert many.step() == []
        time.sleep(1.0)
        assert many.step() == []
        assert many.pending == 1


def test_time_in_which_the_run_was_stopped_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z stops the engines too. Only time that the fleet has seen pass counts, glance by glance."""
    now = time.monotonic()
    monkeypatch.setattr(fleet, "TICK", 0.0)
    with Fleet(partial(Engine, "hangs at 7"), 1, hang=599.5) as many:
        monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: now))
        many.submit(7, PROMPT, GENERATION, 0)
        for passed in (4000.0, 90000.0, *[1.0] * 597):
            now += passed
            assert many.step() == []
        now += 2.0
        with pytest.raises(EngineError, match="no step has ended for 600 s"):
            many.step()
        monkeypatch.undo()


def test_ctrl_c_reaches_the_campaign_alone_and_the_run_goes_on_with_more(run: Any, tmp_path: Path) -> None:
    alone = run("alone", 1)

    def ctrl_c() -> None:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", 2, Striking(ctrl_c))
    assert multiprocessing.active_children() == []
    store = RunStore.open(tmp_path / "stopped")
    assert store.status == "interrupted"
    assert 0 < store.count() < len(alone)
    assert run("stopped", 3) == alone


def drained(many: Fleet) -> dict[int, Finished]:
    found: dict[int, Finished] = {}
    while many.pending:
        ended = many.step()
        counts = many.tally([f.entry for f in ended])
        assert not ended or counts["landed"] == [2 * f.entry for f in ended]
        found |= {f.entry: f for f in ended}
    return found


def test_requests_are_dealt_out_and_a_second_run_goes_where_the_first_was() -> None:
    with Fleet(Engine, 3) as many:
        assert (many.engines, many.geometry) == (3, SMALL)
        for entry in range(30):
            many.submit(entry, PROMPT, GENERATION, 0)
        assert sorted(drained(many)) == list(range(30))
        before = many.each(seen)
        assert [count for _, count in before] == [10, 10, 10]
        assert len({process for process, _ in before}) == 3
        for _ in range(5):  # a trial that was preempted runs again: its engine knows how often it did
            many.submit(7, PROMPT, GENERATION, 0)
            assert list(drained(many)) == [7]
        assert sorted(count for _, count in many.each(seen)) == [10, 10, 15]


def test_much_in_both_directions_does_not_block() -> None:
    """Far more than pipes hold, sent while the other side sends."""
    with Fleet(partial(Engine, tokens=5000), 2) as many:
        for entry in range(3000):
            many.submit(entry, list(range(1000)), GENERATION, 0)
        found = drained(many)
    assert len(found) == 3000
    assert all(f.token_ids == [entry] * 5000 for entry, f in found.items())


def test_what_an_engine_raises_is_raised_here() -> None:
    with pytest.raises(EngineError, match="this cache is not known") as caught:
        Fleet(partial(Engine, "at the start"), 2)
    assert caught.value.diagnostics[0].expected == "another one"
    with Fleet(partial(Engine, "in a step"), 2) as many:
        many.submit(0, PROMPT, GENERATION, 0)
        with pytest.raises(EngineError, match="the engine failed: ValueError: out of luck"):
            drained(many)
    assert multiprocessing.active_children() == []


def test_each_engine_sees_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv(fleet.GPUS, "3,4,5,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with Fleet(Engine, 2, gpus_each=2) as many:
        assert [gpus for _, _, gpus in many.each(seen, fleet.GPUS)] == ["3,4", "5,6"]
    assert os.environ[fleet.GPUS] == "3,4,5,6"
    monkeypatch.delenv(fleet.GPUS)
    assert fleet._shares(4, 1) == ["0", "1", "2", "3"]
    with pytest.raises(EngineError, match="3 engines x 2 GPUs do not fit on the 4 GPUs") as caught:
        Fleet(Engine, 3, gpus_each=2)
    assert caught.value.diagnostics[0].path == "$.engine.data_parallel"
    assert caught.value.diagnostics[0].expected == "at most 2"
    with pytest.raises(EngineError, match="2 engines x 8 GPUs do not fit on the 4 GPUs") as caught:
        fleet._shares(2, 8)
    assert caught.value.diagnostics[0].path == "$.engine.tensor_parallel"
    assert caught.value.diagnostics[0].expected == "at most 4"


def test_engines_on_unlike_machines_are_refused_by_field() -> None:
    one = {"device": {"name": "A", "threads": 2}, "python": "3"}
    other = {"device": {"name": "B", "threads": 2}, "python": "3"}
    assert require_alike([one, dict(one)]) == one
    with pytest.raises(EngineError, match=r'`device\.name` is "A" in the first engine and "B" in engine 3'):
        require_alike([one, one, other])


def test_real_engines_give_the_records_of_one(
    gpt2: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    monkeypatch.undo()  # this campaign is a real one
    path = tmp_path / "spec.yaml"
    path.write_text(f"""
kvspec: 1
name: fleet
model: {{id: {gpt2}}}
prompts: {{inline: ["The capital of France is", "abc"]}}
generation: {{max_tokens: 8}}
faults:
  - {{name: W, model: random, site: KV_WRITE, rate: {{per_bit: 1.0e-4}}}}
  - {{name: R, model: random, site: KV_READ, op: [flip, set1], rate: {{per_bit: 1.0e-4}}}}
controls: {{golden_repeats: 1, null_trials: 1}}
trials: 4
""")
    rows = {}
    for engines in (1, 2):
        plan = compile_plan(load_spec(path, [f"engine.data_parallel={engines}"]))
        out = tmp_path / f"run{engines}"
        if engines == 2:  # a run goes on under another number of engines
            with pytest.raises(KeyboardInterrupt):
                run_campaign(plan, out, Listener(5))
            plan = compile_plan(load_spec(path))
            assert plan.spec.engine.data_parallel == 1
        run_campaign(plan, out, Listener())
        rows[engines] = {row["trial_id"]: row for row in RunStore.open(out).table().to_pylist()}
    assert rows[2] == rows[1]
    assert sum(row["flips_landed"] for row in rows[1].values()) > 100
    assert all(row["error"] is None for row in rows[1].values())
