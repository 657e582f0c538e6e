"""How much of a campaign a page shows, so that it stays below its size whatever the campaign is."""

from __future__ import annotations

from dataclasses import dataclass

from kvspec.score.views import TRIALS

MAX_BYTES = 3_000_000
"""Size of the HTML file at most."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Cuts of one tier. What is cut is said on the page, and stands in `report.json` in full."""

    rows: int = 1_000
    """Cells in the table."""
    bars: int = 48
    """Cells in the outcome bars."""
    panels: int = 24
    """Small multiples of a chart."""
    curves: int = 8
    """Series in one panel: more colours cannot be told apart."""
    squares: int = 4_000
    """Cells of one heat map."""
    trials: int = TRIALS
    tokens: int = 400
    """Tokens of an answer in the diff viewer."""
    flips: int = 40
    """Flips listed per trial."""
    text: int = 4_000
    """Characters of a prompt, an error or an answer without token pieces."""
    name: int = 90
    """Characters of a name."""
    sentences: int = 60
    """Sentences of the verdict, and warnings."""
    spec: int = 120_000
    """Characters of the spec and of the environment."""


TIERS = (
    Limits(),
    Limits(rows=400, bars=32, panels=12, squares=1_500, trials=12, tokens=200, flips=20, text=1_500, spec=40_000),
    Limits(80, 16, 4, 4, 200, 4, 80, 10, 400, 48, 12, 8_000),
)
