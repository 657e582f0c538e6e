"""Crossings of made-up counts and the windows between them: what is found, what is not, and what is left open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvspec.models import Geometry
from kvspec.score.tasks import Ends
from kvspec.score.zombie import ZombieState
from kvspec.search.model import Point, Series
from kvspec.search.window import BEYOND, Window
from kvspec.spec.model import Fault, Rate
from kvspec.stats.crossing import crossing, isotonic

RATES = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4]


def counts(*right: int, n: int = 100) -> list[tuple[float, int, int]]:
    return [(rate, k, n) for rate, k in zip(RATES, right, strict=False)]


def measured(
    recall: list[tuple[int, int, int, int]], reason: list[tuple[int, int, int, int]], silent: bool = False
) -> list[tuple[float, ZombieState]]:
    """Ends as (right, right but detected, wrong silently, wrong and detected)."""
    states = [
        ZombieState(at, 100, "recall", "sum", (Ends(*a), Ends(*b)), silent=silent)
        for at, (a, b) in enumerate(zip(recall, reason, strict=True))
    ]
    return list(zip(RATES, states, strict=False))


def window(recall: list[int], reason: list[int]) -> Window:
    """By answers, of 100 trials each."""
    return Window.of(measured([(k, 0, 100 - k, 0) for k in recall], [(k, 0, 100 - k, 0) for k in reason]))


# crossings


def test_a_crossing_lies_between_the_rates_that_it_parts() -> None:
    found = crossing(counts(99, 98, 20, 1), 0.5)
    assert (found.before, found.after) == (1e-7, 1e-6)
    assert found.value == pytest.approx(1e-7 * 10 ** ((0.98 - 0.5) / (0.98 - 0.2)))  # straight in log rate
    assert (found.low, found.high) == (1e-7, 1e-6)


def test_a_share_near_the_level_widens_the_interval() -> None:
    near = crossing(counts(99, 55, 45, 1), 0.5)
    assert (near.before, near.after) == (1e-7, 1e-6)
    assert (near.low, near.high) == (1e-8, 1e-5)  # 55 of 100 may be below, 45 of 100 above
    many = crossing([(rate, k * 100, n * 100) for rate, k, n in counts(99, 55, 45, 1)], 0.5)
    assert (many.low, many.high) == (1e-7, 1e-6)


@pytest.mark.parametrize(
    ("right", "value", "low", "high"),
    [
        ((0, 0, 0), "below", None, 1e-8),  # all lost
        ((100, 100, 100), "above", 1e-6, None),  # never lost
        ((45, 0, 0), "below", None, 1e-7),  # lost by the share, perhaps not
        ((100, 100, 55), "above", 1e-7, None),
        ((0,), "below", None, 1e-8),  # one rate
        ((100,), "above", 1e-8, None),
        ((52,), "above", None, None),  # nothing is known
    ],
)
def test_crossings_outside_of_the_rates(
    right: tuple[int, ...], value: str, low: float | None, high: float | None
) -> None:
    found = crossing(counts(*right), 0.5)
    assert found.value is None
    assert (found.before, found.never) == ((None, False) if value == "below" else (RATES[len(right) - 1], True))
    assert (found.low, found.high) == (low, high)


def test_a_share_at_the_level_holds_it_or_not() -> None:
    assert crossing(counts(95, 0), 0.95).before == 1e-8
    assert crossing(counts(100, 50, 0), 0.5, holds_at=False).after == 1e-7


def test_rates_out_of_order_are_pooled() -> None:
    """Chance makes a share rise: the two are one level, and the crossing does not jump to the first that is below."""
    assert isotonic(counts(100, 90, 98, 10)) == pytest.approx([1.0, 0.94, 0.94, 0.1])
    assert isotonic(counts(10, 50, 90)) == pytest.approx([0.5] * 3)
    found = crossing(counts(100, 45, 60, 10), 0.5)
    assert (found.before, found.after) == (1e-6, 1e-5)  # 105 of 200 hold
    assert found.low == 1e-8  # but the dip may be the truth


@pytest.mark.parametrize(
    "bad", [[], [(0.0, 1, 2)], [(1.0, 1, 2), (1.0, 1, 2)], [(2.0, 1, 2), (1.0, 1, 2)], [(1.0, 0, 0)]]
)
def test_what_is_no_count_is_refused(bad: list[tuple[float, int, int]]) -> None:
    with pytest.raises(ValueError, match="are not counts"):
        crossing(bad, 0.5)


# windows


def test_a_window_lies_between_both_crossings() -> None:
    found = window([100, 100, 100, 10], [100, 2, 1, 0])
    assert found.decision == "window"
    assert found.halved.value is not None
    assert 1e-8 < found.halved.value < 1e-7
    assert found.kept.value is not None
    assert 1e-6 < found.kept.value < 1e-5
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(found.kept.value / found.halved.value)
    assert (found.ratio.low, found.ratio.high) == (pytest.approx(1e-6 / 1e-7), pytest.approx(1e-5 / 1e-8))
    assert "sum falls to half at 3.24e-08 [1e-08, 1e-07]; recall is kept up to 1.14e-06 [1e-06, 1e-05]" in found.words
    assert found.words.endswith(": window, ratio 35.1 [10, 1e+03]")


def test_no_window_where_retrieval_is_lost_first() -> None:
    found = window([100, 10, 1, 0], [100, 100, 100, 2])
    assert found.decision == "none"
    assert found.ratio is not None
    assert found.ratio.high is not None
    assert found.ratio.high <= 0.1
    assert found.width < 1
    assert ": no window, ratio 0." in found.words


def test_crossings_in_one_gap_decide_nothing_until_it_is_parted() -> None:
    found = window([100, 50], [100, 10])
    assert found.decision == "undecided"
    assert "undecided, none by the shares" in found.words
    rates = found.next_rates()
    assert rates == [pytest.approx(3.162e-8)] * 2  # the same rate places both


def test_retrieval_that_is_never_lost_leaves_the_window_open_above() -> None:
    found = window([100, 100, 100], [100, 1, 0])
    assert found.decision == "window"
    assert found.ratio is not None
    assert found.ratio.value is None
    assert found.words.endswith("recall is kept up to > 1e-06: window, ratio > 10")
    assert found.next_rates() == [pytest.approx(3.162e-8)]  # only the fall of reasoning is worth more


def test_reasoning_that_never_falls_leaves_no_window() -> None:
    found = window([100, 100, 10], [100, 100, 99])
    assert (found.decision, found.ratio, found.width) == ("none", None, 0.0)
    assert found.words.startswith("sum falls to half at > 1e-06; ")


def test_what_is_lost_at_all_rates_is_looked_for_below_them() -> None:
    found = window([10, 2], [5, 1])
    assert found.decision == "undecided"
    assert found.next_rates() == [pytest.approx(1e-8 / BEYOND)] * 2
    assert found.words.startswith("sum falls to half at < 1e-08; recall is kept up to < 1e-08: undecided")


def test_what_is_never_lost_is_looked_for_above() -> None:
    found = window([100, 100], [100, 100])
    assert found.next_rates() == [pytest.approx(1e-7 * BEYOND)]
    assert found.decision == "undecided"


def test_one_rate_is_enough_for_a_state_but_not_for_a_window() -> None:
    found = window([100], [0])
    assert found.decision == "window"  # it holds at that rate
    assert found.ratio is None
    assert found.next_rates() == [pytest.approx(1e-9)]


# what is detected


def test_detected_trials_count_against_a_silent_zombie_on_both_sides() -> None:
    """Three quarters of the trials are detected: by the answers a zombie, silent nothing of the kind."""
    recall, reason = [(47, 153, 0, 0)], [(0, 0, 57, 111)]
    answers = measured(recall, reason)[0][1]
    silent = measured(recall, reason, silent=True)[0][1]
    assert (answers.recalled.k, answers.recalled.n, answers.reasoned.k, answers.reasoned.n) == (200, 200, 0, 168)
    assert answers.shown
    assert (silent.recalled.k, silent.recalled.n) == (47, 200)
    assert (silent.reasoned.k, silent.reasoned.n) == (111, 168)
    assert not silent.shown
    assert silent.distance == pytest.approx(0.95 - 47 / 200)
    assert str(silent) == ("recall right and undetected 24% [18%, 30%] and sum wrong and undetected 34% [27%, 41%]")
    assert answers.split.startswith(
        "recall: right 47, right but detected 153, wrong silently 0, wrong and detected 0, of"
    )


def test_a_silent_state_is_one_by_the_answers_too() -> None:
    for silent in (False, True):
        state = measured([(199, 1, 0, 0)], [(10, 0, 150, 8)], silent)[0][1]
        assert state.shown
        assert state.name.startswith("silent zombie state (" if silent else "zombie state (")


def test_a_silent_window_ends_where_failures_are_detected() -> None:
    """Silent failures of reasoning become more, then most of them are detected; retrieval ends before the faults."""
    reason = [(100, 0, 0, 0), (10, 0, 90, 0), (0, 0, 85, 15), (0, 0, 10, 90), (0, 0, 0, 100)]
    found = Window.of(measured([(100, 0, 0, 0)] * 5, reason, silent=True))
    assert found.peak == 1
    assert found.halved.value is not None
    assert 1e-8 < found.halved.value < 1e-7
    assert found.detected is not None
    assert (found.detected.before, found.detected.after) == (1e-6, 1e-5)
    assert found.end == found.detected
    assert found.decision == "window"
    assert (
        "half of sum wrong and undetected at 3.59e-08 [1e-08, 1e-07] and up to 2.93e-06 [1e-06, 1e-05]" in found.words
    )
    by_answers = Window.of(measured([(100, 0, 0, 0)] * 5, reason))
    assert by_answers.end.never


def test_a_silent_window_ends_where_retrieval_is_detected_though_it_is_right() -> None:
    recall = [(100, 0, 0, 0), (100, 0, 0, 0), (20, 80, 0, 0)]
    reason = [(100, 0, 0, 0), (5, 0, 95, 0), (0, 0, 60, 40)]
    silent, answers = (Window.of(measured(recall, reason, silent=s)) for s in (True, False))
    assert (silent.end.before, silent.end.after) == (1e-7, 1e-6)
    assert silent.decision == "window"
    assert answers.kept.never


def test_failures_that_are_all_detected_leave_no_silent_window() -> None:
    recall = [(100, 0, 0, 0), (40, 60, 0, 0), (0, 100, 0, 0)]
    reason = [(100, 0, 0, 0), (60, 0, 4, 36), (0, 0, 0, 100)]
    found = Window.of(measured(recall, reason, silent=True))
    assert (found.decision, found.peak) == ("none", 1)  # at most 40 % fail up to where retrieval may be kept
    assert found.words.startswith("half of sum wrong and undetected at no rate measured (4% at most); ")


def test_silent_failures_may_be_half_between_two_rates() -> None:
    recall = [(100, 0, 0, 0), (40, 60, 0, 0), (0, 100, 0, 0)]
    reason = [(100, 0, 0, 0), (1, 0, 4, 95), (0, 0, 0, 100)]
    found = Window.of(measured(recall, reason, silent=True))
    assert (found.decision, found.peak) == ("undecided", 1)
    assert found.next_rates() == [pytest.approx(3.162e-8)]  # beside the peak, where retrieval may be kept
    assert Window.of(measured(recall, reason)).decision == "window"


def test_a_window_as_json_says_all_of_it() -> None:
    data: dict[str, Any] = window([100, 100, 100, 10], [100, 2, 1, 0]).to_json()
    assert data["decision"] == "window"
    assert data["definition"] == "answers"
    assert data["reasoning_halved_at"]["low"] == 1e-8
    assert data["retrieval_kept_up_to"]["high"] == 1e-5
    assert data["failures_silent_up_to"] is None
    assert data["ratio"]["low"] == pytest.approx(10)


# what is tried next


@pytest.mark.parametrize(
    ("fault", "rate", "tried"),
    [
        (page := Fault("F", 0, "KV_WRITE", "page_local", Rate("per_bit", 0), page_density=1e-3), 5e-5, [5e-4]),
        (page, 5e-4, [1e-3]),  # the highest that its density leaves
        (page, 1e-3, []),
        (page, 0.95e-3, []),  # too close to it for one more
        (replace(page, rate=Rate("per_page", 0)), 5e-4, [5e-3]),
        (replace(page, rate=Rate("per_page", 0)), 0.5, [1.0]),
        (random := Fault("F", 0, "KV_WRITE", "random", Rate("per_bit", 0)), 5e-4, [5e-3]),
        (random, 0.3, [1.0]),
        (random, 1.0, []),
        (replace(random, rate=Rate("per_token", 0)), 0.5, [5.0]),
        (replace(random, rate=Rate("per_token", 0)), 5.0, [24.0]),  # 2 * 12 rows a token
        (replace(random, rate=Rate("fit", 0, 1.0)), 1e9, [1e10]),
    ],
)
def test_no_rate_is_tried_above_the_highest_and_the_highest_is(fault: Fault, rate: float, tried: list[float]) -> None:
    kept = (Ends(100, 0, 0, 0), Ends(100, 0, 0, 0))  # nothing is lost: the next rate is above
    series = Series(fault)
    states = tuple(ZombieState(0, 100, "recall", "sum", kept, silent=silent) for silent in (False, True))
    series.add(Point("F", replace(fault, rate=replace(fault.rate, value=rate)), states))
    assert [found.rate.value for found in series.next_faults("bf16", Geometry(12, 12, 64))] == pytest.approx(tried)
