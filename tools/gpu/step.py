"""The decode cases alone, in more rounds: those whose cost is nearest to its limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu import cost

ROUNDS = 12


def measure(results: dict[str, Any], out: Path, deadline: float) -> None:
    """Fill `results` as `cost` does."""
    cost.measure(results, out, deadline, [name for name in cost.CASES if name.startswith("decode")], ROUNDS)
