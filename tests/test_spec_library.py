"""The specs that ship: each can be planned, says what it is for, and the index is current."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from kvspec.models import describe, prompt_lengths
from kvspec.plan import compile_plan
from kvspec.plan.estimate import estimate
from kvspec.spec import load_spec

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


def tool() -> Any:
    found = importlib.util.spec_from_file_location("spec_index", ROOT / "tools" / "spec_index.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_can_be_planned(path: Path) -> None:
    plan = compile_plan(load_spec(path))
    assert plan.spec.name == path.stem
    info = describe(plan.spec.model)
    lengths, exact = prompt_lengths(plan.spec.model, info, plan.spec.prompts.texts)
    found = estimate(plan, info, lengths, exact)
    # A sweep may start where nothing can be told from the floor (KVS307): that end of the curve is its anchor.
    assert {warning.code for warning in found.warnings} <= {"KVS307"}
    assert max(lengths) + plan.spec.generation.max_tokens <= (info.max_model_len or 0)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_question_comes_with_hypothesis_and_decision_rule(path: Path) -> None:
    notes = tool().notes(path)
    assert len({bool(notes[name]) for name in ("question", "hypothesis", "decision")}) == 1, notes


GUIDE = {"quickstart", "smoke", "gpt2_bitrot", "high_rate_demo"}
"""Specs that ask the prompts of the guide."""


@pytest.mark.parametrize("path", [path for path in SPECS if path.stem not in GUIDE], ids=lambda path: path.stem)
def test_a_question_about_a_model_is_asked_of_many_prompts(path: Path) -> None:
    """Trials of one prompt are alike, so that a thousand of five prompts decide little about others."""
    texts = load_spec(path).prompts.texts
    # GPU jobs raise their `items`
    small = {"needle_smollm2", "needle_lengths", "zombie_search", "early_vs_late", "context_length"}
    assert len(set(texts)) >= (50 if path.stem not in small else 10)


def test_the_guide_is_covered() -> None:
    assert {path.stem for path in SPECS} >= {
        "smoke", "gpt2_bitrot", "burst_length", "msb", "page_local", "high_rate_demo", "needle_smollm2",
        "needle_llama31_8b", "fp8_vs_int4", "bit_anatomy", "layer_sensitivity", "head_sensitivity", "k_vs_v",
        "prompt_vs_decode", "early_vs_late", "context_length",
    }  # fmt: skip


def test_the_index_is_current() -> None:
    module = tool()
    assert module.INDEX.read_text(encoding="utf-8") == module.render(), "run: python3 tools/spec_index.py"
