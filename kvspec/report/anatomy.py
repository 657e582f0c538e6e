"""What a single flip does by its place, as rows of words."""

from __future__ import annotations

from collections.abc import Iterator

from kvspec.report import words
from kvspec.score import Scores
from kvspec.score.anatomy import SiteMap

TESTS = ("Does it matter", "At equal", "Test", "Difference", "p (Holm)")
PRINTED = ("bit", "layer", "position")
"""Maps of two columns; the others are drawn."""


def map_tables(scores: Scores) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Head and rows of every map that fits on paper, and of the tests; nothing without an anatomy."""
    if scores.anatomy is None:
        return
    for found in scores.anatomy.maps:
        if found.name in PRINTED:
            yield _table(found)
    yield TESTS, list(test_rows(scores))


def _table(found: SiteMap) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = list(dict.fromkeys(square.column for square in found.squares))
    columns.sort(key=("K", "V", "prompt", "generated").index)
    shares = {(square.row, square.column): square.visible for square in found.squares}
    rows = []
    for row in dict.fromkeys(square.row for square in found.squares):
        cells = [row]
        for column in columns:
            share = shares.get((row, column))
            cells += (
                [words.DASH] * 3 if share is None else [words.percent(share), words.interval(share), f"{share.n:,}"]
            )
        rows.append(tuple(cells))
    head = [found.rows]
    for column in columns:
        head += [f"{column}: shows", "95 % interval", "n"]
    return tuple(head), rows


def test_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """One row per test. Columns as `TESTS`."""
    for test in scores.anatomy.tests if scores.anatomy is not None else ():
        difference = test.difference
        size = "" if difference is None else f"{difference.value:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]"
        value = "" if test.value is None else f" = {test.value:.1f}"
        name, _, freedom = test.statistic.partition(", ")
        of = f" ({freedom})" if freedom else ""
        yield test.name, test.strata, f"{name}{value}{of}", size, words.p_value(test.p_holm).removeprefix("p = ")
