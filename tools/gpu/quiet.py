"""Engines start side by side and are timed alone; which GPUs there are for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "KVSPEC_GPU_QUIET"


def wait() -> None:
    """Wait for the file that says that nothing else uses this process's GPU, if there is to be one."""
    while (name := os.environ.get(VARIABLE)) and not Path(name).exists():
        time.sleep(0.2)


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    import torch

    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name]
    return [str(i) for i in range(torch.cuda.device_count())]
