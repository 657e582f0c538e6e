"""Cold start of `kvspec check`: whole processes, as a user starts them.

uv run --extra cpu python benches/cold_check.py [RUNS]
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time


def main() -> None:
    """Time the installed command."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    command = shutil.which("kvspec")
    assert command, "kvspec is not installed"
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([command, "check", "specs/quickstart.yaml"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    middle = statistics.median(seconds)
    print(f"kvspec check: min {min(seconds):.3f} s, median {middle:.3f} s, max {max(seconds):.3f} s")


if __name__ == "__main__":
    main()
