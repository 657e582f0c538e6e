"""Score, analyse and report a run of a million trials of 50 tokens, page included: seconds and peak memory.

    python benches/report_scale.py [--trials 1000000]

Fabricates the run folder first (that is not counted): 20 cells at rising rates, whose trials are identical, differ
from some token on, or went to NaN, as a logistic curve says.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvspec.plan import Plan, compile_plan
from kvspec.records import SCHEMA, Record, RunStore
from kvspec.records.parts import part_name, write_part
from kvspec.spec.model import Controls, Fault, GenerationSpec, ModelSpec, PromptSpec, Rate, Spec, TrialSpec

TOKENS, VOCABULARY, CELLS, PROMPTS, CHARACTERS = 50, 32_000, 20, 100, 200
PART = 65_536
CONSTANT: dict[str, Any] = {f.name: f.default for f in fields(Record) if f.default is not MISSING}
"""Columns with one value for all trials: what a record says unless told otherwise, and these."""
CONSTANT |= {"prompt_tokens": 10, "tokens_written": 9 + TOKENS, "finish_reason": "length"}


def plan_of(trials: int) -> Plan:
    """A plan with that many fault trials."""
    rates = np.logspace(-9, -3, CELLS).tolist()
    return compile_plan(
        Spec(
            name="scale",
            model=ModelSpec("gpt2"),
            prompts=PromptSpec(tuple(f"prompt {i}" for i in range(PROMPTS))),
            generation=GenerationSpec(max_tokens=TOKENS),
            faults=tuple(Fault("Rot", 0, "KV_WRITE", "random", Rate("per_bit", rate)) for rate in rates),
            controls=Controls(),
            trials=TrialSpec(trials // (CELLS * PROMPTS)),
            seed=1,
            metrics=("exact_match",),
        )
    )


def fabricate(path: Path, plan: Plan) -> int:
    """Write the run folder; returns the number of records."""
    rng = np.random.default_rng(1)
    golden = rng.integers(0, VOCABULARY, (PROMPTS, TOKENS)).astype(np.uint32)
    letters = rng.integers(97, 123, (PROMPTS, CHARACTERS)).astype(np.uint8)
    with RunStore.create(path, plan, version="bench") as store:
        trials = list(plan.trials())
        for number, start in enumerate(range(0, len(trials), PART)):
            some = trials[start : start + PART]
            cell = np.array([t.cell for t in some])
            request = np.array([t.request for t in some])
            rate = np.array([f.fault.rate.value for f in plan.cells])[cell]
            wrong = (cell >= 0) & (rng.random(len(some)) > 1 / (1 + (rate / 1e-6) ** 1.2))
            first = np.where(wrong, rng.integers(0, TOKENS, len(some)), TOKENS)
            ids = np.where(np.arange(TOKENS) < first[:, None], golden[request], rng.integers(0, VOCABULARY, TOKENS))
            text = np.where(np.arange(CHARACTERS) < 4 * first[:, None], letters[request], 33).astype(np.uint8)
            lines = pa.array(np.ascontiguousarray(text).view(f"S{CHARACTERS}")[:, 0]).cast(pa.string())
            flips = np.where(cell >= 0, rng.poisson(rate * 1e6), 0)
            offsets = np.arange(len(some) + 1, dtype=np.int32) * TOKENS
            columns = {
                "trial_id": [t.id for t in some],
                "kind": [t.kind for t in some],
                "cell": cell,
                "request": request,
                "trial": [t.trial for t in some],
                "token_ids": pa.ListArray.from_arrays(offsets, ids.astype(np.uint32).reshape(-1)),
                "text": lines,
                "flips_planned": flips,
                "flips_landed": flips,
                "flips_changed": flips,
                "nonfinite_at": pa.array(first, mask=~(wrong & (rng.random(len(some)) < 0.05))),
            }
            arrays = [
                pa.array(columns[f.name]).cast(f.type)
                if f.name in columns
                else pa.array([CONSTANT[f.name]] * len(some), f.type)
                for f in SCHEMA
            ]
            write_part(path / "parts" / part_name(number), pa.Table.from_arrays(arrays, schema=SCHEMA), store.digest)
        store.manifest["recorded"] = len(trials)
        store.finish("complete")
    return len(trials)


def main() -> None:
    """Fabricate, run the command, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        records = fabricate(run, plan_of(options.trials))
        page = Path(folder, "page.html")
        command = [sys.executable, "-m", "kvspec", "report", str(run), "--format", "json", "--html", str(page)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(done.stdout)
        print(f"{records:,} records x {TOKENS} tokens: kvspec report RUN --format json --html page.html")
        cpu = usage.ru_utime + usage.ru_stime
        print(
            f"{seconds:.1f} s ({cpu:.1f} s of CPU), peak {usage.ru_maxrss / 2**20:.2f} GiB (goal: 30 s, 2 GB, 2 cores)"
        )
        print(f"page {page.stat().st_size / 1e6:.2f} MB (goal: 3 MB)")
        (half,) = [found["ec50"] for found in report["dose_responses"] if found["dose"] == "rate"]
        print(f"EC50 {half['value']:.3g} [{half['low']:.3g}, {half['high']:.3g}], made with 1e-06")


if __name__ == "__main__":
    main()
