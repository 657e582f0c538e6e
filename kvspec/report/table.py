"""The guide's table, with what it takes to trust it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvspec.report import anatomy, tasks, words
from kvspec.score import CellScore, Scores

Column = tuple[str, bool, Callable[[CellScore], str]]

_GUIDE: tuple[Column, ...] = (
    ("Experiment", False, lambda c: c.plan.name),
    ("Model", False, lambda c: str(c.plan.fault["model"])),
    ("Rate", True, lambda c: words.rate(c.plan.fault)),
    ("Accuracy", True, lambda c: words.percent(c.exact_match)),
)
_TRUST: tuple[Column, ...] = (
    ("95 % interval", True, lambda c: words.interval(c.exact_match)),
    ("n", True, lambda c: f"{c.exact_match.n:,}"),
)
_DRIFT: Column = ("Avg Drift", True, lambda c: words.chars(c.drift_means["char_drift"]))
_FLIPS: tuple[Column, ...] = (
    ("Flips planned/landed", True, words.flips),
    ("masked/sdc/due", True, words.outcomes),
)
_STATUS: Column = ("Status", False, words.status)


_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A rule under the head and nothing else, in characters that every terminal has."""


LEFT = ("Task", "Cell", "Retrieval", "Reasoning", *anatomy.TESTS[:3])
"""Columns of words."""


def cell_tables(cells: Sequence[CellScore], console: Console) -> list[RenderableType]:
    """One table where it fits; on narrow terminals the guide's columns first and the rest below."""
    wide = _table((*_GUIDE, *_TRUST, _DRIFT, *_FLIPS, _STATUS), cells)
    if Measurement.get(console, console.options.update(width=10_000), wide).maximum <= console.width:
        return [wide]
    return [_table((*_GUIDE, _DRIFT, _STATUS), cells), _table((_GUIDE[0], *_TRUST, *_FLIPS), cells)]


def _table(columns: Sequence[Column], cells: Sequence[CellScore]) -> Table:
    table = Table(box=_RULE, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, (name, right, _) in enumerate(columns):
        # Where even this is too wide, names are broken over lines; no figure is ever cut.
        table.add_column(name, justify="right" if right else "left", no_wrap=number > 0, overflow="fold")
    for cell in cells:
        style = "bold red" if cell.invalid else ""
        table.add_row(*(Text(words.printable(value(cell)), style=style) for _, _, value in columns))
    return table


def task_tables(scores: Scores) -> list[RenderableType]:
    """Graded answers, and retrieval against reasoning; none where no prompt is graded."""
    found = ((tasks.ANSWERS, tasks.answer_rows(scores)), (tasks.PAIRS, tasks.pair_rows(scores)))
    return [_plain(head, rows) for head, lines in found if (rows := list(lines))]


def anatomy_tables(scores: Scores) -> list[RenderableType]:
    """What a single flip does by its place; none with too few single flips."""
    return [_plain(head, rows) for head, rows in anatomy.map_tables(scores)]


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=_RULE, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in head:
        right = name not in LEFT
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(words.printable, row))
    return table
