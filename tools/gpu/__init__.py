"""The parts of `tools/gpu_session.py`, and where processes of the GPU tools find what they import."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
"""PYTHONPATH that finds kvspec and its kernels, which are a distribution of their own."""
