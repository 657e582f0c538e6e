"""What decides the question of a spec beyond the report of one run: contrasts of cells, formats, published figures.

Every function takes scored runs and gives `Findings`: sentences that follow from tests, and the figures behind them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from kvspec import _native
from kvspec.models import Geometry, describe
from kvspec.records import RunStore
from kvspec.score import CellScore, Proportion
from kvspec.score.grid import EXACT, SCORED, discordant
from kvspec.score.scores import Scored
from kvspec.search import read_search
from kvspec.search.found import BOTH
from kvspec.spec.model import ModelSpec
from kvspec.stats.association import slope
from kvspec.stats.exact import ALPHA, Strata, holm, mcnemar
from kvspec.stats.intervals import Difference, difference_paired

GIB = 2**33
"""Bits."""
TESTS = {"exact": "exact test within prompts", "McNemar": "McNemar"}
REQUEST_TOKENS = 32
"""Length of the requests that are counted per GiB."""


@dataclass(frozen=True)
class Findings:
    """One part of a page."""

    title: str
    sentences: tuple[str, ...]
    """The findings, each derived from its test."""
    table: tuple[str, ...] = ()
    """Lines of Markdown."""


def share(found: Proportion) -> str:
    """A proportion with its interval and n."""
    if found.rate is None:
        return "-"
    return f"{found.rate:.1%} [{found.low:.1%}, {found.high:.1%}], n = {found.n:,}"


def contrasts(run: Scored, declared: Sequence[Sequence[str]]) -> Findings | None:
    """The `x-contrasts` of a spec: two cells are compared, more are a trend in their order.

    McNemar's test where two cells share their draws, else the exact conditional test within prompts, both two-sided;
    Mantel's test for a trend; Holm over all of them. A cell that the run does not have is an error (`KeyError`).
    """
    if not declared:
        return None
    cells = {cell.plan.name: cell for cell in run.scores.cells}
    rows: list[tuple[Sequence[str], Difference | None, str, float]] = []
    for names in declared:
        some = [cells[name] for name in names]
        if len(some) == 2:
            rows.append((names, *_pair(run, some[0], some[1])))
        else:
            trend = _trend(run, some)
            rows.append((names, None, *(("-", 1.0) if trend is None else (f"z = {trend[0]:.1f}", trend[1]))))
    adjusted = holm([p for *_, p in rows])
    said, table = [], ["| contrast | accuracy | difference | test | p (Holm) |", "|---|---|---|---|---|"]
    shown = 0
    for (names, difference, test, _), p in zip(rows, adjusted, strict=True):
        text = " to ".join((names[0], names[-1])) if len(names) > 2 else " against ".join(names)
        size = "" if difference is None else f"{difference.value:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]"
        ends = [cells[names[0]], cells[names[-1]]]
        shares = " and ".join("-" if c.exact_match.rate is None else f"{c.exact_match.rate:.1%}" for c in ends)
        table.append(f"| {text} | {shares} | {size or '-'} | {test} | {_p(p)} |")
        if p < ALPHA:
            shown += 1
            falls = f"from {shares.replace(' and ', ' to ')}, {test}, "
            said.append(f"{text} {f'{size}, ' if size else falls}{_p(p)}")
    used = " and ".join(dict.fromkeys(TESTS.get(test, "Mantel's trend") for *_, test, _ in rows))
    lead = f"Contrasts ({used}, Holm): {shown} of {len(rows)} differ"
    return Findings("Contrasts", (f"{lead}{': ' if said else ''}{'; '.join(said)}.",), tuple(table))


def _pair(run: Scored, a: CellScore, b: CellScore) -> tuple[Difference | None, str, float]:
    if (a.plan.experiment, a.plan.entry) == (b.plan.experiment, b.plan.entry):
        flags = run.grid.flags
        _, only_a, only_b, pairs = discordant(flags[a.plan.index], flags[b.plan.index], EXACT)
        difference = difference_paired(only_a, only_b, pairs) if pairs else None
        return difference, "McNemar", mcnemar(only_a, only_b)
    strata = Strata.of(*run.grid.counts(a.plan.index), *run.grid.counts(b.plan.index))
    return strata.difference(), "exact", strata.different()


def _trend(run: Scored, cells: Sequence[CellScore]) -> tuple[float, float] | None:
    hits, scores, prompts = [], [], []
    for number, cell in enumerate(cells):
        flags = run.grid.flags[cell.plan.index]
        rows, _ = np.nonzero(flags & SCORED)
        hits.append((flags[(flags & SCORED) > 0] & EXACT) > 0)
        prompts.append(run.grid.cluster[rows])
        scores.append(np.full(len(rows), number))
    found = slope(np.concatenate(hits), np.concatenate(scores), np.concatenate(prompts))
    return None if found is None else (found.z, found.p)


def formats(runs: Sequence[Scored]) -> Iterator[Findings]:
    """The same cells in caches of different formats: per bit, per element and per GiB of cache, an answer each.

    Accuracy is that of token ids equal to the golden ones of the same format. Two formats at one dose are compared by
    the exact test within prompts, Holm over all pairs and doses.
    """
    names = [run.scores.run.storage_format for run in runs]
    rows = list(zip(*(run.scores.cells for run in runs), strict=True))
    tests = {
        (row, i, j): Strata.of(
            *runs[i].grid.counts(cells[i].plan.index), *runs[j].grid.counts(cells[j].plan.index)
        ).different()
        for row, cells in enumerate(rows)
        for i, j in combinations(range(len(runs)), 2)
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    for unit, word in (("per_bit", "bit"), ("per_element", "element")):
        mine = [row for row, cells in enumerate(rows) if cells[0].plan.fault["rate"]["unit"] == unit]
        if not mine:
            continue
        table = [f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        said, apart = [], sum(p < ALPHA for (row, *_), p in adjusted.items() if row in mine)
        for row in mine:
            shares = [cell.exact_match for cell in rows[row]]
            table.append(f"| {rows[row][0].plan.name} | {' | '.join(map(share, shares))} |")
            ranked = sorted(range(len(names)), key=lambda i: -(shares[i].rate or 0.0))
            text = f"{names[ranked[0]]} {shares[ranked[0]].rate or 0:.1%}"
            for a, b in pairwise(ranked):
                sign = ">" if adjusted[row, min(a, b), max(a, b)] < ALPHA else "~"
                text += f" {sign} {names[b]} {shares[b].rate or 0:.1%}"
            said.append(f"at {rows[row][0].plan.fault['rate']['value']:g} {text}")
        total = len(mine) * len(names) * (len(names) - 1) // 2
        lead = f"Equal faults per {word}: {apart} of {total} pairs of formats differ (exact test within prompts, Holm)"
        note = "; > differs from the next, ~ does not" if len(names) > 1 else ""
        yield Findings(f"Formats per {word}", (f"{lead}{note}: {'; '.join(said)}.",), tuple(table))
    losses = per_gib(runs, rows)
    if losses is not None:
        yield losses


def per_gib(runs: Sequence[Scored], rows: Sequence[Sequence[CellScore]]) -> Findings | None:
    """Broken requests per GiB: at one rate per bit a GiB has the same faults in all formats, but not as many requests.

    Two formats lose alike if the ratio of their shares of broken requests is the inverse of that of the requests that
    they hold: Katz's normal test of the log ratio (half a trial added to both counts), Holm over all pairs and rates.
    """
    geometry = describe(ModelSpec(runs[0].scores.run.model)).geometry
    if geometry is None:
        return None
    names = [run.scores.run.storage_format for run in runs]
    held = [_requests(name, geometry) for name in names]
    mine = [cells for cells in rows if cells[0].plan.fault["rate"]["unit"] == "per_bit"]
    table = [f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    table.append(f"| requests that a GiB holds | {' | '.join(f'{count:,.0f}' for count in held)} |")
    tests: dict[tuple[int, int, int], float] = {}
    lost: list[list[float]] = []
    for row, cells in enumerate(mine):
        line, means = [], []
        for cell, count in zip(cells, held, strict=True):
            found = cell.exact_match
            if found.rate is None or found.low is None or found.high is None:
                return None
            mean, low, high = ((1 - x) * count for x in (found.rate, found.high, found.low))
            line.append(f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]")
            means.append(mean)
        lost.append(means)
        table.append(f"| {cells[0].plan.name} | {' | '.join(line)} |")
        for i, j in combinations(range(len(names)), 2):
            tests[row, i, j] = _same_losses(cells[i].exact_match, held[i], cells[j].exact_match, held[j])
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    said = []
    for row, cells in enumerate(mine):
        ranked = sorted(range(len(names)), key=lambda i: lost[row][i])
        text = f"{names[ranked[0]]} {lost[row][ranked[0]]:,.0f}"
        for a, b in pairwise(ranked):
            sign = "<" if adjusted[row, min(a, b), max(a, b)] < ALPHA else "~"
            text += f" {sign} {names[b]} {lost[row][b]:,.0f}"
        said.append(f"at {cells[0].plan.fault['rate']['value']:g} per bit {text}")
    apart = sum(p < ALPHA for p in adjusted.values())
    lead = (
        f"Equal faults per GiB, broken requests of {REQUEST_TOKENS} tokens per GiB of cache, scales included: "
        f"{apart} of {len(adjusted)} pairs of formats differ (log ratio, Holm)"
    )
    return Findings("Formats per GiB", (f"{lead}: {'; '.join(said)}.",), tuple(table))


def _requests(name: str, geometry: Geometry) -> float:
    row = geometry.head_size * _native.format_bits(name) + 32 * _native.format_scaled(name)
    return GIB / (row * geometry.rows_per_token * geometry.layers * REQUEST_TOKENS)


def _same_losses(a: Proportion, held_a: float, b: Proportion, held_b: float) -> float:
    broken = [(found.n - found.k + 0.5, found.n + 1.0) for found in (a, b)]
    (x1, n1), (x2, n2) = broken
    distance = log(x1 / n1 * held_a) - log(x2 / n2 * held_b)
    return 2 * NormalDist().cdf(-abs(distance) / sqrt(1 / x1 - 1 / n1 + 1 / x2 - 1 / n2))


def searched(folder: Path) -> Findings:
    """What `kvspec search` left: both verdicts, and per fault where reasoning falls and where retrieval is lost.

    The flips that landed in each task of the closest cells are told as well: a task whose answers end before a fault
    starts is spared, not robust.
    """
    found = read_search(folder)
    table = [
        "| fault, its rates | definition | reasoning fails in half at | retrieval is kept to | state | closest cell |",
        "|---" * 6 + "|",
    ]
    for series in found.series:
        unit = series.fault.rate.unit.replace("_", " ")
        for silent in BOTH:
            window, point = series.windows(silent)[0], series.closest(silent)
            best = point.closest(silent)
            start = window.start if window.detected is None else f"{window.start}, up to {window.last}"
            table.append(
                f"| {series.label}, {unit}, {len(series.points)} rates | {'silent' if silent else 'answers'} | "
                f"{window.reasoning} {start} | {window.retrieval} {window.stop} | {window.conclusion} | "
                f"{point.rate:g}: {best} |"
            )
    landed = _landed(RunStore.open(folder / "state")) if found.confirmed else ()
    return Findings("Search", (*found.sentences(), *landed), tuple(table))


def _landed(run: RunStore) -> Iterator[str]:
    plan = run.plan()
    tasks = [task["name"] for task in plan["spec"]["prompts"]["tasks"]]
    flips: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in run.table(["kind", "cell", "request", "flips_landed"]).to_pylist():
        if row["kind"] == "fault":
            flips[row["cell"], tasks[row["request"]]].append(row["flips_landed"])
    for cell in plan["cells"]:
        means = [(task, flips[cell["index"], task]) for task in dict.fromkeys(tasks)]
        said = ", ".join(f"{sum(found) / len(found):.3g} in {task}" for task, found in means if found)
        yield f"Flips that landed in a request of {cell['name']}, by task, with another seed: {said}."


def published(run: Scored, figures: Mapping[str, Any]) -> Findings | None:
    """Single flips by bit against the figures of `x-published`, by the rule that two bits differ if their 95 % Wilson
    intervals do not overlap; `None` for a run without an anatomy."""
    anatomy = run.scores.anatomy
    if anatomy is None:
        return None
    here = {(s.column, s.row): s.visible for m in anatomy.maps if m.name == "bit" for s in m.squares}
    n = int(figures["n"])
    there = {(plane, str(bit)): Proportion.of(int(k), n) for plane in ("K", "V") for bit, k in figures[plane].items()}
    same = other = open_ = 0
    for plane in ("K", "V"):
        for x, y in combinations([bit for where, bit in there if where == plane], 2):
            first = _order(there[plane, x], there[plane, y])
            second = _order(here[plane, x], here[plane, y])
            if first:
                same += first == second
                other += first == -second
                open_ += second == 0
    told = same + other + open_
    table = ["| bit | published | here |", "|---|---|---|"]
    table += [
        f"| {bit} in {plane} | {share(found)} | {share(here[plane, bit])} |" for (plane, bit), found in there.items()
    ]
    top = {
        where: max(found, key=lambda key: found[key].rate or 0.0)[1]
        for where, found in (("there", there), ("here", here))
    }
    sentence = (
        f"Published ranking ({figures['source']}, n = {n}): of {told} pairs of bits of one plane that its intervals "
        f"tell apart, {same} are told apart here in the same order, {other} in the other order, {open_} are not told "
        f"apart here; the bit that shows most is {top['there']} there and {top['here']} here."
    )
    return Findings("Against published figures", (sentence,), tuple(table))


def _order(a: Proportion, b: Proportion) -> int:
    """1 if the interval of a lies above that of b, -1 below, 0 if they overlap."""
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    return (a.low > b.high) - (b.low > a.high)


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"
