"""Delta debugging against brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvspec.replay.ddmin import Rows, Step, ddmin


def run(size: int, wanted: list[set[int]], at_once: int = 64) -> tuple[list[Step], list[int]]:
    """Shrink with the test: contains one of the wanted sets. All steps, and the sizes of the batches."""
    batches: list[int] = []
    seen: set[bytes] = set()

    def test(candidates: Sequence[Rows]) -> list[bool]:
        batches.append(len(candidates))
        for rows in candidates:
            assert np.all(np.diff(rows) > 0)
            assert rows.tobytes() not in seen, "run twice"
            seen.add(rows.tobytes())
        return [any(w <= set(rows.tolist()) for w in wanted) for rows in candidates]

    return list(ddmin(size, test, at_once=at_once)), batches


@settings(deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.sets(st.integers(0, n - 1), min_size=1, max_size=6), min_size=1, max_size=3),
            st.integers(1, 70),
        )
    )
)
def test_the_result_passes_and_is_1_minimal(case: tuple[int, list[set[int]], int]) -> None:
    size, wanted, at_once = case
    steps, batches = run(size, wanted, at_once)
    found = set(steps[-1].rows.tolist())
    assert any(w <= found for w in wanted)
    for left_out in found:
        assert len(found) == 1 or not any(w <= found - {left_out} for w in wanted)
    assert max(batches, default=0) <= at_once
    sizes = [len(step.rows) for step in steps]
    assert sizes == sorted(sizes, reverse=True)
    assert [step.parts == 0 for step in steps] == [False] * (len(steps) - 1) + [True]


def test_few_rounds_for_many_flips() -> None:
    steps, batches = run(100_000, [{7}])
    assert steps[-1].rows.tolist() == [7]
    assert len(batches) < 40
    steps, batches = run(100_000, [{7, 50_003, 99_999}])
    assert steps[-1].rows.tolist() == [7, 50_003, 99_999]
    assert sum(batches) < 2000


def test_a_test_that_is_not_monotone_ends_too() -> None:
    def test(candidates: Sequence[Rows]) -> list[bool]:
        return [len(rows) % 2 == 1 for rows in candidates]

    *_, last = ddmin(9, test)
    assert len(last.rows) == 1
