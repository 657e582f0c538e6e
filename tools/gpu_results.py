"""The campaigns of docs/results on one GPU: `python tools/gpu_results.py OUT --seconds 400`.

Streams of commands run side by side, each with its own engine and share of the GPU's memory; `--only` chooses among
them, CUDA_VISIBLE_DEVICES among GPUs. A command that fails or runs out of time is told, and the stream goes on. Run
folders and logs stay in OUT for `tools/results.py`. All five on one H100 for 440 s finished `small` and `formats` but
for their last commands, and a fifth of each needle campaign.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("bf16", "fp8_e4m3", "int8_per_token_head", "int4_per_token_head")
CONTROLS = "--set controls.null_trials=20 --set controls.golden_repeats=20"
FOUR = "--set prompts.tasks=[retrieve_b,retrieve_both,sum,product]"
"""What SmolLM2-135M does clean: 100, 61, 65 and 87 of 100; retrieve_a 47, two_hop 46, chain 7."""
STREAMS = {
    "needle": [f"run specs/needle_smollm2_full.yaml {FOUR}"],
    "reads": [f"run specs/needle_smollm2_reads.yaml {FOUR}"],
    "zombie": ["search specs/zombie_search.yaml --set prompts.items=200 --steps 4"],
    "small": [
        f"run specs/quickstart.yaml --set trials=80 {CONTROLS}",
        "run specs/bit_anatomy.yaml --set trials=80",
        f"run specs/gpt2_bitrot.yaml --set model.id=bundled:smollm2 --set trials=40 {CONTROLS}",
        "run specs/context_length.yaml --set prompts.items=77 --set trials=5",
    ],
    "formats": [
        f"run specs/fp8_vs_int4.yaml --set model.kv_cache_dtype={name} --set trials=80 {CONTROLS}" for name in FORMATS
    ],
}
CACHE_GIB = {"needle": 9, "reads": 9, "zombie": 9, "small": 14, "formats": 4}


def stream(name: str, out: Path, deadline: float) -> list[dict[str, object]]:
    """Run the commands of a stream, one after the other."""
    done: list[dict[str, object]] = []
    for command in STREAMS[name]:
        kind, spec, *rest = command.split()
        folder = out / "-".join([Path(spec).stem, *(word.partition("=")[2] for word in rest if "dtype" in word)])
        words = [kind, spec, *rest, "--set", f"engine.kv_cache_gib={CACHE_GIB[name]}"]
        began, left = time.monotonic(), deadline - time.monotonic()
        code: int | str = "no time left"
        if left > 20:
            with Path(f"{folder}.log").open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "kvspec", *words, "--out", str(folder)],
                    cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "KVSPEC_TRACEBACK": "1"},
                )  # fmt: skip
                try:
                    code = child.wait(left)
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGINT)  # what is done stays on disk
                    try:
                        code = f"interrupted, {child.wait(15)}"
                    except subprocess.TimeoutExpired:
                        child.kill()
                        code = "killed"
        found: dict[str, object] = {
            "command": f"kvspec {' '.join(words)}",
            "exit": code,
            "seconds": round(time.monotonic() - began, 1),
        }
        print(json.dumps(found), flush=True)
        done.append(found)
    return done


def main() -> int:
    """Run all streams, or those that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="when what still runs is interrupted")
    parser.add_argument("--only", nargs="+", choices=STREAMS, default=list(STREAMS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + given.seconds
    with ThreadPoolExecutor(len(given.only)) as pool:
        jobs = {name: pool.submit(stream, name, given.out, deadline) for name in given.only}
    results = {name: job.result() for name, job in jobs.items()}
    (given.out / "session.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
