"""Failures of two tasks over all cells: counts by brute force, and a small difference that single cells do not show."""

from __future__ import annotations

import numpy as np
import pytest

from kvspec.score.pooled import pooled
from kvspec.stats.exact import mcnemar

SHAPE = (2, 6, 40, 3)
"""Sides, cells, items, trials."""


def test_counts_are_those_of_pairs_seen_in_both() -> None:
    draw = np.random.default_rng(1)
    seen, wrong, due = (draw.random(shape) < share for shape, share in ((SHAPE[1:], 0.9), (SHAPE, 0.4), (SHAPE, 0.5)))
    found = pooled(100, ("a", "b"), seen, wrong, due)
    places = [place for place in np.ndindex(SHAPE[1:]) if seen[place]]
    assert (found.context, found.first, found.second, found.pairs, found.items) == (100, "a", "b", len(places), 40)
    assert found.lost == tuple(sum(bool(wrong[(side, *place)]) for place in places) for side in (0, 1))
    both = [[bool(wrong[(side, *p)] and due[(side, *p)]) for p in places] for side in (0, 1)]
    assert found.detected == (sum(both[0]), sum(both[1]))
    assert found.difference is not None
    assert found.difference.value == pytest.approx((found.lost[1] - found.lost[0]) / len(places))
    assert found.difference.low < found.difference.value < found.difference.high


def test_all_cells_show_what_none_of_them_does() -> None:
    cells, items = 30, 150
    draw = np.random.default_rng(2)
    wrong = np.stack([draw.random((cells, items, 1)) < share for share in (0.40, 0.43)])
    seen, due = np.ones(wrong.shape[1:], bool), np.zeros(wrong.shape, bool)
    single = [mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(*wrong, strict=True)]
    assert min(single) * cells > 0.05
    found = pooled(0, ("a", "b"), seen, wrong, due)
    assert found.difference is not None
    assert 0 < found.difference.low < 0.03 < found.difference.high
    turned = pooled(0, ("b", "a"), seen, wrong[::-1], due)
    assert turned.difference is not None
    assert turned.difference.value == -found.difference.value
    assert turned.difference.high < 0


def test_items_are_the_clusters() -> None:
    """Fifty trials that are one item's answer again and again say no more of other items than one does."""
    draw = np.random.default_rng(3)
    once = draw.random((2, 1, 30, 1)) < np.array([0.3, 0.6])[:, None, None, None]
    widths = []
    for times in (1, 50):
        wrong = np.repeat(once, times, axis=3)
        found = pooled(0, ("a", "b"), np.ones(wrong.shape[1:], bool), wrong, np.zeros(wrong.shape, bool)).difference
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0])


def test_one_item_says_nothing_of_others() -> None:
    wrong = np.zeros((2, 3, 1, 4), bool)
    assert pooled(0, ("a", "b"), np.ones((3, 1, 4), bool), wrong, wrong).difference is None
