"""`kvspec diff`: pairs where faults are shared, prompts where only these are, exit codes, and runs that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft7Validator

from kvspec import _native
from kvspec.cli import main
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record
from kvspec.report.comparison import _clip, comparison_json, verdict
from kvspec.score import RunDiff, compare_runs
from kvspec.spec.model import Fault, PromptSpec, Rate
from kvspec.stats.exact import Strata, fisher_greater, mcnemar
from tests.run_folders import FINGERPRINT, crashed, in_cell, lost_flip, make_plan, sdc, write_run

SCHEMA = Draft7Validator(json.loads(_native.schema("diff")))
Change = Callable[[Trial, Record], Record | None]
PLAN = make_plan(prompts=4, per_prompt=10)


def same(_: Trial, record: Record) -> Record:
    return record


def compared(
    tmp_path: Path, first: Change = same, second: Change = same, *, plan: Plan = PLAN, other: Plan | None = None
) -> RunDiff:
    a = write_run(tmp_path / "a", plan, first)
    b = write_run(tmp_path / "b", other or plan, second)
    return compare_runs(a, b)


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    diff = compared(tmp_path, in_cell(1, 7, sdc), in_cell(1, 7, sdc))
    assert diff.spec == diff.environment == ()
    assert (diff.golden_same, diff.golden_both) == (4, 4)
    assert len(diff.cells) == 8
    assert all(cell.test == "paired" and cell.p == cell.p_holm == 1.0 for cell in diff.cells)
    assert not any(cell.tells for cell in diff.cells)
    assert not diff.significant


def test_shared_faults_are_compared_trial_by_trial(tmp_path: Path) -> None:
    """The second run fails in the first 9 trials of cell 1, the first one in trials that the second one masters."""

    def late(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 1 and trial.trial == 9 else record

    diff = compared(tmp_path, late, in_cell(1, 20, sdc))
    (cell,) = [c for c in diff.cells if c.name == "BitRot[1e-05]" and c.metric == "identical"]
    assert (cell.first.k, cell.second.k) == (36, 20)
    assert cell.test == "paired"
    assert cell.p == mcnemar(4, 20)
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(-0.4)
    assert cell.p_holm == cell.p  # no other test could have been significant, so none is adjusted for
    assert diff.significant == (cell,)


def test_a_change_from_wrong_to_crashed_is_seen(tmp_path: Path) -> None:
    diff = compared(tmp_path, in_cell(2, 30, sdc), in_cell(2, 30, crashed))
    (cell,) = diff.significant
    assert (cell.name, cell.metric, cell.first.k, cell.second.k) == ("BitRot[0.001]", "due", 0, 30)


def test_another_seed_is_compared_within_prompts(tmp_path: Path) -> None:
    other = compile_plan(replace(PLAN.spec, seed=43))
    diff = compared(tmp_path, same, in_cell(0, 12, sdc), other=other)
    assert [field.name for field in diff.spec] == ["seed"]
    cell = diff.cells[0]
    assert cell.test == "within prompts"
    # In the order of the plan the first 12 trials are three of each prompt.
    assert cell.p == Strata.of([10] * 4, [10] * 4, [7] * 4, [10] * 4).different()
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(-0.3)


def test_other_prompts_are_independent_samples(tmp_path: Path) -> None:
    other = compile_plan(replace(PLAN.spec, prompts=PromptSpec(("other 1", "other 2", "other 3", "other 4"))))
    diff = compared(tmp_path, same, in_cell(0, 12, sdc), other=other)
    assert (diff.golden_same, diff.golden_both) == (0, 0)
    assert diff.cells[0].test == "independent"
    assert diff.cells[0].p == pytest.approx(2 * fisher_greater(40, 40, 28, 40))


def test_cells_meet_by_their_fault_and_not_by_name_or_place(tmp_path: Path) -> None:
    """A renamed entry in another place has other draws; a new rate is alone."""
    renamed = Fault("Renamed", 1, "KV_WRITE", "random", Rate("per_bit", 1e-5))
    fresh = Fault("Fresh", 0, "KV_WRITE", "random", Rate("per_bit", 2e-5))
    other = compile_plan(replace(PLAN.spec, faults=(fresh, renamed)))
    diff = compared(tmp_path, other=other)
    assert {cell.name for cell in diff.cells} == {"BitRot[1e-05]"}
    assert {cell.test for cell in diff.cells} == {"within prompts"}
    assert diff.only_first == ("BitRot[1e-07]", "BitRot[0.001]", "Burst")
    assert diff.only_second == ("Fresh",)


def test_other_environments_and_golden_answers_are_named(tmp_path: Path) -> None:
    def elsewhere(_: Trial, record: Record) -> Record:
        return replace(record, token_ids=[*record.token_ids[:-1], 7]) if record.request == 1 else record

    a, b = write_run(tmp_path / "a", PLAN), write_run(tmp_path / "b", PLAN, elsewhere)
    text = json.dumps({**FINGERPRINT, "device": {"name": "other"}})
    (b / "environment.json").write_text(text)
    diff = compare_runs(a, b)
    assert [(f.name, f.first, f.second) for f in diff.environment] == [("device.name", '"test cpu"', '"other"')]
    assert (diff.golden_same, diff.golden_both) == (3, 4)
    assert not diff.significant  # each run equals its own golden answers


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["diff", *map(str, arguments)])
    return result.exit_code, result.output


def test_exit_codes_and_text(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", PLAN)
    b = write_run(tmp_path / "b", PLAN, in_cell(1, 30, sdc))
    code, text = run(a, a)
    assert code == 0
    assert "No difference is significant: with so few trials, or so few that differ, no test could show one." in text
    assert "Spec: the same" in text
    code, text = run(a, b)
    assert code == 1
    said = (
        "1 difference is significant (exact tests, Holm over the 1 that can show one): BitRot[1e-05], 100.0% to 25.0% "
    )
    assert said in text
    (line,) = [line for line in text.splitlines() if line.startswith("BitRot[1e-05]") and "identical" in line]
    assert "-75.0%" in line
    assert line.endswith("*")
    code, text = run(a, b, "--format", "json")
    data = json.loads(text)
    SCHEMA.validate(data)
    assert code == 1
    assert data["significant"] is True
    assert [c["name"] for c in data["cells"] if c["significant"]] == ["BitRot[1e-05]"]


def test_user_errors(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", PLAN)
    empty = write_run(tmp_path / "empty", PLAN, lambda *_: None)
    for other, code in ((tmp_path / "absent", "KVS502"), (empty, "KVS506")):
        exit_code, text = run(a, other, "--format", "json")
        assert exit_code == 2
        assert json.loads(text)["diagnostics"][0]["code"] == code


def test_unsound_and_partial_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", PLAN)
    bad = write_run(tmp_path / "bad", PLAN, in_cell(0, 1, lost_flip))
    part = write_run(tmp_path / "part", PLAN, lambda t, r: None if t.cell == 3 else r)
    code, text = run(a, bad)
    assert code == 1
    assert "INVALID: in" in text
    code, text = run(a, part)
    assert code == 0
    assert "is partial" in text
    assert "- of" not in text


def test_only_tests_that_can_be_significant_are_adjusted_for(tmp_path: Path) -> None:
    """Two cells lose 8 trials each; a third loses 3, which is too few for McNemar's test; `due` never happens."""
    effects = [in_cell(0, 8, sdc), in_cell(1, 8, sdc), in_cell(2, 3, sdc)]

    def second(trial: Trial, record: Record) -> Record | None:
        for effect in effects:
            record = effect(trial, record) or record
        return record

    diff = compared(tmp_path, same, second)
    cells = {(cell.name, cell.metric): cell for cell in diff.cells}
    weak = cells["BitRot[0.001]", "identical"]
    assert (weak.p, weak.least, weak.p_holm, weak.tells) == (0.25, 0.25, 1.0, False)
    assert sum(cell.tells for cell in diff.cells) == 2
    assert cells["BitRot[1e-07]", "identical"].p_holm == pytest.approx(2 * mcnemar(0, 8))


def test_shares_difference_and_test_are_of_the_same_trials(tmp_path: Path) -> None:
    """The second run lacks the trials 6 to 9, in which the first one fails."""

    def late(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 1 and trial.trial >= 6 else record

    def short(trial: Trial, record: Record) -> Record | None:
        return None if trial.cell == 1 and trial.trial >= 6 else record

    diff = compared(tmp_path, late, short)
    (cell,) = [c for c in diff.cells if c.name == "BitRot[1e-05]" and c.metric == "identical"]
    assert (cell.first.k, cell.first.n, cell.second.k, cell.second.n) == (24, 24, 24, 24)
    assert cell.left_out == (16, 0)
    assert cell.difference is not None
    assert cell.difference.value == 0
    assert any(text.startswith("Up to 16 trials of a cell of") for text in verdict(diff))
    # Within prompts, only prompts of both runs: the fourth of the first run is another one in the second.
    texts = PLAN.spec.prompts.texts
    other = compile_plan(replace(PLAN.spec, seed=43, prompts=PromptSpec((*texts[:3], "another"))))
    diff = compared(tmp_path / "prompts", same, same, other=other)
    assert diff.cells[0].test == "within prompts"
    assert (diff.cells[0].first.n, diff.cells[0].second.n, diff.cells[0].left_out) == (30, 30, (10, 10))


def test_long_fields_are_cut_where_they_differ() -> None:
    first, second = _clip("x" * 500 + "abc" + "y" * 500, "x" * 500 + "def" + "y" * 500)
    assert first != second
    assert "abc" in first
    assert "def" in second
    assert len(first) <= 66
    assert _clip("1", "2") == ("1", "2")


def test_the_schema_describes_every_outcome(tmp_path: Path) -> None:
    plan = compile_plan(replace(PLAN.spec, faults=(Fault("Other", 0, "KV_WRITE", "random", Rate("per_bit", 2e-5)),)))
    for number, other in enumerate((PLAN, plan, compile_plan(replace(PLAN.spec, seed=43)))):
        data = comparison_json(compared(tmp_path / str(number), in_cell(0, 9, sdc), other=other))
        SCHEMA.validate(json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    ("counts", "least"),
    [(([3], [3], [0], [3]), 0.1), (([2, 1], [2, 2], [0, 1], [2, 2]), 2 / 36), (([5], [5], [5], [5]), 1.0)],
)
def test_the_least_p_is_that_of_all_on_one_side(counts: tuple[list[int], ...], least: float) -> None:
    """Every table with these margins by hand: none has a smaller p, and one has this one."""
    strata = Strata.of(*counts)
    assert strata.least() == pytest.approx(least)
    marked = strata.k1 + strata.k2
    ranges = [range(max(0, m - b), min(m, a) + 1) for m, a, b in zip(marked, strata.n1, strata.n2, strict=True)]
    every = [Strata.of(k, strata.n1, marked - np.array(k), strata.n2).different() for k in product(*ranges)]
    assert min(every) == pytest.approx(least)
