"""The zombie state: a model under faults that recalls what it did and does not reason any more.

Two definitions, decided apart. By its *answers* a zombie is whatever answers so. But a trial whose logits are not
finite is a detected error (due): one check of the logits would have stopped it. A *silent* zombie passes that check.
Detected trials count against it on both sides: a detected retrieval is not kept, however right its text, and a detected
reasoning is no silent failure. They stay in n, for what is left without them are the trials with the mildest flips.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvspec.score.tasks import Ends, TaskScores
from kvspec.stats.intervals import Proportion

ZOMBIE_RETRIEVAL, ZOMBIE_REASONING = 0.95, 0.5
"""A zombie recalls at least, and reasons at most, these shares of what it does clean."""
ZOMBIE_RULE = f"retrieval >= {ZOMBIE_RETRIEVAL:.0%} and reasoning <= {ZOMBIE_REASONING:.0%} of clean"
SILENT_RULE = (
    f"retrieval right and undetected >= {ZOMBIE_RETRIEVAL:.0%}, reasoning wrong and undetected >= "
    f"{1 - ZOMBIE_REASONING:.0%} of what is right clean"
)


@dataclass(frozen=True, slots=True)
class ZombieState:
    """What a retrieval and a reasoning task keep under one cell: a zombie recalls and does not reason."""

    cell: int
    context: int
    retrieval: str
    reasoning: str
    ends: tuple[Ends, Ends]
    """Of retrieval and of reasoning."""
    flips: tuple[float | None, float | None] = (None, None)
    """Expected flips per request of the two tasks: faults that strike late spare an answer that has ended by then."""
    silent: bool = False
    """Which of the two definitions."""

    @property
    def recalled(self) -> Proportion:
        """Retrieval right, and undetected if silent, of the trials of items that the clean model solves."""
        ends = self.ends[0]
        return Proportion.of(ends.right + (0 if self.silent else ends.right_due), ends.n)

    @property
    def reasoned(self) -> Proportion:
        """The same of reasoning right; if silent, of reasoning that is not wrong undetected."""
        ends = self.ends[1]
        return Proportion.of(ends.n - ends.wrong - (0 if self.silent else ends.wrong_due), ends.n)

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

    @property
    def name(self) -> str:
        """`zombie state (...)` or `silent zombie state (...)`, with the rule."""
        return f"silent zombie state ({SILENT_RULE})" if self.silent else f"zombie state ({ZOMBIE_RULE})"

    @property
    def split(self) -> str:
        """How the trials of both tasks ended, with what was detected told apart."""
        return f"{self.retrieval}: {self.ends[0]}; {self.reasoning}: {self.ends[1]}"

    def __str__(self) -> str:
        doses = [f" at {flips:.2g} expected flips" if flips is not None else "" for flips in self.flips]
        recall, reason = self.recalled, self.reasoned
        if not self.silent:
            return f"{self.retrieval} {_share(recall)}{doses[0]} and {self.reasoning} {_share(reason)}{doses[1]}"
        wrong = _share(Proportion.of(reason.n - reason.k, reason.n))
        return (
            f"{self.retrieval} right and undetected {_share(recall)}{doses[0]} and "
            f"{self.reasoning} wrong and undetected {wrong}{doses[1]}"
        )


def zombie_states(tasks: TaskScores, *, silent: bool = False) -> list[ZombieState]:
    """Every retrieval task against every reasoning task under every cell; where some recall just the operands of the
    reasoning, only those, for recalling one of two operands is not enough. Shares are of the items solved clean."""
    same = any(pair.same_operands for pair in tasks.pairs)
    found = {(found.cell, found.context, found.task): found for found in tasks.faulted}
    states = []
    for pair in tasks.pairs:
        if pair.pairs and (pair.same_operands or not same):
            recall, reason = (found[pair.cell, pair.context, task] for task in (pair.retrieval, pair.reasoning))
            states.append(
                ZombieState(
                    cell=pair.cell,
                    context=pair.context,
                    retrieval=pair.retrieval,
                    reasoning=pair.reasoning,
                    ends=(recall.ends, reason.ends),
                    flips=(recall.expected_flips, reason.expected_flips),
                    silent=silent,
                )
            )
    return states


def _share(found: Proportion) -> str:
    return f"{found.rate or 0:.0%} [{found.low or 0:.0%}, {found.high or 0:.0%}]"
