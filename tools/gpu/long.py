"""Prefill and long contexts alone: the cases that `step` leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu import cost


def measure(results: dict[str, Any], out: Path, deadline: float) -> None:
    """Fill `results` as `cost` does."""
    cost.measure(results, out, deadline, [name for name in cost.CASES if not name.startswith("decode")])
