"""The speed of a campaign alone, in as many rounds as there is time for, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu import campaign

ROUNDS = 40
"""More than there is time for: the host of a GPU is shared, and only many rounds tell its noise from the code."""


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """Fill `results` as `campaign` does."""
    campaign.measure(results, out, deadline, model, rounds=ROUNDS, more=False)
