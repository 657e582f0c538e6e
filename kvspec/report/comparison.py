"""Two runs side by side, for people and as data. Computes no statistics."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from kvspec.report.words import DASH, percent, printable
from kvspec.score import CellDiff, Proportion, RunDiff

FIELD_CHARACTERS = 60
FIELDS_LISTED = 12


def comparison_json(diff: RunDiff) -> dict[str, Any]:
    """Everything that was compared. Values that do not exist are null."""
    return {
        "first": _run(diff.first.run.path, diff.first.run.plan_digest, diff.first.sound),
        "second": _run(diff.second.run.path, diff.second.run.plan_digest, diff.second.sound),
        "significant": bool(diff.significant),
        "verdict": verdict(diff),
        "spec": [asdict(field) for field in diff.spec],
        "environment": [asdict(field) for field in diff.environment],
        "golden": {"same": diff.golden_same, "both": diff.golden_both},
        "cells": [{**asdict(cell), "significant": cell.significant} for cell in diff.cells],
        "only_first": list(diff.only_first),
        "only_second": list(diff.only_second),
    }


def _run(path: str, digest: str, sound: bool) -> dict[str, Any]:
    return {"path": path, "plan": digest, "sound": sound}


def verdict(diff: RunDiff) -> list[str]:
    """What the comparison shows, the most important first."""
    said = [
        f"INVALID: in {scores.run.path} other flips landed than were planned; do not rely on it."
        for scores in (diff.first, diff.second)
        if not scores.sound
    ]
    tests = sum(cell.p is not None for cell in diff.cells)
    if not tests:
        said.append("No cell can be compared: the runs share no fault with scored trials.")
    elif not diff.significant:
        said.append(f"No difference is significant ({tests} exact tests, Holm).")
    else:
        names = "; ".join(_words(cell) for cell in diff.significant)
        said.append(f"{len(diff.significant)} of {tests} tests differ significantly (exact, Holm): {names}.")
    if diff.golden_same < diff.golden_both:
        said.append(
            f"{diff.golden_both - diff.golden_same:,} of {diff.golden_both:,} golden answers differ: each run is "
            "scored against its own."
        )
    for alone, where in ((diff.only_first, diff.first), (diff.only_second, diff.second)):
        if alone:
            said.append(f"Only in {where.run.path}: {', '.join(alone)}.")
    said += [
        f"{scores.run.path} is partial: {scores.run.recorded:,} of {scores.run.planned:,} trials."
        for scores in (diff.first, diff.second)
        if scores.run.recorded < scores.run.planned
    ]
    return said


def _words(cell: CellDiff) -> str:
    what = "equal golden" if cell.metric == "identical" else "are due"
    return f"{cell.name}, {percent(cell.first)} to {percent(cell.second)} {what} (p = {cell.p_holm:.2g})"


def comparison_text(diff: RunDiff) -> str:
    """The comparison as text; as wide as the terminal if there is one."""
    lines = [f"kvspec diff: {diff.first.run.path} against {diff.second.run.path}", ""]
    lines += ["Verdict", *(f"  {sentence}" for sentence in verdict(diff)), ""]
    lines += [
        *_fields("Spec", [asdict(f) for f in diff.spec]),
        *_fields("Environment", [asdict(f) for f in diff.environment]),
    ]
    lines += [f"Golden answers: {diff.golden_same:,} of {diff.golden_both:,} are the same", ""]
    rows = [_row(cell) for cell in diff.cells]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    head = ("Cell", "Share", "First", "Second", "Difference", "95 % interval", "Test", "p (Holm)")
    lines += _table(head, rows, width)
    return "\n".join(printable(line) for line in lines).rstrip() + "\n"


def _row(cell: CellDiff) -> tuple[str, ...]:
    difference = cell.difference
    return (
        cell.name,
        cell.metric,
        _share(cell.first),
        _share(cell.second),
        DASH if difference is None else f"{difference.value:+.1%}",
        DASH if difference is None else f"{difference.low:+.1%} to {difference.high:+.1%}",
        cell.test or DASH,
        DASH if cell.p_holm is None else f"{cell.p_holm:.2g}{' *' if cell.significant else ''}",
    )


def _share(part: Proportion) -> str:
    return f"{percent(part)} of {part.n:,}" if part.n else DASH


def _fields(title: str, fields: Sequence[dict[str, str]]) -> list[str]:
    if not fields:
        return [f"{title}: the same"]
    lines = [f"{title}: {len(fields)} field{'s differ' if len(fields) > 1 else ' differs'}"]
    lines += [f"  {f['name']}: {_clip(f['first'])} -> {_clip(f['second'])}" for f in fields[:FIELDS_LISTED]]
    if len(fields) > FIELDS_LISTED:
        lines.append(f"  and {len(fields) - FIELDS_LISTED} more (--format json)")
    return lines


def _clip(text: str) -> str:
    return text if len(text) <= FIELD_CHARACTERS else text[: FIELD_CHARACTERS - 3] + "..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Columns side by side; on narrow terminals each cell becomes a block of two lines."""
    found = [list(head), *map(list, rows)]
    if len(found) == 1:
        return []
    widths = [max(len(row[i]) for row in found) for i in range(len(head))]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return [line for row in found[1:] for line in (f"{row[0]}: {row[1]}", f"  {'  '.join(row[2:])}")]
    return ["  ".join(value.ljust(w) for value, w in zip(row, widths, strict=True)).rstrip() for row in found]
