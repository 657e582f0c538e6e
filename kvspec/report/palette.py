"""Colours of charts: as variables of the page, so that dark mode and print need no second chart, and for files."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 4], [1, 3], [12, 3, 3, 3])
"""Nothing is told apart by colour alone."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours in the words of CSS."""

    series: tuple[str, ...]
    outcomes: tuple[str, str, str]
    """masked, sdc, due."""
    heat: tuple[str, ...]
    """From the lowest accuracy to the highest."""
    heat_ink: tuple[str, str]
    """Text on the lower half of `heat` and on the upper half."""
    ink: str
    muted: str
    grid: str
    page: str


PAGE = Palette(
    series=tuple(f"var(--s{number})" for number in range(1, 9)),
    outcomes=("var(--masked)", "var(--sdc)", "var(--due)"),
    heat=tuple(f"var(--h{number})" for number in range(1, 8)),
    heat_ink=("var(--h-ink-low)", "var(--h-ink-high)"),
    ink="var(--ink)",
    muted="var(--muted)",
    grid="var(--grid)",
    page="transparent",
)

PAPER = Palette(
    series=("#1b5fb4", "#b8430a", "#0f766e", "#8b2fa0", "#8a5a00", "#b51760", "#4a7a0c", "#4b5a6b"),
    outcomes=("#a9b6c3", "#e07b1a", "#9c1f3f"),
    heat=("#6a1033", "#9c1f3f", "#c9472f", "#e58a3c", "#f3bd74", "#f8dfb4", "#f4f1e6"),
    heat_ink=("#ffffff", "#20262d"),
    ink="#1c2329",
    muted="#55616d",
    grid="#d9dfe5",
    page="#ffffff",
)
