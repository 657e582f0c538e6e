"""The result of scoring, as immutable values. Reports only print it; every number in a report stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvspec.score.anatomy import Anatomy
from kvspec.score.cells import CellPlan, RunInfo
from kvspec.score.tasks import TaskScores
from kvspec.stats.dose import DoseFit
from kvspec.stats.intervals import Difference, Proportion, Ratio


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
    trials: int
    """The finished trials."""
    changed: int = 0
    """Landed flips that changed a bit; a stuck-at may find it as it leaves it."""
    exposed: int = 0
    """Bits that reads changed, in every forward; all were put back, or the trial is invalid."""
    reruns: int = 0
    """Trials that were preempted and ran again alone."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A cell against the controls of the run. Values are `None` where either side is missing."""

    difference: Difference | None = None
    """Accuracy of the cell less that of all controls (Newcombe 1998)."""
    p: float | None = None
    """One-sided p of an accuracy below that of the controls: exact conditional test with prompts as strata."""
    p_holm: float | None = None
    """The same, adjusted over all cells of the run."""
    clustered: tuple[float, float] | None = None
    """95 % interval of the accuracy with prompts as clusters, never narrower than Wilson's; `None` below 2 prompts."""
    prompts: int = 0
    """Different prompts with a scored trial."""
    detectable_drop: float | None = None
    """The smallest fall of accuracy that this n, alone among the cells of the run, shows with 80 % power (Fisher,
    Holm); `None` if so few trials or controls show none."""

    @property
    def above(self) -> bool:
        """Whether accuracy lies above that of the controls, which no fault explains and the test does not ask."""
        return self.difference is not None and self.difference.value > 0


@dataclass(frozen=True, slots=True)
class LogprobScore:
    """Means over the scored trials whose logprobs were recorded and finite; `None` without any."""

    trials: int
    kl_mean: float | None
    """KL divergence D(golden || faulted), mean over the positions of the same context, in nats. A lower bound: tokens
    beyond the k likeliest count as one."""
    top1_agreement_mean: float | None
    """Share of those positions at which the likeliest token is golden's."""
    unusable: int = 0
    """Scored, finished trials whose logprobs were recorded and do not compare: one, here or in golden, is not finite,
    or there are not k per token."""


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
    """Whether accuracy is shown to lie below that of the controls (`effect.p_holm` below 0.05); `None`: no test."""
    logprobs: LogprobScore
    single_flip: Proportion
    """Trials with a visible effect, sdc or due, of the finished ones in which exactly one flip landed."""
    effect: Effect = Effect()


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
class PairTest:
    """Two cells that share their draws (common random numbers), compared trial by trial."""

    first: int
    second: int
    """Indices of the cells; they differ in their selector only."""
    pairs: int
    """Trials that are scored in both."""
    only_first: int
    """Trials that equal golden in the first cell only."""
    only_second: int
    difference: Difference
    """Accuracy of the second less that of the first (Bonett & Price 2012)."""
    sensitivity: Ratio | None
    """Share of failures in the second over that in the first (Bonett & Price 2006); `None` without a failure."""
    p: float
    """McNemar's exact test, two-sided."""
    p_holm: float
    """The same, adjusted over all pairs of the run."""


Dose = Literal["rate", "expected", "landed"]
"""Declared rate in its unit, expected flips per request, or landed flips per request."""


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """The curve of a series of cells over one dose."""

    label: str
    cells: tuple[int, ...]
    """The cells of the series, by rising rate."""
    dose: Dose
    fit: DoseFit


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the 95 % interval of what it was scaled from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """How often a single flip shows, and what that makes of a raw failure rate.

    AVF, the architectural vulnerability factor (Mukherjee et al. 2003), is estimated as P(sdc or due | one flip), over
    the trials of the series in which exactly one flip landed. FIT counts failures per 1e9 hours.
    """

    cells: tuple[int, ...]
    """The cells of the series that have such trials."""
    avf: Proportion
    mbit: float | None
    """Mbit (2^20 bits) of one request's cache that the fault may touch; `None` without an estimate."""
    fit_per_raw_fit: Estimate | None
    """AVF x Mbit: visible failures of one request's cache, kept full, per raw FIT/Mbit of the memory."""
    raw_fit_per_mbit: tuple[float, ...]
    """The raw rates that the spec declares; empty in other units than `fit`."""
    fit: tuple[Estimate, ...]
    """FIT at each of them: raw FIT/Mbit x Mbit x AVF."""


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
    pairs: tuple[PairTest, ...]
    dose_responses: tuple[DoseResponse, ...]
    vulnerabilities: tuple[Vulnerability, ...]
    anatomy: Anatomy | None
    """What a single flip does, by its place; `None` with too few of them, or a model of unknown shape."""
    design_effect: float
    """Variance between prompts over that of independent trials, at least 1; mean over the cells."""
    tasks: TaskScores
    """Graded answers."""
    samples: tuple[Sample, ...]
    verdict: tuple[str, ...]
    """Sentences that follow from the numbers, the most important first."""
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every recorded trial received exactly the flips that were planned."""
        return not self.floor.invalid and not any(cell.invalid for cell in self.cells)
