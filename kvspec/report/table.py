"""The guide's table, with what it takes to trust it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvspec.report import words
from kvspec.score import CellScore, Proportion, Scores

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
    """The guide's needle table: graded answers per context, task and cell; and retrieval against reasoning."""
    tasks, names = scores.tasks, [cell.plan.name for cell in scores.cells]
    if not tasks.clean:
        return []
    answers = _plain(
        ("Context", "Task", "Cell", "Right", "n", "Of solved", "95 % interval", "n", "Given operands", "n")
    )
    for clean in tasks.clean:
        chance = f"clean (chance {clean.chance:.0%})" if clean.chance is not None else "clean"
        answers.add_row(
            _context(clean.context), clean.task, chance, *_counted(clean.right), "", "", "",
            *_counted(clean.right_given_stated),
        )  # fmt: skip
        for found in tasks.faulted:
            if (found.task, found.context) == (clean.task, clean.context):
                answers.add_row(
                    "", "", words.printable(names[found.cell]), *_counted(found.right), words.percent(found.kept),
                    words.interval(found.kept), f"{found.kept.n:,}", *_counted(found.right_given_stated),
                )  # fmt: skip
    if not tasks.pairs:
        return [answers]
    pairs = _plain(("Context", "Cell", "Retrieval", "Reasoning", "Pairs", "Lost: retrieval", "reasoning", "both",
                    "Sensitivity", "p (Holm)"))  # fmt: skip
    for pair in tasks.pairs:
        pairs.add_row(
            _context(pair.context), words.printable(names[pair.cell]), pair.retrieval, pair.reasoning,
            f"{pair.pairs:,}", f"{pair.only_retrieval:,}", f"{pair.only_reasoning:,}", f"{pair.both:,}",
            "-" if pair.sensitivity is None else str(pair.sensitivity), f"{pair.p_holm:.2g}",
        )  # fmt: skip
    return [answers, pairs]


def _plain(columns: Sequence[str]) -> Table:
    table = Table(box=_RULE, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in columns:
        right = name not in ("Task", "Cell", "Retrieval", "Reasoning")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _context(tokens: int) -> str:
    return f"{tokens:,}" if tokens else "-"


def _counted(share: Proportion) -> tuple[str, str]:
    return (words.percent(share), f"{share.n:,}") if share.n else ("-", "")
