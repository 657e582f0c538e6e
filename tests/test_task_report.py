"""What the report says about graded answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from kvspec.plan import Trial, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.report import render_text, to_json
from kvspec.report.html import html_report
from kvspec.score import Scores, score_run
from kvspec.spec import Spec, load_spec
from tests.needle_specs import load, needle

SCHEMA = json.loads(Path(__file__).parent.parent.joinpath("schemas/report.schema.json").read_text())


def answer(spec: Spec, trial: Trial, lost: set[str]) -> str:
    task = spec.prompts.tasks[trial.request]
    assert task is not None
    if task.name in lost:
        return "!!!!"
    if task.operands:
        a, b = (int(x) for x in task.operands)
        result = {"sum": a + b, "product": a * b}.get(task.name)
        return f"{a} and {b}." if result is None else f"{a} and {b}, so x with y = {a} with {b} = {result}."
    return "It is " + re.findall(r"0\*(?:\(\?:)?(\d+)", str(task.grader.expected))[0]


def score(tmp_path: Path, spec: Spec, said: object) -> object:
    plan = compile_plan(spec)
    with RunStore.create(tmp_path / "run", plan, version="test") as store:
        with RecordWriter(store) as writer:
            for trial in plan.trials():
                text = said(trial)  # type: ignore[operator]
                tokens = [sum(text.encode()), len(text)]
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=4, token_ids=tokens, text=text, finish_reason="stop", tokens_written=5,
                        flips_planned=int(trial.kind == "fault"), flips_landed=int(trial.kind == "fault"),
                    )
                )  # fmt: skip
        store.finish()
    return score_run(tmp_path / "run")


def flaky(spec: Spec, lost: dict[tuple[int, str], float]) -> object:
    """Answers of which a share is lost, by (cell, task): the last trials of all items."""

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        share = lost.get((trial.cell, task.name), 0.0) if trial.kind == "fault" else 0.0
        return answer(spec, trial, {task.name} if int(task.item) >= (1 - share) * spec_items(spec) else set())

    return said


def spec_items(spec: Spec) -> int:
    return len({task.item for task in spec.prompts.tasks if task})


@pytest.mark.parametrize(
    ("lost", "head"),
    [
        ({"sum", "product"}, "Reasoning breaks before retrieval of the same operands wherever"),
        ({"retrieve_a", "retrieve_b", "retrieve_both"}, "Retrieval of the same operands breaks before reasoning"),
        (set(), "This run cannot tell whether reasoning or retrieval of the same operands breaks first: of 8 comp"),
        # retrieve_a recalls one operand only, so it does not decide
        ({"sum", "retrieve_a"}, "Reasoning breaks before retrieval of the same operands wherever"),
    ],
)
def test_the_verdict_follows_from_the_tests(tmp_path: Path, lost: set[str], head: str) -> None:
    spec = needle(tmp_path)

    # the first item is never solved clean, so it is in no ratio
    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        if task.item == "0":
            return "no idea"
        return answer(spec, trial, lost if trial.kind == "fault" and trial.cell == 1 else set())

    scores = score(tmp_path, spec, said)
    tasks = scores.tasks  # type: ignore[attr-defined]
    assert {(c.right.k, c.right.n) for c in tasks.clean} == {(4, 5)}
    assert len(tasks.clean) == 2 * 5
    assert len(tasks.pairs) == 2 * 2 * 3 * 2  # contexts, cells, retrieval, reasoning
    assert all(pair.pairs == 4 * 3 for pair in tasks.pairs)
    for pair in tasks.pairs:
        broken = pair.cell == 1
        assert pair.only_reasoning + pair.both == 12 * (broken and pair.reasoning in lost)
        assert pair.only_retrieval + pair.both == 12 * (broken and pair.retrieval in lost)
    for found in tasks.faulted:
        assert found.kept.n == 12
        assert found.kept.k == 12 * (found.cell == 0 or found.task not in lost)
        assert found.right.n == 15
    first = next(s for s in scores.verdict if "breaks" in s)  # type: ignore[attr-defined]
    assert first.startswith(head)
    other = next(s for s in scores.verdict if s.startswith("Against retrieval of other facts"))  # type: ignore[attr-defined]
    # two contexts, two tasks each: a lost task against one that is not
    reasoning, retrieval = lost & {"sum", "product"}, lost & {"retrieve_a", "retrieve_b"}
    more = (2 * len(reasoning) * (2 - len(retrieval)), 2 * len(retrieval) * (2 - len(reasoning)))
    said = f"reasoning fails more often in {more[0]}, retrieval in {more[1]},"
    assert f"of 16 comparisons on common items at equal rates {said}" in other
    zombie = next(s for s in scores.verdict if "ombie" in s)  # type: ignore[attr-defined]
    # 12 of 12 are not enough to show 95 %
    assert zombie.startswith("A zombie state" if lost & {"sum", "product"} else "No cell is in the zombie state")
    text = render_text(scores)  # type: ignore[arg-type]
    assert "Sensitivity" in text
    data = to_json(scores)  # type: ignore[arg-type]
    assert len(data["tasks"]["pairs"]) == len(tasks.pairs)
    jsonschema.validate(data, SCHEMA)
    page = html_report(tmp_path / "run")
    section = page[page.index('<section id="tasks"') :].partition("</section>")[0]
    assert section.count("<tr>") == 2 + 2 * 5 * 3 + len(tasks.pairs)


def test_the_step_is_judged_given_the_operands(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 20, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        right = answer(spec, trial, set())
        if trial.kind == "fault" and trial.cell == 1:
            if int(task.item) < 10:
                return "garbage"  # operands lost: says nothing about the step
            return right.rsplit(" ", 1)[0] + " 99."  # operands stated, result wrong
        if task.item == "18":
            return "no idea"  # operands not stated even clean: no pair
        if task.item == "19":
            return right.rsplit(" ", 1)[0] + " 98."  # wrong even clean: not the fault's doing
        return right

    scores = score(tmp_path, spec, said)
    (sentence,) = (s for s in scores.verdict if "stated operands" in s)  # type: ignore[attr-defined]
    assert sentence == (
        "Faults hurt the step from stated operands to the result of sum at 60 tokens wherever a change is shown: "
        "P(right | operands stated) is 94.7% [75.4%, 99.1%] (n = 19) clean, lower in 1 of 2 cells, higher in 0, "
        "undecided 1 (exact test within prompts against clean, Holm): 0.0% [0.0%, 11.4%] (n = 30) under F[1e-06] "
        "(p = 6.1e-05)."
    )
    tasks = scores.tasks  # type: ignore[attr-defined]
    clean, broken = tasks.faulted
    assert (clean.right_given_stated.k, clean.right_given_stated.n) == (54, 57)
    assert clean.p_holm == 1.0
    assert (broken.right_given_stated.k, broken.right_given_stated.n, broken.stated.k) == (0, 30, 30)
    # Of 9 prompts one is wrong clean too and tells nothing; in 8 the one right answer of 4 is golden's: 4^-8, doubled.
    assert broken.stated_prompts == 9
    assert broken.p == pytest.approx(2 * 4.0**-8)
    assert broken.p_holm == pytest.approx(4 * 4.0**-8)
    assert broken.step_change is not None
    assert broken.step_change.value == pytest.approx(-8 / 9)
    assert clean.step_change is None, "nothing differs, so there is no difference to state"
    assert tasks.pairs == ()


@pytest.mark.parametrize(
    ("lost", "head", "zombie"),
    [
        # what is lost, by (cell, task): each sentence beside the counts that make it true
        ({}, "This run cannot tell", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6}, "Reasoning breaks before", "Zombie state"),
        ({(0, "sum"): 0.3}, "Reasoning breaks before", "No cell is in the zombie state"),
        ({(0, "sum"): 0.52}, "Reasoning breaks before", "A zombie state"),  # below 50 %, but by its interval not surely
        ({(0, "retrieve_both"): 0.6}, "Retrieval of the same operands breaks before", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6, (0, "retrieve_both"): 0.6}, "This run cannot tell", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6, (1, "retrieve_both"): 0.6}, "Neither reasoning nor retrieval", "Zombie state"),
        ({(0, "sum"): 0.02}, "This run cannot tell", "No cell is in the zombie state"),  # 6 of 300: p = 0.03, Holm 0.06
    ],
)
def test_each_verdict_is_true_of_its_counts(
    tmp_path: Path, lost: dict[tuple[int, str], float], head: str, zombie: str
) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 100, tasks: [retrieve_both, sum]}")
    scores: Scores = score(tmp_path, spec, flaky(spec, lost))  # type: ignore[assignment]
    first, over, second = scores.verdict[_place(scores, "ombie") - 2 :][:3]
    assert first.startswith(head)
    assert over.startswith("Failures over all cells, with items as clusters: sum less retrieve_both ")
    assert second.startswith(zombie)
    apart = [pair for pair in scores.tasks.pairs if pair.p_holm < 0.05]
    assert all(pair.same_operands for pair in scores.tasks.pairs)
    losses = [(p.only_reasoning > p.only_retrieval) for p in apart]
    assert f"reasoning fails more often in {sum(losses)}, retrieval in {len(losses) - sum(losses)}" in first
    states = [
        (kept["retrieve_both"], kept["sum"])
        for cell in range(2)
        if (kept := {f.task: f.kept for f in scores.tasks.faulted if f.cell == cell})
    ]
    inside = [recall.rate >= 0.95 and reason.rate <= 0.5 for recall, reason in states]  # type: ignore[operator]
    shown = [recall.low >= 0.95 and reason.high <= 0.5 for recall, reason in states]  # type: ignore[operator]
    assert second.startswith("No cell") == (not any(inside))
    assert second.startswith("Zombie state") == any(shown)


def test_kinds_of_faults_are_told_apart_and_guesses_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    needles = "{generator: math_needle, contexts: [60], items: 100, tasks: [retrieve_both, retrieve_b, sum]}"
    faults = (
        "[{name: F, model: random, site: KV_WRITE, rate: {per_bit: 1e-7}, where: [{tokens: all}, {tokens: decode}]}]"
    )
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {needles}\nfaults: {faults}\ntrials: 3\n")
    spec = load_spec(path)
    lossy = flaky(spec, {(1, "sum"): 0.5})

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        guess = task.name == "retrieve_b" and int(task.item) % 2
        return "no idea" if guess else lossy(trial)  # type: ignore[operator, no-any-return]

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    first = scores.verdict[_place(scores, "ombie") - 2]
    names = [cell.plan.name for cell in scores.cells]
    assert f"by kind of fault: {names[0]} 0 and 0 of 1; {names[1]} 1 and 0 of 1)" in first
    clean = {sentence.split()[1]: sentence for sentence in scores.verdict if sentence.startswith("Clean ")}
    assert "50 of 100 right, chance 56% and not shown to be above it" in clean["retrieve_b"]
    assert clean["sum"].endswith("100 of 100 right, chance 11%.")


def _place(scores: Scores, word: str) -> int:
    return next(i for i, sentence in enumerate(scores.verdict) if word in sentence)


def answer_of_step(spec: Spec, trial: Trial, wrong: bool) -> str:
    right = answer(spec, trial, set())
    return right.rsplit(" ", 1)[0] + " 99." if wrong else right


@pytest.mark.parametrize(
    ("faulty", "clean", "stated", "head"),
    [
        (0.0, 0.0, True, "No fault is shown to change the step"),
        (0.05, 0.0, True, "No fault is shown to change the step"),  # 2 of 40: p = 0.5
        (0.5, 0.0, True, "Faults hurt the step"),
        (0.0, 0.5, True, "Under faults the step from stated operands to the result of sum at 60 tokens is right more"),
        (0.0, 0.0, False, "Whether faults hurt the step"),
    ],
)
def test_the_step_is_said_to_break_where_it_does(
    tmp_path: Path, faulty: float, clean: float, stated: bool, head: str
) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        if trial.kind == "fault" and not stated:
            return "garbage"
        share = (faulty if trial.cell == 1 else 0.0) if trial.kind == "fault" else clean
        return answer_of_step(spec, trial, int(task.item) < share * 40)

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    (sentence,) = (s for s in scores.verdict if "operands" in s and "step" in s)
    assert sentence.startswith(head)
    assert f"{20 / 40:.1%}" in sentence or max(faulty, clean) < 0.5


def test_a_golden_answer_counts_once(tmp_path: Path) -> None:
    """However many trials, or repetitions of its prompt, it is compared with: 6 prompts are no 60 pairs."""
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 6, tasks: [sum], repeat: 2}")
    wrong = [0, 2]  # trials of each request that lose the result; the golden answers are right

    def said(trial: Trial) -> str:
        return answer_of_step(spec, trial, trial.kind == "fault" and trial.trial in wrong)

    found: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    step = found.tasks.faulted[0]
    assert (step.right_given_stated.k, step.right_given_stated.n, step.stated_prompts) == (12, 36, 6)
    # By hand: in each of 6 prompts 2 of 6 trials are right and the one golden answer is; 3 of 7 draws it as right.
    assert step.p == pytest.approx(2 * (3 / 7) ** 6)
    assert step.step_change is not None
    assert step.step_change.value == pytest.approx(-2 / 3)


def test_the_step_is_told_by_kind_of_fault(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    needles = "{generator: math_needle, contexts: [60], items: 40, tasks: [sum]}"
    faults = (
        "[{name: F, model: random, site: KV_WRITE, rate: {per_bit: [1e-7, 1e-6]}, "
        "where: [{tokens: prompt}, {tokens: decode}]}]"
    )
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {needles}\nfaults: {faults}\ntrials: 1\n")
    spec = load_spec(path)
    hurt = {cell.index for cell in compile_plan(spec).cells if "decode" in cell.name}

    def said(trial: Trial) -> str:
        return answer_of_step(spec, trial, trial.kind == "fault" and trial.cell in hurt)

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    (sentence,) = (s for s in scores.verdict if "stated operands" in s)
    kinds = "lower and higher by kind of fault: F[tokens prompt] 0 and 0 of 2; F[tokens decode] 2 and 0 of 2)"
    assert kinds in sentence


def test_the_same_operands_are_a_family_of_their_own(tmp_path: Path) -> None:
    """Holm over what the question is about: other facts, however many, do not take from it."""
    tasks = "[retrieve_a, retrieve_b, retrieve_both, sum, product]"
    spec = load(tmp_path, f"{{generator: math_needle, contexts: [60], items: 100, tasks: {tasks}}}")
    scores: Scores = score(tmp_path, spec, flaky(spec, {(0, "sum"): 0.02}))  # type: ignore[assignment]
    same = [pair for pair in scores.tasks.pairs if pair.same_operands]
    other = [pair for pair in scores.tasks.pairs if not pair.same_operands]
    assert (len(same), len(other)) == (4, 8)
    lost = [pair for pair in (*same, *other) if (pair.cell, pair.reasoning) == (0, "sum")]
    assert [pair.p for pair in lost] == pytest.approx([2 * 0.5**6] * 3)
    assert [pair.p_holm for pair in lost] == pytest.approx([2 * 0.5**6 * 4, 2 * 0.5**6 * 8, 2 * 0.5**6 * 8])


def test_retrieval_of_the_same_trial_stands_in_the_table(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 10, tasks: [retrieve_both, sum]}")
    lost = {(1, "retrieve_both"): 0.3, (1, "sum"): 0.4}
    scores: Scores = score(tmp_path, spec, flaky(spec, lost))  # type: ignore[assignment]
    (found,) = (f for f in scores.tasks.faulted if f.cell == 1 and f.task == "sum")
    # items 6 to 9 lose the sum, 7 to 9 the retrieval as well: of the 7 items retrieved 6 are right
    assert (found.right_given_retrieved.k, found.right_given_retrieved.n) == (18, 21)
    head, *rows = render_text(scores)[render_text(scores).index("Context") :].splitlines()
    assert "Given retrieval" in head
    assert any("F[1e-06]" in row and "85.7%  21" in row for row in rows)
    page = html_report(tmp_path / "run")
    assert "Given retrieval" in page[page.index('<section id="tasks"') :].partition("</section>")[0]


def test_the_step_can_change_both_ways(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        below = {"golden": 20, "fault": 0 if trial.cell == 0 else 40}.get(trial.kind, 20)
        return answer_of_step(spec, trial, int(task.item) < below)

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    assert any(
        "change the step from stated operands to the result of sum at 60 tokens both ways" in s for s in scores.verdict
    )


def test_the_dose_stands_beside_every_rate(tmp_path: Path) -> None:
    """Expected flips per request of each task, at the length of its golden answer."""
    spec = load(tmp_path, "{generator: math_needle, contexts: [60, 300], items: 3, tasks: [retrieve_b, sum]}")
    plan = compile_plan(spec)
    estimate = {
        # prompts of 100 and 400 tokens with answers of 50, the last token of which is not written
        "cells": [{"expected_flips": {"per_trial": 0.25 * (c.index + 1) * (250 + 49)}} for c in plan.cells]
    }
    prompt = [100 if task and task.context == 60 else 400 for task in spec.prompts.tasks]
    with RunStore.create(tmp_path / "run", plan, version="test") as store:
        (tmp_path / "run" / "estimate.json").write_text(json.dumps(estimate))
        with RecordWriter(store) as writer:
            for trial in plan.trials():
                task = spec.prompts.tasks[trial.request]
                assert task is not None
                text = answer(spec, trial, set())
                # a faulted answer runs on, but the dose is that of the golden one
                written = prompt[trial.request] + (4 if task.name == "sum" else 1) + 30 * (trial.kind == "fault")
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=prompt[trial.request], token_ids=[1], text=text, finish_reason="stop",
                        tokens_written=written, flips_planned=0, flips_landed=0,
                    )
                )  # fmt: skip
        store.finish()
    scores = score_run(tmp_path / "run")
    found = {(f.cell, f.context, f.task): f.expected_flips for f in scores.tasks.faulted}
    assert found[0, 60, "retrieve_b"] == pytest.approx(101 * 0.25)
    assert found[1, 60, "sum"] == pytest.approx(104 * 0.5)
    assert found[1, 300, "sum"] == pytest.approx(404 * 0.5)
    (compared,) = (sentence for sentence in scores.verdict if "on common items" in sentence)
    assert "at equal rates (1.01 to 1.03 times the expected flips in reasoning, over whole answers)" in compared
    assert any("retrieve_b 100% [70%, 100%] at 25 expected flips" in sentence for sentence in scores.verdict)
    (row,) = (line for line in render_text(scores).splitlines() if "F[1e-06]" in line and " 200 / 202 " in line)
    assert "1e-06/bit" in row
    assert {f["expected_flips"] for f in to_json(scores)["tasks"]["faulted"]} == set(found.values())
    page = html_report(tmp_path / "run")
    section = page[page.index('<section id="tasks"') :].partition("</section>")[0]
    assert "1e-06/bit" in section
    assert ">200 / 202<" in section


def test_a_zombie_state_is_shown_by_intervals(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [retrieve_a, sum]}")

    def said(trial: Trial) -> str:
        return answer(spec, trial, {"sum"} if trial.kind == "fault" and trial.cell == 1 else set())

    verdict = score(tmp_path, spec, said).verdict  # type: ignore[attr-defined]
    assert any(s.startswith("Zombie state") and "retrieve_a 100% [97%, 100%] and sum 0% [0%, 3%]" in s for s in verdict)


def test_ungraded_runs_have_no_tasks(tmp_path: Path) -> None:
    spec = load(tmp_path, "{inline: [a, b]}")
    scores = score(tmp_path, spec, lambda trial: "x")
    assert scores.tasks.clean == ()  # type: ignore[attr-defined]
    assert replace(spec.prompts) == spec.prompts
    assert "tasks" not in spec.to_json()["prompts"]
