"""The specs that ship, the whole way on real vLLM at small n: one prompt, a trial a cell, an engine a cache format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvspec.engine.campaign import Inputs, run_campaign
from kvspec.engine.canary import LENGTH as CANARY_LENGTH
from kvspec.engine.session import Session, Shape
from kvspec.plan import Plan, compile_plan
from kvspec.score import score_run
from kvspec.spec import load_spec
from kvspec.spec.model import EngineSpec

SPECS = Path(__file__).parents[2] / "specs"
ELSEWHERE = {
    "quickstart": "test_cli_run.py runs it",
    "gpt2_bitrot": "a hub model; test_cli_run.py runs it on the bundled one",
    "needle_llama31_8b": "8 billion parameters",
    "needle_smollm2_full": "needle_smollm2 at the size of a GPU",
    "needle_smollm2_reads": "needle_smollm2_full with faults of reads",
    "zombie_search": "36 cells of 600-token prompts; tests/test_search.py runs searches",
    "zombie_int8": "zombie_search in an int8 cache",
}
"""Specs that do not run here, and why."""
SMALL = ("trials=1", "controls.null_trials=1", "controls.golden_repeats=1", "generation.max_tokens=4")
ONE_PROMPT = ("prompts={inline: [The capital of France is]}",)
SHORT = {
    "context_length": ("prompts.items=1", "prompts.contexts=[40, 80]", "prompts.examples=1"),
    "early_vs_late": ("prompts.items=1", "prompts.examples=1"),
    "reads": (*ONE_PROMPT, "generation.max_tokens=9"),  # one of its faults strikes in steps 4 to 7
    "needle_smollm2": ("prompts.items=1", "prompts.examples=1", "prompts.tasks=[retrieve_b, product]"),
    "needle_lengths": ("prompts.items=1", "prompts.examples=1", "prompts.tasks=[retrieve_twice]"),
}
HERE = sorted({path.stem for path in SPECS.glob("*.yaml")} - set(ELSEWHERE))


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    found = {}
    for name in HERE:
        found[name] = compile_plan(load_spec(SPECS / f"{name}.yaml", [*SMALL, *SHORT.get(name, ONE_PROMPT)]))
    return found


@pytest.fixture(scope="module", params=["bf16", "int8_per_token_head"])
def engine(request: pytest.FixtureRequest, plans: Mapping[str, Plan]) -> Iterator[tuple[str, Session]]:
    """An engine that holds every plan of a format."""
    mine = [plan for plan in plans.values() if plan.spec.model.storage_format == request.param]
    inputs = [Inputs.of(plan) for plan in mine]
    longest = max(len(ids) for some in inputs for ids in some.prompts) + max(p.spec.generation.max_tokens for p in mine)
    shape = Shape(max(longest, CANARY_LENGTH), max(map(len, mine)), inputs[0].info.geometry)
    scales = request.param != "bf16"
    what = (mine[0].spec.model, inputs[0].source, EngineSpec(), request.param, shape)
    with Session(*what, reads=not scales, stuck_reads=not scales, scales=scales) as session:
        yield request.param, session


def test_nothing_is_left_out_without_a_reason() -> None:
    assert set(ELSEWHERE) | set(SHORT) <= {path.stem for path in SPECS.glob("*.yaml")}


def test_specs_run_and_every_flip_lands(
    engine: tuple[str, Session], plans: Mapping[str, Plan], tmp_path: Path, listener: type[Any]
) -> None:
    storage_format, session = engine
    ran = 0
    for name, plan in plans.items():
        if plan.spec.model.storage_format != storage_format:
            continue
        run_campaign(plan, tmp_path / name, listener(), session)
        scores = score_run(tmp_path / name)
        assert (scores.run.status, scores.run.recorded) == ("complete", len(plan)), name
        assert scores.sound, f"{name}: other flips landed than were planned"
        assert scores.floor.clean, name
        assert sum(cell.exact_match.n for cell in scores.cells) == len(plan.cells) * plan.requests, name
        expected = sum(cell.flips.expected or 0.0 for cell in scores.cells)
        landed = sum(cell.flips.landed for cell in scores.cells)
        assert landed > 0 or expected < 20, f"{name}: {expected:.3g} flips were expected"
        ran += landed
    assert ran > 0
