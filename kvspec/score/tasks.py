"""Graded answers: what stays right under a fault, what breaks first, and whether the step itself breaks.

Four questions, each on common items:
- How often is a task right, of the trials of items that the clean model solves?
- Which fails more often, retrieval or reasoning? Trial t of an item's retrieval against trial t of its reasoning.
- Given the operands, is the result right less often than clean? A worked answer states its operands first, so one
  answer shows both. Trials that state them are compared with the golden answer of the same prompt.
- Does a longer context hurt more than its dose explains? (`kvspec.score.lengths`)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvspec.score.grading import RIGHT, STATED, Graders
from kvspec.score.lengths import LengthEffect, Sample, length_effects, length_sentences
from kvspec.score.trials import GOLDEN, TrialScores
from kvspec.stats.exact import ALPHA, holm, mcnemar
from kvspec.stats.intervals import Proportion, Ratio, ratio_paired

SEEN = 4
"""Flag of an answer beside `RIGHT` and `STATED`: there is one."""

ZOMBIE_RETRIEVAL, ZOMBIE_REASONING = 0.95, 0.5
"""A zombie recalls at least, and reasons at most, these shares of what it does clean."""
ZOMBIE_RULE = f"retrieval >= {ZOMBIE_RETRIEVAL:.0%} and reasoning <= {ZOMBIE_REASONING:.0%} of clean"

Flags = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CleanTask:
    """One task at one context without faults: the golden answers."""

    task: str
    kind: str
    context: int
    """Tokens; 0 if that is not a dimension of the prompts."""
    chance: float | None
    """How often a guess is right, where that is known."""
    right: Proportion
    """Of all items."""
    stated: Proportion
    """Answers that state both operands, of those whose task has operands."""
    right_given_stated: Proportion


@dataclass(frozen=True, slots=True)
class FaultedTask:
    """One task at one context under one cell."""

    cell: int
    task: str
    kind: str
    context: int
    right: Proportion
    """Of all trials."""
    kept: Proportion
    """Right, of the trials of items that the clean model solves."""
    stated: Proportion
    right_given_stated: Proportion
    right_given_retrieved: Proportion
    """Reasoning tasks: right, of the trials whose item's retrieval requests are all right in the same trial number.
    Items that the clean model solves only. These are separate requests, with faults of their own."""
    stated_pairs: tuple[int, int, int] | None
    """(pairs, wrong only under the fault, wrong only clean): trials whose golden answer states the operands too."""
    p: float | None
    """McNemar's exact test of these pairs; `None` without a pair."""
    p_holm: float | None
    """The same, adjusted over all cells and tasks."""


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Retrieval against reasoning under one cell, on the items that the clean model solves in both."""

    cell: int
    context: int
    retrieval: str
    reasoning: str
    pairs: int
    only_retrieval: int
    """Pairs in which only retrieval failed."""
    only_reasoning: int
    both: int
    """Pairs in which both failed."""
    sensitivity: Ratio | None
    """Share of failures of reasoning over that of retrieval; above 1 reasoning breaks first. `None`: no failure."""
    p: float
    """McNemar's exact test, two-sided."""
    p_holm: float
    """The same, adjusted over all pairs of the run."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """All graded answers of a run; empty if no prompt has a grader."""

    clean: tuple[CleanTask, ...] = ()
    faulted: tuple[FaultedTask, ...] = ()
    pairs: tuple[TaskPair, ...] = ()
    lengths: tuple[LengthEffect, ...] = ()
    """Every pair of contexts of every task; empty for one context."""


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

        return f"{self.retrieval} {share(self.recalled)} and {self.reasoning} {share(self.reasoned)}"


class Answers:
    """Collects the flags of all answers of a run."""

    def __init__(self, tasks: Sequence[Mapping[str, Any] | None], series: Sequence[str], per_prompt: int) -> None:
        """`series`: of every cell, equal for those that differ in their rate only."""
        self._tasks = tasks
        cells = len(series)
        self._series = np.unique(np.array(series, str), return_inverse=True)[1]
        self._graders = Graders(tasks)
        requests = len(tasks)
        self._golden: Flags = np.zeros(requests, np.uint8)
        self._faulted: Flags = np.zeros((cells, requests, per_prompt), np.uint8)
        contexts = {task["context"] for task in tasks if task is not None}
        self._flips = np.zeros(self._faulted.shape if len(contexts) > 1 else (0, 0, 0), np.int64)
        """Landed flips, where contexts of several lengths are compared."""

    def add(self, batch: TrialScores, scored: NDArray[np.bool_], trial: NDArray[np.uint32]) -> None:
        """Take in a batch: golden trials and the fault trials `scored`."""
        if not any(self._tasks):
            return
        golden = (batch.kind == GOLDEN) & batch.finished
        rows = np.flatnonzero(scored | golden)
        texts = pc.take(batch.batch.column("text"), rows).to_pylist()
        for row, text in zip(rows.tolist(), texts, strict=True):
            request = int(batch.request[row])
            flags = SEEN if batch.crash[row] else SEEN + self._graders.flags(request, text)
            if golden[row]:
                self._golden[request] = flags
            else:
                self._faulted[batch.cell[row], request, trial[row]] = flags
                if self._flips.size:
                    self._flips[batch.cell[row], request, trial[row]] = batch.landed[row]

    def scores(self) -> TaskScores:
        """What the answers say."""
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        for request, task in enumerate(self._tasks):
            if task is not None:
                groups[int(task["context"]), str(task["name"])].append(request)
        clean = tuple(self._clean(*key, requests) for key, requests in groups.items())
        faulted = [
            self._under(cell, *key, requests) for key, requests in groups.items() for cell in range(len(self._faulted))
        ]
        pairs = list(self._pairs(groups))
        lengths = length_effects(
            {key: self._sample(requests) for key, requests in groups.items()} if self._flips.size else {}
        )
        return TaskScores(clean, tuple(_adjusted(faulted)), tuple(_adjusted(pairs)), lengths)

    def _sample(self, requests: list[int]) -> Sample:
        solved = [request for request in requests if self._golden[request] & RIGHT]
        flags = self._faulted[:, solved]
        cell, item, trial = np.nonzero(flags & SEEN)
        right = (flags[cell, item, trial] & RIGHT) > 0
        return Sample(right, self._series[cell], cell, self._flips[:, solved][cell, item, trial])

    def _clean(self, context: int, name: str, requests: list[int]) -> CleanTask:
        task = self._task(requests)
        flags = self._golden[requests]
        right, stated, given = _shares(flags, bool(task["operands"]))
        return CleanTask(name, str(task["kind"]), context, task["chance"], right, stated, given)

    def _under(self, cell: int, context: int, name: str, requests: list[int]) -> FaultedTask:
        task = self._task(requests)
        flags, golden = self._faulted[cell, requests], self._golden[requests]
        right, stated, given = _shares(flags, bool(task["operands"]))
        solved = flags[(golden & RIGHT) > 0]
        both = ((flags & STATED) > 0) & ((golden & STATED) > 0)[:, None]
        wrong, clean_wrong = (flags & RIGHT) == 0, ((golden & RIGHT) == 0)[:, None]
        pairs = int(both.sum())
        only = int((both & wrong & ~clean_wrong).sum()), int((both & ~wrong & clean_wrong).sum())
        return FaultedTask(
            cell=cell,
            task=name,
            kind=str(task["kind"]),
            context=context,
            right=right,
            kept=_share(solved, RIGHT),
            stated=stated,
            right_given_stated=given,
            right_given_retrieved=self._given_retrieved(cell, context, task, requests),
            stated_pairs=(pairs, *only) if pairs else None,
            p=mcnemar(*only) if pairs else None,
            p_holm=None,
        )

    def _given_retrieved(self, cell: int, context: int, task: Mapping[str, Any], requests: list[int]) -> Proportion:
        if task["kind"] != "reasoning":
            return Proportion.of(0, 0)
        k = n = 0
        retrievals = self._by_item(context, "retrieval")
        for item, request in self._items(requests).items():
            others = retrievals.get(item, [])
            if not others or not all(self._golden[r] & RIGHT for r in (request, *others)):
                continue
            retrieved = np.logical_and.reduce([(self._faulted[cell, r] & RIGHT) > 0 for r in others])
            seen = retrieved & ((self._faulted[cell, request] & SEEN) > 0)
            n += int(seen.sum())
            k += int((seen & ((self._faulted[cell, request] & RIGHT) > 0)).sum())
        return Proportion.of(k, n)

    def _pairs(self, groups: Mapping[tuple[int, str], list[int]]) -> Iterator[TaskPair]:
        for (context, first), requests in groups.items():
            for (other, second), partners in groups.items():
                kinds = self._task(requests)["kind"], self._task(partners)["kind"]
                if other != context or kinds != ("retrieval", "reasoning"):
                    continue
                mine, theirs = self._items(requests), self._items(partners)
                common = [
                    (mine[item], theirs[item])
                    for item in mine
                    if item in theirs and self._golden[mine[item]] & self._golden[theirs[item]] & RIGHT
                ]
                for cell in range(len(self._faulted)) if common else ():
                    a, b = (self._faulted[cell, [pair[side] for pair in common]] for side in (0, 1))
                    seen = (a & b & SEEN) > 0
                    lost_a, lost_b = seen & ((a & RIGHT) == 0), seen & ((b & RIGHT) == 0)
                    both = int((lost_a & lost_b).sum())
                    only_a, only_b = int(lost_a.sum()) - both, int(lost_b.sum()) - both
                    yield TaskPair(
                        cell=cell,
                        context=context,
                        retrieval=first,
                        reasoning=second,
                        pairs=int(seen.sum()),
                        only_retrieval=only_a,
                        only_reasoning=only_b,
                        both=both,
                        sensitivity=ratio_paired(both, only_b, only_a),
                        p=mcnemar(only_a, only_b),
                        p_holm=1.0,
                    )

    def _task(self, requests: list[int]) -> Mapping[str, Any]:
        task = self._tasks[requests[0]]
        assert task is not None
        return task

    def _items(self, requests: list[int]) -> dict[tuple[str, int], int]:
        """Requests by (item, repetition)."""
        found: dict[tuple[str, int], int] = {}
        times: dict[str, int] = defaultdict(int)
        for request in requests:
            item = str(self._task([request])["item"])
            found[item, times[item]] = request
            times[item] += 1
        return found

    def _by_item(self, context: int, kind: str) -> dict[tuple[str, int], list[int]]:
        """Requests of all tasks of a kind by (item, repetition)."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        times: dict[tuple[str, str], int] = defaultdict(int)
        for request, task in enumerate(self._tasks):
            if task is not None and task["kind"] == kind and task["context"] == context:
                key = str(task["name"]), str(task["item"])
                found[key[1], times[key]].append(request)
                times[key] += 1
        return found


def _share(flags: Flags, flag: int) -> Proportion:
    seen = (flags & SEEN) > 0
    return Proportion.of(int((seen & ((flags & flag) > 0)).sum()), int(seen.sum()))


def _shares(flags: Flags, operands: bool) -> tuple[Proportion, Proportion, Proportion]:
    """(right, stated, right given stated)."""
    stated = flags[(flags & STATED) > 0]
    return _share(flags, RIGHT), _share(flags, STATED) if operands else Proportion.of(0, 0), _share(stated, RIGHT)


def _adjusted(found: list[Any]) -> Iterator[Any]:
    """The same results with `p_holm` filled in over all that have a p."""
    adjusted = iter(holm([result.p for result in found if result.p is not None]))
    return (replace(result, p_holm=None if result.p is None else next(adjusted)) for result in found)


def sentences(tasks: TaskScores, names: Sequence[str]) -> list[str]:
    """What the tests decide, in words, then what the model can do without faults. `names` are those of the cells."""
    said = []
    if tasks.pairs:
        said.append(_what_breaks_first(tasks.pairs, names))
        said.append(_zombie(tasks, names))
    tested = [found for found in tasks.faulted if found.p_holm is not None]
    if tested:
        worse = [f for f in tested if f.p_holm < ALPHA and f.stated_pairs[1] > f.stated_pairs[2]]  # type: ignore[operator, index]
        better = [f for f in tested if f.p_holm < ALPHA and f.stated_pairs[1] < f.stated_pairs[2]]  # type: ignore[operator, index]
        same = len(tested) - len(worse) - len(better)
        said.append(
            f"With both operands stated, the result is wrong more often than clean in {len(worse)} of {len(tested)} "
            f"comparisons, less often in {len(better)}, not distinguishable in {same} (McNemar, Holm)"
            + (f": worse in {_some(f'{f.task} under {names[f.cell]}' for f in worse)}." if worse else ".")
        )
    said += length_sentences(tasks.lengths)
    for clean in tasks.clean:
        where = f" at {clean.context:,} tokens" if clean.context else ""
        chance = f", chance {clean.chance:.0%}" if clean.chance is not None else ""
        said.append(f"Clean {clean.task}{where}: {clean.right.k:,} of {clean.right.n:,} right{chance}.")
    return said


def _what_breaks_first(pairs: Sequence[TaskPair], names: Sequence[str]) -> str:
    apart = [pair for pair in pairs if pair.p_holm < ALPHA]
    reasoning = [pair for pair in apart if pair.only_reasoning > pair.only_retrieval]
    retrieval = [pair for pair in apart if pair.only_reasoning < pair.only_retrieval]
    undecided = len(pairs) - len(apart)
    if not apart:
        head = "This run cannot tell whether reasoning or retrieval breaks first"
    elif not retrieval:
        head = "Reasoning breaks before retrieval wherever the two can be told apart"
    elif not reasoning:
        head = "Retrieval breaks before reasoning wherever the two can be told apart"
    else:
        head = "Neither reasoning nor retrieval breaks first throughout"
    said = (
        f"{head}: of {len(pairs)} comparisons on common items reasoning fails more often in {len(reasoning)}, "
        f"retrieval in {len(retrieval)}, undecided {undecided} (McNemar, Holm)"
    )
    shown = [
        f"{p.reasoning} against {p.retrieval} under {names[p.cell]}, ratio {p.sensitivity}"
        for p in sorted(apart, key=lambda pair: pair.p)
    ]
    return f"{said}: {_some(shown)}." if shown else f"{said}."


def zombie_states(tasks: TaskScores) -> list[ZombieState]:
    """Every retrieval task against every reasoning task under every cell. Shares are of the items solved clean."""
    kept = {(found.cell, found.context, found.task): found.kept for found in tasks.faulted}
    return [
        ZombieState(
            cell=pair.cell,
            context=pair.context,
            retrieval=pair.retrieval,
            reasoning=pair.reasoning,
            recalled=kept[pair.cell, pair.context, pair.retrieval],
            reasoned=kept[pair.cell, pair.context, pair.reasoning],
        )
        for pair in tasks.pairs
        if pair.pairs
    ]


def _zombie(tasks: TaskScores, names: Sequence[str]) -> str:
    """Whether some cell recalls and does not reason."""
    states = zombie_states(tasks)
    if not states:
        return "Whether the model has a zombie state was not measured."
    closest = min(states, key=lambda state: state.order)
    where = f"{closest} under {names[closest.cell]}"
    if closest.distance > 0:
        return f"No cell is in the zombie state ({ZOMBIE_RULE}); the closest: {where}."
    if closest.shown:
        return f"Zombie state ({ZOMBIE_RULE}), shown by both intervals: {where}."
    return f"A zombie state ({ZOMBIE_RULE}) is possible, but the intervals do not show it: {where}."


def _some(words: Iterator[str] | list[str], limit: int = 4) -> str:
    found = list(words)
    rest = len(found) - limit
    return "; ".join(found[:limit]) + (f"; and {rest} more" if rest > 0 else "")
