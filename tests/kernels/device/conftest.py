"""These tests run the kernels: compiled on a GPU, or under TRITON_INTERPRET=1 on the CPU.

Without both they are left to ../test_interpreter.py, which starts processes with the variable set: it must be set
before Triton is imported, and this process may have imported it already.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    torch.set_num_threads(1)
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _quiet_overflow():
    """The interpreter computes in numpy, which warns where uint32 arithmetic wraps as it should."""
    with np.errstate(over="ignore"):
        yield
