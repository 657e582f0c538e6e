"""Pages of several runs and searches: what each was made under, and which of them answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import spec_index
from tools.answers import answer
from tools.findings import p_value
from tools.results import RESULTS, Page, index, render, see
from tools.spec_index import SPECS, decision_at, declared, notes


def _closest(silent: bool, verdict: str, state: str) -> dict[str, object]:
    return {"silent": silent, "verdict": verdict, "state": state, "spared": 15}


def test_a_state_that_an_earlier_search_found_is_not_undone_by_one_without_another_seed() -> None:
    searches: list[dict[str, Any]] = [
        {
            "where": "a GPU, 2026-11-29, plan `b`",
            "closest": [_closest(False, "Shown once", "x"), _closest(True, "Shown once", "y")],
        },
        {
            "where": "a GPU, 2026-11-28, plan `a`",
            "closest": [_closest(False, "Found", "z"), _closest(True, "None", "w")],
        },
    ]
    both = answer({"test": "search"}, [], {"searches": searches})
    assert both.text.startswith(
        "By the answers: yes, by both intervals, and again with another seed (search of 2026-11-28"
    )
    assert (
        "; silent: shown by both intervals of one search, not yet with another seed (search of 2026-11-29" in both.text
    )
    assert both.figure == "By the answers: z; silent: y"
    searches[0]["closest"][1]["missing_again"] = 7
    short = answer({"test": "search"}, [], {"searches": searches})
    assert "not yet with another seed, whose run lacks 7 trials (search of 2026-11-29" in short.text
    searches[0]["closest"][1]["missing_again"] = 0
    alone = answer({"test": "search"}, [], {"searches": searches[:1]})
    assert alone.text.startswith("By the answers and silent: shown by both intervals of one search")
    assert "2026" not in alone.text


def test_a_rule_that_is_younger_than_a_run_is_told_for_that_run() -> None:
    """As if the first run of scale_faults had been made of five prompts under another rule."""
    made = Page.read(json.loads((RESULTS / "scale_faults.json").read_text(encoding="utf-8")))
    assert not made.earlier
    (row,) = [line for line in index(RESULTS, [made]).splitlines() if line.startswith("| [scale_faults]")]
    assert not {"†", "‡"} & set(row)
    first, scores = made.runs[0], made.runs[0].measured.scores
    few = replace(first.measured, scores=replace(scores, run=replace(scores.run, requests=5)))
    page = replace(made, runs=[replace(first, measured=few, decision="Another."), made.runs[1]])
    ((what, rule),) = page.earlier.items()
    assert "int8_per_token_head, native on NVIDIA H200" in what
    assert rule == "Another."
    assert f"- That rule was written after {what}. The one of then: Another.\n" in render(page)
    assert " † ‡ |" in index(RESULTS, [page])
    searched = Page.read(json.loads((RESULTS / "zombie_search.json").read_text(encoding="utf-8")))
    assert [what for what in searched.earlier if "2026-11-28" in what]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_rule_of_then_is_that_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = tmp_path / "specs"
    specs.mkdir()
    monkeypatch.setattr(spec_index, "SPECS", specs)

    def commit(when: str, rule: str) -> None:
        (specs / "one.yaml").write_text(f"kvspec: 1\nname: one\nx-decision: {rule}\n", encoding="utf-8")
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        env = {**os.environ, "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
        subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
        subprocess.run(["git", *who, "commit", "-qm", rule], cwd=tmp_path, env=env, check=True)

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit("2026-01-01T10:00:00+00:00", "first")
    commit("2026-01-01T12:00:00+00:00", "second")
    assert decision_at("one", "2026-01-01T11:00:00+00:00") == "first"
    assert decision_at("one", "2026-01-01T13:00:00+00:00") == "second"
    assert decision_at("one", "2026-01-01T09:00:00+00:00") == ""
    assert decision_at("two", "2026-01-01T13:00:00+00:00") == ""


def test_a_row_points_to_single_flips_that_show_what_its_own_test_does_not() -> None:
    anatomy, layers = (
        Page.read(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        for name in ("bit_anatomy", "layer_sensitivity")
    )
    assert anatomy.runs[0].measured.scores.anatomy is not None
    tests = {one.name: one for one in anatomy.runs[0].measured.scores.anatomy.tests}
    assert f"layers differ ({p_value(tests['layers'].p_holm)})" in see(layers, [anatomy, layers])
    assert see(layers, [anatomy, layers]).startswith(" But see [")
    phases = Page.read(json.loads((RESULTS / "prompt_vs_decode.json").read_text(encoding="utf-8")))
    assert see(phases, [anatomy, phases]).startswith(" See also ["), "its own test shows it, too"
    assert see(layers, [layers]) == "", "without that page there is nothing to see"
    assert see(anatomy, [anatomy, layers]) == ""


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_row_points_to_exists(path: Path) -> None:
    if wanted := declared(path)["see"]:
        page = Page.read(json.loads((RESULTS / f"{wanted['page']}.json").read_text(encoding="utf-8")))
        anatomy = page.runs[0].measured.scores.anatomy
        assert anatomy is not None
        assert wanted["test"] in {one.name for one in anatomy.tests}
        assert wanted["shown"]


def test_without_a_history_no_rule_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert decision_at("msb", "2026-11-29T05:00:00+00:00") == ""


def test_a_caution_stands_below_the_answer_and_its_first_sentence_in_the_index():
    for name in ("needle_smollm2_full", "needle_smollm2_reads"):
        caution = notes(SPECS / f"{name}.yaml")["caution"]
        page = (RESULTS / f"{name}.md").read_text().split("\n\n")
        assert page[1].startswith("**")
        assert page[2] == caution
        rows = (RESULTS / "README.md").read_text().splitlines()
        (row,) = [row for row in rows if row.startswith(f"| [{name}]({name}.md) | ")]
        assert caution.partition(". ")[0] in row
