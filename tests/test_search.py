"""The search for a state: what is tried, what is found, what is left behind. The engine is a formula here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvspec.errors import KvspecError
from kvspec.plan import Plan, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.search import run as searching
from kvspec.search import search
from kvspec.search.model import entry, series_of
from kvspec.spec import load_spec
from kvspec.spec.model import Fault
from tools.findings import searched

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
controls: {null_trials: 0, golden_repeats: 0}
trials: 1
"""
OBSERVER: Any = SimpleNamespace(phase=lambda _: None)


def losses(fault: Fault) -> tuple[float, float]:
    """Shares of retrieval and reasoning that are lost: together, except for late reads, which spare retrieval."""
    lost = min(1.0, (fault.rate.value / 1e-6) ** 2 * 0.05)  # 5 % at 1e-6
    return (0.0 if fault.where.steps != "all" else lost), lost


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    ran: list[Plan] = []

    def run(plan: Plan, out: Path, *_: object) -> None:
        ran.append(plan)
        with RunStore.create(out, plan, version="test") as store, RecordWriter(store) as writer:
            for trial in plan.trials():
                task = plan.spec.prompts.tasks[trial.request]
                assert task is not None
                right = "It is " + re.findall(r"0\*(?:\(\?:)?(\d+)", str(task.grader.expected))[0]
                if task.kind == "reasoning":
                    right = (
                        f"{task.operands[0]:.0f} and {task.operands[1]:.0f} = {task.operands[0] * task.operands[1]:.0f}"
                    )
                lost = False
                if trial.kind == "fault":
                    share = losses(plan.cells[trial.cell].fault)[task.kind == "reasoning"]
                    lost = (int(task.item) * 61 + plan.spec.seed) % 100 + 0.5 < 100 * share
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=4, token_ids=[int(lost)], text="!!" if lost else right, finish_reason="stop",
                        tokens_written=5, flips_planned=0, flips_landed=0,
                    )
                )  # fmt: skip
            store.finish()

    monkeypatch.setattr(searching, "run_campaign", run)
    monkeypatch.setattr(searching, "open_session", lambda *_: nullcontext())

    def go(text: str = SPEC.replace("TASKS", "retrieve_b, product"), steps: int = 4, *overrides: str) -> Any:
        (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
        return search(tmp_path / "spec.yaml", overrides, tmp_path / "out", steps, OBSERVER), ran

    return go


def test_rates_are_bisected_where_retrieval_is_lost(go: Callable[..., Any]) -> None:
    found, ran = go(SPEC.replace("TASKS", "retrieve_b, product"), 12)
    everywhere, some, reads = found.series
    for series in (everywhere, some):
        holds, lost = series.bracket
        assert holds.rate <= 1.05e-6 < lost.rate <= 1.1 * holds.rate  # the sixth item is lost there
        low, high = series.interval
        assert low < 1e-6 < high
    assert [point.rate for point in reads.points] == [1e-7, 1e-5]  # never lost: nothing to part
    assert {cell.fault.rate.value for cell in ran[1].cells} == {3.162e-7}  # the middle of 1e-8 and 1e-5
    assert {plan.spec.seed for plan in ran[:-1]} == {0}


def test_the_state_is_found_and_measured_with_another_seed(go: Callable[..., Any], tmp_path: Path) -> None:
    found, ran = go()
    assert found.closest.fault.name == "Reads"
    assert found.closest.rate == 1e-5
    assert found.shown
    assert found.verdict().startswith("Found: a zombie state")
    assert "under Reads[KV_READ, " in found.verdict()
    assert ", 1e-05 per_bit]; with another seed" in found.verdict()
    assert found.verdict().endswith(
        "These faults spare the first 15 tokens of every answer, and what is asked for in them."
    )
    assert found.confirmed.states[0].reasoned.k == 0
    profile = load_spec(tmp_path / "out" / "profile.yaml")
    assert compile_plan(profile).digest == ran[-1].digest
    assert profile.faults[0].where == found.closest.fault.where
    assert profile.seed == ran[0].spec.seed + 1
    assert profile.prompts == ran[0].spec.prompts


def test_without_a_state_the_closest_point_is_told(go: Callable[..., Any]) -> None:
    text = SPEC.replace("TASKS", "retrieve_b, product")
    found, _ = go(text[: text.index("  - {name: Reads")] + text[text.index("controls") :])
    assert not found.shown
    assert found.verdict().startswith("None: no zombie state")
    assert min(abs(p.rate / 1e-6 - 1) for s in found.series for p in s.points) < 0.5
    states = [p.closest.distance for s in found.series for p in s.points]
    assert found.closest.closest.distance == min(states) > 0


def test_a_state_that_the_other_seed_does_not_show_is_none(go: Callable[..., Any]) -> None:
    found, _ = go()
    assert found.shown
    again = replace(found, confirmed=replace(found.confirmed, states=found.series[0].points[0].states))
    assert not again.shown
    assert again.verdict().startswith("None")


def test_a_page_of_results_tells_what_was_found(go: Callable[..., Any], tmp_path: Path) -> None:
    found, _ = go()
    (tmp_path / "out" / "search.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    page = searched(tmp_path / "out")
    assert page.sentences[0] == found.verdict()
    assert page.sentences[1].endswith("by task, with another seed: 0 in retrieve_b, 0 in product.")
    assert len(page.table) == 2 + len(found.series)
    (row,) = (line for line in page.table if line.startswith(f"| {found.closest.name} |"))
    assert f"{found.closest.closest.recalled.n:,} | product " in row


def test_few_items_decide_nothing(go: Callable[..., Any]) -> None:
    """A state of 3 of 3 against 0 of 3 is one by its shares alone."""
    found, _ = go(SPEC.replace("TASKS", "retrieve_b, product"), 0, "prompts.items=3")
    assert not found.shown
    assert found.closest.closest.distance <= 0
    assert found.verdict().startswith("Undecided: a zombie state")


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


def test_prompts_of_one_kind_cannot_be_searched(go: Callable[..., Any]) -> None:
    with pytest.raises(KvspecError) as caught:
        go(SPEC.replace("TASKS", "retrieve_b"))
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
