"""Graded answers: what stays right under a fault, what breaks first, and whether the step itself breaks.

Four questions, each on common items:
- How often is a task right, of the trials of items that the clean model solves?
- Which fails more often, retrieval or reasoning? Trial t of an item's retrieval against trial t of its reasoning.
- Given the operands, is the result right less often than clean? A worked answer states its operands first, so one
  answer shows both. Trials that state them are compared with the golden answer of the same prompt, which counts once.
- Does a longer context hurt more than its dose explains? (`kvspec.score.lengths`)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvspec.score.cells import Campaign
from kvspec.score.doses import Lengths
from kvspec.score.grading import RIGHT, STATED, Graders
from kvspec.score.lengths import LengthEffect, Sample, length_effects
from kvspec.score.outcome import DUE
from kvspec.score.pooled import PooledPair, pooled
from kvspec.score.trials import GOLDEN, TrialScores
from kvspec.stats.exact import Strata, holm, mcnemar
from kvspec.stats.intervals import Difference, Proportion, Ratio, ratio_paired

SEEN, DETECTED = 4, 8
"""Flags of an answer beside `RIGHT` and `STATED`: there is one; its trial is a detected error (due)."""

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
    decided_after: float | None = None
    """Tokens after which an answer stays right, however it goes on: mean over the items that the clean model solves.
    `None` where the records (of older runs) or the grader do not tell."""


@dataclass(frozen=True, slots=True)
class Ends:
    """How the trials of one task under one cell ended, of the items that the clean model solves: right or wrong, and
    undetected or a detected error (due: logits that are not finite, no end, an error of the engine)."""

    right: int = 0
    right_due: int = 0
    """The answer is right, and whoever watches for detected errors would not have let it through."""
    wrong: int = 0
    """Silent failures."""
    wrong_due: int = 0

    @property
    def n(self) -> int:
        """All of them."""
        return self.right + self.right_due + self.wrong + self.wrong_due

    def __str__(self) -> str:
        """`right 47, right but detected 153, wrong silently 0, wrong and detected 0, of 200`."""
        return (
            f"right {self.right:,}, right but detected {self.right_due:,}, wrong silently {self.wrong:,}, "
            f"wrong and detected {self.wrong_due:,}, of {self.n:,}"
        )


@dataclass(frozen=True, slots=True)
class FaultedTask:
    """One task at one context under one cell."""

    cell: int
    task: str
    kind: str
    context: int
    expected_flips: float | None
    """Expected flips per request of the task: of one that writes as many tokens as its golden answer, mean over the
    items. `None` without golden answers or an estimate."""
    right: Proportion
    """Of all trials."""
    kept: Proportion
    """Right, of the trials of items that the clean model solves."""
    ends: Ends
    """The same trials, with what is detected told apart."""
    stated: Proportion
    right_given_stated: Proportion
    right_given_retrieved: Proportion
    """Reasoning tasks: right, of the trials whose item's retrieval requests are all right in the same trial number.
    Items that the clean model solves only. These are separate requests, with faults of their own."""
    stated_prompts: int
    """Reasoning tasks: prompts whose golden answer states the operands, and a trial too. 0 for others."""
    step_change: Difference | None
    """Right, of the trials that state the operands, less right of their golden answers, within prompts; `None` where
    all of them are right, all wrong, or none."""
    p: float | None
    """That it changes: exact conditional test with prompts as strata, in which a golden answer counts once however many
    trials it is compared with; `None` without `stated_prompts`."""
    p_holm: float | None
    """The same, adjusted over all cells and tasks."""
    deciding_flips: float | None = None
    """Expected flips per request up to the token after which its golden answer stays right, mean over the items that
    the clean model solves. `None` as for `CleanTask.decided_after`, or without an estimate."""


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Retrieval against reasoning under one cell, on the items that the clean model solves in both."""

    cell: int
    context: int
    retrieval: str
    reasoning: str
    same_operands: bool
    """Whether the retrieval task recalls just the operands of the reasoning task."""
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
    """The same, adjusted over all pairs of the run that are `same_operands`, or over all others."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """All graded answers of a run; empty if no prompt has a grader."""

    clean: tuple[CleanTask, ...] = ()
    faulted: tuple[FaultedTask, ...] = ()
    pairs: tuple[TaskPair, ...] = ()
    lengths: tuple[LengthEffect, ...] = ()
    """Every pair of contexts of every task; empty for one context."""
    pooled: tuple[PooledPair, ...] = ()
    """Every retrieval task against every reasoning and every later retrieval task of the same operands."""


class Answers:
    """Collects the flags of all answers of a run."""

    def __init__(self, campaign: Campaign) -> None:
        """Start without answers."""
        self._campaign = campaign
        self._tasks = tasks = campaign.tasks
        plans, per_prompt = campaign.cells, campaign.run.per_prompt
        cells = len(plans)
        self._series = np.unique(np.array([plan.series for plan in plans], str), return_inverse=True)[1]
        """Equal for cells that differ in their rate only."""
        self._graders = Graders(tasks)
        self._text = np.unique(np.array(campaign.prompts, object), return_inverse=True)[1]
        """`[requests]`: equal for equal texts, whose golden answers are one answer."""
        requests = len(tasks)
        self._golden: Flags = np.zeros(requests, np.uint8)
        self._faulted: Flags = np.zeros((cells, requests, per_prompt), np.uint8)
        self._lengths = Lengths(campaign, requests)
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
        self._lengths.prompt[batch.request] = batch.batch.column("prompt_tokens").to_numpy(zero_copy_only=False)
        written = batch.batch.column("tokens_written").to_numpy(zero_copy_only=False)
        for row, text in zip(rows.tolist(), texts, strict=True):
            request = int(batch.request[row])
            flags = SEEN if batch.crash[row] else SEEN + self._graders.flags(request, text)
            flags |= DETECTED * int(batch.outcome[row] == DUE)
            if golden[row]:
                self._golden[request] = flags
                self._lengths.written[request] = written[row]
                ends = batch.batch.column("token_ends")[row].as_py()
                if ends and flags & RIGHT:
                    self._lengths.decided[request] = self._graders.decided(request, text, ends) or 0
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
        families = {same: _adjusted([pair for pair in pairs if pair.same_operands == same]) for same in (True, False)}
        lengths = length_effects(
            {key: self._sample(requests) for key, requests in groups.items()} if self._flips.size else {}
        )
        adjusted = (next(families[pair.same_operands]) for pair in pairs)
        return TaskScores(clean, tuple(_adjusted(faulted)), tuple(adjusted), lengths, tuple(self._pooled(groups)))

    def _sample(self, requests: list[int]) -> Sample:
        solved = self._solved(requests)
        flags = self._faulted[:, solved]
        cell, item, trial = np.nonzero(flags & SEEN)
        right = (flags[cell, item, trial] & RIGHT) > 0
        return Sample(right, self._series[cell], cell, self._flips[:, solved][cell, item, trial])

    def _clean(self, context: int, name: str, requests: list[int]) -> CleanTask:
        task = self._task(requests)
        flags = self._golden[requests]
        right, stated, given = _shares(flags, bool(task["operands"]))
        decided = self._lengths.decided_after(self._solved(requests))
        return CleanTask(name, str(task["kind"]), context, task["chance"], right, stated, given, decided)

    def _under(self, cell: int, context: int, name: str, requests: list[int]) -> FaultedTask:
        task = self._task(requests)
        plan, solved = self._campaign.cells[cell], self._solved(requests)
        flags, kept = self._faulted[cell, requests], self._faulted[cell, solved]
        reasoning = task["kind"] == "reasoning"
        right, stated, given = _shares(flags, bool(task["operands"]))
        step = self._step(cell, requests if reasoning else [])
        return FaultedTask(
            cell=cell,
            task=name,
            kind=str(task["kind"]),
            context=context,
            expected_flips=self._lengths.flips(plan, requests),
            right=right,
            kept=_share(kept, RIGHT),
            ends=_ends(kept),
            stated=stated,
            right_given_stated=given,
            right_given_retrieved=(
                self._given_retrieved(cell, context, requests) if reasoning else Proportion.of(0, 0)
            ),
            stated_prompts=len(step.k1),
            step_change=step.difference(),
            p=step.different() if len(step.k1) else None,
            p_holm=None,
            deciding_flips=self._lengths.deciding_flips(plan, solved),
        )

    def _step(self, cell: int, requests: list[int]) -> Strata:
        """Right answers of the trials that state their operands, against those of the golden answers that do."""
        texts, first, stratum = np.unique(self._text[requests], return_index=True, return_inverse=True)
        faulted, golden = self._faulted[cell, requests], self._golden[requests][first]
        stated, clean = (faulted & STATED) > 0, (golden & STATED) > 0
        counts = [
            np.bincount(stratum, weights=np.count_nonzero(some, axis=1), minlength=len(texts))
            for some in (stated & ((faulted & RIGHT) > 0), stated)
        ]
        return Strata.of(counts[0], counts[1], clean & ((golden & RIGHT) > 0), clean)

    def _given_retrieved(self, cell: int, context: int, requests: list[int]) -> Proportion:
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
                recall, step = self._task(requests), self._task(partners)
                if other != context or (recall["kind"], step["kind"]) != ("retrieval", "reasoning"):
                    continue
                same = bool(step["operands"]) and recall["operands"] == step["operands"]
                common = self._common(requests, partners)
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
                        same_operands=same,
                        pairs=int(seen.sum()),
                        only_retrieval=only_a,
                        only_reasoning=only_b,
                        both=both,
                        sensitivity=ratio_paired(both, only_b, only_a),
                        p=mcnemar(only_a, only_b),
                        p_holm=1.0,
                    )

    def _pooled(self, groups: Mapping[tuple[int, str], list[int]]) -> Iterator[PooledPair]:
        kinds = {key: str(self._task(requests)["kind"]) for key, requests in groups.items()}
        ordered = [key for kind in ("retrieval", "reasoning") for key in groups if kinds[key] == kind]
        for (context, first), (other, second) in combinations(ordered, 2):
            sides = groups[context, first], groups[other, second]
            operands = [self._task(side)["operands"] for side in sides]
            common = np.array(self._common(*sides), np.int64).reshape(-1, 2)
            same = context == other and operands[0] and operands[0] == operands[1]
            if same and kinds[context, first] == "retrieval" and len(common) and len(self._faulted):
                flags = self._faulted[:, common.T].swapaxes(0, 1)
                seen: NDArray[np.bool_] = (flags[0] & flags[1] & SEEN) > 0
                yield pooled(context, (first, second), seen, (flags & RIGHT) == 0, (flags & DETECTED) > 0)

    def _common(self, requests: list[int], partners: list[int]) -> list[tuple[int, int]]:
        """Requests of two tasks for one item, of the items that golden solves in both."""
        mine, theirs = self._items(requests), self._items(partners)
        return [
            (mine[item], theirs[item])
            for item in mine
            if item in theirs and self._golden[mine[item]] & self._golden[theirs[item]] & RIGHT
        ]

    def _task(self, requests: list[int]) -> Mapping[str, Any]:
        task = self._tasks[requests[0]]
        assert task is not None
        return task

    def _solved(self, requests: list[int]) -> list[int]:
        """Those that golden solves."""
        return [request for request in requests if self._golden[request] & RIGHT]

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


def _ends(flags: Flags) -> Ends:
    kinds = flags[(flags & SEEN) > 0] & (RIGHT | DETECTED)
    right, right_due, wrong, wrong_due = (int((kinds == kind).sum()) for kind in (RIGHT, RIGHT | DETECTED, 0, DETECTED))
    return Ends(right, right_due, wrong, wrong_due)


def _shares(flags: Flags, operands: bool) -> tuple[Proportion, Proportion, Proportion]:
    """(right, stated, right given stated)."""
    stated = flags[(flags & STATED) > 0]
    return _share(flags, RIGHT), _share(flags, STATED) if operands else Proportion.of(0, 0), _share(stated, RIGHT)


def _adjusted(found: list[Any]) -> Iterator[Any]:
    """The same results with `p_holm` filled in over all that have a p."""
    adjusted = iter(holm([result.p for result in found if result.p is not None]))
    return (replace(result, p_holm=None if result.p is None else next(adjusted)) for result in found)
