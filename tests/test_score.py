"""Scores of run folders whose truth is known, and the statistics under them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvspec.errors import RecordsError
from kvspec.plan import Trial, compile_plan
from kvspec.records import Record, RunStore
from kvspec.report import render_text
from kvspec.report.page.facts import headline
from kvspec.score import Scores, score_run, score_trials
from kvspec.score.export import write_trials
from kvspec.score.outcome import OUTCOMES, REASONS, classify
from kvspec.spec.model import Fault, Rate, Selector
from tests.run_folders import (
    GOLDEN,
    crashed,
    in_cell,
    lost_flip,
    make_plan,
    masked,
    nonfinite,
    sdc,
    write_run,
)

PLAN = make_plan(prompts=2, per_prompt=5)


def codes(error: pytest.ExceptionInfo[RecordsError]) -> list[str]:
    return [d.code for d in error.value.diagnostics]


def guide_drift(text: str, gold: str) -> int:
    """Char drift exactly as the guide's script computes it."""
    drift = sum(1 for a, b in zip(text, gold) if a != b)  # noqa: B905
    drift += abs(len(text) - len(gold))
    return drift


def invariants(scores: Scores) -> None:
    for cell in scores.cells:
        n = cell.exact_match.n
        assert sum(cell.outcome.values()) == sum(cell.status.values()) == n
        assert sum(cell.due_reasons.values()) == cell.outcome["due"]
        assert cell.recorded == n + cell.invalid + cell.unscored
        assert (cell.exact_match.low is None) == (n == 0)


# The decision table


def decide(
    *, finished: bool, error: bool, landed: bool, golden: bool, nonfinite: bool, identical: bool
) -> tuple[str, str]:
    """The table of outcome.py as a chain of ifs, written apart from it."""
    if finished and not landed:
        return "invalid", ""
    if not golden:
        return "unscored", ""
    if not finished or error:
        return "due", "error" if error else "unfinished"
    if nonfinite:
        return "due", "nonfinite"
    return ("masked" if identical else "sdc"), ""


def test_every_row_of_the_decision_table() -> None:
    names = ("finished", "error", "landed", "golden", "nonfinite", "identical")
    rows = list(itertools.product((False, True), repeat=len(names)))
    columns = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    outcome, reason, crash = classify(**columns)
    for row, o, r, c in zip(rows, outcome, reason, crash, strict=True):
        facts = dict(zip(names, row, strict=True))
        expected = decide(**facts)
        assert (OUTCOMES[o], REASONS[r]) == expected, facts
        assert c == (expected in {("due", "error"), ("due", "unfinished")}), facts
        if facts["finished"] and not facts["landed"]:
            assert OUTCOMES[o] != "masked"


# Whole runs


def test_a_run_without_effect(tmp_path: Path) -> None:
    scores = score_run(write_run(tmp_path / "run", PLAN))
    invariants(scores)
    assert scores.sound
    assert scores.floor.clean
    assert (scores.floor.golden_repeats.k, scores.floor.golden_repeats.n) == (4, 4)
    assert (scores.floor.null_trials.k, scores.floor.null_trials.n) == (2, 2)
    for cell in scores.cells:
        assert (cell.exact_match.k, cell.exact_match.n) == (10, 10)
        assert set(cell.drift_means.values()) == {0.0}
        assert cell.first_divergence_median is None
        assert cell.flips.expected is None
        assert cell.flips.planned == cell.flips.landed == 10 * (cell.plan.index + 1)
    assert scores.samples == ()
    assert any("no difference between the rates" in sentence for sentence in scores.verdict)


def test_every_outcome_is_counted_once(tmp_path: Path) -> None:
    effects = [in_cell(1, 4, sdc), in_cell(2, 7, nonfinite), in_cell(3, 3, crashed)]

    def change(trial: Trial, record: Record) -> Record:
        for effect in effects:
            record = effect(trial, record)
        return record

    scores = score_run(write_run(tmp_path / "run", PLAN, change, expected={0: 0.01, 1: 2.0, 2: 3.0, 3: 4.5}))
    invariants(scores)
    quiet, few, broken, burst = scores.cells
    assert quiet.outcome == {"masked": 10, "sdc": 0, "due": 0}
    assert few.outcome == {"masked": 6, "sdc": 4, "due": 0}
    assert broken.outcome == {"masked": 3, "sdc": 0, "due": 7}
    assert broken.due_reasons == {"error": 0, "unfinished": 0, "nonfinite": 7}
    assert broken.status == {"ok": 10, "crash": 0}
    assert burst.outcome == {"masked": 7, "sdc": 0, "due": 3}
    assert burst.status == {"ok": 7, "crash": 3}
    assert burst.exact_match.n == 10
    text = f"{GOLDEN} 0"
    drift = guide_drift(text[:4] + "!" * (len(text) - 4), text)
    assert few.drift_means["char_drift"] == pytest.approx(4 * drift / 10)
    assert few.drift_means["token_drift"] == pytest.approx(4 * 7 / 10)
    assert few.first_divergence_median == 3.0
    assert burst.drift_means["char_drift"] == 0.0, "crashed trials have no drift"
    assert burst.flips.planned == burst.flips.landed == 7 * 4, "nor do their flips compare with anything"
    assert burst.flips.expected == pytest.approx(7 * 4.5)
    assert any("expects 0.1 flips" in warning for warning in scores.warnings)


@settings(deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8"), max_size=30),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=12),
)
def test_drifts_equal_the_guides_one_liner(
    tmp_path_factory: pytest.TempPathFactory, text: str, tokens: list[int]
) -> None:
    plan = make_plan((1e-5,), prompts=1, per_prompt=1)
    run = write_run(
        tmp_path_factory.mktemp("drift") / "run",
        plan,
        lambda trial, record: replace(record, text=text, token_ids=tokens) if trial.cell == 0 else record,
    )
    gold = masked(next(plan.trials()))
    means = score_run(run).cells[0].drift_means
    pairs = itertools.zip_longest(tokens, gold.token_ids)
    assert means["token_drift"] == sum(a != b for a, b in pairs)
    assert means["char_drift"] == (guide_drift(text, gold.text) if tokens != gold.token_ids else 0)


def test_a_lost_flip_is_never_masked(tmp_path: Path) -> None:
    scores = score_run(write_run(tmp_path / "run", PLAN, in_cell(0, 3, lost_flip)))
    invariants(scores)
    cell = scores.cells[0]
    assert cell.invalid == 3
    assert (cell.exact_match.k, cell.exact_match.n) == (7, 7)
    assert (cell.flips.planned, cell.flips.landed) == (10, 7)
    assert not scores.sound
    assert scores.verdict[0].startswith("INVALID: in 3 trials other flips landed")


def test_a_lost_flip_counts_even_if_the_engine_did_not_notice(tmp_path: Path) -> None:
    def silent(record: Record) -> Record:
        return replace(lost_flip(record), error=None)

    assert score_run(write_run(tmp_path / "run", PLAN, in_cell(0, 1, silent))).cells[0].invalid == 1


def test_an_unclean_floor_is_said_and_compared_with(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        broken = trial.kind == "golden_repeat" or (trial.kind == "fault" and trial.trial < 3)
        return sdc(record) if broken else record

    scores = score_run(write_run(tmp_path / "run", PLAN, change))
    invariants(scores)
    assert scores.floor.clean is False
    assert (scores.floor.combined.k, scores.floor.combined.n) == (2, 6)
    assert "NOT clean: 0 of 4 golden repeats" in scores.verdict[0]
    assert [cell.below_floor for cell in scores.cells] == [False] * 4


def test_a_control_with_a_flip_is_invalid(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return replace(record, flips_planned=1, flips_landed=1) if trial.kind == "null" else record

    scores = score_run(write_run(tmp_path / "run", PLAN, change))
    assert scores.floor.invalid == 2
    assert scores.floor.null_trials.n == 0
    assert not scores.sound
    assert scores.verdict[0].startswith("INVALID")


def test_a_partial_run_scores_what_is_there(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record | None:
        if (trial.kind == "golden" and trial.request == 1) or trial.cell == 3 or trial.kind == "null":
            return None
        return record

    scores = score_run(write_run(tmp_path / "run", PLAN, change))
    invariants(scores)
    assert scores.floor.missing_golden == 1
    assert scores.cells[0].unscored == 5
    assert scores.cells[0].exact_match.n == 5
    empty = scores.cells[3]
    assert (empty.recorded, empty.exact_match.rate, empty.below_floor) == (0, None, None)
    assert set(empty.drift_means.values()) == {None}
    assert any(
        w.startswith(f"the run is partial: {scores.run.recorded} of {len(PLAN)} trials") for w in scores.warnings
    )


def test_a_complete_run_that_lost_a_part_is_not_called_complete(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    parts = sorted((run / "parts").iterdir())
    parts[-1].unlink()
    scores = score_run(run)
    assert (scores.run.status, scores.run.state, scores.run.lost) == ("complete", "records missing", True)
    left = f"{scores.run.recorded} of {len(PLAN)} trials"
    assert scores.warnings[0] == f"records are missing: {left} are left of a run that was complete"
    assert not any("partial" in text for text in scores.warnings)
    assert "recorded, records missing" in render_text(scores)
    assert headline(scores)["word"] == "Records missing"


def test_golden_trials_alone_are_a_run_without_findings(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, lambda trial, record: record if trial.kind == "golden" else None)
    scores = score_run(run)
    assert scores.floor.clean is None
    assert all(cell.exact_match.rate is None for cell in scores.cells)
    assert scores.verdict[0].startswith("The floor was not measured")
    assert "No cell can be compared with the floor." in scores.verdict


def test_one_trial(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        PLAN,
        lambda trial, record: record if trial.kind == "golden" or trial.id == "c0/p0/t0" else None,
    )
    cell = score_run(run).cells[0]
    assert (cell.exact_match.k, cell.exact_match.n) == (1, 1)
    assert cell.exact_match.low == pytest.approx(0.2065, abs=1e-4)


def test_all_due(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, lambda trial, r: crashed(r) if trial.kind == "fault" else r)
    scores = score_run(run)
    invariants(scores)
    for cell in scores.cells:
        assert cell.outcome == {"masked": 0, "sdc": 0, "due": 10}
        assert set(cell.drift_means.values()) == {None}
        assert (cell.flips.planned, cell.flips.landed) == (0, 0)
    assert scores.samples == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _, __: None, "holds no trial"),
        (lambda t, r: None if t.kind == "golden" else r, "no golden trial is recorded"),
        (lambda t, r: crashed(r) if t.kind == "golden" else r, "2 golden trials failed"),
        (lambda t, r: nonfinite(r) if t.kind == "golden" else r, "2 golden trials failed"),
    ],
)
def test_nothing_to_score(tmp_path: Path, change: Callable[[Trial, Record], Record | None], words: str) -> None:
    run = write_run(tmp_path / "run", PLAN, change)
    with pytest.raises(RecordsError, match=words) as error:
        score_run(run)
    assert codes(error) == ["KVS506"]


def test_one_failed_golden_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, lambda t, r: crashed(r) if t.id == "golden/p1" else r)
    scores = score_run(run)
    assert scores.floor.unusable_golden == (1,)
    assert scores.floor.missing_golden == 0
    assert any("golden failed for request 1" in warning for warning in scores.warnings)


# Damaged folders


@pytest.mark.parametrize("name", ["plan.json", "estimate.json", "environment.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"{}"])
def test_damaged_files_of_the_folder(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = write_run(tmp_path / "run", PLAN, expected={0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0})
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    if name != "plan.json" and content in (None, b"{}"):
        score_run(run)  # nothing was estimated, or nothing is known about the machine
        return
    with pytest.raises(RecordsError, match=name) as error:
        score_run(run)
    assert codes(error) == ["KVS505"]


OLD = [{"expected_flips": 3.5, "expected_flips_per_trial": 0.1, "dose": {}}] * 4


@pytest.mark.parametrize(
    "cells", [OLD, [], [1], [{}], {"a": 1}, [{"expected_flips": {"per_trial": "many"}}] * 4, [{"expected_flips": "3"}]]
)
def test_an_odd_estimate_is_refused_or_ignored(tmp_path: Path, cells: object) -> None:
    run = write_run(tmp_path / "run", PLAN)
    (run / "estimate.json").write_text(json.dumps({"cells": cells}))
    if cells in ([], [{}], OLD):  # nothing is said about the last cell
        assert score_run(run).cells[3].flips.expected is None
        return
    with pytest.raises(RecordsError, match=r"estimate\.json") as error:
        score_run(run)
    assert codes(error) == ["KVS505"]


def test_the_plan_of_another_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    other = write_run(tmp_path / "other", make_plan((1e-4,)))
    (run / "plan.json").write_bytes((other / "plan.json").read_bytes())
    with pytest.raises(RecordsError, match="digest differs") as error:
        score_run(run)
    assert codes(error) == ["KVS505"]


@pytest.mark.parametrize(
    "wrong", [{"cell": 4}, {"cell": -1}, {"request": 2}, {"kind": "golden_repeat", "request": 9}, {"kind": "gold"}]
)
def test_a_trial_that_is_not_in_the_plan(tmp_path: Path, wrong: dict[str, object]) -> None:
    run = write_run(
        tmp_path / "run",
        PLAN,
        lambda t, r: replace(r, **wrong) if t.id == "c0/p0/t0" else r,  # type: ignore[arg-type]
    )
    with pytest.raises(RecordsError, match="c0/p0/t0") as error:
        score_run(run)
    assert codes(error) == ["KVS505"]


def test_a_trial_recorded_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    part = run / "parts" / "part-000001.parquet"
    copy = run / "parts" / f"part-{len(list(part.parent.iterdir())):06d}.parquet"
    copy.write_bytes(part.read_bytes())
    with pytest.raises(RecordsError, match="7 trials twice") as error:
        score_run(run)
    assert codes(error) == ["KVS505"]
    with pytest.raises(RecordsError, match="7 trials twice"):
        RunStore.create(run, PLAN, version="t")


# Dose and response


def sweep(tmp_path: Path, matches: tuple[int, ...]) -> Scores:
    """A sweep of 20 trials per rate, of which so many equal golden."""
    plan = make_plan(tuple(10.0 ** -(len(matches) - i) for i in range(len(matches))), prompts=1, per_prompt=20)
    effects = [in_cell(cell, 20 - k, sdc) for cell, k in enumerate(matches)]

    def change(trial: Trial, record: Record) -> Record:
        for effect in effects:
            record = effect(trial, record)
        return record

    return score_run(write_run(tmp_path / "run", plan, change))


def test_a_fall_is_shown(tmp_path: Path) -> None:
    scores = sweep(tmp_path, (20, 14, 5, 0))
    (trend,) = scores.trends
    assert trend.label == "BitRot"
    assert trend.monotone
    assert trend.z is not None
    assert trend.z < -5
    assert any("BitRot: accuracy falls with the rate, 100.0% to 0.0% over 4 rates" in s for s in scores.verdict)


def test_a_rise_is_suspect(tmp_path: Path) -> None:
    scores = sweep(tmp_path, (18, 4, 20))
    (trend,) = scores.trends
    assert [(a, b) for a, b, _ in trend.rises] == [(1, 2)]
    assert any("RISES with the rate from BitRot[0.01] to BitRot[0.1]" in s for s in scores.verdict)


def test_noise_is_neither(tmp_path: Path) -> None:
    scores = sweep(tmp_path, (17, 18, 17))
    assert scores.trends[0].monotone
    assert any("no fall with the rate is shown" in s for s in scores.verdict)


def test_a_series_per_selector_sorted_by_rate(tmp_path: Path) -> None:
    base = make_plan()
    faults = tuple(
        Fault("Both", 0, "KV_WRITE", "random", Rate("per_bit", rate), where=Selector(cache=cache))
        for cache in (("K",), ("V",))
        for rate in (1e-3, 1e-5)
    )
    plan = compile_plan(replace(base.spec, faults=faults))
    scores = score_run(write_run(tmp_path / "run", plan))
    assert [(t.label, t.cells) for t in scores.trends] == [("Both[K]", (1, 0)), ("Both[V]", (3, 2))]


def test_faults_of_interleaved_entries_keep_their_cell(tmp_path: Path) -> None:
    base = make_plan()
    faults = tuple(
        Fault(f"F{index}", index, "KV_WRITE", "random", Rate("per_bit", rate))
        for index, rate in ((1, 1e-3), (0, 1e-4), (1, 1e-5))
    )
    plan = compile_plan(replace(base.spec, faults=faults))
    scores = score_run(write_run(tmp_path / "run", plan))
    for cell, planned in zip(scores.cells, plan.cells, strict=True):
        assert cell.plan.name == planned.name
        assert cell.plan.fault["rate"]["value"] == planned.fault.rate.value


# Samples and trials


def test_the_samples_are_the_subtlest_and_the_worst(tmp_path: Path) -> None:
    def slip(record: Record) -> Record:
        return replace(record, token_ids=[*record.token_ids[:-1], 7], text=record.text[:-1] + "?")

    effects = [in_cell(0, 1, slip), in_cell(2, 5, sdc)]

    def change(trial: Trial, record: Record) -> Record:
        for effect in effects:
            record = effect(trial, record)
        return record

    subtle, worst = score_run(write_run(tmp_path / "run", PLAN, change)).samples
    assert (subtle.trial_id, subtle.flips, subtle.first_divergence) == ("c0/p0/t0", 1, 9)
    assert subtle.first_char == len(GOLDEN) + 1
    assert (worst.role, worst.trial_id, worst.flips, worst.first_char) == ("largest drift", "c2/p0/t0", 3, 4)
    assert worst.prompt == "prompt number 0"


@pytest.mark.parametrize("output", ["json", "csv", "parquet"])
def test_trial_scores_have_one_row_per_trial(tmp_path: Path, output: str) -> None:
    effects = [in_cell(1, 4, sdc), in_cell(3, 3, crashed), in_cell(0, 2, lost_flip)]

    def change(trial: Trial, record: Record) -> Record:
        for effect in effects:
            record = effect(trial, record)
        return record

    run = write_run(tmp_path / "run", PLAN, change)
    _, batches = score_trials(run)
    file = tmp_path / "trials"
    with file.open("wb") as stream:
        write_trials(batches, output, stream)
    if output == "parquet":
        rows = pq.read_table(file).to_pylist()
    elif output == "json":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        lines = file.read_text().splitlines()
        assert len(lines) == len(PLAN) + 1
        assert sum("trial_id" in line for line in lines) == 1
        return
    by_id = {row["trial_id"]: row for row in rows}
    assert len(by_id) == len(rows) == len(PLAN)
    bad, good, dead, lost = (by_id[f"{name}/p0/t0"] for name in ("c1", "c2", "c3", "c0"))
    assert (bad["outcome"], bad["exact_match"], bad["first_divergence"], bad["token_drift"]) == ("sdc", False, 3, 7)
    assert (good["outcome"], good["exact_match"], good["first_divergence"], good["char_drift"]) == (
        "masked",
        True,
        None,
        0,
    )
    assert (dead["outcome"], dead["status"], dead["reason"], dead["char_drift"]) == ("due", "crash", "error", None)
    assert dead["exact_match"] is False
    assert (lost["outcome"], lost["flips_planned"], lost["flips_landed"]) == ("invalid", 1, 0)
