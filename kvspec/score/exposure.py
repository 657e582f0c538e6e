"""Whether retrieval and reasoning were exposed alike, where one is said to fail more often.

A worked answer states its operands and then the result: at equal rates it is exposed for longer than the answer that
only states them, and would fail first even if computing were no harder than copying. What decides an answer is a token
of it, so exposure counts up to that token: the tokens sampled, each of which may go wrong, and the flips that strike
by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvspec.score.pooled import PooledPair
from kvspec.score.tasks import TaskPair, TaskScores

ALIKE = 1.1
"""Exposures are alike up to this ratio. If losses went with the exposure alone, a tenth more of it would turn a share
q of right answers into q^1.1, at most 3.5 points less: the hundreds of pairs of one comparison do not tell that apart,
all cells together may (`kvspec.score.pooled`). Less would leave out what differs by one token in 25, for reads of
generated tokens grow with the square of the length."""

Sides = tuple[float, float]
"""A figure of retrieval, and that of reasoning."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """What both sides of a pair are exposed to. `None` where that is not known."""

    whole: Sides | None
    """Expected flips per request, over whole golden answers."""
    flips: Sides | None
    """The same up to the tokens that decide them."""
    tokens: Sides | None
    """Tokens up to these, themselves included."""

    @property
    def equal(self) -> bool:
        """Whether both sides are known to be exposed alike."""
        return self.flips is not None and self.tokens is not None and _alike(self.flips) and _alike(self.tokens)


def exposures_of(tasks: TaskScores) -> list[tuple[TaskPair, Exposure]]:
    """Every pair, with what its sides are exposed to."""
    flips = {(f.cell, f.context, f.task): (f.expected_flips, f.deciding_flips) for f in tasks.faulted}
    tokens = {(clean.context, clean.task): clean.decided_after for clean in tasks.clean}
    found = []
    for pair in tasks.pairs:
        sides = pair.retrieval, pair.reasoning
        whole, deciding = zip(*(flips[pair.cell, pair.context, task] for task in sides), strict=True)
        decided = [tokens[pair.context, task] for task in sides]
        found.append((pair, Exposure(_both(*whole), _both(*deciding), _both(*decided))))
    return found


def doses(exposures: Sequence[Exposure]) -> tuple[list[Sides | None], bool]:
    """Expected flips of each, and whether they count up to the tokens that decide: one rule for all that are told
    together, since whole answers and parts of them are no figures to compare."""
    decided = all(exposure.flips for exposure in exposures)
    return [exposure.flips if decided else exposure.whole for exposure in exposures], decided


def tasks_alike(tasks: TaskScores) -> set[tuple[int, str, str]]:
    """Context, retrieval and reasoning task of those that are exposed alike under every cell."""
    found: dict[tuple[int, str, str], list[bool]] = {}
    for pair, exposure in exposures_of(tasks):
        found.setdefault((pair.context, pair.retrieval, pair.reasoning), []).append(exposure.equal)
    return {names for names, equal in found.items() if all(equal)}


def pooled_alike(tasks: TaskScores) -> tuple[list[PooledPair], list[PooledPair]]:
    """Tasks over all cells: those that are exposed alike, and the others."""
    alike = tasks_alike(tasks)
    equal, others = (
        [one for one in tasks.pooled if ((one.context, one.first, one.second) in alike) == wanted]
        for wanted in (True, False)
    )
    return equal, others


def _both(retrieval: float | None, reasoning: float | None) -> Sides | None:
    return None if retrieval is None or reasoning is None else (retrieval, reasoning)


def _alike(sides: Sides) -> bool:
    return max(sides) <= ALIKE * min(sides)
