"""What the tests that a spec declares answer in a sentence, from scores made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from kvspec.score import Proportion
from kvspec.score.anatomy import SiteMap, Square
from kvspec.score.model import PairTest
from kvspec.score.pooled import PooledPair
from kvspec.score.tasks import TaskPair
from kvspec.stats.intervals import Difference
from tools.answers import TESTS, Answer, Measured

OVER_ALL = "Over all cells, wrong answers less those of both: sum +29.0% [+20.0%, +38.0%]."


@pytest.mark.parametrize(
    ("apart", "text"),
    [
        ("", "It cannot be told which breaks first."),
        ("ab", "Reasoning breaks first wherever the two can be told apart."),
        (
            "b",
            (
                "Reasoning breaks first wherever the two can be told apart, "
                "which is under B (faults of generated tokens); under A (faults of prompt tokens) they cannot."
            ),
        ),
    ],
)
def test_what_breaks_first_is_told_by_kind_of_fault(apart: str, text: str) -> None:
    assert what_breaks_first(apart).text == text


@pytest.mark.parametrize(
    ("apart", "flips", "tokens", "said"),
    [
        ("ab", 1.09, 25, "At equal exposure up to the token that decides: reasoning in 2, retrieval in 0 of 2."),
        ("", 1.0, 25, "At equal exposure up to the token that decides: reasoning in 0, retrieval in 0 of 2."),
        ("ab", 1.11, 25, "No comparison is at equal exposure up to the token that decides."),
        ("ab", 1.0, 40, "No comparison is at equal exposure up to the token that decides."),
    ],
)
def test_what_breaks_first_at_equal_exposure_is_told_apart(apart: str, flips: float, tokens: float, said: str) -> None:
    assert what_breaks_first(apart, (1.0, flips), (24, tokens)).text.endswith(f". {said}")


@pytest.mark.parametrize(
    ("apart", "tokens", "text"),
    [
        (
            "ab",
            25,
            f"At equal exposure reasoning breaks first wherever the two can be told apart. {OVER_ALL}",
        ),
        (
            "",
            25,
            f"At equal exposure no single comparison tells them apart. {OVER_ALL}",
        ),
        ("ab", 40, "Not answered: no comparison is at equal exposure."),
    ],
)
def test_a_spec_can_ask_for_equal_exposure(apart: str, tokens: float, text: str) -> None:
    assert what_breaks_first(apart, (1.0, 1.0), (24, tokens), exposure="equal").text == text


def what_breaks_first(
    apart: str,
    flips: Sequence[float | None] = (None, None),
    tokens: Sequence[float | None] = (None, None),
    **declared: str,
) -> Answer:
    """`both` against `sum` under two kinds of faults, at these doses and tokens up to the one that decides."""

    def cell(index: int, name: str, tokens: str) -> SimpleNamespace:
        fault = {"rate": {"value": 1e-7}, "where": {"tokens": tokens}}
        return SimpleNamespace(plan=SimpleNamespace(index=index, name=f"{name}[1e-07]", fault=fault))

    pairs = [
        TaskPair(at, 100, "both", "sum", True, 100, 1, 30, 0, None, 1e-6, 1e-5 if name in apart else 1.0)
        for at, name in enumerate("ab")
    ]
    sides = list(zip(("both", "sum"), flips, tokens, strict=True))
    faulted = [
        SimpleNamespace(cell=at, context=100, task=task, expected_flips=1.0, deciding_flips=dose)
        for at in (0, 1)
        for task, dose, _ in sides
    ]
    clean = [SimpleNamespace(context=100, task=task, decided_after=count) for task, _, count in sides]
    pooled = (PooledPair(100, "both", "sum", 200, 100, (2, 60), (0, 9), Difference(0.29, 0.2, 0.38)),)
    tasks = SimpleNamespace(pairs=pairs, faulted=faulted, clean=clean, pooled=pooled)
    scores = SimpleNamespace(tasks=tasks, cells=[cell(0, "A", "prompt"), cell(1, "B", "decode")])
    return TESTS["what breaks first"](cast("Measured", SimpleNamespace(scores=scores)), declared)


@pytest.mark.parametrize(
    ("k", "tests", "text", "figure"),
    [
        (
            {"14V": 90, "14K": 60, "13K": 30, "13V": 30, "0K": 20, "0V": 29},
            {14: (-0.2, 0.01), 13: (0.1, 0.001), 0: (0.1, 0.04)},
            (
                "Bits differ: bit 14 in V shows most, above every other; "
                "K is more fragile than V at bits 13 and 0 and V is more fragile than K at bit 14."
            ),
            (
                "4 of 6 pairs of bits of a plane are told apart; K and V differ at 3 of 3 bits, most "
                "Bit14[V] against Bit14[K] -20.0% [-21.0%, -19.0%] right (p = 0.01), n = 99 pairs"
            ),
        ),
        (
            {"14V": 90, "14K": 85, "0K": 20, "0V": 20},  # the two highest are not told apart
            {14: (-0.2, 0.06), 0: (0.0, 1.0)},
            "Bits differ: bit 14 in V shows most; K and V are not told apart at any of them.",
            "2 of 2 pairs of bits of a plane are told apart; K and V differ at 0 of 2 bits",
        ),
        (
            {"14V": 50, "14K": 50, "0K": 45, "0V": 45},
            {},  # no cells that share their draws
            "No difference between bits is shown; K and V are not told apart at any of them.",
            (
                "bit 14 in K shown by 50.0% [40.4%, 59.6%], n = 100 single flips; "
                "0 of 2 pairs of bits of a plane are told apart; K and V differ at 0 of 0 bits"
            ),
        ),
    ],
)
def test_bits_are_told_apart_by_the_rule_of_their_spec(
    k: dict[str, int], tests: dict[int, tuple[float, float]], text: str, figure: str
) -> None:
    """Bits by intervals that do not overlap; K against V by McNemar's test at each bit."""
    squares = tuple(Square(at[:-1], at[-1], Proportion.of(seen, 100)) for at, seen in sorted(k.items()))
    cells, pairs = [], []
    for bit, (value, p) in tests.items():
        for plane in "KV":
            fault = {"bits": [bit], "where": {"cache": [plane]}}
            cells.append(SimpleNamespace(plan=SimpleNamespace(name=f"Bit{bit}[{plane}]", fault=fault)))
        difference = Difference(value, value - 0.01, value + 0.01)
        pairs.append(PairTest(len(cells) - 2, len(cells) - 1, 99, 0, 0, difference, None, p, p))
    layers = PairTest(
        0, 0, 99, 0, 0, Difference(0.9, 0.8, 1.0), None, 1e-9, 1e-9
    )  # of the same plane: another question
    anatomy = SimpleNamespace(maps=[SiteMap("bit", "Bit", "K or V", squares)])
    scores = SimpleNamespace(anatomy=anatomy, pairs=[*pairs, *([layers] if pairs else [])], cells=cells)
    found = TESTS["bits"](cast("Measured", SimpleNamespace(scores=scores)), {})
    assert found.text == text
    assert found.figure.endswith(figure)
