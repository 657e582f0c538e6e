"""Two runs side by side, for people and as data. Computes no statistics."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from kvspec.report.diff import first_difference
from kvspec.report.words import DASH, percent, printable
from kvspec.score import CellDiff, Proportion, RunDiff

DIFF_VERSION = 1
FIELD_CHARACTERS = 60
FIELDS_LISTED = 12


def comparison_json(diff: RunDiff) -> dict[str, Any]:
    """Everything that was compared, in the shape of `schemas/diff.schema.json`. Values that do not exist are null."""
    return {
        "diff": DIFF_VERSION,
        "first": _run(diff.first.run.path, diff.first.run.plan_digest, diff.first.sound),
        "second": _run(diff.second.run.path, diff.second.run.plan_digest, diff.second.sound),
        "significant": bool(diff.significant),
        "verdict": verdict(diff),
        "spec": [asdict(field) for field in diff.spec],
        "environment": [asdict(field) for field in diff.environment],
        "golden": {"same": diff.golden_same, "both": diff.golden_both},
        "cells": [_cell(cell) for cell in diff.cells],
        "only_first": list(diff.only_first),
        "only_second": list(diff.only_second),
    }


def _cell(cell: CellDiff) -> dict[str, Any]:
    return {**asdict(cell), "left_out": list(cell.left_out), "significant": cell.significant}


def _run(path: str, digest: str, sound: bool) -> dict[str, Any]:
    return {"path": path, "plan": digest, "sound": sound}


def verdict(diff: RunDiff) -> list[str]:
    """What the comparison shows, the most important first."""
    said = [
        f"INVALID: in {scores.run.path} other flips landed than were planned; do not rely on it."
        for scores in (diff.first, diff.second)
        if not scores.sound
    ]
    tests = sum(cell.tells for cell in diff.cells)
    if all(cell.p is None for cell in diff.cells):
        said.append("No cell can be compared: the runs share no fault with scored trials.")
    elif not tests:
        said.append("No difference is significant: with so few trials, or so few that differ, no test could show one.")
    elif not diff.significant:
        said.append(f"No difference is significant ({_tests(tests)}).")
    else:
        names = "; ".join(_words(cell) for cell in diff.significant)
        count = len(diff.significant)
        are = "1 difference is" if count == 1 else f"{count:,} differences are"
        said.append(f"{are} significant ({_tests(tests)}): {names}.")
    unpaired = [max(cell.left_out[side] for cell in diff.cells) if diff.cells else 0 for side in (0, 1)]
    for count, scores in zip(unpaired, (diff.first, diff.second), strict=True):
        if count:
            said.append(f"Up to {count:,} trials of a cell of {scores.run.path} have no counterpart and are left out.")
    if diff.golden_same < diff.golden_both:
        said.append(
            f"{diff.golden_both - diff.golden_same:,} of {diff.golden_both:,} golden answers differ: each run is "
            "scored against its own."
        )
    for alone, where in ((diff.only_first, diff.first), (diff.only_second, diff.second)):
        if alone:
            said.append(f"Only in {where.run.path}: {', '.join(alone)}.")
    said += [
        f"{scores.run.path} {'lacks records' if scores.run.lost else 'is partial'}: "
        f"{scores.run.recorded:,} of {scores.run.planned:,} trials."
        for scores in (diff.first, diff.second)
        if scores.run.recorded < scores.run.planned
    ]
    return said


def _tests(count: int) -> str:
    return f"exact tests, Holm over the {count:,} that can show one"


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
    for field in fields[:FIELDS_LISTED]:
        first, second = _clip(field["first"], field["second"])
        lines.append(f"  {field['name']}: {first} -> {second}")
    if len(fields) > FIELDS_LISTED:
        lines.append(f"  and {len(fields) - FIELDS_LISTED} more (--format json)")
    return lines


def _clip(first: str, second: str) -> tuple[str, str]:
    """Both values around the place where they begin to differ."""
    same = first_difference(first, second) or 0
    start = max(0, same - FIELD_CHARACTERS // 3) if max(len(first), len(second)) > FIELD_CHARACTERS else 0
    return _part(first, start), _part(second, start)


def _part(text: str, start: int) -> str:
    end = start + FIELD_CHARACTERS
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Columns side by side; on narrow terminals each cell becomes a block of two lines."""
    found = [list(head), *map(list, rows)]
    if len(found) == 1:
        return []
    widths = [max(len(row[i]) for row in found) for i in range(len(head))]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return [line for row in found[1:] for line in (f"{row[0]}: {row[1]}", f"  {'  '.join(row[2:])}")]
    return ["  ".join(value.ljust(w) for value, w in zip(row, widths, strict=True)).rstrip() for row in found]
