"""What decides the question of a spec beyond the report of one run, in words that follow from tests.

Every function takes what `tools/measured.py` left in the JSON of a page, or the scores of its runs, and gives
`Findings`: sentences, and the figures behind them as lines of Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import log, sqrt
from statistics import NormalDist
from typing import Any

from kvspec.score import CellScore, Proportion, Scores
from kvspec.stats.exact import ALPHA, holm
from tools.measured import REQUEST_TOKENS

TESTS = {"exact": "exact test within prompts", "McNemar": "McNemar", "trend": "Mantel's trend"}
UNITS = {"per_bit": "bit", "per_element": "element", "per_row": "row", "per_token": "token"}
SHOWN = 6
"""Doses of one unit whose formats are all ranked in the sentence; of more, those at which some differ."""

Data = Mapping[str, Any]


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


def size(measured: Data) -> str:
    """A difference with its interval; nothing where none is known."""
    found = measured["difference"]
    return "" if found is None else f"{found['value']:+.1%} {ends(found['low'], found['high'])}"


def ends(low: float, high: float) -> str:
    """An interval of a difference."""
    return f"[{low:+.1%}, {high:+.1%}]"


def adjusted(measured: Sequence[Data]) -> list[float]:
    """Holm over the tests of one family."""
    return holm([one["p"] for one in measured])


def contrasts(scores: Scores, measured: Sequence[Data]) -> Findings | None:
    """The `x-contrasts` of a spec, Holm over all of them."""
    if not measured:
        return None
    cells = {cell.plan.name: cell for cell in scores.cells}
    head = "| contrast | accuracy | difference | for other prompts | test | p (Holm) |"
    said, table, shown = [], [head, "|---" * 6 + "|"], 0
    for one, p in zip(measured, adjusted(measured), strict=True):
        names, test = one["cells"], "McNemar" if one["test"] == "McNemar" else "exact"
        if one["test"] == "trend":
            test = "-" if one["z"] is None else f"z = {one['z']:.1f}"
        text = " to ".join((names[0], names[-1])) if len(names) > 2 else " against ".join(names)
        rates = [cells[name].exact_match.rate for name in (names[0], names[-1])]
        shares = ["-" if rate is None else f"{rate:.1%}" for rate in rates]
        wide = "-" if one["clustered"] is None else ends(*one["clustered"])
        table.append(f"| {text} | {' and '.join(shares)} | {size(one) or '-'} | {wide} | {test} | {p_value(p)} |")
        if p < ALPHA:
            shown += 1
            way = f"{size(one)}, " if size(one) else f"from {' to '.join(shares)}, {test}, "
            said.append(f"{text} {way}{p_value(p)}")
    used = " and ".join(dict.fromkeys(TESTS[one["test"]] for one in measured))
    lead = f"Contrasts ({used}, Holm): {shown} of {len(measured)} differ"
    return Findings("Contrasts", (f"{lead}{': ' if said else ''}{'; '.join(said)}.",), tuple(table))


def equal_flips(measured: Sequence[Data]) -> Findings | None:
    """The `x-equal-flips` of a spec, Holm over all of them."""
    if not measured:
        return None
    said, table = [], ["| at equal flips | accuracy | difference | p (Holm) |", "|---" * 4 + "|"]
    for one, p in zip(measured, adjusted(measured), strict=True):
        text = " against ".join(one["series"])
        shares = [Proportion.of(**counts) for counts in one["counts"]]
        n = " and ".join(f"{found.n:,}" for found in shares)
        said.append(f"{text} {size(one) or 'all alike'} ({p_value(p)}, n = {n})")
        table.append(f"| {text} | {' and '.join(map(share, shares))} | {size(one) or '-'} | {p_value(p)} |")
    lead = "At equal flips (trials of one prompt in which equally many landed, exact test within these strata, Holm)"
    return Findings("Equal flips", (f"{lead}: {'; '.join(said)}.",), tuple(table))


def formats(runs: Sequence[Scores], measured: Data) -> Iterator[Findings]:
    """The same cells in caches of different formats: an answer per unit of the dose, and per GiB of cache.

    Accuracy is that of token ids equal to the golden ones of the same format; Holm over all pairs and doses.
    """
    names = [scores.run.storage_format for scores in runs]
    rows = list(zip(*(scores.cells for scores in runs), strict=True))
    tests = measured["tests"]
    keys = [(one["cell"], *one["formats"]) for one in tests]
    p_of = dict(zip(keys, adjusted(tests), strict=True))
    for unit, word in UNITS.items():
        mine = [row for row, cells in enumerate(rows) if cells[0].plan.fault["rate"]["unit"] == unit]
        if not mine:
            continue
        table = [f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        said = []
        for row in mine:
            shares = [cell.exact_match for cell in rows[row]]
            table.append(f"| {rows[row][0].plan.name} | {' | '.join(map(share, shares))} |")
            differs = any(p < ALPHA for (at, *_), p in p_of.items() if at == row)
            if differs or len(mine) <= SHOWN:
                figures = [f"{found.rate or 0:.1%}" for found in shares]
                ranked = sorted(range(len(names)), key=lambda i: -(shares[i].rate or 0.0))
                said.append(f"at {_dose(row, mine, rows)} {_ranking(row, ranked, names, figures, '>', p_of)}")
        apart = sum(p < ALPHA for (at, *_), p in p_of.items() if at in mine)
        total = len(mine) * len(names) * (len(names) - 1) // 2
        lead = f"Equal faults per {word}: {apart} of {total} pairs of formats differ (exact test within prompts, Holm)"
        note = "; > differs from the next, ~ does not" if len(names) > 1 else ""
        text = f"{lead}{note if said else ''}{': ' if said else ''}{'; '.join(said)}."
        yield Findings(f"Formats per {word}", (text,), tuple(table))
    losses = _per_gib(names, rows, measured["requests_per_gib"])
    if losses is not None:
        yield losses


def _dose(row: int, mine: Sequence[int], rows: Sequence[Sequence[CellScore]]) -> str:
    """The rate of a cell where it tells the cells apart, else its name."""
    rates = [rows[one][0].plan.fault["rate"]["value"] for one in mine]
    value = rows[row][0].plan.fault["rate"]["value"]
    return f"{value:g}" if rates.count(value) == 1 else rows[row][0].plan.name


def _ranking(
    row: int,
    ranked: Sequence[int],
    names: Sequence[str],
    figures: Sequence[str],
    sign: str,
    p_of: Mapping[tuple[int, ...], float],
) -> str:
    text = f"{names[ranked[0]]} {figures[ranked[0]]}"
    for a, b in pairwise(ranked):
        text += f" {sign if p_of[row, min(a, b), max(a, b)] < ALPHA else '~'} {names[b]} {figures[b]}"
    return text


def _per_gib(
    names: Sequence[str], rows: Sequence[Sequence[CellScore]], held: Sequence[float] | None
) -> Findings | None:
    """Broken requests per GiB: at one rate per bit a GiB has the same faults in all formats, but not as many requests.

    Two formats lose alike if the ratio of their shares of broken requests is the inverse of that of the requests that
    they hold: Katz's normal test of the log ratio (half a trial added to both counts), Holm over all pairs and rates.
    """
    mine = [cells for cells in rows if cells[0].plan.fault["rate"]["unit"] == "per_bit"]
    if held is None or not mine:
        return None
    table = [f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    table.append(f"| requests that a GiB holds | {' | '.join(f'{count:,.0f}' for count in held)} |")
    tests: dict[tuple[int, ...], float] = {}
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
    p_of = dict(zip(tests, holm(list(tests.values())), strict=True))
    said = []
    for row, cells in enumerate(mine):
        ranked = sorted(range(len(names)), key=lambda i: lost[row][i])
        figures = [f"{count:,.0f}" for count in lost[row]]
        value = cells[0].plan.fault["rate"]["value"]
        said.append(f"at {value:g} per bit {_ranking(row, ranked, names, figures, '<', p_of)}")
    apart = sum(p < ALPHA for p in p_of.values())
    lead = (
        f"Equal faults per GiB, broken requests of {REQUEST_TOKENS} tokens per GiB of cache, scales included: "
        f"{apart} of {len(p_of)} pairs of formats differ (log ratio, Holm)"
    )
    return Findings("Formats per GiB", (f"{lead}: {'; '.join(said)}.",), tuple(table))


def _same_losses(a: Proportion, held_a: float, b: Proportion, held_b: float) -> float:
    broken = [(found.n - found.k + 0.5, found.n + 1.0) for found in (a, b)]
    (x1, n1), (x2, n2) = broken
    distance = log(x1 / n1 * held_a) - log(x2 / n2 * held_b)
    return 2 * NormalDist().cdf(-abs(distance) / sqrt(1 / x1 - 1 / n1 + 1 / x2 - 1 / n2))


def searched(measured: Data) -> Findings:
    """What `kvspec search` found: both verdicts, and per fault where reasoning falls and where retrieval is lost.

    The flips that landed in each task of the closest cells are told as well: a task whose answers end before a fault
    starts is spared, not robust.
    """
    head = (
        "| fault, its rates | definition | reasoning fails in half at | retrieval is kept to | state | closest cell |"
    )
    table = [head, "|---" * 6 + "|", *(f"| {' | '.join(row)} |" for row in measured["rows"])]
    said = list(measured["sentences"])
    for one in measured["landed"]:
        means = ", ".join(f"{mean:.3g} in {task}" for task, mean in one["mean"].items())
        said.append(f"Flips that landed in a request of {one['cell']}, by task, with another seed: {means}.")
    return Findings("Search", tuple(said), tuple(table))


def published(scores: Scores, figures: Data) -> Findings | None:
    """Single flips by bit against the figures of `x-published`, by the rule that two bits differ if their 95 % Wilson
    intervals do not overlap; `None` for a run without an anatomy."""
    anatomy = scores.anatomy
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


def p_value(p: float) -> str:
    """`p = 0.03`."""
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"
