"""The search for a state: what is tried, what is found, what is left behind. The engine is a formula here."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvspec.errors import KvspecError
from kvspec.plan import Plan, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.search import Found, read_search
from kvspec.search import run as searching
from kvspec.search.export import examples, export
from kvspec.search.model import entry, series_of
from kvspec.search.run import search
from kvspec.spec import load_spec
from kvspec.spec.model import Fault
from tools import findings, measured

SPEC = """
kvspec: 1
name: t
model: {id: gpt2}
prompts: {generator: math_needle, contexts: 60, items: 100, tasks: [TASKS]}
generation: {max_tokens: 40, stop: ["\\n"]}
faults:
  - name: Uniform
    model: random
    site: KV_WRITE
    rate: {per_bit: [1e-8, 1e-5]}
    where: [{}, {tokens: decode, layers: [0, "3-5"]}]
  - {name: Reads, model: random, site: KV_READ, rate: {per_bit: [1e-7, 1e-5]}, where: {steps: ["15-"], cache: [V]}}
  - {name: Loud, model: random, site: KV_READ, rate: {per_bit: [1e-7, 1e-5]}, where: {steps: ["15-"]}}
controls: {null_trials: 0, golden_repeats: 0}
trials: 1
"""
OBSERVER: Any = SimpleNamespace(phase=lambda _: None)
TASKS = SPEC.replace("TASKS", "retrieve_b, product")


HARD = "hard"
"""Name of a spec whose item 97 is not solved without faults."""


def without(*names: str) -> str:
    """The spec without some of its faults."""
    lines = TASKS.splitlines()
    start = {name: next(i for i, line in enumerate(lines) if f"name: {name}" in line) for name in names}
    gone = {i for name, at in start.items() for i in range(at, at + (5 if name == "Uniform" else 1))}
    return "\n".join(line for i, line in enumerate(lines) if i not in gone) + "\n"


def losses(fault: Fault) -> tuple[float, float, float]:
    """Shares of retrieval and reasoning that are lost, and of both that are detected. Uniform faults lose both alike;
    reads spare retrieval; what the loud ones break is detected, and so is as much of retrieval."""
    lost = min(1.0, (fault.rate.value / 1e-6) ** 2 * 0.05)  # 5 % at 1e-6
    return (0.0 if fault.where.steps != "all" else lost), lost, (lost if fault.name == "Loud" else 0.0)


def answer(plan: Plan, out: Path, *_: object) -> None:
    """A campaign whose trials are lost by formula."""
    with RunStore.create(out, plan, version="test") as store, RecordWriter(store) as writer:
        for trial in plan.trials():
            task = plan.spec.prompts.tasks[trial.request]
            assert task is not None
            right = "It is " + re.findall(r"0\*(?:\(\?:)?(\d+)", str(task.grader.expected))[0]
            if task.kind == "reasoning":
                right = f"{task.operands[0]:.0f} and {task.operands[1]:.0f} = {task.operands[0] * task.operands[1]:.0f}"
            lost, detected = plan.spec.name.startswith(HARD) and task.item == "97", False
            if trial.kind == "fault":
                shares = losses(plan.cells[trial.cell].fault)
                place = (int(task.item) * 61 + plan.spec.seed) % 100 + 0.5
                lost, detected = place < 100 * shares[task.kind == "reasoning"], place < 100 * shares[2]
            writer.add(
                Record(
                    trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                    prompt_tokens=4, token_ids=[int(lost)], text="!!" if lost else right, finish_reason="stop",
                    tokens_written=5, flips_planned=0, flips_landed=0, nonfinite_at=3 if detected else None,
                )
            )  # fmt: skip
        store.finish()


def go(folder: Path, text: str = TASKS, steps: int = 4, *overrides: str) -> tuple[Found, list[Plan]]:
    """Search; what was found, and the plans that ran."""
    ran: list[Plan] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "run_campaign", lambda plan, out, *_: (ran.append(plan), answer(plan, out)))
        patch.setattr(searching, "open_session", lambda *_: nullcontext())
        (folder / "spec.yaml").write_text(text, encoding="utf-8")
        return search(folder / "spec.yaml", overrides, folder / "out", steps, OBSERVER), ran


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, list[Plan]]:
    """A search of all faults, for those who only look at it."""
    return go(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, list[Plan]]:
    """One without the reads that nothing detects."""
    return go(tmp_path_factory.mktemp("loud"), without("Reads"))


def test_rates_are_tried_where_reasoning_falls_and_where_retrieval_is_lost(tmp_path: Path) -> None:
    found, ran = go(tmp_path, TASKS, 8)
    everywhere, some, reads, loud = found.series
    for series in (everywhere, some):
        (window,) = series.windows(False)
        # five of a hundred are lost at 1e-6, half at 3.2e-6
        assert window.kept.before <= 1.05e-6 < window.kept.after <= 1.4 * window.kept.before
        assert window.halved.before <= 3.17e-6 < window.halved.after <= 1.4 * window.halved.before
        assert window.kept.low < 1e-6 < window.kept.high
        assert window.halved.low < 3.16e-6 < window.halved.high
        assert window.decision == "none"
    for series in (reads, loud):  # retrieval is never lost: only the fall of reasoning is placed
        (window,) = series.windows(False)
        assert (window.kept.never, window.decision) == (True, "window")
        assert window.halved.value == pytest.approx(3.16e-6, rel=0.05)
        assert max(point.rate for point in series.points) == 1e-5
    first = [cell.fault.rate.value for cell in ran[1].cells]
    assert first == pytest.approx([3.162e-7] * 2 + [1e-6] * 2)  # the middles of what the grid leaves
    assert {plan.spec.seed for plan in ran[:-1]} == {0}


def test_the_state_is_found_and_measured_with_another_seed(whole: tuple[Found, list[Plan]]) -> None:
    found, ran = whole
    for silent in (False, True):
        assert found.closest(silent).fault.name == "Reads"
        assert found.closest(silent).rate == 5.623e-6  # all is lost there and above
        assert found.shown(silent)
        verdict = found.verdict(silent)
        assert verdict.startswith(f"Found: a {'silent ' * silent}zombie state (")
        assert "under Reads[KV_READ, V, steps 15-, 5.623e-06 per_bit]; with another seed" in verdict
        assert "These faults spare the first 15 tokens of every answer, and what is asked for in them." in verdict
        again = found.again(silent)
        assert again is not None
        point, state = again
        assert (state.reasoned.k, point.name) == (0, "Reads")
    profile = load_spec(found.folder / "profile.yaml")
    assert compile_plan(profile).digest == ran[-1].digest
    assert len(profile.faults) == 1  # both definitions chose the same cell
    assert profile.faults[0].where == found.closest(True).fault.where
    assert profile.seed == ran[0].spec.seed + 1
    assert profile.prompts == ran[0].spec.prompts


def test_a_state_whose_trials_are_all_detected_is_no_silent_one(loud: tuple[Found, list[Plan]]) -> None:
    found, ran = loud
    assert found.verdict(False).startswith("Found: a zombie state (")
    assert "under Loud[" in found.verdict(False)
    assert "retrieve_b: right 0, right but detected 100, wrong silently 0" in found.verdict(False)
    assert "product: right 0, right but detected 0, wrong silently 0, wrong and detected 100" in found.verdict(False)
    assert found.verdict(True).startswith("None: no silent zombie state (")
    assert found.where(True).startswith("Uniform[")
    (window,) = found.series[2].windows(True)
    assert window.most is not None
    assert (window.halved.never, window.most.k, window.decision) == (True, 0, "none")
    profile = (found.folder / "profile.yaml").read_text(encoding="utf-8")
    assert [cell.fault.name for cell in ran[-1].cells] == ["Loud", "Uniform"]
    assert profile.startswith("# The closest points of a search (`kvspec search spec.yaml`), with another seed.")
    assert "\n# - silent zombie state (" in profile
    assert ", not shown: Uniform[" in profile


def test_without_a_state_the_closest_point_is_told(tmp_path: Path) -> None:
    found, _ = go(tmp_path, without("Reads", "Loud"))
    for silent in (False, True):
        assert not found.shown(silent)
        assert found.verdict(silent).startswith(f"None: no {'silent ' * silent}zombie state")
        states = [p.closest(silent).distance for s in found.series for p in s.points]
        assert found.closest(silent).closest(silent).distance == min(states) > 0
        assert found.where(silent).startswith("Uniform[KV_WRITE, everywhere], rates per_bit: ")
    assert min(abs(p.rate / 1e-6 - 1) for s in found.series for p in s.points) < 0.5


def test_a_state_that_the_other_seed_does_not_show_is_none(whole: tuple[Found, list[Plan]]) -> None:
    found, _ = whole
    (point,) = found.confirmed
    again = replace(found, confirmed=(replace(point, states=found.series[0].points[0].states),))
    assert not again.shown(False)
    assert again.verdict(False).startswith("None")
    alone = replace(found, confirmed=())
    assert not alone.shown(True)
    assert "; not run with another seed. Trials: retrieve_b: right 100" in alone.verdict(True)
    assert alone.verdict(True).startswith("Undecided")


def test_a_search_is_read_again_without_an_engine(whole: tuple[Found, list[Plan]]) -> None:
    found, _ = whole
    again = read_search(found.folder)
    assert again == found
    assert again.to_json() == found.to_json()


def test_an_interrupted_search_gives_what_it_has(loud: tuple[Found, list[Plan]], tmp_path: Path) -> None:
    found, _ = loud
    folder = tmp_path / "out"
    shutil.copytree(found.folder, folder)
    shutil.rmtree(folder / "state")
    for part in (folder / "step-4" / "parts").iterdir():  # not even golden answers
        part.unlink()
    manifest = json.loads((folder / "step-4" / "run.json").read_text(encoding="utf-8"))
    (folder / "step-4" / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}), encoding="utf-8")
    less = read_search(folder)
    assert less.confirmed == ()
    assert sum(len(one.points) for one in less.series) < sum(len(one.points) for one in found.series)
    assert less.verdict(False).startswith("Undecided: a zombie state (")
    assert export(less, tmp_path / "copy", 4) == []
    told = json.loads((tmp_path / "copy" / "profile.json").read_text(encoding="utf-8"))
    assert [state["with_another_seed"] for state in told["states"]] == [None, None]


def test_what_is_no_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvspecError, match="holds no search"):
        read_search(tmp_path)


def test_a_page_of_results_tells_what_was_found(whole: tuple[Found, list[Plan]]) -> None:
    found, _ = whole
    page = findings.searched(measured.searched(found.folder))
    assert list(page.sentences[:4]) == found.sentences()
    assert page.sentences[4].endswith("Reads, by task, with another seed: 0 in retrieve_b, 0 in product.")
    assert len(page.table) == 2 + 2 * len(found.series)
    rows = [line for line in page.table if line.startswith("| Reads[KV_READ, V, steps 15-], per bit, ")]
    assert [row.split(" | ")[1] for row in rows] == ["answers", "silent"]
    assert all(" | window, ratio > " in row and " | 5.623e-06: retrieve_b " in row for row in rows)


def test_few_items_decide_nothing(tmp_path: Path) -> None:
    """A state of 3 of 3 against 0 of 3 is one by its shares alone."""
    found, _ = go(tmp_path, TASKS, 0, "prompts.items=3")
    assert not found.shown(False)
    assert found.closest(False).closest(False).distance <= 0
    assert found.verdict(False).startswith("Undecided: a zombie state")


def test_examples_are_pairs_that_show_the_state(loud: tuple[Found, list[Plan]]) -> None:
    found, _ = loud
    shown = examples(found, False)
    assert [one.task for one in shown[:4]] == ["retrieve_b", "product"] * 2
    assert all(a.item == b.item and a.right and not b.right for a, b in zip(shown[::2], shown[1::2], strict=True))
    assert all(one.detected for one in shown)
    # no cell is silent: the closest one has items that are right in both, and those that lose both
    quiet = examples(found, True)
    assert not any(one.detected for one in quiet)
    assert len(quiet) == 2 * 100


def test_items_that_show_the_state_come_first(tmp_path: Path) -> None:
    text = without("Uniform", "Loud").replace("per_bit: [1e-7, 1e-5]", "per_bit: 3.5e-6")  # 61 of 100 are lost
    found, _ = go(tmp_path, text.replace("name: t\n", f"name: {HARD}\n"), 0)
    for silent in (False, True):
        pairs = [one.right for one in examples(found, silent)]
        assert pairs == [True, False] * 60 + [True, True] * 39  # one is not solved clean


def test_entries_of_a_profile_give_the_fault_again(tmp_path: Path) -> None:
    faults = """
  - name: A
    model: burst
    site: BOTH
    burst_len: 3
    bits: [14, 3]
    rate: {per_element: 1e-6}
    where: {steps: [0, "2-4"]}
  - {name: B, model: msb_biased, msb_policy: FP16_EXPONENT, site: KV_WRITE, rate: {per_row: 1e-6}, where: {heads: [1]}}
  - name: C
    model: page_local
    site: KV_WRITE
    page_tokens: 4
    page_density: 0.01
    rate: {per_page: 1e-2}
    where: {tokens: [5, "9-"]}
  - name: D
    model: random
    site: KV_WRITE
    op: set1
    bits: exponent
    rate: {fit: {raw_fit_per_mbit: 500, residency_hours: 2}}
  - {name: E, model: burst, burst_len: 1, site: KV_WRITE, rate: {per_bit: 1e-6}}
  - {name: F, model: page_local, page_tokens: 16, site: KV_WRITE, rate: {per_page: 1e-2}}
"""
    path = tmp_path / "a.yaml"
    head = "kvspec: 1\nname: t\nmodel: {id: gpt2}\nprompts: {inline: [a]}\ntrials: 1\nfaults: "
    path.write_text(head + faults, encoding="utf-8")
    spec = load_spec(path)
    again = tmp_path / "b.yaml"
    again.write_text(head + str([entry(fault) for fault in spec.faults]), encoding="utf-8")
    assert load_spec(again).faults == spec.faults
    assert len(series_of(spec.faults)) == 6


def test_prompts_of_one_kind_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(KvspecError) as caught:
        go(tmp_path, SPEC.replace("TASKS", "retrieve_b"))
    assert caught.value.diagnostics[0].code == "KVS506"


def test_the_entry_of_a_fault_of_scales_strikes_scales(tmp_path: Path) -> None:
    head = "kvspec: 1\nname: t\nmodel: {id: gpt2, kv_cache_dtype: int8_per_token_head}\n"
    head += "prompts: {inline: [a]}\ntrials: 1\nfaults: "
    fault = "{{name: {0}, model: random, site: KV_WRITE, target: {0}, rate: {{per_row: 1e-2}}}}"
    path, again = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(f"{head}[{fault.format('values')}, {fault.format('scales')}]", encoding="utf-8")
    spec = load_spec(path)
    again.write_text(head + str([entry(f) for f in spec.faults]), encoding="utf-8")
    assert [f.target for f in load_spec(again).faults] == ["values", "scales"]
    assert load_spec(again).faults == spec.faults
