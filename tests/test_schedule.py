"""Which trials are due: every decision depends on identities alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kvspec.engine.judge import Judge
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.plan.schedule import Schedule
from kvspec.records import Record
from kvspec.score import Scores, score_run
from kvspec.spec.model import TrialSpec
from kvspec.stats.design import Looks, plan_looks
from tests.run_folders import crashed, lost_flip, make_plan, masked, nonfinite, sdc, write_run

LOOKS = Looks(0.95, 0.15, (6, 10, 20, 30))


def looking(looks: Looks = LOOKS, prompts: int = 3) -> Plan:
    plan = make_plan(prompts=prompts)
    return compile_plan(replace(plan.spec, trials=TrialSpec(looks.rounds[-1], looks)))


def outcome(trial: Trial) -> bool:
    """Cell 0 never fails, cell 1 in half of the trials, cell 2 now and then, cell 3 always."""
    number = trial.request + 7 * trial.trial
    return (True, number % 2 == 0, number % 9 != 0, False)[trial.cell]


def play(
    plan: Plan,
    answer: Callable[[Trial], bool | None] = outcome,
    *,
    batch: int = 40,
    seed: int = 0,
    before: Sequence[Trial] = (),
    stop_after: int = 10**9,
) -> list[Trial]:
    """Run a schedule with a batch of that many slots, whose trials end in an order drawn from `seed`."""
    known = {trial.id for trial in before}
    order = [trial for trial in plan.trials() if trial.id not in known]
    rng = random.Random(seed)
    rng.shuffle(order)
    schedule, running, done = Schedule(plan, order), [], list(before)
    for trial in before:
        schedule.end(trial, answer(trial) if trial.kind == "fault" else None)
    while len(done) < stop_after:
        running += schedule.next(batch - len(running))
        if not running:
            assert len(done) == schedule.total
            break
        trial = order[running.pop(rng.randrange(len(running)))]
        done.append(trial)
        schedule.end(trial, answer(trial) if trial.kind == "fault" else None)
    return done


def sizes(plan: Plan, done: Sequence[Trial]) -> list[int]:
    return [sum(trial.cell == cell.index for trial in done) for cell in plan.cells]


def test_without_looks_everything_is_due() -> None:
    plan = make_plan()
    done = play(plan)
    assert sorted(trial.id for trial in done) == sorted(trial.id for trial in plan.trials())


def test_cells_stop_at_the_first_narrow_look() -> None:
    plan = looking()
    done = play(plan)
    expected = []
    for cell in plan.cells:
        for rounds in LOOKS.rounds:
            trials = [Trial("fault", cell.index, p, t) for p in range(3) for t in range(rounds)]
            low, high = LOOKS.interval(sum(map(outcome, trials)), len(trials))
            if high - low <= 0.3:
                break
        expected.append(len(trials))
    assert sizes(plan, done) == expected
    assert expected[0] == expected[3] < expected[2] < expected[1]
    assert sum(trial.kind != "fault" for trial in done) == 3 * 4


def test_decisions_depend_neither_on_speed_nor_on_order() -> None:
    plan = looking()
    first = {trial.id for trial in play(plan)}
    for seed, batch in ((1, 1), (2, 7), (3, 1000)):
        assert {trial.id for trial in play(plan, batch=batch, seed=seed)} == first


@pytest.mark.parametrize("stop_after", [1, 50, 100, 130, 200])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(stop_after: int) -> None:
    plan = looking()
    before = play(plan, seed=4, stop_after=stop_after)
    again = play(plan, seed=5, before=before)
    assert {trial.id for trial in again} == {trial.id for trial in play(plan)}
    assert len(play(plan, before=again)) == len(again)  # nothing is left of a complete run


def test_trials_without_a_score_do_not_narrow_an_interval() -> None:
    plan = looking()
    done = play(plan, lambda trial: None if trial.cell == 0 else outcome(trial))
    assert sizes(plan, done)[0] == 3 * 30


def test_freed_slots_go_to_the_cells_that_are_open() -> None:
    """Once the easy cells have stopped, the batch is full of trials of the others."""
    plan = looking(plan_looks(0.95, 0.05, 5, 3))
    last = play(plan)[-200:]
    assert {trial.cell for trial in last} <= {1, 2}


def test_the_judge_rules_as_scores_do(tmp_path: Path) -> None:
    """Every kind of record, with one golden run that failed; golden answers come last."""
    plan = make_plan(prompts=3, per_prompt=6)
    effects = (lambda r: r, sdc, nonfinite, crashed, lost_flip, lambda r: replace(r, finish_reason="abort"))

    def change(trial: Trial, record: Record) -> Record:
        if trial.kind == "golden" and trial.request == 2:
            return nonfinite(record)
        return effects[trial.trial](record) if trial.kind == "fault" else record

    scores = score_run(write_run(tmp_path / "run", plan, change))
    judge = Judge()
    found = []
    for trial in sorted(plan.trials(), key=lambda trial: trial.kind == "golden"):
        found += judge.take(change(trial, masked(trial)))
    for cell in scores.cells:
        mine = [matched for trial, matched in found if trial.cell == cell.plan.index]
        assert len(mine) == 18
        assert sum(matched is not None for matched in mine) == cell.exact_match.n
        assert sum(matched is True for matched in mine) == cell.exact_match.k


def early(tmp_path: Path) -> Scores:
    plan = looking()
    kept = {trial.id for trial in play(plan)}

    def change(trial: Trial, record: Record) -> Record | None:
        if trial.id not in kept:
            return None
        return sdc(record) if trial.kind == "fault" and not outcome(trial) else record

    run = write_run(tmp_path / "run", plan, change)
    text = (run / "run.json").read_text().replace("interrupted", "complete")
    (run / "run.json").write_text(text)
    return score_run(run)


def test_a_run_that_stopped_early_is_whole_and_has_intervals_that_allow_for_it(tmp_path: Path) -> None:
    scores = early(tmp_path)
    assert scores.run.recorded == scores.run.planned
    assert not any("partial" in text for text in scores.warnings)
    for cell in scores.cells:
        match = cell.exact_match
        assert (match.low, match.high) == LOOKS.interval(match.k, match.n)
    assert scores.cells[0].effect.p == 1.0
    assert scores.cells[1].effect.p_holm < 0.05  # type: ignore[operator]
