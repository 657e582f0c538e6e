"""The reference guide's benchmark, end to end: golden and six experiments, one campaign against an engine for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

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
import sys, json, time
from vllm import LLM, SamplingParams
llm = LLM(model=sys.argv[1], max_model_len=128, enable_prefix_caching=False)
outputs = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
print(len(outputs))
"""


def measure(results: dict[str, Any], out: Path, deadline: float, model: Path) -> None:
    """One process each, with warm compile caches: both sides run once before, and side by side if there are two GPUs.
    Loads of the other method are measured until the deadline, and the missing ones taken as the mean of those."""
    rates = {"per_bit": EXPERIMENTS}
    fault = {"name": "BitRot", "model": "random", "site": "KV_WRITE", "rate": rates}
    spec = {**BASE, "name": "guide", "model": {"id": str(model)}, "faults": [fault]}
    path = out / "guide.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    ours = [sys.executable, "-m", "kvspec", "run", str(path), "--out"]
    theirs = [sys.executable, "-c", ONE_ENGINE_EACH, str(model), json.dumps(PROMPTS * 2)]
    two = torch.cuda.device_count() > 1
    warming = []
    for gpu, command in enumerate(([*ours, str(out / "guide-warm")], theirs)):
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": str(gpu)} if two else {})}
        warming.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        if not two or gpu:
            for process in warming:
                if process.wait():
                    raise RuntimeError(f"{process.args!r} exited with {process.returncode}")
            warming.clear()
    began = time.monotonic()
    subprocess.run([*ours, str(out / "guide")], check=True)
    results["kvspec_seconds"] = time.monotonic() - began
    loads: list[float] = []
    results["one_engine_each_seconds"] = loads
    while len(loads) < 1 + len(EXPERIMENTS) and (not loads or time.monotonic() + max(loads) < deadline):
        began = time.monotonic()
        subprocess.run(theirs, check=True, stdout=subprocess.DEVNULL)
        loads.append(time.monotonic() - began)
    mean = sum(loads) / len(loads)
    results["measured_loads"] = len(loads)
    results["ratio_7"] = mean * 7 / results["kvspec_seconds"]
    results["ratio_320"] = mean * 320 / results["kvspec_seconds"]
    results["note"] = "320 cells: our side is the run of 7 cells; their side is the mean load times 320"
