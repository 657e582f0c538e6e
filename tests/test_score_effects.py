"""What follows from the counts of a run: cells against controls, pairs, doses, vulnerability. All truths are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvspec.errors import RecordsError
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record
from kvspec.report.charts import dose_charts
from kvspec.report.limits import Limits
from kvspec.report.palette import PAGE
from kvspec.report.series import build_series
from kvspec.report.words import against_controls
from kvspec.score import Scores, score_run
from kvspec.score.grid import EXACT, Grid, discordant
from kvspec.spec.model import Fault, PromptSpec, Rate, Selector
from kvspec.stats.design import detectable_drop
from kvspec.stats.exact import holm, mcnemar
from tests.run_folders import crashed, in_cell, make_plan, nonfinite, sdc, write_run

Change = Callable[[Trial, Record], Record | None]


def flips(count: int) -> Callable[[Record], Record]:
    return lambda record: replace(record, flips_planned=count, flips_landed=count)


def scored(tmp_path: Path, plan: Plan, change: Change, expected: dict[int, float] | None = None) -> Scores:
    return score_run(write_run(tmp_path / "run", plan, change, expected=expected))


def with_faults(plan: Plan, *faults: Fault) -> Plan:
    return compile_plan(replace(plan.spec, faults=faults))


# Against the controls


def test_controls_of_the_same_prompt_are_what_a_cell_is_tested_against(tmp_path: Path) -> None:
    """2 prompts with 3 clean controls and 5 trials each; all trials of cell 0 differ: p = 1 / C(8, 3)^2."""
    scores = scored(tmp_path, make_plan(), in_cell(0, 10, sdc))
    effect = scores.cells[0].effect
    assert effect.p == pytest.approx(1 / 56**2)
    assert effect.p_holm == pytest.approx(4 / 56**2)
    assert scores.cells[0].below_floor
    assert effect.difference is not None
    assert effect.difference.value == -1.0
    assert [cell.effect.p for cell in scores.cells[1:]] == [1.0] * 3
    assert [cell.below_floor for cell in scores.cells[1:]] == [False] * 3


def test_one_bad_prompt_is_not_enough(tmp_path: Path) -> None:
    """All mismatches in one prompt: the other prompt's controls say nothing about it."""

    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 0 and trial.request == 0 else record

    scores = scored(tmp_path, make_plan(), change)
    assert scores.cells[0].effect.p == pytest.approx(1 / 56)
    assert scores.cells[0].below_floor is False  # 4 / 56 after Holm


def test_holm_is_over_all_cells(tmp_path: Path) -> None:
    first, second = in_cell(0, 10, sdc), in_cell(1, 6, sdc)
    scores = scored(tmp_path, make_plan(), lambda t, r: second(t, first(t, r)))
    raw = [cell.effect.p for cell in scores.cells]
    assert all(p is not None for p in raw)
    assert [cell.effect.p_holm for cell in scores.cells] == pytest.approx(holm(raw))  # type: ignore[arg-type]


def test_not_distinguishable_says_what_would_have_shown(tmp_path: Path) -> None:
    """40 trials a cell against 12 clean controls: 4 tests, so Fisher's at 1.25 %."""
    plan = make_plan(prompts=4, per_prompt=10)
    scores = scored(tmp_path, plan, in_cell(0, 40, sdc))
    drop = scores.cells[1].effect.detectable_drop
    assert drop == detectable_drop(40, (12, 12), 0.05 / 4)
    assert drop is not None
    text = f"BitRot[1e-05], BitRot[0.001], Burst; a fall of {drop:.1%} or more would have shown with 80 % power."
    assert any(sentence.endswith(text) for sentence in scores.verdict)
    few = make_plan(prompts=1, per_prompt=1)
    alone = score_run(write_run(tmp_path / "few", few, in_cell(1, 1, sdc)))
    assert all(cell.effect.detectable_drop is None for cell in alone.cells)
    assert any("could have shown no fall at all" in sentence for sentence in alone.verdict)


def test_cells_above_a_floor_that_is_not_clean(tmp_path: Path) -> None:
    def noisy(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.kind == "null" else record

    scores = scored(tmp_path, make_plan(prompts=4, per_prompt=10), noisy)
    assert not any("Not distinguishable" in sentence for sentence in scores.verdict)
    (said,) = [sentence for sentence in scores.verdict if "Not below the floor" in sentence]
    assert "more often equal to golden than the controls (not tested, for no fault explains that)" in said
    assert "in 4 of 4 cells: BitRot[1e-07] (+33.3%)" in said
    assert not any("above the floor" in sentence for sentence in scores.verdict), "no test was made upwards"
    assert against_controls(scores.cells[0]).startswith("above controls (")


def test_a_run_of_nonfinite_answers_has_its_sentence(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return nonfinite(record) if trial.kind == "fault" else record

    scores = scored(tmp_path, make_plan(), change)
    said = (
        "40 of 40 trials with faults are detected errors (due): 40 with logits that were not finite; all trials of Bit"
    )
    assert any(sentence.startswith(said) for sentence in scores.verdict)


def test_repeated_prompts_are_one_cluster(tmp_path: Path) -> None:
    plan = make_plan(prompts=4)
    same = compile_plan(replace(plan.spec, prompts=PromptSpec(("a", "b", "a", "b"))))
    scores = scored(tmp_path, same, in_cell(0, 3, sdc))
    assert scores.cells[0].effect.prompts == 2
    assert Grid(1, ("a", "b", "a"), 2).cluster.tolist() == [0, 1, 0]


def test_prompts_that_differ_widen_the_interval(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 0 and trial.request % 2 else record

    scores = scored(tmp_path, make_plan(prompts=12, per_prompt=10), change)
    cell = scores.cells[0]
    assert cell.effect.clustered is not None
    low, high = cell.effect.clustered
    assert low < cell.exact_match.low < cell.exact_match.high < high  # type: ignore[operator]
    assert scores.design_effect == pytest.approx(10 * 12 / 11)
    assert any("trials of one prompt are alike: the variance is 10.9 times" in text for text in scores.warnings)


def test_a_number_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return replace(record, trial=5) if trial.id == "c0/p0/t4" else record

    with pytest.raises(RecordsError) as error:
        scored(tmp_path, make_plan(per_prompt=5), change)
    assert [d.code for d in error.value.diagnostics] == ["KVS505"]


# Cells with common random numbers


def selectors(tmp_path: Path, change: Change) -> Scores:
    everywhere = Fault("Where", 0, "KV_WRITE", "random", Rate("per_bit", 1e-5))
    keys = replace(everywhere, where=Selector(cache=("K",)))
    values = replace(everywhere, where=Selector(cache=("V",)))
    other = Fault("Other", 1, "KV_WRITE", "random", Rate("per_bit", 1e-5))
    return scored(tmp_path, with_faults(make_plan(per_prompt=20), everywhere, keys, values, other), change)


def test_selectors_of_one_entry_are_paired(tmp_path: Path) -> None:
    """Cell 0 fails in trials 0 to 14, cell 1 in 0 to 4, cell 2 in 10 to 19; `Other` has draws of its own."""
    failing = {0: range(15), 1: range(5), 2: range(10, 20), 3: range(20)}

    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.kind == "fault" and trial.trial in failing[trial.cell] else record

    scores = selectors(tmp_path, change)
    assert [(pair.first, pair.second, pair.pairs) for pair in scores.pairs] == [(0, 1, 40), (0, 2, 40)]
    keys, values = scores.pairs
    assert (keys.only_first, keys.only_second) == (0, 20)
    assert (values.only_first, values.only_second) == (10, 20)
    assert keys.p == mcnemar(0, 20)
    assert [pair.p_holm for pair in scores.pairs] == holm([mcnemar(0, 20), mcnemar(10, 20)])
    assert keys.difference.value == pytest.approx(0.5)
    assert keys.sensitivity is not None
    assert keys.sensitivity.value == pytest.approx(10 / 30)
    assert keys.sensitivity.high is not None
    assert keys.sensitivity.low < 1 / 3 < keys.sensitivity.high < 1
    assert any(text.startswith("Same faults, other sites: 1 of 2 pairs differ") for text in scores.verdict)


def test_an_infinite_sensitivity_is_a_bound(tmp_path: Path) -> None:
    scores = selectors(tmp_path, in_cell(1, 12, sdc))
    first = scores.pairs[0].sensitivity
    assert first is not None
    assert (first.value, first.high) == (None, None)
    assert first.low > 1
    assert scores.pairs[1].sensitivity is None


def test_pairs_leave_out_what_one_side_lacks(tmp_path: Path) -> None:
    scores = selectors(tmp_path, lambda t, r: None if t.cell == 1 and t.trial >= 7 else r)
    assert scores.pairs[0].pairs == 14
    grid = Grid(2, ("a",), 3)
    grid.flags[0], grid.flags[1] = [[3, 1, 0]], [[3, 3, 3]]
    assert discordant(grid.flags[0], grid.flags[1], EXACT) == (1, 0, 1, 2)


# Dose and response


def falling(matches: tuple[int, ...]) -> tuple[Plan, Change]:
    plan = make_plan(tuple(10.0**-e for e in range(9, 9 - len(matches), -1)), prompts=10, per_prompt=10)
    effects = [in_cell(c, 100 - k, sdc) for c, k in enumerate(matches)]

    def change(trial: Trial, record: Record) -> Record:
        for effect in effects:
            record = effect(trial, record)
        return record

    return plan, change


def test_ec50_of_a_made_curve(tmp_path: Path) -> None:
    plan, change = falling((100, 97, 76, 24, 3, 0))  # EC50 at 10^-6.5, one decade is a factor 10^0.5 in the odds
    expected = {c: 1e7 * cell.fault.rate.value for c, cell in enumerate(plan.cells)}
    scores = scored(tmp_path, plan, change, expected)
    found = {response.dose: response.fit for response in scores.dose_responses}
    assert set(found) == {"rate", "expected", "landed"}
    rate = found["rate"]
    assert rate.ec50 == pytest.approx(10**-6.5, rel=0.1)
    assert rate.low is not None
    assert rate.high is not None
    assert 1e-7 < rate.low < 10**-6.5 < rate.high < 1e-6
    assert found["expected"].ec50 == pytest.approx(1e7 * rate.ec50, rel=0.01)
    assert found["expected"].low == pytest.approx(1e7 * rate.low, rel=0.01)
    assert (rate.ceiling, rate.floor) == (pytest.approx(1.0, abs=0.01), 0.0)
    assert any("half of the effect at 3.2e-07/bit (EC50" in text for text in scores.verdict)


def test_no_fall_has_no_ec50(tmp_path: Path) -> None:
    plan, change = falling((98, 99, 97, 98))
    scores = scored(tmp_path, plan, change)
    assert scores.dose_responses == ()
    assert not any("EC50" in text for text in scores.verdict)


def test_a_step_has_two_ends_and_no_value(tmp_path: Path) -> None:
    plan, change = falling((100, 100, 0, 0))
    scores = scored(tmp_path, plan, change)
    (rate,) = [response.fit for response in scores.dose_responses if response.dose == "rate"]
    assert rate.step
    assert any("half of the effect (EC50) lies between 1e-08 and 1e-07/bit" in text for text in scores.verdict)
    (series, _) = build_series(scores)
    page = dose_charts((series,), "rate", scores, PAGE, Limits())[0]
    assert not [layer for layer in page.spec["layer"] if layer["mark"]["type"] == "area"]
    (line,) = [layer for layer in page.spec["layer"] if layer["mark"]["type"] == "line"]
    assert len(line["data"]["values"]) == 4  # the points, joined


def test_an_effect_that_has_only_begun_has_a_bound(tmp_path: Path) -> None:
    plan, change = falling((100, 99, 95, 80))
    scores = scored(tmp_path, plan, change)
    (rate,) = [response.fit for response in scores.dose_responses if response.dose == "rate"]
    assert rate.ec50 is None
    assert rate.low is not None
    assert rate.low > 1e-6
    assert any("(EC50) lies outside the rates measured: above" in text for text in scores.verdict)


# Vulnerability


def test_single_flips_give_avf_and_fit(tmp_path: Path) -> None:
    """40 trials with one flip, of which 8 sdc, 3 nonfinite; a crash and trials with two flips do not count."""
    fault = Fault("Rot", 0, "KV_WRITE", "random", Rate("fit", 100.0, 24.0))
    plan = with_faults(make_plan(per_prompt=25), fault)
    seen = [0]

    def change(trial: Trial, record: Record) -> Record:
        if trial.kind != "fault":
            return record
        seen[0] += 1
        number = seen[0]
        if number <= 40:
            return flips(1)(sdc(record) if number <= 8 else nonfinite(record) if number <= 11 else record)
        return crashed(flips(1)(record)) if number == 41 else flips(2)(sdc(record))

    run = write_run(tmp_path / "run", plan, change)
    estimate = '{"cells":[{"expected_flips":{"per_trial":0.5,"per_eligible_bit":2.384185791015625e-07}}]}'
    (run / "estimate.json").write_text(estimate)
    (found,) = score_run(run).vulnerabilities
    assert (found.avf.k, found.avf.n) == (11, 40)
    assert found.mbit == pytest.approx(0.5 / 2.384185791015625e-07 / 2**20) == pytest.approx(2.0)
    assert found.fit_per_raw_fit is not None
    assert found.fit_per_raw_fit.value == pytest.approx(2 * 11 / 40)
    assert found.raw_fit_per_mbit == (100.0,)
    assert found.fit[0].value == pytest.approx(100 * 2 * 11 / 40)
    assert found.fit[0].high == pytest.approx(200 * found.avf.high)  # type: ignore[operator]


def test_bursts_and_many_flips_give_no_avf(tmp_path: Path) -> None:
    scores = scored(tmp_path, make_plan(), lambda t, r: flips(1)(r) if t.cell == 3 else r)
    assert [found.cells for found in scores.vulnerabilities] == [(0,)]  # cell c holds c + 1 flips, cell 3 is a burst
    assert scores.cells[3].single_flip.n == 10


def test_all_due_has_an_effect_and_no_curve(tmp_path: Path) -> None:
    scores = scored(tmp_path, make_plan(), lambda t, r: crashed(r) if t.kind == "fault" else r)
    assert all(cell.below_floor for cell in scores.cells)
    assert scores.dose_responses == scores.vulnerabilities == ()


def test_the_verdict_names_the_most_vulnerable_of_many_series(tmp_path: Path) -> None:
    faults = [Fault(f"F{i}", i, "KV_WRITE", "random", Rate("per_bit", 1e-5)) for i in range(6)]

    def change(trial: Trial, record: Record) -> Record:
        if trial.kind != "fault":
            return record
        return flips(1)(sdc(record) if trial.cell == 4 and trial.trial < 3 else record)

    scores = scored(tmp_path, with_faults(make_plan(), *faults), change)
    said = [sentence for sentence in scores.verdict if "single flip" in sentence]
    assert len(scores.vulnerabilities) == 6
    assert len(said) == 4
    assert said[0].startswith("F4: of 10 trials with a single flip, 60.00% show it")
    assert scores.verdict[-1] == "These are the 4 with the highest AVF of 6 series; the JSON report has all."
