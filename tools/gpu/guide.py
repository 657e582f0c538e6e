"""The reference guide's benchmark, end to end: golden and six experiments, one campaign against an engine for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.gpu.campaign import PROMPTS

CACHE_GIB = 8
"""Of both methods: who else uses the GPU's memory must not matter, and neither measures what is free."""
EXPERIMENTS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
BASE: dict[str, Any] = {
    "kvspec": 1,
    "prompts": {"inline": PROMPTS, "repeat": 2},
    "generation": {"max_tokens": 50},
    "trials": 1,
    "seed": 42,
    "engine": {"kv_cache_gib": CACHE_GIB},
}
ONE_ENGINE_EACH = """
import time; began = time.monotonic()
import sys, json
from vllm import LLM, SamplingParams
imported = time.monotonic()
llm = LLM(
    model=sys.argv[1], max_model_len=128, enable_prefix_caching=False, gpu_memory_utilization=0.1,
    kv_cache_memory_bytes=int(sys.argv[3]) << 30,
)
loaded = time.monotonic()
outputs = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
done = time.monotonic()
print(json.dumps({"import": imported - began, "load": loaded - imported, "generate": done - loaded}), flush=True)
"""
"""The reference guide's method, with the settings of the campaign."""
OURS = """
import json, os, sys
from pathlib import Path
from tools.gpu.look import Sampler
from kvspec.cli import entry
where = Path(sys.argv.pop(1))
sampler, leave = Sampler(0.005), os._exit
def ended(code):
    sampler.__exit__()
    sampler.write(where.with_suffix(".folded"))
    where.write_text(json.dumps(sampler.result()))
    leave(code)
os._exit = ended
with sampler:
    entry()
"""
"""`kvspec run`, looked at two hundred times a second."""


WARM_UPS = 2
"""Runs of each method before those that count. vLLM compiles its Triton kernels into the folder of its compile cache in
a first run, and into Triton's own in a second one, which loads the compiled graph: 21 s for whoever comes first."""


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """One process each, with warm compile caches: both methods run once before, at the same time. With two GPUs they
    run side by side, each with a GPU and half of the cores, else in turns, until the deadline. Missing loads of the
    other method are taken as the mean of those that were measured."""
    rates = {"per_bit": EXPERIMENTS}
    fault = {"name": "BitRot", "model": "random", "site": "KV_WRITE", "rate": rates}
    spec = {**BASE, "name": "guide", "model": {"id": str(model)}, "faults": [fault]}
    path, large = out / "guide.yaml", out / "guide320.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    many = [10 ** (-8 + 5 * i / 319) for i in range(320)]
    large.write_text(json.dumps({**spec, "faults": [{**fault, "rate": {"per_bit": many}}]}), encoding="utf-8")
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    results["ours"], results["theirs"] = ours, theirs
    places = two_places()
    results["side_by_side"] = places is not None

    def kvspec(spec: Path, name: str) -> dict[str, Any]:
        looked = out / f"{name}.samples.json"
        command = [sys.executable, "-c", OURS, str(looked), "run", str(spec), "--out", str(out / name)]
        seconds, _ = timed(command, places[0] if places else None)
        manifest = json.loads((out / name / "run.json").read_text())
        if looked.exists():
            results["samples"] = json.loads(looked.read_text())
        return {"seconds": seconds, **manifest["sessions"][-1]["timings_s"], "trials_run": manifest["recorded"]}

    def run_ours() -> None:
        ours.append(kvspec(path, f"guide-{len(ours)}"))

    def run_theirs() -> None:
        command = [sys.executable, "-c", ONE_ENGINE_EACH, str(model), json.dumps(PROMPTS * 2), str(CACHE_GIB)]
        seconds, output = timed(command, places[1] if places else None)
        theirs.append({"seconds": seconds, **last_json(output)})

    def run_large() -> None:
        results["ours_320"] = kvspec(large, "guide-320")

    def save() -> None:
        warm = [[run["seconds"] for run in side[WARM_UPS:]] for side in (ours, theirs)]
        results.update(figures(*warm))
        if warm[1] and "ours_320" in results:
            results["ratio_320"] = 320 * results["mean_load_seconds"] / results["ours_320"]["seconds"]
        results["measured_loads"] = len(warm[1])  # saves

    with ThreadPoolExecutor(2) as pool:
        for _ in range(WARM_UPS):
            for job in [pool.submit(run_ours), pool.submit(run_theirs)]:
                job.result()
        both = [run_ours, run_theirs]
        for turn in [both, [run_large, run_theirs], both, both, both, both, both]:
            steps = [turn] if places else [[run] for run in turn]
            for step in steps:
                last = max(ours[-1]["seconds"], theirs[-1]["seconds"])
                if time.monotonic() + last > deadline:
                    return
                for job in [pool.submit(run) for run in step]:
                    job.result()
                save()


def two_places() -> list[tuple[str, set[int]]] | None:
    """A GPU and half of the cores for each method, if there are two GPUs."""
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    cores = sorted(os.sched_getaffinity(0))
    if len(gpus) < 2 or len(cores) < 2:
        return None
    half = len(cores) // 2
    return [(gpus[0], set(cores[:half])), (gpus[1], set(cores[half : 2 * half]))]


def last_json(output: str) -> dict[str, Any]:
    """The last line that is a JSON object: vLLM prints when it ends, too."""
    found: dict[str, Any] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return found


def timed(command: list[str], place: tuple[str, set[int]] | None) -> tuple[float, str]:
    """Seconds and output of a process. Raises `CalledProcessError` if it fails."""
    environment = {**os.environ}
    if place is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place[0]
        command = ["taskset", "-c", ",".join(map(str, sorted(place[1]))), *command]
    began = time.monotonic()
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
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
    }
