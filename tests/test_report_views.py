"""What a page draws besides scores: survival, trials to look at, single flips, token pieces, diffs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvspec import _native
from kvspec.models import Geometry
from kvspec.plan import Trial, compile_plan
from kvspec.plan.dose import sampler_parameters
from kvspec.records import Record
from kvspec.report.diff import align, first_difference, pieces, shown, words
from kvspec.report.page import Extras
from kvspec.report.page.trials import trial_items
from kvspec.report.pieces import token_pieces
from kvspec.score import score_run
from kvspec.score.flips import list_flips
from kvspec.score.views import TrialView, _kaplan_meier, read_files, view_run
from kvspec.spec.model import Fault, Rate, Selector
from tests.run_folders import crashed, make_plan, sdc, write_run

PLAN = make_plan(prompts=2, per_prompt=5)
GEOMETRY = Geometry(4, 2, 64)


def diverge(record: Record, at: int, flips: int) -> Record:
    """Another answer from token `at` on, with a number of flips."""
    tokens = [*record.token_ids[:at], *(7 for _ in record.token_ids[at:])]
    return replace(record, token_ids=tokens, text=f"other {at}", flips_planned=flips, flips_landed=flips)


def test_survival_falls_where_answers_diverge(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return diverge(record, trial.trial * 2, 1) if trial.cell == 0 and trial.trial < 3 else record

    view = view_run(write_run(tmp_path / "run", PLAN, change))[1].cells[0]
    # Per prompt: two trials differ never, the others at tokens 0, 2 and 4; answers have 10 tokens.
    assert [t for t, _ in view.survival] == [0, 1, 3, 5, 10]
    assert [share for _, share in view.survival] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.4])


def test_survival_with_answers_of_different_lengths_is_kaplan_meier() -> None:
    rng = np.random.default_rng(3)
    ends, events = rng.integers(0, 5, 30), rng.integers(0, 5, 30)
    alive, risk, curve = 1.0, int(ends.sum() + events.sum()), {0: 1.0}
    for t in range(30):
        if risk:
            alive *= 1 - events[t] / risk
        risk -= int(events[t] + ends[t])
        if events[t]:
            curve[t + 1] = alive
    found = dict(_kaplan_meier(events, ends))
    assert all(found[t] == pytest.approx(share) for t, share in curve.items())
    assert _kaplan_meier(np.zeros(3, np.int64), np.zeros(3, np.int64)) == ()
    long = _kaplan_meier(np.ones(4_000, np.int64), np.zeros(4_000, np.int64))
    assert (len(long), long[0], long[-1][0]) == (64, (0, 1.0), 4_000)


def test_typical_and_worst_trials(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        if trial.cell == 1:
            return diverge(record, {0: 0, 1: 5, 2: 6, 3: 7, 4: 0}[trial.trial], 3 if trial.trial else 9)
        if trial.cell == 2:
            return crashed(record)
        return record

    trials = view_run(write_run(tmp_path / "run", PLAN, change))[1].trials
    roles = {(t.cell, t.role): t for t in trials}
    assert set(roles) == {(1, "typical"), (1, "worst"), (2, "crash")}
    assert roles[1, "typical"].token_drift == 5, "the median of 10, 5, 4, 3, 10"
    worst = roles[1, "worst"]
    assert (worst.token_drift, worst.landed, worst.trial) == (10, 3, 4), "of the largest drifts the fewest flips"
    assert worst.golden_ids == tuple(range(100, 110))
    assert worst.prompt == "prompt number 0"
    assert roles[2, "crash"].error == "RuntimeError: boom"


def test_trials_are_spread_over_the_cells(tmp_path: Path) -> None:
    plan = make_plan([10.0**-e for e in range(2, 12)], per_prompt=2)
    folder = write_run(tmp_path / "run", plan, lambda t, r: diverge(r, t.trial, 1) if t.kind == "fault" else r)
    cells = [trial.cell for trial in view_run(folder, trials=6)[1].trials]
    assert sorted(set(cells)) == [0, 5, 10]
    assert view_run(folder, trials=0)[1].trials == ()


def faulty(where: Selector, model: str = "random", **more: Any) -> tuple[Any, Fault]:
    fault = Fault("F", 3, "KV_WRITE", model, Rate("per_bit", 2e-3), where=where, **more)
    return compile_plan(replace(PLAN.spec, faults=(fault,))), fault


@pytest.mark.parametrize(
    ("where", "model", "more"),
    [
        (Selector(), "random", {}),
        (Selector(cache=("V",), layers=((1, 3),), heads=((0, 1),)), "random", {"bits": "exponent"}),
        (Selector(tokens="decode"), "burst", {"burst_len": 4}),
        (Selector(tokens=((2, 9), (12, None))), "msb_biased", {"msb_policy": "FP16_EXPONENT"}),
        (Selector(), "page_local", {"page_tokens": 4, "page_density": 0.01}),
    ],
)
def test_flips_are_listed_from_the_plan(tmp_path: Path, where: Selector, model: str, more: Any) -> None:
    plan, fault = faulty(where, model, **more)
    sampler = sampler_parameters(fault, "bf16", GEOMETRY).sampler(GEOMETRY, 16)

    def change(trial: Trial, record: Record) -> Record:
        if trial.kind != "fault":
            return record
        key = _native.derive_keys(42, plan.cells[0].experiment, trial.trial, 3)[0]
        from kvspec.engine.table import native_selector

        flips = sampler.count(
            key=key, request=trial.request, layers=(0, 4), tokens=(0, 13), prompt_len=4, selector=native_selector(where)
        )
        return replace(sdc(record), flips_planned=flips, flips_landed=flips)

    folder = write_run(tmp_path / "run", plan, change)
    files, trials = read_files(folder), view_run(folder)[1].trials
    data = score_run(folder).cells[0].plan.fault
    listed = 0
    for trial in trials:
        found = list_flips(files.plan, data, trial, GEOMETRY)
        if not trial.planned:
            assert found is None
            continue
        assert found is not None
        assert found.total == len(found.token) == trial.planned
        assert (np.diff(found.token) >= 0).all()
        if where.cache == ("V",):
            assert set(found.value) == {1}
            assert set(found.layer) <= {1, 2}
            assert set(found.bit) <= set(range(7, 15))
        assert list_flips(files.plan, data, replace(trial, planned=trial.planned + 1), GEOMETRY) is None
        assert list_flips(files.plan, data, trial, Geometry(12, 12, 64)) is None, "another model's shape"
        assert list_flips(files.plan, {**data, "site": "BOTH"}, trial, GEOMETRY) is None
        assert list_flips({}, data, trial, GEOMETRY) is None
        listed += 1
    assert listed


def test_items_mark_the_tokens_whose_rows_took_flips(tmp_path: Path) -> None:
    plan, _ = faulty(Selector(tokens="decode"))
    folder = write_run(tmp_path / "run", plan, lambda t, r: sdc(r) if t.kind == "fault" else r)
    scores, files = score_run(folder), read_files(folder)
    from kvspec.report.limits import Limits

    def tokenizer(ids: Sequence[int]) -> list[str]:
        return [f" w{i}" for i in ids]

    items = trial_items(scores, view_run(folder)[1], files, Extras(tokenizer, None), Limits())
    assert items[0]["unit"] == "token"
    assert items[0]["golden"][0]["text"] == " w100 w101 w102"
    assert [run["first"] for run in items[0]["golden"]].index(True) == 1
    assert items[0]["flips"] is None, "without a geometry no flip is invented"


def test_words_and_alignment() -> None:
    text = "the  cat\n\nsat "
    assert "".join(words(text)) == text
    golden, faulted = words("the cat sat down"), words("the dog sat down now")
    left, right = align(golden, faulted)
    assert left == [True, False, True, True]
    assert right == [True, False, True, True, False]
    assert first_difference(golden, faulted) == 1
    assert first_difference("ab", "abc") == 2
    assert first_difference("ab", "ab") is None
    assert [p.first for p in pieces(golden, left, 1)] == [False, True, False, False]
    assert shown("a\r\nb\x1b") == "a\u21b5\nb\\x1b"
    assert shown("") == "\u2205"


class Bytes:
    """A tokenizer of single UTF-8 bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return bytes(ids).decode(errors="replace")


def test_pieces_join_to_the_answer() -> None:
    ids = list("na\u00efve \u4e2d".encode())
    found = token_pieces(Bytes())(ids)
    assert len(found) == len(ids)
    assert "".join(found).replace("\ufffd", "") == "na\u00efve \u4e2d"
    assert all(found)


def test_a_trial_view_of_an_empty_answer(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", PLAN, lambda t, r: replace(r, token_ids=[], text="") if t.cell == 0 else r)
    _, views = view_run(folder)
    found = [trial for trial in views.trials if trial.cell == 0]
    assert found
    assert isinstance(found[0], TrialView)
    assert (found[0].first_divergence, found[0].token_drift) == (0, 10)
    assert views.cells[0].survival == ((0, 1.0), (1, 0.0))
