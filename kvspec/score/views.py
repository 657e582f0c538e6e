"""What a report draws besides the scores: survival curves, and trials to look at.

One pass over the records, in memory that grows with the cells, not with the trials. Pure functions of the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvspec.records import RunStore
from kvspec.score.cells import run_certificate
from kvspec.score.certificate import Certificate
from kvspec.score.golden import Golden
from kvspec.score.model import Scores
from kvspec.score.outcome import DUE, INVALID, OUTCOMES, REASONS, UNSCORED
from kvspec.score.scores import open_campaign, score_opened
from kvspec.score.trials import ABSENT, FAULT, TrialScores

CURVE_POINTS = 64
"""Points of a survival curve: more cannot be told apart in print."""
POSITIONS = 4096
"""Later tokens share the last position of a survival curve."""
CANDIDATES = 32
"""Mismatches per cell among which the typical one is looked for."""
TRIALS = 24
"""Trials that a page shows at most."""

Role = Literal["typical", "worst", "crash"]


@dataclass(frozen=True, slots=True)
class CellView:
    """What the plots of one cell need besides its `CellScore`."""

    cell: int
    survival: tuple[tuple[int, float], ...]
    """(t, share of the scored, finished trials whose first t tokens equal golden); Kaplan-Meier, so that answers of
    different lengths count for as long as they are seen. Steps only, first and last point included."""


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial beside its golden answer."""

    role: Role
    trial_id: str
    cell: int
    request: int
    trial: int
    prompt: str
    golden_text: str
    golden_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    outcome: str
    reason: str
    """Why it is due, empty otherwise."""
    error: str | None
    planned: int
    landed: int
    prompt_tokens: int
    tokens_written: int
    first_divergence: int | None
    token_drift: int | None
    char_drift: int | None
    nonfinite_at: int | None


@dataclass(frozen=True, slots=True)
class Views:
    """Everything a page draws besides the scores."""

    cells: tuple[CellView, ...]
    trials: tuple[TrialView, ...]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The JSON files of a run folder as they stand there; empty where a file is absent."""

    manifest: Mapping[str, Any]
    spec: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    certificate: Mapping[str, Any] | None = None
    """What `kvspec verify --out RUN` left; `None` if there is none, empty if it cannot be read."""
    judged: Certificate | None = None
    """What it is worth for this run."""


def read_files(path: Path | str) -> RunFiles:
    """Read the JSON files of a run, also of one that has no trial yet. Raises KVS502, KVS505."""
    store = RunStore.open(path)
    plan, environment = store.plan(), store.read_json("environment.json") or {}
    return RunFiles(
        manifest=store.manifest,
        spec=store.spec(),
        plan=plan,
        environment=environment,
        certificate=store.certificate(),
        judged=run_certificate(store, plan["spec"]["model"], environment),
    )


def view_run(path: Path | str, *, trials: int = TRIALS) -> tuple[Scores, Views]:
    """Score a run and collect its views, with at most `trials` trials to look at. Raises like `score_run`."""
    store = RunStore.open(path)
    campaign, golden = open_campaign(store)
    totals = ViewTotals(len(campaign.cells))
    scores = score_opened(store, campaign, golden, totals.add).scores
    return scores, Views(totals.cells(), totals.trials(campaign.prompts, golden, trials))


class ViewTotals:
    """Collects views while batches stream by. Row `c` of an array belongs to cell `c`."""

    def __init__(self, cells: int) -> None:
        """Start with nothing for every cell."""
        self._events = np.zeros((cells, 0), np.int64)
        self._ends = np.zeros((cells, 0), np.int64)
        self._drifts: list[list[NDArray[np.int64]]] = [[] for _ in range(cells)]
        self._candidates: list[list[TrialView]] = [[] for _ in range(cells)]
        self._worst: list[tuple[tuple[int, int], TrialView] | None] = [None] * cells
        self._crash: list[TrialView | None] = [None] * cells

    def add(self, batch: TrialScores) -> None:
        """Take a batch in. Scoring has refused trials outside the plan."""
        cells = len(self._events)
        fault = (batch.kind == FAULT) & (batch.cell >= 0) & (batch.cell < cells)
        scored = fault & (batch.outcome != INVALID) & (batch.outcome != UNSCORED)
        self._survive(batch, scored & ~batch.crash)
        self._look(batch, scored & ~batch.crash & ~batch.exact)
        for row in np.flatnonzero(scored & batch.crash & (batch.outcome == DUE)):
            if self._crash[batch.cell[row]] is None:
                self._crash[batch.cell[row]] = _trial(batch, int(row), "crash")

    def _survive(self, batch: TrialScores, rows: NDArray[np.bool_]) -> None:
        if not rows.any():
            return
        cell, first = batch.cell[rows], batch.drift["first_divergence"][rows]
        lengths = np.diff(batch.batch.column("token_ids").offsets.to_numpy())[rows].astype(np.int64)
        differs = first != ABSENT
        self._grow(int(min(POSITIONS, max(lengths.max(initial=0), first.max(initial=0)) + 1)))
        last = self._events.shape[1] - 1
        np.add.at(self._events, (cell[differs], np.minimum(first[differs], last)), 1)
        np.add.at(self._ends, (cell[~differs], np.minimum(lengths[~differs], last)), 1)

    def _grow(self, positions: int) -> None:
        if (missing := positions - self._events.shape[1]) > 0:
            self._events = np.pad(self._events, ((0, 0), (0, missing)))
            self._ends = np.pad(self._ends, ((0, 0), (0, missing)))

    def _look(self, batch: TrialScores, mismatch: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(mismatch)
        if not rows.size:
            return
        drift, flips = batch.drift["token_drift"], batch.landed.astype(np.int64)
        # By cell, then the largest drift first, of those the one with the fewest flips, then the order of the run.
        order = rows[np.lexsort((rows, flips[rows], -drift[rows], batch.cell[rows]))]
        found, start = np.unique(batch.cell[order], return_index=True)
        for cell, low, high in zip(found.tolist(), start, [*start[1:], len(order)], strict=True):
            mine = order[low:high]
            self._drifts[cell].append(drift[mine].astype(np.int32))
            top = int(mine[0])
            rank = (-int(drift[top]), int(flips[top]))
            best = self._worst[cell]
            if best is None or rank < best[0]:
                self._worst[cell] = (rank, _trial(batch, top, "worst"))
            room = CANDIDATES - len(self._candidates[cell])
            self._candidates[cell] += [_trial(batch, int(row), "typical") for row in np.sort(mine)[:room]]

    def cells(self) -> tuple[CellView, ...]:
        """One view per cell."""
        return tuple(
            CellView(cell=c, survival=_kaplan_meier(events, ends))
            for c, (events, ends) in enumerate(zip(self._events, self._ends, strict=True))
        )

    def trials(self, prompts: Sequence[str], golden: Golden, limit: int) -> tuple[TrialView, ...]:
        """The typical and the worst mismatch of cells spread evenly over those that have one, at most `limit` trials.

        A cell in which every trial crashed shows one crash. Typical is the mismatch, among the first `CANDIDATES`,
        whose token drift is nearest to the median of all mismatches of the cell.
        """
        per_cell = [self._of_cell(c) for c in range(len(self._events))]
        shown = [found for found in per_cell if found]
        if len(shown) > max(1, limit // 2):
            picked = np.linspace(0, len(shown) - 1, max(1, limit // 2)).round().astype(int)
            shown = [shown[i] for i in np.unique(picked)]
        trials = [trial for found in shown for trial in found][: max(0, limit)]
        return tuple(_with_golden(trial, prompts, golden) for trial in trials)

    def _of_cell(self, cell: int) -> list[TrialView]:
        worst, crash = self._worst[cell], self._crash[cell]
        if worst is None:
            return [] if crash is None else [crash]
        middle = float(np.median(np.concatenate(self._drifts[cell])))
        typical = min(self._candidates[cell], key=lambda trial: abs((trial.token_drift or 0) - middle))
        return [typical] if typical.trial_id == worst[1].trial_id else [typical, worst[1]]


def _kaplan_meier(events: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[tuple[int, float], ...]:
    """Share of trials that equal golden up to t, from the counts of first differences and of ends per position."""
    total = int(events.sum() + ends.sum())
    if not total:
        return ()
    gone = np.cumsum(events + ends)
    at_risk = total - np.concatenate(([0], gone[:-1]))
    step = np.divide(events, at_risk, out=np.zeros(len(events)), where=at_risk > 0)
    alive = np.cumprod(1.0 - step)
    # A difference at index t means that t tokens were right: the curve falls behind t, at t + 1.
    points = [(0, 1.0), *((int(t) + 1, float(alive[t])) for t in np.flatnonzero(events))]
    seen = int(np.flatnonzero(ends)[-1]) if ends.any() else 0
    if seen > points[-1][0]:
        points.append((seen, points[-1][1]))
    if len(points) > CURVE_POINTS:
        kept = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))
        points = [points[i] for i in kept]
    return tuple(points)


def _trial(batch: TrialScores, row: int, role: Role) -> TrialView:
    def value(name: str) -> Any:
        return batch.batch.column(name)[row].as_py()

    def drift(name: str) -> int | None:
        found = int(batch.drift[name][row])
        return None if found == ABSENT else found

    return TrialView(
        role=role,
        trial_id=value("trial_id"),
        cell=int(batch.cell[row]),
        request=int(batch.request[row]),
        trial=value("trial"),
        prompt="",
        golden_text="",
        golden_ids=(),
        text=value("text"),
        token_ids=tuple(value("token_ids")),
        outcome=OUTCOMES[batch.outcome[row]],
        reason=REASONS[batch.reason[row]],
        error=value("error"),
        planned=int(batch.planned[row]),
        landed=int(batch.landed[row]),
        prompt_tokens=value("prompt_tokens"),
        tokens_written=value("tokens_written"),
        first_divergence=drift("first_divergence"),
        token_drift=drift("token_drift"),
        char_drift=drift("char_drift"),
        nonfinite_at=value("nonfinite_at"),
    )


def _with_golden(trial: TrialView, prompts: Sequence[str], golden: Golden) -> TrialView:
    answer = int(golden.index[trial.request])
    ids = golden.values[golden.offsets[answer] : golden.offsets[answer + 1]]
    return replace(
        trial, prompt=prompts[trial.request], golden_text=golden.texts[answer], golden_ids=tuple(ids.tolist())
    )
