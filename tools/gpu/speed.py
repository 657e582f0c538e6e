"""The speed of a campaign alone, in more rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu import campaign

ROUNDS = 8


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """Fill `results` as `campaign` does."""
    # every round is saved, and the process ends without closing anything
    campaign.measure(results, out, deadline + 12, model, rounds=ROUNDS, more=False)
