"""The reference guide's benchmark, end to end: golden and six experiments, one campaign against an engine for each:
in a process of its own, with CUDA graphs as ours, and as the guide's script has it, one after the other in one process
and eagerly. Faults cost the other method nothing here: its engines are stock."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from tools.gpu.campaign import PROMPTS
from tools.gpu.quiet import visible_gpus

CACHE_GIB = int(os.environ.get("KVSPEC_GUIDE_GIB", "8"))
"""Of both methods: who else uses the GPU's memory must not matter, and neither measures what is free."""
CELLS = int(os.environ.get("KVSPEC_GUIDE_CELLS", "320"))
"""Of the large run; fewer for a rehearsal on a CPU."""
EXPERIMENTS: list[dict[str, Any]] = [
    {"name": "BitRot", "model": "random", "site": "KV_WRITE", "rate": {"per_element": [1e-7, 1e-5, 1e-3, 1e-1]}},
    {"name": "Burst", "model": "burst", "burst_len": 8, "site": "KV_WRITE", "rate": {"per_element": 1e-5}},
    {
        "name": "MSB", "model": "msb_biased", "msb_policy": "FP16_EXPONENT", "site": "KV_WRITE",
        "rate": {"per_element": 1e-5},
    },
]  # fmt: skip
"""Those of the guide."""
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
"""An engine and a process for each experiment: length and cache of the campaign, the rest vLLM's own."""
SCRIPT = """
import time; began = time.monotonic()
import gc, sys, json
import torch
from vllm import LLM, SamplingParams
imported = time.monotonic()
engines = []
for _ in range(int(sys.argv[4])):
    started = time.monotonic()
    gc.collect()  # ends the engine before
    torch.cuda.empty_cache()
    llm = LLM(
        model=sys.argv[1], enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=int(sys.argv[3]) << 30,
    )
    llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    del llm
    engines.append(time.monotonic() - started)
print(json.dumps({"import": imported - began, "engines": engines}), flush=True)
"""
"""The loop of the guide's script: one process, an eager engine for each experiment."""
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
"""Runs of everything before those that count. vLLM compiles its Triton kernels into the folder of its compile cache in
a first run, and into Triton's own in a second one, which loads the compiled graph: 21 s for whoever comes first. The
large run has graphs of other sizes, hence caches of its own."""
SCRIPTED = 7
"""Engines of the script: golden and six experiments."""
BOTH = ("ours", "theirs")
TURNS = [BOTH, ("ours_320", "script"), BOTH, ("ours_320", "theirs"), ("ours", "script"), ("ours_320", "theirs"), BOTH]
"""What is measured, each a run of ours and one of the others; all that is asked for is in the first two."""


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """One process each, with warm compile caches: everything runs twice before, side by side. With two GPUs the methods
    then run side by side, each with a GPU and half of the cores, else in turns. A turn that would not end before the
    deadline is left out. Missing loads of the other method are taken as the mean of those that were measured. A method
    that fails is left out from then on; raises `RuntimeError` at the end, for its place in the log."""
    spec = {**BASE, "name": "guide", "model": {"id": str(model)}}
    path, large = out / "guide.yaml", out / "guide320.yaml"
    path.write_text(json.dumps({**spec, "faults": EXPERIMENTS}), encoding="utf-8")
    many = [10 ** (-8 + 5 * i / (CELLS - 1)) for i in range(CELLS)]
    large.write_text(json.dumps({**spec, "faults": [{**EXPERIMENTS[0], "rate": {"per_bit": many}}]}), encoding="utf-8")
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": [], "ours_320": [], "script": []}
    results.update(runs)
    places = two_places()
    results["side_by_side"], results["cells"] = places is not None, CELLS
    numbers = itertools.count()
    warm = False

    def kvspec(name: str, spec: Path) -> None:
        folder = out / f"{name}-{next(numbers)}"
        looked = folder.with_suffix(".samples.json")
        # looked at while it warms up, never while it counts
        words = ["-m", "kvspec"] if warm else ["-c", OURS, str(looked)]
        command = [sys.executable, *words, "run", str(spec), "--out", str(folder)]
        seconds, _ = timed(command, places[0] if places else None)
        if looked.exists():
            results[f"samples_{name}"] = json.loads(looked.read_text())
        manifest = json.loads((folder / "run.json").read_text())
        found = {**manifest["sessions"][-1]["timings_s"], "trials_run": manifest["recorded"]}
        runs[name].append({"seconds": seconds, "warm": warm, **found})

    def stock(name: str, program: str, *more: str) -> None:
        command = [sys.executable, "-c", program, str(model), json.dumps(PROMPTS * 2), str(CACHE_GIB), *more]
        seconds, output = timed(command, places[1] if places else None)
        runs[name].append({"seconds": seconds, "warm": warm, **last_json(output)})

    steps: dict[str, Callable[[], None]] = {
        "ours": partial(kvspec, "ours", path),
        "theirs": partial(stock, "theirs", ONE_ENGINE_EACH),
        "ours_320": partial(kvspec, "ours_320", large),
        "script": lambda: stock("script", SCRIPT, str(SCRIPTED if warm else 1)),
    }
    failed: dict[str, str] = {}

    def save() -> None:
        seconds = {name: [run["seconds"] for run in each if run["warm"]] for name, each in runs.items()}
        results.update(figures(seconds["ours"], seconds["theirs"], seconds["ours_320"]))
        results.update(of_script(seconds, [run for run in runs["script"] if run["warm"]]))
        results["measured_loads"] = sum(run["warm"] for run in runs["theirs"])  # saves

    with ThreadPoolExecutor(len(steps)) as pool:

        def together(*names: str) -> None:
            for name, job in {name: pool.submit(steps[name]) for name in names if name not in failed}.items():
                try:
                    job.result()
                except Exception as error:
                    failed[name] = f"{type(error).__name__}: {error}"[-500:]
            save()

        for _ in range(WARM_UPS):
            together(*steps)
        warm = True
        for turn in TURNS:
            for names in [turn] if places else [(name,) for name in turn]:
                lasting = [expected(runs[name][-1]) for name in names if name not in failed]
                if time.monotonic() + max(lasting, default=0.0) <= deadline:
                    together(*names)
    if failed:
        raise RuntimeError("; ".join(f"{name} failed: {why}" for name, why in failed.items()))


def expected(last: dict[str, Any]) -> float:
    """Seconds that a method takes after its last run: a script that warmed up made one engine only."""
    engines = last.get("engines", [])
    missing = SCRIPTED - len(engines) if engines else 0
    return float(last["seconds"] + missing * mean(engines or [0.0]))


def two_places() -> list[tuple[str, set[int]]] | None:
    """A GPU and half of the cores for each method, if there are two GPUs."""
    gpus = visible_gpus()
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


def figures(ours: list[float], theirs: list[float], large: list[float]) -> dict[str, Any]:
    """Seconds of both methods for golden and six experiments, and the ratios of means and of minima; of runs that
    count. The other method's 320 loads are extrapolated."""
    if not theirs:
        return {}
    found: dict[str, Any] = {"mean_load_seconds": mean(theirs), "min_load_seconds": min(theirs)}
    for name, runs, loads in (("7", ours, 7), ("320", large, CELLS)):
        if runs:
            found[f"kvspec_seconds_{name}"] = mean(runs)
            found[f"ratio_{name}"] = loads * mean(theirs) / mean(runs)
            found[f"ratio_{name}_of_minima"] = loads * min(theirs) / min(runs)
    return found


def of_script(seconds: dict[str, list[float]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The same against the loop of the guide's script: golden and six experiments as measured, 320 from its engines."""
    found: dict[str, Any] = {}
    if runs and seconds["ours"]:
        found["script_seconds_7"] = mean(seconds["script"])
        found["ratio_7_of_script"] = mean(seconds["script"]) / mean(seconds["ours"])
    if runs and seconds["ours_320"]:
        engine = mean(second for run in runs for second in run["engines"])
        whole = mean(seconds["script"]) + (CELLS - SCRIPTED) * engine
        found["ratio_320_of_script"] = whole / mean(seconds["ours_320"])
    return found
