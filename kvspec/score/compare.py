"""Two runs side by side: what differs in spec, environment and results, cell by cell with a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kvspec.plan import canonical_json
from kvspec.records import RunStore
from kvspec.records.environment import differences
from kvspec.score.golden import Golden
from kvspec.score.grid import EXACT, SCORED, WAS_DUE, discordant
from kvspec.score.model import CellScore, Scores
from kvspec.score.scores import Scored, score_whole
from kvspec.stats.exact import ALPHA, Strata, holm, mcnemar
from kvspec.stats.intervals import Difference, Proportion, difference_independent, difference_paired

Test = Literal["paired", "within prompts", "independent"]
Metric = Literal["identical", "due"]
METRICS: dict[Metric, int] = {"identical": EXACT, "due": WAS_DUE}


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """A field of the spec or of the environment that differs; values as JSON text, `absent` where there is none."""

    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class CellDiff:
    """One figure of a cell in both runs."""

    name: str
    """Name of the cell in the first run."""
    metric: Metric
    """Share of the compared trials that equal their golden answer, or that are due."""
    first: Proportion
    second: Proportion
    left_out: tuple[int, int]
    """Scored trials of either run without a counterpart: in no figure here."""
    difference: Difference | None
    """Second less first; `None` where one side has no scored trial."""
    test: Test | None
    """paired: the same faults in the same prompts (McNemar); within prompts: the same prompts, other draws (exact
    conditional test, prompts as strata); independent: other prompts (Fisher). Two-sided, exact."""
    p: float | None
    least: float | None
    """The least p that the test can give with as many differences or successes as there are."""
    p_holm: float | None
    """Adjusted over the tests of the comparison that can be significant at all; 1 for the others."""

    @property
    def tells(self) -> bool:
        """Whether some outcome of the test would be significant. Where not, it cannot raise a false alarm either."""
        return self.least is not None and self.least < ALPHA

    @property
    def significant(self) -> bool:
        """Whether the adjusted p is below 0.05."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True, slots=True)
class RunDiff:
    """Everything that differs between two runs."""

    first: Scores
    second: Scores
    spec: tuple[FieldDiff, ...]
    environment: tuple[FieldDiff, ...]
    golden_same: int
    """Prompts whose golden answers have the same token ids."""
    golden_both: int
    """Prompts with a usable golden answer in both runs."""
    cells: tuple[CellDiff, ...]
    """Cells that inject the same fault, by the order of the first run."""
    only_first: tuple[str, ...]
    """Cells whose fault the other run does not have."""
    only_second: tuple[str, ...]

    @property
    def significant(self) -> tuple[CellDiff, ...]:
        """The differences that hold."""
        return tuple(cell for cell in self.cells if cell.significant)


def compare_runs(first: Path | str, second: Path | str) -> RunDiff:
    """Score and compare two run folders. Raises like `score_run`."""
    a, b = score_whole(first), score_whole(second)
    spec_a, spec_b = ({**_json(path, "spec.json"), "source": None} for path in (first, second))
    seeds_equal = spec_a.get("seed") == spec_b.get("seed")
    matched, only_first, only_second = _match(a.scores.cells, b.scores.cells)
    pairing = Pairing(a, b, seeds_equal)
    found = [pairing.compare(left, right, metric) for left, right in matched for metric in METRICS]
    # What a test can show follows from its margins, on which it is conditioned: leaving out those that can show nothing
    # keeps the error of Holm's adjustment (Tarone 1990).
    adjusted = iter(holm([cell.p for cell in found if cell.p is not None and cell.tells]))
    found = [cell if cell.p is None else replace(cell, p_holm=next(adjusted) if cell.tells else 1.0) for cell in found]
    same, both = _golden(a, b)
    return RunDiff(
        first=a.scores,
        second=b.scores,
        spec=_fields(spec_a, spec_b),
        environment=_fields(_json(first, "environment.json"), _json(second, "environment.json")),
        golden_same=same,
        golden_both=both,
        cells=tuple(found),
        only_first=tuple(cell.plan.name for cell in only_first),
        only_second=tuple(cell.plan.name for cell in only_second),
    )


class Pairing:
    """How trials of two runs belong together."""

    def __init__(self, first: Scored, second: Scored, seeds_equal: bool) -> None:
        """Trials are paired where seed, prompts, entry and experiment id are the same: then so are the faults."""
        self._first, self._second = first, second
        self._shared = seeds_equal and first.prompts == second.prompts

    def compare(self, a: CellScore, b: CellScore, metric: Metric) -> CellDiff:
        """Compare one figure of two cells."""
        flag = METRICS[metric]
        left, right = self._first.grid, self._second.grid
        x, y = left.flags[a.plan.index], right.flags[b.plan.index]
        k1, n1, k2, n2 = _count(x, flag), _count(x, SCORED), _count(y, flag), _count(y, SCORED)
        scored = n1, n2
        difference: Difference | None = None
        test: Test | None = None
        p = least = None
        if n1 and n2:
            same_draws = a.plan.experiment == b.plan.experiment and a.plan.entry == b.plan.entry
            both, only_a, only_b, pairs = discordant(x, y, flag) if self._shared and same_draws else (0, 0, 0, 0)
            strata = self._strata(a, b, flag)
            if pairs:
                test, p, least = "paired", mcnemar(only_a, only_b), mcnemar(0, only_a + only_b)
                k1, n1, k2, n2 = both + only_a, pairs, both + only_b, pairs
                difference = difference_paired(only_b, only_a, pairs)
            else:
                if len(strata.k1):
                    test = "within prompts"
                    k1, n1, k2, n2 = (int(column.sum()) for column in (strata.k1, strata.n1, strata.k2, strata.n2))
                else:
                    test, strata = "independent", Strata.of([k1], [n1], [k2], [n2])
                p, least = strata.different(), strata.least()
                difference = difference_independent(k2, n2, k1, n1)
        return CellDiff(
            name=a.plan.name,
            metric=metric,
            first=Proportion.of(k1, n1),
            second=Proportion.of(k2, n2),
            left_out=(scored[0] - n1, scored[1] - n2),
            difference=difference,
            test=test,
            p=p,
            least=least,
            p_holm=None,
        )

    def _strata(self, a: CellScore, b: CellScore, flag: int) -> Strata:
        left = _by_prompt(self._first, a.plan.index, flag)
        right = _by_prompt(self._second, b.plan.index, flag)
        common = [text for text in left if text in right]
        columns = [[left[text][0] for text in common], [left[text][1] for text in common]]
        columns += [[right[text][0] for text in common], [right[text][1] for text in common]]
        return Strata.of(*columns)


def _by_prompt(run: Scored, cell: int, flag: int) -> dict[str, tuple[int, int]]:
    k, n = run.grid.counts(cell, flag)
    return {text: (int(k[c]), int(n[c])) for text, c in zip(run.prompts, run.grid.cluster, strict=True)}


def _count(flags: Any, flag: int) -> int:
    return int(np.count_nonzero(flags & flag))


def _match(
    first: Sequence[CellScore], second: Sequence[CellScore]
) -> tuple[list[tuple[CellScore, CellScore]], list[CellScore], list[CellScore]]:
    """Cells of both runs with the same fault, whatever its name; equal faults of one run in their order."""
    there = dict(zip(_keys(second), second, strict=True))
    pairs, alone = [], []
    for key, cell in zip(_keys(first), first, strict=True):
        other = there.pop(key, None)
        if other is None:
            alone.append(cell)
        else:
            pairs.append((cell, other))
    return pairs, alone, list(there.values())


def _keys(cells: Sequence[CellScore]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    keys = []
    for cell in cells:
        fault = {key: value for key, value in cell.plan.fault.items() if key not in ("name", "index")}
        key = canonical_json(fault)
        keys.append((key, seen[key]))
        seen[key] += 1
    return keys


def _golden(a: Scored, b: Scored) -> tuple[int, int]:
    left, right = _answers(a.golden, a.prompts), _answers(b.golden, b.prompts)
    both = [text for text in left if text in right]
    return sum(left[text] == right[text] for text in both), len(both)


def _answers(golden: Golden, prompts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for text, answer in zip(prompts, golden.index.tolist(), strict=True):
        if answer >= 0:
            found[text] = tuple(golden.values[golden.offsets[answer] : golden.offsets[answer + 1]].tolist())
    return found


def _json(path: Path | str, name: str) -> dict[str, Any]:
    return RunStore.open(path).read_json(name) or {}


def _fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[FieldDiff, ...]:
    return tuple(FieldDiff(*found) for found in differences(first, second))
