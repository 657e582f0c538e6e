"""Token ids in the record rows of a run."""

from __future__ import annotations

from typing import Any

Rows = dict[str, dict[str, Any]]
"""Record rows by trial id."""


def ids(rows: Rows) -> dict[str, list[int]]:
    """The answer of every trial."""
    return {trial: row["token_ids"] for trial, row in rows.items()}


def golden(rows: Rows) -> dict[int, list[int]]:
    """The golden answer of every request."""
    return {row["request"]: row["token_ids"] for row in rows.values() if row["kind"] == "golden"}
