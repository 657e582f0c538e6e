"""How many flips a graded answer is exposed to: until its golden answer ends, and until the token that decides it.

Answers ramble on after what they are asked for, so whole answers of two tasks may be alike where one is decided long
before the other. A token is sampled from the cache as it stands then: the k-th one from prompt + k - 1 entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvspec.plan.estimate import exposures
from kvspec.score.cells import Campaign, CellPlan


class Lengths:
    """Tokens of prompts and golden answers, `[requests]` each; 0 where not recorded."""

    def __init__(self, campaign: Campaign, requests: int) -> None:
        """Nothing is known yet."""
        self._max_tokens = campaign.max_tokens
        self.prompt: NDArray[np.int64] = np.zeros(requests, np.int64)
        self.written: NDArray[np.int64] = np.zeros(requests, np.int64)
        """Tokens that golden wrote to the cache, those of the prompt included."""
        self.decided: NDArray[np.int64] = np.zeros(requests, np.int64)
        """Tokens after which golden answers that are right stay right."""

    def flips(self, plan: CellPlan, requests: Sequence[int]) -> float | None:
        """Expected flips of a request that writes as many tokens as its golden answer, mean over those that have one.
        `None` without a golden answer or an estimate."""
        known = np.array(requests, np.int64)
        known = known[self.written[known] > 0]
        return self._flips(plan, known, self.written[known])

    def deciding_flips(self, plan: CellPlan, solved: Sequence[int]) -> float | None:
        """Expected flips of a request up to the token that decides its golden answer, mean over requests that golden
        solves. `None` if one of them, or the estimate, is not known."""
        known = np.array(solved, np.int64)
        if not self.decided[known].all():
            return None
        return self._flips(plan, known, self.prompt[known] + self.decided[known] - 1)

    def decided_after(self, solved: Sequence[int]) -> float | None:
        """Tokens after which golden answers are decided, mean over requests that golden solves; `None` if one of them
        is not known."""
        decided = self.decided[np.array(solved, np.int64)]
        return float(decided.mean()) if len(decided) and decided.all() else None

    def _flips(self, plan: CellPlan, requests: NDArray[np.int64], written: NDArray[np.int64]) -> float | None:
        """The plan's estimate is the mean over all prompts, each with as long an answer as is allowed: scaled to these
        prompts and answers."""
        if plan.expected_per_trial is None or not len(requests) or not self.prompt.all():
            return None
        whole = _exposed(plan, self.prompt, self.prompt + self._max_tokens - 1)
        exposed = _exposed(plan, self.prompt[requests], written)
        return plan.expected_per_trial * exposed / whole if whole else None


def _exposed(plan: CellPlan, prompt: NDArray[np.int64], written: NDArray[np.int64]) -> float:
    """Token positions that a request exposes to the faults of a cell, mean over requests."""
    lengths, times = np.unique(np.stack([prompt, written], 1), axis=0, return_counts=True)
    exposed = [exposures(str(plan.fault["site"]), plan.where, *row) for row in lengths.tolist()]
    return float(np.average(exposed, weights=times))
