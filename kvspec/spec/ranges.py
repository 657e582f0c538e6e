"""Ranges of a selector: inclusive in text (`"4-7"`), half-open in the model (`(4, 8)`)."""

from __future__ import annotations

from collections.abc import Iterable

from kvspec.spec.model import Range


def parse_range(entry: str | float) -> Range:
    """`3` -> (3, 4), `"4-7"` -> (4, 8), `"8-"` -> (8, None)."""
    if not isinstance(entry, str):
        return int(entry), int(entry) + 1
    first, _, last = entry.partition("-")
    return int(first), int(last) + 1 if last else None


def canonical(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same numbers as sorted ranges that neither overlap nor touch, so that equal selections compare equal."""
    merged: list[Range] = []
    for start, stop in sorted(ranges, key=lambda r: r[0]):
        last = merged[-1] if merged else None
        if last is not None and (last[1] is None or start <= last[1]):
            end = None if last[1] is None or stop is None else max(last[1], stop)
            merged[-1] = (last[0], end)
        else:
            merged.append((start, stop))
    return tuple(merged)
