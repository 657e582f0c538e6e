"""Comparison of two environment fingerprints, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kvspec.errors import Diagnostic, RecordsError

_MISSING = "absent"


def normalise(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint as it looks after a round trip through JSON, so that tuples equal lists."""
    data: dict[str, Any] = json.loads(json.dumps(fingerprint, sort_keys=True, allow_nan=False))
    return data


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(dotted name, value in `first`, value in `second`) of every field that differs, values as JSON text."""
    before, after = dict(_leaves(first)), dict(_leaves(second))
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return [(name, before.get(name, _MISSING), after.get(name, _MISSING)) for name in names]


def require_same(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise KVS504, one diagnostic per field that differs, each with both values."""
    found = differences(recorded, current)
    if not found:
        return
    hint = "golden texts hold for one environment: go on where the run began, or name a new folder with `--out`"
    raise RecordsError(
        Diagnostic(
            "KVS504",
            f"`{name}` was {before} in this run and is {after} now",
            path=f"$.{name}",
            hint=hint if name == found[-1][0] else None,
        )
        for name, before, after in found
    )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    # JSON text as value: 1, 1.0, true and "1" stay apart.
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, sort_keys=True)
