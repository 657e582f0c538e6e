"""Delta debugging: the smallest part of a set that still passes a test (Zeller and Hildebrandt, TSE 2002), in batches.

Pure: knows neither flips nor engines. The test takes many candidates at once, because an engine runs a hundred
requests in little more time than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
"""Indices of the members of a candidate, ascending."""
Test = Callable[[Sequence[Rows]], Sequence[bool]]
"""Whether each candidate passes. Called with at most `at_once` candidates that it has not seen."""


@dataclass(frozen=True)
class Step:
    """What is known after a round."""

    rows: Rows
    """The smallest set found so far that passes."""
    parts: int
    """Into how many parts it is cut next; 0 when it is done: no single member can be left out (1-minimal)."""


def ddmin(size: int, test: Test, *, at_once: int = 64) -> Iterator[Step]:
    """Shrink `0 .. size - 1`, which must pass. Yields after every round; the last step is 1-minimal.

    As in the paper, parts are tried alone, then left out one by one, then cut finer. Where several can be left out
    one by one, as many of them as still pass are left out together, so that large sets shrink in few rounds.
    """
    tried = _Tried(test, at_once)
    rows = np.arange(size, dtype=np.intp)
    parts = min(2, size)
    while len(rows) > 1:
        yield Step(rows, parts)
        cuts = np.array_split(rows, parts)
        rest = [np.concatenate([c for j, c in enumerate(cuts) if j != i]) for i in range(parts)]
        if (alone := tried.first(cuts)) is not None:
            rows, parts = cuts[alone], 2
        elif removable := tried.all(rest):
            left_out = _most(cuts, removable, tried)
            rows = np.concatenate([c for j, c in enumerate(cuts) if j not in left_out])
            parts = max(2, parts - len(left_out))
        elif parts < len(rows):
            parts = 2 * parts
        else:
            break
        parts = min(parts, len(rows))
    yield Step(rows, 0)


def _most(cuts: Sequence[Rows], removable: list[int], tried: _Tried) -> set[int]:
    """The longest of the first n, n/2, n/4, ... removable parts that can be left out together; one always can."""
    sizes = []
    n = len(removable)
    while n > 1:
        sizes.append(n)
        n //= 2
    candidates = [_without(cuts, set(removable[:n])) for n in sizes if n < len(cuts)]
    sizes = [n for n in sizes if n < len(cuts)]
    best = tried.first(candidates)
    return set(removable[: 1 if best is None else sizes[best]])


def _without(cuts: Sequence[Rows], left_out: set[int]) -> Rows:
    return np.concatenate([c for j, c in enumerate(cuts) if j not in left_out])


class _Tried:
    """A test that never runs a candidate twice."""

    def __init__(self, test: Test, at_once: int) -> None:
        self._test, self._at_once = test, at_once
        self._known: dict[bytes, bool] = {}

    def first(self, candidates: Sequence[Rows]) -> int | None:
        """The first candidate that passes."""
        for index, passed in enumerate(self._each(candidates)):
            if passed:
                return index
        return None

    def all(self, candidates: Sequence[Rows]) -> list[int]:
        """Every candidate that passes."""
        return [index for index, passed in enumerate(self._each(candidates)) if passed]

    def _each(self, candidates: Sequence[Rows]) -> Iterator[bool]:
        for start in range(0, len(candidates), self._at_once):
            batch = candidates[start : start + self._at_once]
            new = [rows for rows in batch if rows.tobytes() not in self._known]
            if new:
                for rows, passed in zip(new, self._test(new), strict=True):
                    self._known[rows.tobytes()] = passed
            yield from (self._known[rows.tobytes()] for rows in batch)
