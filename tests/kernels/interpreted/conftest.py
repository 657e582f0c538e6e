"""Collected only under TRITON_INTERPRET=1, which must be set before Triton is imported: see ../test_interpreter.py."""

import os
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    torch.set_num_threads(1)
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _quiet_overflow():
    """The interpreter computes in numpy, which warns where uint32 arithmetic wraps as it should."""
    import numpy as np

    with np.errstate(over="ignore"):
        yield
