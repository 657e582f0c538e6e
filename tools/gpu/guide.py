"""The reference guide's benchmark, end to end: golden and six experiments, one campaign against an engine for each."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu.campaign import PROMPTS

EXPERIMENTS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
BASE: dict[str, Any] = {
    "kvspec": 1,
    "prompts": {"inline": PROMPTS, "repeat": 2},
    "generation": {"max_tokens": 50},
    "trials": 1,
    "seed": 42,
}
ONE_ENGINE_EACH = """
import time; began = time.monotonic()
import sys, json
from vllm import LLM, SamplingParams
imported = time.monotonic()
llm = LLM(model=sys.argv[1], max_model_len=128, enable_prefix_caching=False)
loaded = time.monotonic()
outputs = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
done = time.monotonic()
print(json.dumps({"import": imported - began, "load": loaded - imported, "generate": done - loaded}), flush=True)
"""
"""The reference guide's method, with the settings of the campaign."""
OURS = """
import json, sys
from pathlib import Path
from tools.gpu.look import Sampler
from kvspec.cli import main
where = Path(sys.argv.pop(1))
with Sampler(0.005) as sampler:
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code
sampler.write(where.with_suffix(".folded"))
where.write_text(json.dumps(sampler.result()))
sys.exit(code)
"""
"""`kvspec run`, looked at two hundred times a second."""


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """One process each, with warm compile caches: both methods run once before, then take turns on one GPU until the
    deadline. Missing loads of the other method are taken as the mean of those that were measured."""
    rates = {"per_bit": EXPERIMENTS}
    fault = {"name": "BitRot", "model": "random", "site": "KV_WRITE", "rate": rates}
    spec = {**BASE, "name": "guide", "model": {"id": str(model)}, "faults": [fault]}
    path = out / "guide.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    results["ours"], results["theirs"] = ours, theirs

    def run_ours() -> None:
        name = f"guide-{len(ours)}"
        looked = out / f"{name}.samples.json"
        command = [sys.executable, "-c", OURS, str(looked), "run", str(path), "--out", str(out / name)]
        seconds, _ = timed(command)
        manifest = json.loads((out / name / "run.json").read_text())
        timings = manifest["sessions"][-1]["timings_s"]
        ours.append({"seconds": seconds, **timings, "trials_run": manifest["recorded"]})
        results["samples"] = json.loads(looked.read_text())

    def run_theirs() -> None:
        command = [sys.executable, "-c", ONE_ENGINE_EACH, str(model), json.dumps(PROMPTS * 2)]
        seconds, output = timed(command)
        theirs.append({"seconds": seconds, **last_json(output)})
        results.update(figures([run["seconds"] for run in ours[1:]], [run["seconds"] for run in theirs[1:]]))
        results["measured_loads"] = len(theirs) - 1  # saves

    turns = itertools.cycle((run_ours, run_theirs, run_theirs))
    run_ours()
    run_theirs()
    for turn in turns:
        longest = max(run["seconds"] for run in [*ours[-1:], *theirs[-1:]])
        if time.monotonic() + longest > deadline or len(theirs) > 7:
            return
        turn()


def last_json(output: str) -> dict[str, Any]:
    """The last line that is a JSON object: vLLM prints when it ends, too."""
    found: dict[str, Any] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return found


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds and output of a process. Raises `CalledProcessError` if it fails."""
    began = time.monotonic()
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.monotonic() - began, found.stdout


def figures(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Seconds of both methods for golden and six experiments, and the ratios; without warm-up runs."""
    if not ours or not theirs:
        return {}
    mine, load = sum(ours) / len(ours), sum(theirs) / len(theirs)
    return {
        "kvspec_seconds": mine,
        "mean_load_seconds": load,
        "ratio_7": 7 * load / mine,
        # our side is the run of 7 cells; their side 320 times the mean load
        "ratio_320": 320 * load / mine,
    }
