"""How numbers and model output look in print. A value that does not exist is a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvspec.score import CellScore, Proportion, Scores

DASH = "-"


def percent(proportion: Proportion) -> str:
    """`90.0%`, or a dash where n is 0."""
    return DASH if proportion.rate is None else f"{proportion.rate:.1%}"


def interval(proportion: Proportion) -> str:
    """`59.6-98.2%`, the 95 % Wilson interval."""
    if proportion.low is None or proportion.high is None:
        return DASH
    return f"{proportion.low * 100:.1f}-{proportion.high * 100:.1f}%"


def rate(fault: Mapping[str, Any]) -> str:
    """`1e-07/bit`, `120 FIT x 24 h`."""
    dose = fault["rate"]
    value = f"{float(dose['value']):g}"
    if dose["unit"] == "fit":
        hours = dose.get("residency_hours")
        return f"{value} FIT/Mbit" if hours is None else f"{value} FIT/Mbit x {hours:g} h"
    return f"{value}/{str(dose['unit']).removeprefix('per_')}"


def expected(flips: float | None) -> str:
    """Expected flips per request, `3.2`, or a dash where they are not known."""
    return DASH if flips is None else f"{flips:.2g}" if flips < 100 else f"{flips:,.0f}"


def interval_kind(scores: Scores) -> str:
    """`95 % Wilson interval`, or what stands in its place where cells could stop early."""
    looks = scores.run.looks
    if looks is None:
        return "95 % Wilson interval"
    return f"{looks.confidence:.0%} repeated interval of {len(looks.rounds)} looks (Jennison & Turnbull)"


def p_value(p: float) -> str:
    """`p = 0.031`, `p < 1e-15`."""
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"


def against_controls(cell: CellScore) -> str:
    """What the test against the controls says of a cell; empty where there was none.

    `p = 0.01`, or `as controls (12.5%)`: in brackets the fall that would have shown with 80 % power.
    """
    if cell.below_floor is None or cell.effect.p_holm is None:
        return ""
    if cell.below_floor:
        return p_value(cell.effect.p_holm)
    drop = cell.effect.detectable_drop
    return f"{'above' if cell.effect.above else 'as'} controls ({'none' if drop is None else f'{drop:.1%}'})"


def chars(mean: float | None) -> str:
    """`19.3 chars`."""
    return DASH if mean is None else f"{mean:.1f} chars"


def outcomes(cell: CellScore) -> str:
    """`masked/sdc/due` as counts."""
    if not cell.exact_match.n:
        return DASH
    return "/".join(f"{cell.outcome[name]:,}" for name in ("masked", "sdc", "due"))


def flips(cell: CellScore) -> str:
    """`planned/landed` as counts, or a dash where no trial finished, for flips are counted at the end of a trial."""
    return f"{cell.flips.planned:,}/{cell.flips.landed:,}" if cell.flips.trials else DASH


def status(cell: CellScore) -> str:
    """OK, CRASH with its count, INVALID with its count, or a dash where nothing was scored."""
    parts = []
    if cell.invalid:
        parts.append(f"INVALID {cell.invalid:,}")
    if cell.status["crash"]:
        parts.append(f"CRASH {cell.status['crash']:,}/{cell.exact_match.n:,}")
    return ", ".join(parts) or ("OK" if cell.exact_match.n else DASH)


def printable(text: str) -> str:
    """Model output on one line: what could move the cursor or hide is escaped, everything else stays as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def window(text: str, at: int, before: int, width: int) -> tuple[str, str]:
    """The part of `text` around character `at`: what comes before it and what follows, both printable.

    At most `before` characters come before, `width` are shown in all; cut ends are marked by three dots.
    """
    start = max(0, at - before)
    head = printable(text[start:at])
    tail = printable(text[at : start + width])
    return ("..." if start else "") + head, tail + ("..." if len(text) > start + width else "")
