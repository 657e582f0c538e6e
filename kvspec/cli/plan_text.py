"""The doses of a plan as tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvspec.plan import Cell, Plan
from kvspec.plan.estimate import CellEstimate, Estimate

PLAIN_WIDTH = 10_000
"""Columns where there is no terminal."""

Column = tuple[str, Callable[[CellEstimate], str]]

_FLIPS: tuple[Column, ...] = (
    ("n", lambda c: str(c.trials)),
    ("flips/trial", lambda c: f"{c.expected_flips_per_trial:.3g}"),
    ("flips/cell", lambda c: f"{c.expected_flips:.3g}"),
    ("hit", lambda c: f"{c.hit:.1%}"),
)
_DOSES: tuple[Column, ...] = (
    ("per bit", lambda c: f"{c.dose.per_eligible_bit:.2e}"),
    ("per element", lambda c: f"{c.dose.per_element:.2e}"),
    ("per token", lambda c: f"{c.dose.per_token:.2e}"),
    ("per GiB", lambda c: f"{c.dose.per_gib:.2e}"),
)


def dose_tables(plan: Plan, expected: Estimate, console: Console) -> list[Table]:
    """One table where it fits; on narrow terminals what a cell expects first, and its doses below."""
    rows = list(zip(plan.cells, expected.cells, strict=True))
    wide = _table(rows, (*_FLIPS, *_DOSES), rate=True)
    if Measurement.get(console, console.options.update(width=PLAIN_WIDTH), wide).maximum <= console.width:
        return [wide]
    return [_table(rows, _FLIPS, rate=True), _table(rows, _DOSES, rate=False)]


def _table(rows: Sequence[tuple[Cell, CellEstimate]], columns: Sequence[Column], *, rate: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Where even this is too wide, names are broken over lines; no figure is ever cut.
    table.add_column("cell", overflow="fold")
    for name in (*(("rate",) if rate else ()), *(name for name, _ in columns)):
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for cell, figures in rows:
        shown = [str(cell.fault.rate)] if rate else []
        table.add_row(Text(cell.name), *shown, *(value(figures) for _, value in columns))
    return table
