"""Picks the mismatches worth showing: the subtlest and the worst."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvspec.score.cells import Campaign
from kvspec.score.golden import Golden
from kvspec.score.model import Sample
from kvspec.score.outcome import OUTCOMES
from kvspec.score.trials import TrialScores

Role = Literal["fewest flips", "largest drift"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    rank: tuple[int, int]
    trial_id: str
    cell: int
    request: int
    text: str
    outcome: str
    flips: int
    first_divergence: int


class Samples:
    """Keeps the best candidate per role while batches stream by; ties go to the first in the run."""

    def __init__(self) -> None:
        """Start with no candidate."""
        self._best: dict[Role, _Candidate] = {}

    def add(self, batch: TrialScores, mismatch: NDArray[np.bool_]) -> None:
        """Look at the mismatches of a batch; `mismatch` is `[N]`."""
        rows = np.flatnonzero(mismatch)
        if not rows.size:
            return
        flips, drift = batch.landed[rows].astype(np.int64), batch.drift["token_drift"][rows]
        # A mismatch without a flip is no example of a fault, but it ranks last rather than being hidden.
        few = np.where(flips > 0, flips, np.iinfo(np.int64).max)
        self._offer("fewest flips", batch, rows, few, -drift)
        self._offer("largest drift", batch, rows, -drift, flips)

    def _offer(
        self,
        role: Role,
        batch: TrialScores,
        rows: NDArray[np.int64],
        first: NDArray[np.int64],
        second: NDArray[np.int64],
    ) -> None:
        at = int(np.lexsort((second, first))[0])
        rank, row = (int(first[at]), int(second[at])), int(rows[at])
        if role in self._best and self._best[role].rank <= rank:
            return
        self._best[role] = _Candidate(
            rank=rank,
            trial_id=batch.batch.column("trial_id")[row].as_py(),
            cell=int(batch.cell[row]),
            request=int(batch.request[row]),
            text=batch.batch.column("text")[row].as_py(),
            outcome=OUTCOMES[batch.outcome[row]],
            flips=int(batch.landed[row]),
            first_divergence=int(batch.drift["first_divergence"][row]),
        )

    def finish(self, campaign: Campaign, golden: Golden) -> tuple[Sample, ...]:
        """The chosen samples, each trial once."""
        found: dict[str, Sample] = {}
        for role, best in self._best.items():
            answer = golden.texts[golden.index[best.request]]
            found.setdefault(
                best.trial_id,
                Sample(
                    role=role,
                    trial_id=best.trial_id,
                    cell=best.cell,
                    prompt=campaign.prompts[best.request],
                    golden=answer,
                    faulted=best.text,
                    outcome=best.outcome,
                    flips=best.flips,
                    first_divergence=best.first_divergence if best.first_divergence >= 0 else None,
                    first_char=_common_prefix(answer, best.text),
                ),
            )
        return tuple(found.values())


def _common_prefix(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
