"""A run in a notebook: it shows itself, and turns into data frames."""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvspec.report.json_report import to_json
from kvspec.report.text import render_text
from kvspec.score import Scores, score_run

if TYPE_CHECKING:
    import pyarrow as pa


class Result:
    """The results of a run folder, scored when first asked.

    >>> result = Result("runs/quickstart-1a2b3c4d5e6f")     # doctest: +SKIP
    >>> result.to_pandas()                                  # doctest: +SKIP
    """

    def __init__(self, path: Path | str) -> None:
        """Name the run. Nothing is read yet."""
        self.path = Path(path)

    @cached_property
    def scores(self) -> Scores:
        """Everything that was scored. Raises `RecordsError` (KVS502, KVS505, KVS506)."""
        return score_run(self.path)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, in the shape of `schemas/report.schema.json`."""
        return to_json(self.scores)

    def to_arrow(self, *, trials: bool = False) -> pa.Table:
        """One row per cell, or one per trial."""
        from kvspec.report.frames import cell_table, trial_table

        return trial_table(self.path) if trials else cell_table(self.scores)

    def to_pandas(self, *, trials: bool = False) -> Any:
        """`pandas.DataFrame` of the cells, or of the trials. Needs pandas."""
        return self.to_arrow(trials=trials).to_pandas()

    def to_polars(self, *, trials: bool = False) -> Any:
        """`polars.DataFrame` of the cells, or of the trials. Needs polars."""
        polars = importlib.import_module("polars")
        return polars.from_arrow(self.to_arrow(trials=trials))

    def html(self) -> str:
        """The page of the run: one file that opens without a network. Needs jinja2 and vl-convert."""
        from kvspec.report.html import html_report

        return html_report(self.path)

    def __repr__(self) -> str:
        """Which run it is."""
        return f"Result({str(self.path)!r})"

    def __str__(self) -> str:
        """The report as text."""
        return render_text(self.scores)

    def _repr_html_(self) -> str:
        """Verdict and table, for notebooks: no script, no style that leaves its own box."""
        from kvspec.report.html import render_summary

        return render_summary(self.scores)
