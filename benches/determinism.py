"""Same trials, same token ids: runs a spec in plan order, again, shuffled, and in small chunks; compares every trial.

uv run --extra cpu python benches/determinism.py [SPEC]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

VARIANTS = {
    "again": [],
    "shuffled": ["--set", "engine.submission_seed=7"],
    "chunked prefill, small batch": ["--set", "engine.max_num_seqs=24", "--set", "engine.max_num_batched_tokens=64"],
}


def run(spec: Path, out: Path, extra: list[str]) -> dict[str, list[int]]:
    """Token ids by trial id of one run, in a process of its own."""
    from kvspec.records import RunStore

    command = [sys.executable, "-m", "kvspec", "run", str(spec), "--out", str(out), "--quiet", *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    table = RunStore.open(out).table(["trial_id", "token_ids"])
    return dict(zip(table["trial_id"].to_pylist(), table["token_ids"].to_pylist(), strict=True))


def main() -> int:
    """Compare all variants with the first run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, default=Path("specs/quickstart.yaml"))
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        first = run(args.spec, Path(folder) / "first", [])
        for number, (name, extra) in enumerate(VARIANTS.items()):
            other = run(args.spec, Path(folder) / str(number), extra)
            same = sum(other.get(trial) == ids for trial, ids in first.items())
            failed |= same != len(first) or len(other) != len(first)
            print(f"{name}: {same} of {len(first)} trials have identical token ids", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
