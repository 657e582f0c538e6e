"""Engines start side by side and are timed alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "KVSPEC_GPU_QUIET"


def wait() -> None:
    """Wait for the file that says that nothing else uses this process's GPU, if there is to be one."""
    while (name := os.environ.get(VARIABLE)) and not Path(name).exists():
        time.sleep(0.2)
