"""Where a report goes: standard output or a file, as text, JSON, LaTeX, CSV or Parquet."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TextIO

from kvspec.report.json_report import to_json
from kvspec.report.text import render_text
from kvspec.score import Scores

FORMATS = ("text", "json", "latex", "csv")
"""Forms that are text. Parquet is bytes, and a file of its own: `render_bytes`."""


def render(scores: Scores, output: str, *, width: int | None = None, colour: bool = False) -> str:
    """The report in one of `FORMATS`. Width and colour matter for text only."""
    if output == "json":
        return json.dumps(to_json(scores), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if output == "latex":
        from kvspec.report.latex import to_latex

        return to_latex(scores)
    if output == "csv":
        from kvspec.report.frames import to_csv

        return to_csv(scores)
    return render_text(scores, width=width, colour=colour)


def render_bytes(scores: Scores, output: str) -> bytes:
    """The report as a file: one of `FORMATS` in UTF-8, or `parquet`."""
    if output == "parquet":
        from kvspec.report.frames import to_parquet

        return to_parquet(scores)
    return render(scores, output).encode()


def print_report(scores: Scores, output: str = "text", stream: TextIO | None = None) -> None:
    """Print the report, as wide and as colourful as the stream allows."""
    stream = stream or sys.stdout
    terminal = stream.isatty()
    text = render(
        scores,
        output,
        width=shutil.get_terminal_size().columns if terminal else None,
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
    )
    # A terminal that cannot show a character of a corrupted answer must not cost the report.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
