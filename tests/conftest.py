"""What all tests share: one Hypothesis profile, and one thread each for the workers of pytest-xdist."""

import os

from hypothesis import settings

# Before torch is loaded. Two engines with two threads each on two cores would wait for each other most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples count, not seconds, for CI machines are slow and shared.
settings.register_profile("kvspec", deadline=None)
settings.load_profile("kvspec")
