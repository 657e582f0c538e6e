"""Replay without an engine: which maps belong together, what is refused, where answers part."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kvspec.cli import main
from kvspec.cli.replay import _print
from kvspec.errors import RecordsError
from kvspec.maps import FaultMap, explicit, write_map
from kvspec.maps.columns import DTYPES
from kvspec.maps.generate import events_of
from kvspec.maps.trial import maps_of_trial
from kvspec.models import Geometry
from kvspec.plan import compile_plan
from kvspec.replay.case import Case, Recorded, find_maps, load_cases, one_model
from kvspec.replay.compare import Replay, Replayed, first_divergence
from kvspec.spec import load_spec
from tests.maps.made import TRIAL, generative

FACTS: dict[str, Any] = {
    "trial": TRIAL,
    "model": {"id": "gpt2", "revision": None, "dtype": "auto"},
    "generation": {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, "seed": 7, "stop": []},
    "prompt": {"text": "one", "tokens": 5},
    "record": {"token_ids": [1, 2, 3, 4], "golden_token_ids": [1, 2, 3, 5], "finish_reason": "length"},
}


def fault_map(**changes: Any) -> FaultMap:
    return generative(**FACTS | changes)


def code(error: pytest.ExceptionInfo[RecordsError]) -> str:
    return error.value.diagnostics[0].code


def test_the_two_maps_of_a_trial_at_both_are_one_case(tmp_path: Path) -> None:
    write_map(fault_map(site="read"), tmp_path / "a.parquet")
    write_map(fault_map(), tmp_path / "b.parquet")
    write_map(fault_map(trial=TRIAL | {"id": "c0/p1/t3", "trial": 3}), tmp_path / "c.json")
    cases = load_cases([tmp_path])
    assert [[m.header.site for m in c.maps] for c in cases] == [["write", "read"], ["write"]]
    assert cases[0].files == (str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    assert (cases[0].seed, cases[0].generation.max_tokens, cases[0].generation.stop) == (7, 4, ())
    assert cases[0].recorded == Recorded([1, 2, 3, 4], [1, 2, 3, 5], "length")


def test_the_same_map_twice_is_two_cases(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_map(explicit(fault_map()), tmp_path / name)
    assert [c.name for c in load_cases([tmp_path])] == ["c0/p1/t2"] * 2


def test_a_trial_is_replayed_among_the_choices_of_its_campaign(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "kvspec: 1\nname: t\nmodel: {id: gpt2}\nprompts: {inline: [one]}\ntrials: 1\n"
        "faults: [{name: F, model: random, site: KV_WRITE, rate: {per_bit: 0.1}}]\n"
        "generation: {max_tokens: 1, choices: [' A', ' B']}\n"
    )
    plan = compile_plan(load_spec(spec))
    (trial,) = [trial for trial in plan.trials() if trial.kind == "fault"]
    (made,) = maps_of_trial(plan, trial, Geometry(12, 12, 64), prompt_len=1, written=1)
    write_map(made, tmp_path / "map.json")
    (case,) = load_cases([tmp_path / "map.json"])
    assert case.generation == plan.spec.generation
    assert case.generation.choices == (" A", " B")


@pytest.mark.parametrize("name", ["model", "prompt", "generation"])
def test_a_map_that_says_too_little_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_map(fault_map(**{name: None}), path)
    with pytest.raises(RecordsError) as error:
        load_cases([path])
    assert code(error) == "KVS515"
    assert error.value.diagnostics[0].path == f"$.{name}"


def test_a_withheld_prompt_comes_from_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_map(fault_map(prompt={"sha256": hashlib.sha256(b"one").hexdigest(), "tokens": 5}), path)
    with pytest.raises(RecordsError) as error:
        load_cases([path], ["two"])
    assert code(error) == "KVS515"
    assert load_cases([path], ["two", "one"])[0].text == "one"


def test_a_folder_without_maps_and_maps_of_two_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordsError) as error:
        find_maps([tmp_path])
    assert code(error) == "KVS515"
    write_map(fault_map(), tmp_path / "a.parquet")
    write_map(fault_map(model={"id": "other"}), tmp_path / "b.parquet")
    cases = load_cases([tmp_path])
    with pytest.raises(RecordsError) as error:
        one_model(cases, None)
    assert "`other`" in error.value.diagnostics[0].message
    assert one_model(cases, "./here").id == "./here"


def test_a_missing_map_is_told_before_the_engine_is_looked_for(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["replay", str(tmp_path / "none.parquet")])
    assert done.exit_code == 2
    assert "KVS505" in done.output
    assert "Traceback" not in done.output


def test_where_answers_part() -> None:
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([1, 2, 3], [1, 9, 3]) == 1
    assert first_divergence([1, 2, 3], [1, 2]) == 2
    assert first_divergence([], [1]) == 0


def replayed(case: Case, **changes: Any) -> Replayed:
    facts: dict[str, Any] = {
        "token_ids": [1, 2, 3, 4],
        "text": "",
        "finish_reason": "length",
        "golden": [1, 2, 3, 5],
        "planned": 3,
        "landed": 3,
        "read_back": 3,
        "exposed": 5,
        "restored": 5,
        "mismatches": 0,
        "written": 9,
        "preemptions": 0,
        "reruns": 0,
        "nonfinite_at": None,
        "divergence": None,
    }
    return Replayed(case, **facts | changes)


def test_verdicts(tmp_path: Path) -> None:
    write_map(fault_map(), tmp_path / "a.parquet")
    case = load_cases([tmp_path])[0]
    assert replayed(case).verdict == "identical"
    assert replayed(case, divergence=2).verdict == "differs"
    for doubt in ({"landed": 2}, {"read_back": 2}, {"mismatches": 1}, {"restored": 4}):
        assert replayed(case, divergence=2, **doubt).verdict == "not proven"
    assert replayed(replace(case, recorded=Recorded(None))).verdict == "no record"
    assert replayed(case).outcome == "sdc"
    assert replayed(case, golden=[1, 2, 3, 4]).outcome == "masked"
    assert replayed(case, nonfinite_at=0).outcome == "due"
    assert replayed(case).golden_identical
    assert not replayed(case, golden=[1]).golden_identical


def test_flips_behind_the_end_of_an_answer_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(fault_map(), tmp_path / "a.parquet")
    case = load_cases([tmp_path])[0]
    listed = case.flips
    assert listed > 3
    _print(Replay("gpt2", {}, (replayed(case), replayed(case, planned=listed, landed=listed, read_back=listed))))
    shown = capsys.readouterr().out
    assert [line.split()[1:5] for line in shown.splitlines()[3:5]] == [[f"{listed}", *"333"], [f"{listed}"] * 4]
    assert f"\n{listed - 3} of the {2 * listed} flips of the maps were not reached: they lie in tokens and" in shown
    _print(Replay("gpt2", {}, (replayed(case, planned=listed, landed=listed, read_back=listed),)))
    assert "not reached" not in capsys.readouterr().out


def test_another_machine_is_named_fact_by_fact(tmp_path: Path) -> None:
    write_map(fault_map(), tmp_path / "a.parquet")
    case = load_cases([tmp_path])[0]
    there = {"vllm": "0.25.1", "device.name": "A"}
    case = replace(case, recorded=replace(case.recorded, environment=there))
    here = {"vllm": "0.32.0", "device.name": "A", "device.threads": "2"}
    result = Replay("gpt2", here, (replayed(case), replayed(case, divergence=1)))
    assert result.differences == [("device.threads", "absent", "2"), ("vllm", "0.25.1", "0.32.0")]
    assert not result.ok
    assert result.to_json()["counts"]["identical"] == 1
    assert "only the text may differ" in result.to_json()["why"]
    assert Replay("gpt2", there, (replayed(case),)).differences == []


def test_events_carry_the_op_and_the_step_of_every_flip() -> None:
    writes, reads = explicit(fault_map(op="set1")), explicit(fault_map(site="read"))
    events = events_of([writes, reads])
    assert writes.columns is not None
    assert reads.columns is not None
    assert np.array_equal(events["token"], np.concatenate([writes.columns["token"], reads.columns["token"]]))
    assert np.array_equal(events["step"], np.concatenate([np.zeros(len(writes)), reads.columns["step"]]))
    assert np.array_equal(events["op"], np.repeat([2, 0], [len(writes), len(reads)]))
    assert {name: column.dtype for name, column in events.items()} == {**DTYPES, "target": np.uint8}
