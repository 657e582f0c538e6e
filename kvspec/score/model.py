"""The result of scoring, as immutable values. Reports only print it; every number in a report stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvspec.score.cells import CellPlan, RunInfo
from kvspec.stats.intervals import Proportion


@dataclass(frozen=True, slots=True)
class Floor:
    """How often trials without faults equal golden: what no effect can be told apart from."""

    golden_repeats: Proportion
    null_trials: Proportion
    invalid: int
    """Control trials in which a flip landed though none was planned."""
    unusable_golden: tuple[int, ...]
    """Requests whose golden trial failed: nothing of theirs is scored."""
    missing_golden: int
    """Requests without a golden trial on disk."""

    @property
    def combined(self) -> Proportion:
        """Both kinds of controls together."""
        return Proportion.of(self.golden_repeats.k + self.null_trials.k, self.golden_repeats.n + self.null_trials.n)

    @property
    def clean(self) -> bool | None:
        """Whether every control equals golden; `None` if no control was measured."""
        return self.combined.k == self.combined.n if self.combined.n else None


@dataclass(frozen=True, slots=True)
class Flips:
    """Flips of a cell, in bits, summed over its finished trials, the invalid ones included."""

    expected: float | None
    """By the estimate, for as many trials as finished; `None` without an estimate."""
    planned: int
    landed: int


@dataclass(frozen=True, slots=True)
class CellScore:
    """One row of the report. masked + sdc + due = ok + crash = n of `exact_match`."""

    plan: CellPlan
    recorded: int
    """Trials on disk: the scored, the invalid and the unscored."""
    exact_match: Proportion
    """Scored trials whose token ids equal golden: the guide's accuracy."""
    drift_means: dict[str, float | None]
    """Mean over the scored trials that finished, in characters or tokens; `None` without any."""
    first_divergence_median: float | None
    """Median index of the first differing token, over the trials that differ; `None` if none does."""
    flips: Flips
    outcome: dict[str, int]
    """masked, sdc, due: counts."""
    due_reasons: dict[str, int]
    """error, unfinished, nonfinite: counts, summing to due."""
    status: dict[str, int]
    """ok, crash: counts."""
    invalid: int
    """Trials whose landed flips differ from the planned ones: in no proportion."""
    unscored: int
    """Trials without a usable golden answer: in no proportion."""
    preempted: int
    """Scored or not: trials whose request lost its cache at least once."""
    below_floor: bool | None
    """Whether the interval of `exact_match` lies below that of the floor; `None` if either is missing."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Dose and response of cells that differ in their rate only, by rising rate."""

    label: str
    cells: tuple[int, ...]
    """Indices of the cells, those with n = 0 left out."""
    z: float | None
    """Cochran-Armitage; `None` if there is nothing to test."""
    p_falls: float | None
    """One-sided p that accuracy falls with the rate."""
    rises: tuple[tuple[int, int, float], ...]
    """(cell, next cell, p): neighbours whose accuracy rises; Fisher, Holm-adjusted p below 0.05."""

    @property
    def monotone(self) -> bool:
        """No neighbour contradicts a fall."""
        return not self.rises


@dataclass(frozen=True, slots=True)
class Sample:
    """A golden answer and a faulted one, side by side."""

    role: Literal["fewest flips", "largest drift"]
    trial_id: str
    cell: int
    prompt: str
    golden: str
    faulted: str
    outcome: str
    flips: int
    """Bits that landed in this trial."""
    first_divergence: int | None
    """Index of the first differing token."""
    first_char: int
    """Index of the first differing character."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything a report says."""

    run: RunInfo
    floor: Floor
    cells: tuple[CellScore, ...]
    trends: tuple[Trend, ...]
    samples: tuple[Sample, ...]
    verdict: tuple[str, ...]
    """Sentences that follow from the numbers, the most important first."""
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every recorded trial received exactly the flips that were planned."""
        return not self.floor.invalid and not any(cell.invalid for cell in self.cells)
