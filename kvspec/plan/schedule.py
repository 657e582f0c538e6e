"""Which trials of a plan are due: all of them, or, where the spec asks for looks, those that no look has made needless.

A look at a cell takes the trials 0 .. r - 1 of every prompt, for a round number r that the plan fixes, and is made when
all of them have ended. What it decides depends on the identities of trials alone: not on speed, batch order, or where
a run was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvspec.plan.model import NO_CELL, Plan, Trial


class Schedule:
    """Hands out the trials of a plan and hears how they ended."""

    def __init__(self, plan: Plan, order: Sequence[Trial]) -> None:
        """Start with `order`, all trials of the plan in the order in which they are to run."""
        self._requests = plan.requests
        self._looks = plan.spec.trials.looks
        self._rounds = self._looks.rounds if self._looks else (plan.spec.trials.per_prompt,)
        self._total = len(plan)
        self._open = [0] * len(plan.cells)
        """Per cell: index of the next look."""
        self._ended = [[0, 0, 0] for _ in plan.cells]
        """Per cell: trials ended, scored and equal to golden, over all rounds up to the next look."""
        self._ready: deque[int] = deque()
        self._waiting: list[list[int]] = [[] for _ in plan.cells]
        self._order = order
        for entry, trial in enumerate(order):
            if trial.cell == NO_CELL or trial.trial < self._rounds[0]:
                self._ready.append(entry)
            else:
                self._waiting[trial.cell].append(entry)

    @property
    def total(self) -> int:
        """Trials of the whole campaign, as far as the looks so far have decided: at most those of the plan."""
        return self._total

    def next(self, room: int) -> list[int]:
        """Up to `room` indices into the order, of trials that are due now."""
        return [self._ready.popleft() for _ in range(min(max(0, room), len(self._ready)))]

    def end(self, trial: Trial, matched: bool | None) -> None:
        """A trial ended: equal to golden or not, `None` if it cannot be scored. Every trial is told once."""
        if self._looks is None or trial.kind != "fault":
            return
        counts = self._ended[trial.cell]
        counts[0] += 1
        counts[1] += matched is not None
        counts[2] += matched is True
        self._look(trial.cell)

    def _look(self, cell: int) -> None:
        assert self._looks is not None
        look = self._open[cell]
        rounds, (ended, n, k) = self._rounds[look], self._ended[cell]
        if ended < rounds * self._requests:
            return
        last = look + 1 == len(self._rounds)
        if last or self._looks.narrow(k, n):
            self._waiting[cell] = []
            self._total -= (self._rounds[-1] - rounds) * self._requests
            return
        self._open[cell] = look + 1
        upto = self._rounds[look + 1]
        self._ready.extend(e for e in self._waiting[cell] if self._order[e].trial < upto)
        self._waiting[cell] = [e for e in self._waiting[cell] if self._order[e].trial >= upto]
