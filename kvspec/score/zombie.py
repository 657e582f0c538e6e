"""The zombie state: a model under faults that recalls what it did and does not reason any more."""

from __future__ import annotations

from dataclasses import dataclass

from kvspec.score.tasks import TaskScores
from kvspec.stats.intervals import Proportion

ZOMBIE_RETRIEVAL, ZOMBIE_REASONING = 0.95, 0.5
"""A zombie recalls at least, and reasons at most, these shares of what it does clean."""
ZOMBIE_RULE = f"retrieval >= {ZOMBIE_RETRIEVAL:.0%} and reasoning <= {ZOMBIE_REASONING:.0%} of clean"


@dataclass(frozen=True, slots=True)
class ZombieState:
    """What a retrieval and a reasoning task keep under one cell: a zombie recalls and does not reason."""

    cell: int
    context: int
    retrieval: str
    reasoning: str
    recalled: Proportion
    """Retrieval right, of the trials of items that the clean model solves."""
    reasoned: Proportion
    """The same of reasoning."""
    flips: tuple[float | None, float | None] = (None, None)
    """Expected flips per request of the two tasks: faults that strike late spare an answer that has ended by then."""

    @property
    def distance(self) -> float:
        """How far the shares are from the state; 0 or less: in it."""
        return max(ZOMBIE_RETRIEVAL - (self.recalled.rate or 0.0), (self.reasoned.rate or 0.0) - ZOMBIE_REASONING)

    @property
    def shown(self) -> bool:
        """Whether both 95 % intervals lie in the state."""
        low, high = self.recalled.low, self.reasoned.high
        return low is not None and high is not None and low >= ZOMBIE_RETRIEVAL and high <= ZOMBIE_REASONING

    @property
    def order(self) -> tuple[bool, float]:
        """The state that is shown first, then the closest one."""
        return not self.shown, self.distance

    def __str__(self) -> str:
        def share(found: Proportion) -> str:
            return f"{found.rate or 0:.0%} [{found.low or 0:.0%}, {found.high or 0:.0%}]"

        doses = [f" at {flips:.2g} expected flips" if flips is not None else "" for flips in self.flips]
        return (
            f"{self.retrieval} {share(self.recalled)}{doses[0]} and {self.reasoning} {share(self.reasoned)}{doses[1]}"
        )


def zombie_states(tasks: TaskScores) -> list[ZombieState]:
    """Every retrieval task against every reasoning task under every cell; where some recall just the operands of the
    reasoning, only those, for recalling one of two operands is not enough. Shares are of the items solved clean."""
    same = any(pair.same_operands for pair in tasks.pairs)
    found = {(found.cell, found.context, found.task): found for found in tasks.faulted}
    return [
        ZombieState(
            cell=pair.cell,
            context=pair.context,
            retrieval=pair.retrieval,
            reasoning=pair.reasoning,
            recalled=found[pair.cell, pair.context, pair.retrieval].kept,
            reasoned=found[pair.cell, pair.context, pair.reasoning].kept,
            flips=(
                found[pair.cell, pair.context, pair.retrieval].expected_flips,
                found[pair.cell, pair.context, pair.reasoning].expected_flips,
            ),
        )
        for pair in tasks.pairs
        if pair.pairs and (pair.same_operands or not same)
    ]
