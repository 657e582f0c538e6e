"""The speed of a campaign alone, in more rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu import campaign

ROUNDS = 8


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """Fill `results` as `campaign` does."""
    campaign.measure(results, out, deadline, model, rounds=ROUNDS, more=False)
