"""The token that decides a golden answer, and the flips that are expected up to it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvspec.plan import Trial, compile_plan
from kvspec.plan.estimate import exposures
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.report import render_text, to_json
from kvspec.report.tasks import pair_rows
from kvspec.score import Scores, score_run
from kvspec.score.exposure import exposures_of
from kvspec.score.grading import Graders, grade_function
from kvspec.spec import Spec, load_spec
from tests.needle_specs import asdict_task, load

SCHEMA = json.loads(Path(__file__).parent.parent.joinpath("schemas/report.schema.json").read_text())
SUM = " The number of apples is 7 and the number of lemons is 2, so 7 + 2 = 9"
RAMBLE = f"{SUM}. That is all.\n\nQ: What is 4 + 5?"


def ends(text: str) -> list[int]:
    """Where tokens end that are words with the space before them, single digits and single signs."""
    return [match.end() for match in re.finditer(r" ?[A-Za-z]+| ?[^A-Za-z\s]|\s", text)]


def graders(kind: str, expected: str, choices: tuple[str, ...] = ()) -> Graders:
    grader = {"kind": kind, "expected": expected, "choices": choices, "tolerance": 0.0}
    return Graders([{"grader": grader, "operands": []}])


@pytest.mark.parametrize(
    ("kind", "expected", "text", "shown"),
    [
        ("regex", "7", "is 7, or 7.", "is 7"),
        ("regex", "7$", "is 7 or 7", "is 7 or 7"),  # right once before, and wrong in between
        ("numeric", "9", f"{SUM}. That is all.", SUM),
        ("numeric", "12", "12 12 1", None),
        ("numeric", "12", "is 12.", "is 12"),
        ("choice", "red", "It is red, not blue.", "It is red"),
        ("exact", "red", " red ", " red "),
        ("regex", "x", "x", "x"),
    ],
)  # fmt: skip
def test_the_token_from_which_an_answer_stays_right(kind: str, expected: str, text: str, shown: str | None) -> None:
    places = ends(text)
    found = graders(kind, expected, ("red", "blue"))
    if shown is None:
        assert not found.flags(0, text)
        return
    decided = found.decided(0, text, places)
    assert decided is not None
    assert text[: places[decided - 1]] == shown


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "", "é"]), min_size=1, max_size=12), st.sampled_from(["a", "b$", "^a?b"])
)
def test_it_is_the_first_of_all_tokens_that_do(tokens: list[str], pattern: str) -> None:
    text, places = "".join(tokens), [len("".join(tokens[: i + 1])) for i in range(len(tokens))]
    right = [grade_function({"kind": "regex", "expected": pattern})(text[:end]) for end in places]
    if right[-1]:
        stays = [all(right[i:]) for i in range(len(right))]
        assert graders("regex", pattern).decided(0, text, places) == stays.index(True) + 1


def test_a_harness_judges_whole_answers() -> None:
    found = graders("exact", "9")
    found._kinds = ["lm_eval"]  # the harness itself is an optional package
    assert found.decided(0, "9", [1]) is None


def test_needles_are_decided_by_their_last_number(tmp_path: Path) -> None:
    """Of tasks that ramble on alike, retrieval is decided before the sum that follows it."""
    text = "{generator: math_needle, contexts: [60], items: 1, a: 7, b: 2, wording: goods, "
    tasks = "retrieve_a, retrieve_b, retrieve_both, retrieve_twice, sum"
    spec = load(tmp_path, f"{text}tasks: [{tasks}]}}")
    found = Graders([asdict_task(task) for task in spec.prompts.tasks])
    both = " The number of apples is 7 and the number of lemons is 2"
    answers = {
        "retrieve_a": (RAMBLE, both[: both.index(" and")]),
        "retrieve_both": (RAMBLE, both),
        "retrieve_twice": (f"{both}, so the numbers are 7 and 2. {RAMBLE}", f"{both}, so the numbers are 7 and 2"),
        "sum": (RAMBLE, SUM),
    }
    decided = {}
    for request, task in enumerate(spec.prompts.tasks):
        assert task is not None
        if task.name in answers:
            whole, shown = answers[task.name]
            k = found.decided(request, whole, ends(whole))
            assert k is not None
            decided[task.name] = k
            assert whole[: ends(whole)[k - 1]] == shown, task.name
    assert decided["retrieve_both"] == 13
    assert decided["sum"] == decided["retrieve_both"] + 7


FAULTS = (
    "[{name: W, model: random, site: KV_WRITE, rate: {per_bit: 1e-7}}, "
    "{name: D, model: random, site: KV_WRITE, rate: {per_bit: 1e-7}, where: {tokens: decode}}, "
    "{name: R, model: random, site: KV_READ, rate: {per_bit: 1e-9}}]"
)


def run(
    tmp_path: Path,
    said: Any,
    *,
    told: bool = True,
    tasks: str = "retrieve_both, sum",
    items: int = 4,
    faults: str = FAULTS,
) -> tuple[Spec, Scores]:
    """Golden answers of `said(trial)`, those of faults likewise; prompts of 100 tokens."""
    path = tmp_path / "spec.yaml"
    values = "a: 7, b: 2, wording: goods"
    needles = f"{{generator: math_needle, contexts: [60], items: {items}, {values}, tasks: [{tasks}]}}"
    path.write_text(
        f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {needles}\nfaults: {faults}\ntrials: 2\n"
        "generation: {max_tokens: 60}\n"
    )
    spec = load_spec(path)
    plan = compile_plan(spec)
    estimate = {
        "cells": [{"expected_flips": {"per_trial": per_position(c.index) * whole(plan, c.index)}} for c in plan.cells]
    }
    out = tmp_path / "run"
    with RunStore.create(out, plan, version="test") as store:
        (out / "estimate.json").write_text(json.dumps(estimate))
        with RecordWriter(store) as writer:
            for trial in plan.trials():
                text = said(spec, trial)
                places = ends(text)
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=100, token_ids=[1] * len(places), text=text, finish_reason="length",
                        tokens_written=100 + len(places) - 1, flips_planned=0, flips_landed=0,
                        token_ends=places if told and trial.kind == "golden" else None,
                    )
                )  # fmt: skip
        store.finish()
    return spec, score_run(out)


def per_position(cell: int) -> float:
    return 0.01 * (cell + 1)


def whole(plan: Any, cell: int) -> int:
    fault = plan.cells[cell].fault
    return exposures(fault.site, fault.where, 100, 100 + 60 - 1)


def said(spec: Spec, trial: Trial) -> str:
    task = spec.prompts.tasks[trial.request]
    assert task is not None
    if task.item == "3" and task.name == "sum":
        return "no idea"  # not solved: no part of the mean
    return RAMBLE


def test_flips_are_those_up_to_the_deciding_token(tmp_path: Path) -> None:
    spec, scores = run(tmp_path, said)
    tokens = len(ends(RAMBLE))
    assert {clean.task: clean.decided_after for clean in scores.tasks.clean} == {"retrieve_both": 13, "sum": 20}
    assert len(spec.prompts.texts) == 8
    for found in scores.tasks.faulted:
        k = 13 if found.task == "retrieve_both" else 20
        # the k-th token is sampled from a cache of prompt + k - 1 tokens
        exposed = {
            0: 100 + k - 1,
            1: k - 1,
            2: sum(range(100, 100 + k)),
        }[found.cell]
        assert found.deciding_flips == pytest.approx(per_position(found.cell) * exposed)
        assert found.expected_flips is not None
        if found.task == "retrieve_both":
            assert found.expected_flips > found.deciding_flips
        if found.cell == 0 and found.task == "retrieve_both":
            assert found.expected_flips == pytest.approx(0.01 * (100 + tokens - 1))
    assert "Clean sum at 60 tokens: 3 of 4 right, chance" in next(
        s for s in scores.verdict if s.endswith("decided after 20 tokens on average.")
    )
    data = to_json(scores)
    jsonschema.validate(data, SCHEMA)
    assert [one["decided_after"] for one in data["tasks"]["clean"]] == [13, 20]
    by_task = {one["task"]: one["deciding_flips"] for one in data["tasks"]["faulted"] if one["cell"] == "W"}
    assert by_task == pytest.approx({"retrieve_both": 1.12, "sum": 1.19})


def test_runs_without_the_column_do_not_tell(tmp_path: Path) -> None:
    _, scores = run(tmp_path, said, told=False)
    assert {clean.decided_after for clean in scores.tasks.clean} == {None}
    assert {found.deciding_flips for found in scores.tasks.faulted} == {None}
    assert all(found.expected_flips for found in scores.tasks.faulted)


def test_tokens_end_where_the_tests_say() -> None:
    places = ends(RAMBLE)
    assert places[-1] == len(RAMBLE)
    assert all(a < b for a, b in pairwise(places))


STATED = " The number of apples is 7 and the number of lemons is 2"
TWICE = f"{STATED}, so the numbers are 7 and 2.\n\nQ: What is 4 + 5?"
ALL = "retrieve_both, retrieve_twice, sum"


def lossy(lost: dict[tuple[int, str], float]) -> Any:
    """Answers of which a share is lost, by (cell, task): those of the last of 50 items."""

    def answers(spec: Spec, trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        if trial.kind == "fault" and int(task.item) >= 50 * (1 - lost.get((trial.cell, task.name), 0.0)):
            return "!!!!"
        return TWICE if task.name == "retrieve_twice" else RAMBLE

    return answers


def first(scores: Scores) -> list[str]:
    return [sentence for sentence in scores.verdict if "comparison" in sentence or "exposure" in sentence]


def test_a_longer_answer_is_no_more_fragile_step(tmp_path: Path) -> None:
    """At equal rates the sum fails first; beside an answer that is as long and computes nothing, neither does."""
    lost = {(1, "sum"): 0.3, (1, "retrieve_twice"): 0.3}
    _, scores = run(tmp_path, lossy(lost), tasks=ALL, items=50)
    rates, unequal, exposure = first(scores)
    assert rates.startswith(
        "Reasoning breaks before retrieval of the same operands wherever the two can be told apart: "
    )
    assert "of 3 comparisons on common items at equal rates" in rates
    assert "reasoning fails more often in 1, retrieval in 0, undecided 2 (McNemar, Holm over all 6; " in rates
    assert unequal.startswith(
        "Equal rates are not equal exposure here: up to the token that decides, reasoning has 1.5"
    )
    assert exposure == (
        "At equal exposure up to the token that decides (sum against retrieve_twice; tokens and expected flips within "
        "10% of each other): of 3 comparisons on common items at equal rates (0.948 to 0.992 times the expected flips "
        "in reasoning, up to the token that decides) reasoning fails more often in 0, retrieval in 0, undecided 3 "
        "(McNemar, Holm over all 6)."
    )
    (over,) = (sentence for sentence in scores.verdict if sentence.startswith("Failures over all cells"))
    assert over == (
        "Failures over all cells, with items as clusters: sum less retrieve_twice (exposed alike) +0.0% [+0.0%, +0.0%] "
        "(30 and 30 of 300, 0 and 0 of them detected errors); retrieve_twice less retrieve_both +10.0% [+6.0%, +14.7%] "
        "(30 and 0 of 300, 0 and 0 of them detected errors); sum less retrieve_both +10.0% [+6.0%, +14.7%] "
        "(30 and 0 of 300, 0 and 0 of them detected errors)."
    )
    assert {one.task: one.decided_after for one in scores.tasks.clean} == {
        "retrieve_both": 13, "retrieve_twice": 21, "sum": 20,
    }  # fmt: skip
    # writes of the whole request: 112 and 119 tokens exposed, alike, and 13 and 20 sampled, not alike
    alike = [(pair.retrieval, pair.cell) for pair, exposure in exposures_of(scores.tasks) if exposure.equal]
    assert alike == [("retrieve_twice", cell) for cell in range(3)]


def test_a_fragile_step_is_seen_at_equal_exposure(tmp_path: Path) -> None:
    _, scores = run(tmp_path, lossy({(1, "sum"): 0.3}), tasks=ALL, items=50)
    *_, exposure = first(scores)
    assert "of 3 comparisons" in exposure
    assert "reasoning fails more often in 1, retrieval in 0, undecided 2" in exposure
    (seen,) = (p for p in scores.tasks.pairs if (p.cell, p.retrieval) == (1, "retrieve_twice"))
    assert seen.p_holm == pytest.approx(6 * seen.p)  # one family with the comparisons that are not alike


def test_without_equal_exposure_the_report_says_so(tmp_path: Path) -> None:
    _, scores = run(tmp_path, lossy({(1, "sum"): 0.3}), items=50)
    _, exposure = first(scores)
    tokens, written, read = 20 / 13, 19 / 12, sum(range(100, 120)) / sum(range(100, 113))
    assert exposure == (
        f"Equal rates are not equal exposure here: up to the token that decides, reasoning has {tokens:.2g} "
        f"times the tokens and {119 / 112:.2g} to {max(written, read):.2g} times the expected flips of "
        "retrieval of the same operands, so what fails more often may only be exposed for longer."
    )
    doses = [row[3] for row in pair_rows(scores)]
    assert doses[:2] == ["1.1 / 1.2", "0.24 / 0.38"]
    assert " 0.24 / 0.38 " in render_text(scores)


def test_faults_that_strike_after_an_answer_is_decided_are_told(tmp_path: Path) -> None:
    late = FAULTS.replace("tokens: decode", "tokens: [113-150]")
    _, scores = run(tmp_path, lossy({}), items=5, faults=late)
    _, exposure = first(scores)
    assert "of retrieval of the same operands (which has none in 1 of 3), so what" in exposure


def test_what_older_runs_do_not_tell_is_not_said(tmp_path: Path) -> None:
    _, scores = run(tmp_path, lossy({}), told=False, tasks=ALL, items=5)
    (rates,) = first(scores)
    most = (len(ends(RAMBLE)) - 1) / (len(ends(TWICE)) - 1)  # both and sum have one answer, that of twice is shorter
    assert (
        f"at equal rates (1 to {most:.2g} times the expected flips in reasoning, over whole answers) reasoning fails"
        in rates
    )
