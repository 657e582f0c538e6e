"""`kvspec diff`: pairs where faults are shared, prompts where only these are, exit codes, and runs that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvspec.cli import main
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record
from kvspec.score import RunDiff, compare_runs
from kvspec.spec.model import Fault, PromptSpec, Rate
from kvspec.stats.exact import Strata, fisher_greater, holm, mcnemar
from tests.run_folders import FINGERPRINT, crashed, in_cell, lost_flip, make_plan, sdc, write_run

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
    assert cell.p_holm == holm([mcnemar(4, 20), *[1.0] * 7])[0]
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
    assert "No difference is significant (8 exact tests, Holm)." in text
    assert "Spec: the same" in text
    code, text = run(a, b)
    assert code == 1
    assert "1 of 8 tests differ significantly (exact, Holm): BitRot[1e-05], 100.0% to 25.0% equal golden" in text
    (line,) = [line for line in text.splitlines() if line.startswith("BitRot[1e-05]") and "identical" in line]
    assert "-75.0%" in line
    assert line.endswith("*")
    code, text = run(a, b, "--format", "json")
    data = json.loads(text)
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
