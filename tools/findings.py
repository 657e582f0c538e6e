"""What decides the question of a spec beyond the report of one run, in words that follow from tests.

Every function takes what `tools/measured.py` left in the JSON of a page, or the scores of its runs, and gives
`Findings`: sentences, and the figures behind them as lines of Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from kvspec.score import Proportion, Scores
from kvspec.stats.exact import ALPHA, holm

TESTS = {"exact": "exact test within prompts", "McNemar": "McNemar", "trend": "Mantel's trend"}
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
    return Findings(f"Search: {measured['where']}", tuple(said), tuple(table))


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
            first = order(there[plane, x], there[plane, y])
            second = order(here[plane, x], here[plane, y])
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
    level = {f"{bit} in {plane}": order(here[plane, bit], found) for (plane, bit), found in there.items()}
    ways, alike = list(level.values()), [name for name, way in level.items() if not way]
    which = f" ({', '.join(alike)})" if alike else ""
    sentence = (
        f"Published ranking ({figures['source']}, n = {n}): of {told} pairs of bits of one plane that its intervals "
        f"tell apart, {same} are told apart here in the same order, {other} in the other order, {open_} are not told "
        f"apart here; the bit that shows most is {top['there']} there and {top['here']} here. Of "
        f"{len(level)} shares {len(alike)} agree within their intervals{which}, "
        f"{ways.count(1)} are higher here, {ways.count(-1)} lower."
    )
    return Findings("Against published figures", (sentence,), tuple(table))


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def order(a: Proportion, b: Proportion) -> int:
    """1 if the interval of a lies above that of b, -1 below, 0 if they overlap."""
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    return (a.low > b.high) - (b.low > a.high)


def p_value(p: float) -> str:
    """`p = 0.03`."""
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"
