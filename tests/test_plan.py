"""Plans: identity, enumeration and what they refuse or warn of. No engine."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvspec.cli.plan_text import dose_tables
from kvspec.errors import PlanError
from kvspec.plan import canonical_json, compile_plan
from kvspec.plan.estimate import estimate
from kvspec.spec import load_spec
from kvspec.stats.design import detectable_drop
from tests.small_plans import SMALL, SPEC, info, plan_maker

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return plan_maker(tmp_path)


def test_trials_are_complete_distinct_and_start_with_golden(make: Any) -> None:
    plan = make()
    trials = list(plan.trials())
    assert len(trials) == len(plan) == 3 * (1 + 2 + 3 + 3 * 5)
    assert len({t.id for t in trials}) == len(trials)
    assert [t.kind for t in trials[:3]] == ["golden"] * 3
    assert Counter(t.kind for t in trials) == {"golden": 3, "golden_repeat": 6, "null": 9, "fault": 45}
    assert Counter((t.cell, t.request) for t in trials if t.kind == "fault") == {
        (c, p): 5 for c in range(3) for p in range(3)
    }
    # An interrupted run has nearly equal n in every cell.
    faults = [t.cell for t in trials if t.kind == "fault"]
    for stop in range(1, len(faults)):
        counts = Counter(faults[:stop])
        assert max(counts.values()) - min(counts[c] for c in range(3)) <= 3


@settings(deadline=None)
@given(per_prompt=st.integers(1, 30), repeats=st.integers(0, 40), nulls=st.integers(0, 40))
def test_controls_are_all_there_for_any_counts(per_prompt: int, repeats: int, nulls: int) -> None:

    plan = compile_plan(load_spec(ROOT / "specs" / "smoke.yaml"))
    spec = replace(
        plan.spec,
        controls=replace(plan.spec.controls, golden_repeats=repeats, null_trials=nulls),
        trials=replace(plan.spec.trials, per_prompt=per_prompt),
    )
    plan = compile_plan(spec)
    assert len({t.id for t in plan.trials()}) == len(plan)


def test_comments_key_order_notes_and_engine_settings_do_not_change_the_digest(make: Any) -> None:
    reference = make().digest
    backwards = json.dumps(dict(reversed(SPEC.items())))
    assert make(text=f"# a comment\n{backwards}\n# another").digest == reference
    for harmless in (
        {"x-note": "ours"},
        {"description": "words"},
        {"engine": {"max_num_seqs": 3, "submission_seed": 1}},
        {"metrics": ["exact_match"]},
    ):
        assert make(harmless).digest == reference, harmless


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 43},
        {"trials": 6},
        {"name": "u"},
        {"prompts": {"inline": ["one", "two", "three!"]}},
        {"generation": {"max_tokens": 9}},
        {"model": {"id": "gpt2"}},
        {"model": {"id": "bundled:smollm2", "kv_cache_dtype": "fp16"}},
        {"controls": {"golden_repeats": 1, "null_trials": 3}},
        {"faults": [SPEC["faults"][0]]},
        {"faults": [{**SPEC["faults"][0], "where": {"cache": ["K"]}}, SPEC["faults"][1]]},
    ],
)
def test_every_meaningful_change_changes_the_digest(make: Any, change: dict[str, Any]) -> None:
    assert make(change).digest != make().digest


def test_the_digest_is_that_of_the_canonical_bytes(make: Any) -> None:
    import hashlib

    plan = make()
    assert plan.digest == hashlib.sha256(canonical_json(plan.to_json()).encode()).hexdigest()
    assert canonical_json({"b": 1e-06, "a": "\u00e9"}) == '{"a":"\\u00e9","b":1e-06}'


def test_names_and_selectors_do_not_move_the_draws(make: Any) -> None:
    cells = make().cells
    renamed = make({"faults": [{**SPEC["faults"][0], "name": "Z", "where": {"layers": [1]}}]}).cells
    assert [c.experiment for c in renamed] == [c.experiment for c in cells[:2]]
    assert len({c.experiment for c in cells}) == 3
    assert [c.name for c in cells] == ["A[1e-05]", "A[0.001]", "B"]


def test_a_stuck_at_is_a_cell_of_its_own_on_the_sites_of_the_flip(make: Any) -> None:
    fault = {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-4}}
    plan = make({"faults": [{**fault, "op": ["flip", "set0", "set1"]}]})
    assert [cell.name for cell in plan.cells] == ["A[flip]", "A[set0]", "A[set1]"]
    assert len({cell.experiment for cell in plan.cells}) == 1
    assert [cell.fault.op for cell in plan.cells] == ["flip", "set0", "set1"]
    assert make({"faults": [{**fault, "op": "set0"}]}).digest != make({"faults": [fault]}).digest


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"layers": [4]}, "layer `4`"),
        ({"layers": ["2-9"]}, "layer `9`"),
        ({"heads": [3]}, "head `3`"),
        ({"tokens": ["50-60"]}, "no token"),
        ({"steps": ["8-"]}, "no read"),
        ({"steps": "prefill", "tokens": "decode"}, "no token"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error(make: Any, where: dict[str, Any], words: str) -> None:
    site = "KV_READ" if "steps" in where else "KV_WRITE"
    plan = make({"faults": [{**SPEC["faults"][1], "site": site, "where": where}]})
    with pytest.raises(PlanError) as caught:
        estimate(plan, info(), [5, 6, 7], exact=True)
    (found,) = caught.value.diagnostics
    assert found.code == "KVS301"
    assert words in found.message
    assert found.mark is not None


def test_impossible_cells_are_reported_together(make: Any) -> None:
    faults = [
        {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-3}, "where": {"layers": [9]}},
        {"name": "B", "model": "page_local", "site": "KV_WRITE", "rate": {"per_token": 1.0}, "page_density": 1e-6},
    ]
    with pytest.raises(PlanError) as caught:
        estimate(make({"faults": faults}), info(), [5, 6, 7], exact=True)
    assert [d.code for d in caught.value.diagnostics] == ["KVS301", "KVS303"]


@pytest.mark.parametrize(("ranks", "refused"), [(1, False), (2, True), (3, False), (4, True), (6, False)])
def test_heads_that_cannot_be_dealt_out_to_the_gpus_are_refused(make: Any, ranks: int, refused: bool) -> None:
    plan = make({"engine": {"tensor_parallel": ranks}})
    if not refused:
        assert estimate(plan, info(), [5, 6, 7], exact=True).cells
        return
    with pytest.raises(PlanError, match=f"3 KV heads cannot be dealt out evenly to {ranks} GPUs") as caught:
        estimate(plan, info(), [5, 6, 7], exact=True)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path, found.mark is None) == ("KVS401", "$.engine.tensor_parallel", False)


def test_a_cell_that_expects_no_flip_is_a_warning(make: Any) -> None:
    fault = {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-12}}
    (warning,) = estimate(make({"faults": [fault]}), info(), [5, 6, 7], exact=True).warnings
    assert warning.code == "KVS302"
    assert warning.severity == "warning"


def test_an_unknown_geometry_is_said(make: Any) -> None:
    with pytest.raises(PlanError) as caught:
        estimate(make(), info(None), [5, 6, 7], exact=True)
    assert caught.value.diagnostics[0].code == "KVS306"


def test_the_guides_benchmark_is_its_six_experiments() -> None:
    plan = compile_plan(load_spec(ROOT / "specs" / "gpt2_bitrot.yaml"))
    assert [c.name for c in plan.cells] == [
        "BitRot_1e-7", "BitRot_1e-5", "BitRot_1e-3", "BitRot_1e-1", "Burst_1e-5", "MSB_1e-5",
    ]  # fmt: skip
    assert plan.trials_per_cell == 10
    assert plan.spec.seed == 42
    assert plan.spec.generation.max_tokens == 50


def test_an_effect_that_the_controls_cannot_show_is_a_warning(make: Any) -> None:
    """15 controls show a fall of 18 %; a flip hits about 3 % of the trials, or about all of them."""
    rates = [0.03 / (SMALL.bits_per_token(16) * 13), 1e-3]
    fault = {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": rates}}
    plan = make({"faults": [fault], "trials": 100})
    found = estimate(plan, info(), [5, 6, 7], exact=True)
    assert found.controls == 15
    assert found.detectable_drop == detectable_drop(300, (15, 15), 0.05 / 2)
    assert found.cells[0].hit == pytest.approx(1 - math.exp(-0.03), rel=0.01)
    assert found.cells[1].hit > 0.99
    (warning,) = found.warnings
    assert (warning.code, warning.severity) == ("KVS307", "warning")
    assert plan.cells[0].name in warning.message
    silent = estimate(
        make({"faults": [fault], "trials": 100, "controls": {"golden_repeats": 200}}), info(), [5, 6, 7], exact=True
    )
    assert silent.warnings == ()
    # Alone, or the first of many, a fall of 27 % would be seen; the last but one of ten such cells meets Holm.
    rates = [0.3 / (SMALL.bits_per_token(16) * 13)] * 9
    many = make({"faults": [{**fault, "name": f"A{i}", "rate": {"per_bit": rate}} for i, rate in enumerate(rates)]})
    alone = make({"faults": [{**fault, "rate": {"per_bit": rates[0]}}]})
    count = [
        sum(w.code == "KVS307" for w in estimate(plan, info(), [5, 6, 7], exact=True).warnings)
        for plan in (alone, many)
    ]
    assert count == [0, 9]


@pytest.mark.parametrize(
    ("where", "warned"), [([{}], True), ([{"cache": ["K"]}, {"cache": ["V"]}], False), ([{"cache": ["K"]}], True)]
)
def test_a_power_design_has_cells_to_compare(make: Any, where: list[Any], warned: bool) -> None:
    fault = {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-3, 1e-2]}, "where": where}
    power = {"power": {"from": 1.0, "to": 0.5}}
    found = [
        w.code for w in estimate(make({"faults": [fault], "trials": power}), info(), [5, 6, 7], exact=True).warnings
    ]
    assert ("KVS308" in found) == warned
    plain = estimate(make({"faults": [fault], "trials": 30}), info(), [5, 6, 7], exact=True)
    assert "KVS308" not in [w.code for w in plain.warnings]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_of_a_plan_fits_its_terminal(make: Any, width: int) -> None:
    plan = make()
    found = estimate(plan, info(), [5, 6, 7], exact=True)
    console = Console(file=io.StringIO(), width=width)
    tables = dose_tables(plan, found, console)
    assert len(tables) == (1 if width == 200 else 2)
    for table in tables:
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for cell in found.cells:
        for figure in (f"{cell.dose.per_gib:.2e}", f"{cell.expected_flips:.3g}", f"{cell.dose.per_eligible_bit:.2e}"):
            assert figure in words
    assert "\u2026" not in text


def test_what_does_not_fit_into_the_model_is_said_before_it_runs(make: Any) -> None:
    plan = make({"generation": {"max_tokens": 95}})
    found = [w for w in estimate(plan, info(), [5, 6, 0], exact=True).warnings if w.code == "KVS405"]
    assert [w.message.split(";")[0] for w in found] == ["prompt 1 has 6 tokens", "prompt 2 has no tokens"]
    assert all(w.severity == "warning" for w in found)


def test_values_have_the_ids_and_digests_that_they_always_had(make: Any) -> None:
    plan = make()
    assert all("target" not in fault for fault in plan.to_json()["spec"]["faults"])
    model = {**SPEC["model"], "kv_cache_dtype": "int8_per_token_head"}
    faults = [{**fault, "target": "values"} for fault in SPEC["faults"]]
    assert make({"model": model}).digest == make({"model": model, "faults": faults}).digest
    fault = {"name": "F", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-3}}
    both = make({"model": model, "faults": [{**fault, "target": ["values", "scales"]}]})
    assert len({cell.experiment for cell in both.cells}) == 2
    assert both.cells[0].experiment == make({"faults": [fault]}).cells[0].experiment
