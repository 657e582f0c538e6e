"""Run folder -> `Scores`, in one pass over the records and memory that grows by some bytes per trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.errors import KvspecError, RecordsError
from kvspec.models import Geometry, describe
from kvspec.records import RunStore
from kvspec.score.anatomy import Singles
from kvspec.score.cells import Campaign, CellPlan, read_campaign
from kvspec.score.effects import dose_responses, pair_tests, vulnerabilities, with_effects
from kvspec.score.golden import Golden, read_golden
from kvspec.score.grid import Grid
from kvspec.score.model import CellScore, Flips, Floor, LogprobScore, Scores
from kvspec.score.outcome import INVALID, MASKED, OUTCOMES, REASONS, UNSCORED
from kvspec.score.samples import Samples
from kvspec.score.tasks import Answers, TaskScores
from kvspec.score.trend import trends
from kvspec.score.trials import ABSENT, DRIFTS, FAULT, GOLDEN_REPEAT, NULL, UNKNOWN, TrialScores, iter_trials
from kvspec.score.verdict import verdict, warnings
from kvspec.spec.model import ModelSpec
from kvspec.stats.intervals import Proportion

MEANS = tuple(name for name in DRIFTS if name != "first_divergence")


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored run with what comparisons of single trials need."""

    scores: Scores
    grid: Grid
    golden: Golden
    prompts: tuple[str, ...]


def score_run(path: Path | str) -> Scores:
    """Score a run folder, complete or not.

    Raises:
        RecordsError: KVS502 no run, KVS505 damaged, KVS506 nothing to score.
    """
    return score_whole(path).scores


def score_whole(path: Path | str) -> Scored:
    """Score a run folder and keep what became of every trial. Raises like `score_run`."""
    store = RunStore.open(path)
    return score_opened(store, *open_campaign(store))


def score_opened(
    store: RunStore, campaign: Campaign, golden: Golden, watch: Callable[[TrialScores], None] | None = None
) -> Scored:
    """Score what `open_campaign` opened; `watch` sees every batch, so that one pass serves those who need more."""
    totals = Totals(campaign)
    for batch in iter_trials(store, golden):
        totals.add(batch)
        if watch is not None:
            watch(batch)
    totals.require_unique()
    floor = totals.floor(golden)
    plain = tuple(totals.cell(cell) for cell in campaign.cells)
    looks = len(campaign.run.looks.rounds) if campaign.run.looks else 1
    cells, inflation = with_effects(plain, floor, totals.grid, looks)
    trend = trends(cells)
    scores = Scores(
        run=campaign.run,
        floor=floor,
        cells=cells,
        trends=trend,
        pairs=pair_tests(cells, totals.grid, looks),
        dose_responses=dose_responses(trend, cells, floor, totals.grid),
        vulnerabilities=vulnerabilities(cells),
        anatomy=totals.singles.finish(store.plan(), _geometry(store)) if totals.singles.enough else None,
        design_effect=inflation,
        tasks=totals.answers.scores(),
        samples=totals.samples.finish(campaign, golden),
        verdict=(),
        warnings=(),
    )
    scores = replace(scores, verdict=verdict(scores), warnings=warnings(scores))
    return Scored(scores, totals.grid, golden, campaign.prompts)


def score_tasks(path: Path | str) -> TaskScores:
    """The graded answers of a run folder alone: a search needs nothing else of its many runs, and the effects of their
    cells cost most of the time. Raises like `score_run`."""
    store = RunStore.open(path)
    campaign, golden = open_campaign(store)
    totals = Totals(campaign)
    for batch in iter_trials(store, golden):
        totals.add(batch)
    totals.require_unique()
    return totals.answers.scores()


def _geometry(store: RunStore) -> Geometry | None:
    """Shape of the run's model; `None` if it is not known on this machine."""
    model = store.spec()["model"]
    try:
        return describe(ModelSpec(id=str(model["id"]), revision=model.get("revision"))).geometry
    except (KvspecError, OSError, ValueError):
        return None  # what is then missing is a map, never a figure


def open_campaign(store: RunStore) -> tuple[Campaign, Golden]:
    """Read what scoring needs besides the records. Raises KVS505 or, if there is nothing to score, KVS506."""
    requests = read_campaign(store, 0).run.requests
    golden, recorded = read_golden(store, requests)
    if not recorded:
        raise RecordsError.one(
            "KVS506",
            f"`{store.path}` holds no trial (status {store.status})",
            hint="run the same spec with the same `--out`: it goes on where it stopped",
        )
    if not len(golden):
        why = f"{len(golden.unusable)} golden trials failed" if golden.unusable else "no golden trial is recorded"
        raise RecordsError.one(
            "KVS506",
            f"`{store.path}` holds {recorded} trials, but nothing to compare them with: {why}",
            hint="run the same spec with the same `--out`, or a new one if golden trials failed",
        )
    return read_campaign(store, recorded), golden


class Totals:
    """Sums per cell over all batches. Row `c` of an array belongs to cell `c`."""

    def __init__(self, campaign: Campaign) -> None:
        """Start at zero for every cell of the campaign."""
        cells = len(campaign.cells)
        self._campaign = campaign
        self._outcome = np.zeros((cells, len(OUTCOMES)), np.int64)
        self._reason = np.zeros((cells, len(REASONS)), np.int64)
        self._crash = np.zeros(cells, np.int64)
        self._exact = np.zeros(cells, np.int64)
        self._flips = np.zeros((cells, 5), np.int64)
        """Planned, landed, changed, exposed; and trials that ran again."""
        self._ended = np.zeros(cells, np.int64)
        self._preempted = np.zeros(cells, np.int64)
        self._drift_sum = np.zeros((cells, len(MEANS)), np.int64)
        self._drift_n = np.zeros(cells, np.int64)
        self._divergence: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        self._controls = np.zeros((4, 3), np.int64)
        """Per kind: scored, identical, invalid."""
        self._logprobs = np.zeros((cells, 4), np.float64)
        """Trials with logprobs; sums of KL divergence and of top-1 agreement; trials whose logprobs do not compare."""
        self._single = np.zeros((cells, 2), np.int64)
        """Finished trials with one flip: with a visible effect, and all."""
        self._keys: list[NDArray[np.uint64]] = []
        self.grid = Grid(cells, campaign.prompts, campaign.run.per_prompt)
        self.answers = Answers(campaign)
        self.samples = Samples()
        self.singles = Singles(campaign.cells)

    def add(self, batch: TrialScores) -> None:
        """Take a batch in. Raises KVS505 for a trial that is not in the plan."""
        trial = self._require_planned(batch)
        scored = (batch.outcome != INVALID) & (batch.outcome != UNSCORED)
        for kind in (GOLDEN_REPEAT, NULL):
            mine = batch.kind == kind
            exact, invalid = batch.exact & scored, batch.outcome == INVALID
            # Nothing is planned for a control: a flip in it is never right, whatever the record says.
            flipped = batch.landed + batch.planned > 0
            counts = (mine & scored & ~flipped, mine & exact & ~flipped, mine & (invalid | flipped))
            self._controls[kind] += [int(np.count_nonzero(part)) for part in counts]
            self.grid.add_controls(batch.request[counts[0]], batch.exact[counts[0]])
        self._controls[0, 2] += int(np.count_nonzero((batch.kind == 0) & (batch.landed + batch.planned > 0)))
        fault = batch.kind == FAULT
        cell = batch.cell
        np.add.at(self._outcome, (cell[fault], batch.outcome[fault]), 1)
        np.add.at(self._reason, (cell[fault], batch.reason[fault]), 1)
        for total, where in (
            (self._crash, fault & scored & batch.crash),
            (self._exact, fault & scored & batch.exact),
            (self._preempted, fault & batch.preempted),
        ):
            total += np.bincount(cell[where], minlength=len(total))
        # A trial that crashed stopped somewhere between planning and landing: its flips compare with nothing.
        ended = fault & batch.finished
        self._ended += np.bincount(cell[ended], minlength=len(self._ended))
        counts_of_flips: tuple[NDArray[Any], ...] = (
            batch.planned,
            batch.landed,
            batch.changed,
            batch.exposed,
            batch.reruns,
        )
        for column, flips in enumerate(counts_of_flips):
            np.add.at(self._flips[:, column], cell[ended], flips[ended].astype(np.int64))
        self.grid.add(batch, fault & scored, trial)
        self.answers.add(batch, fault & scored, trial)
        single = ended & scored & (batch.landed == 1)
        visible = single & (batch.outcome != MASKED)
        self.singles.add(batch, single, visible)
        for column, rows in enumerate((visible, single)):
            self._single[:, column] += np.bincount(cell[rows], minlength=len(self._single))
        known = fault & scored & np.isfinite(batch.kl)
        for column, values in enumerate((np.ones(len(cell)), batch.kl, batch.top1)):
            self._logprobs[:, column] += np.bincount(cell[known], values[known], minlength=len(self._logprobs))
        drifted = fault & scored & ~batch.crash
        recorded = batch.batch.column("logprobs").is_valid().to_numpy(zero_copy_only=False).astype(bool)
        self._logprobs[:, 3] += np.bincount(cell[drifted & recorded & ~known], minlength=len(self._logprobs))
        self._drift_n += np.bincount(cell[drifted], minlength=len(self._drift_n))
        for column, name in enumerate(MEANS):
            np.add.at(self._drift_sum[:, column], cell[drifted], batch.drift[name][drifted])
        diverged = drifted & (batch.drift["first_divergence"] != ABSENT)
        self._divergence.append((cell[diverged], batch.drift["first_divergence"][diverged].astype(np.int32)))
        self.samples.add(batch, drifted & ~batch.exact)

    def _require_planned(self, batch: TrialScores) -> NDArray[np.uint32]:
        """Numbers of the trials; raises KVS505 for one that the plan does not have."""
        cells, requests = len(self._campaign.cells), self._campaign.run.requests
        fault = batch.kind == FAULT
        wrong = (batch.kind == UNKNOWN) | (batch.request >= requests)
        number: NDArray[np.uint32] = batch.batch.column("trial").to_numpy(zero_copy_only=False).astype(np.uint32)
        wrong |= fault & ((batch.cell < 0) | (batch.cell >= cells) | (number >= self._campaign.run.per_prompt))
        if wrong.any():
            name = batch.batch.column("trial_id")[int(np.argmax(wrong))].as_py()
            raise RecordsError.one("KVS505", f"trial `{name}` is not in the plan of `{self._campaign.run.path}`")
        place = batch.kind.astype(np.uint64) * np.uint64(cells + 1) + (batch.cell + 1).astype(np.uint64)
        place = place * np.uint64(requests) + batch.request.astype(np.uint64)
        self._keys.append((place << np.uint64(32)) | number.astype(np.uint64))
        return number

    def require_unique(self) -> None:
        """Raise KVS505 if a trial was recorded twice: it would count twice."""
        keys = np.concatenate(self._keys)
        if twice := len(keys) - len(np.unique(keys)):
            raise RecordsError.one(
                "KVS505",
                f"`{self._campaign.run.path}` holds {twice} trials twice",
                expected="one record per trial",
            )

    def floor(self, golden: Golden) -> Floor:
        """The golden floor."""
        missing = int(np.count_nonzero(golden.index < 0)) - len(golden.unusable)
        return Floor(
            golden_repeats=_proportion(self._controls[GOLDEN_REPEAT]),
            null_trials=_proportion(self._controls[NULL]),
            invalid=int(self._controls[:, 2].sum()),
            unusable_golden=golden.unusable,
            missing_golden=missing,
        )

    def cell(self, plan: CellPlan) -> CellScore:
        """Score of one cell, its effect apart."""
        c = plan.index
        outcome = dict(zip(OUTCOMES, self._outcome[c].tolist(), strict=True))
        invalid, unscored = outcome.pop("invalid"), outcome.pop("unscored")
        n, recorded = sum(outcome.values()), int(self._outcome[c].sum())
        exact = Proportion.of(int(self._exact[c]), n)
        if n and (looks := self._campaign.run.looks) is not None:
            exact = Proportion(exact.k, n, *looks.interval(exact.k, n))
        crash, finished = int(self._crash[c]), int(self._drift_n[c])
        sums = dict(zip(MEANS, self._drift_sum[c].tolist(), strict=True))
        expected = None if plan.expected_per_trial is None else plan.expected_per_trial * int(self._ended[c])
        divergence = [values[cells == c] for cells, values in self._divergence]
        values = np.concatenate(divergence) if divergence else np.zeros(0)
        known, kl, top1, unusable = self._logprobs[c].tolist()
        planned, landed, changed, exposed, reruns = self._flips[c].tolist()
        reasons = dict(zip(REASONS, self._reason[c].tolist(), strict=True))
        return CellScore(
            plan=plan,
            recorded=recorded,
            exact_match=exact,
            drift_means={name: total / finished if finished else None for name, total in sums.items()},
            first_divergence_median=float(np.median(values)) if values.size else None,
            flips=Flips(expected, planned, landed, int(self._ended[c]), changed, exposed, reruns),
            outcome=outcome,
            due_reasons={name: reasons[name] for name in REASONS if name},
            status={"ok": n - crash, "crash": crash},
            invalid=invalid,
            unscored=unscored,
            preempted=int(self._preempted[c]),
            below_floor=None,
            logprobs=LogprobScore(
                int(known), kl / known if known else None, top1 / known if known else None, int(unusable)
            ),
            single_flip=Proportion.of(*self._single[c].tolist()),
        )


def _proportion(counts: NDArray[np.int64]) -> Proportion:
    return Proportion.of(int(counts[1]), int(counts[0]))


def score_trials(path: Path | str) -> tuple[Campaign, Iterable[TrialScores]]:
    """Per-trial scores of a run folder, streamed. Raises like `score_run`."""
    store = RunStore.open(path)
    campaign, golden = open_campaign(store)
    store.require_unique()
    return campaign, iter_trials(store, golden)
