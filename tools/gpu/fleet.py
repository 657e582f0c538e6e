"""The campaign of writes and reads through one engine and through one per GPU: the same records, and how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu.campaign import READS, WRITES, plan_of, run, same
from tools.gpu.quiet import visible_gpus

MOST = 4
"""Engines at most."""
SPEC = {**WRITES, "faults": [*WRITES["faults"], *READS["faults"]]}


def measure(results: dict[str, Any], out: Path, _: float, model: Path) -> None:
    """Fill `results`: figures of both, and how many trials have the same tokens and the same landed flips."""
    first: dict[str, dict[str, Any]] = {}
    for engines in sorted({1, min(MOST, len(visible_gpus()))}):
        name = f"engines{engines}"
        plan = plan_of(out, name, model, {**SPEC, "engine": {**SPEC["engine"], "data_parallel": engines}})
        results[name], rows = run(out, name, plan)
        if not first:
            first = rows
            continue
        results["tokens_identical"] = same(first, rows)
        flips = [rows[trial]["flips_landed"] == row["flips_landed"] for trial, row in first.items()]
        results["flips_identical"] = [sum(flips), len(flips)]
        alone, together = results["engines1"], results[name]
        results["same_environment"] = alone["environment"] == together["environment"]
        results["speedup"] = alone["seconds"] / together["seconds"]
