"""Everything that needs a GPU, in one command: `python tools/gpu_session.py MODEL OUT [--only PART ...]`.

MODEL is a SmolLM2-135M folder, OUT a folder for `results.json` and `results.md`. Each part runs in processes of its
own; a part that fails or runs out of time is recorded with the end of its output, and the next one goes on. Results
are written after every part.

On a machine with several GPUs, parts run side by side in lanes, each with GPUs and cores of its own:

    gpu_session.py MODEL OUT --lane 0,1 0-31 pair --lane 2 32-47 campaign step --lane 3 48-63 guide
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.gpu import PATH  # noqa: E402

VARIANTS: list[dict[str, Any]] = [
    {"runner": "V1", "backend": "FLASH_ATTN"},
    {"runner": "V1", "backend": "TRITON_ATTN"},
    {"runner": "V2", "backend": "TRITON_ATTN"},
]
FORMATS: list[dict[str, Any]] = [
    {"format": "fp16"},
    {"format": "fp8_e4m3"},
    {"backend": "TRITON_ATTN", "format": "int8_per_token_head"},
    {"backend": "TRITON_ATTN", "format": "int4_per_token_head"},
]
PARALLEL = [{"gpus": 1}, {"gpus": 2}]
FLOOR: list[dict[str, Any]] = [
    {"format": "int4_per_token_head", "mode": "stock"},
    {"format": "int4_per_token_head", "mode": "one_pass"},
    {"format": "int4_per_token_head", "mode": "batch_invariant"},
    {"format": "int8_per_token_head", "mode": "stock"},
    {"format": "int8_per_token_head", "mode": "one_pass"},
    {"format": "auto", "mode": "stock"},
    {"format": "fp8_e5m2", "mode": "stock", "backend": "TRITON_ATTN"},
    {"format": "fp8_e5m2", "mode": "stock", "backend": "FLASH_ATTN"},
]
"""Formats as vLLM names them. Neither backend takes e5m2: what they say is the evidence for `session.ON_NO_BACKEND`."""
PARTS = {
    "cost": 500, "step": 240, "long": 330, "speed": 340, "checks": 330, "campaign": 400, "launch": 120, "guide": 560,
    "pair": 330, "floor": 200, "fleet": 240,
}  # fmt: skip
"""Most seconds of each of several parts, the wait for others (tools/gpu/quiet.py) included; one alone may use all that
there are."""
TESTS = [
    "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib", "-p", "no:cacheprovider", "-q",
    "tests/kernels/test_gpu.py", "tests/kernels/device", "tests/engine/test_native_codes.py",
]  # fmt: skip
BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "kvspec-bytecode")}
"""Compiled modules are kept, as an installation that may be written to keeps them: otherwise every process of either
side of a comparison compiles torch, transformers and vLLM anew, 7 of its 20 s of imports."""
LAUNCH = ["benches/kernels/bench_launch.py", "--rows", "256"]


def process(
    name: str, command: list[str], seconds: float, out: Path, extra: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a command; how it went, and the end of its output where it went wrong."""
    began = time.monotonic()
    environment = {**os.environ, "KVSPEC_TRACEBACK": "1", "PYTHONPATH": PATH, **BYTECODE, **(extra or {})}
    log = out / f"{name}.log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code: int | str = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"stopped after {seconds:.0f} s"
        with suppress(ProcessLookupError):  # workers that it started, too; what it knew is in its file
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    result: dict[str, Any] = {"exit": code, "seconds": time.monotonic() - began}
    text = log.read_text(errors="replace")
    result["output"] = text[-4000:] if code else text.strip().rpartition("\n")[2]
    print(f"{name}: exit {code} after {result['seconds']:.0f} s\n{result['output'][-1500:]}", flush=True)
    return result


def part(
    module: str,
    out: Path,
    model: Path,
    seconds: float,
    *arguments: str,
    name: str = "",
    extra: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a module of tools/gpu in a process of its own; its results and how it went."""
    name = name or module
    file = out / f"{name}.json"
    command = [__file__, str(model), str(out), "--part", module, str(file), str(seconds), *arguments]
    went = process(name, command, seconds, out, extra)
    return {**(json.loads(file.read_text()) if file.exists() else {}), "process": went}


class Saved(dict[str, Any]):
    """Results that are in a file as soon as they are known: the process may be killed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.save()

    def save(self) -> None:
        """Write them."""
        self._file.write_text(json.dumps(self, default=str), encoding="utf-8")


def inside(module: str, file: Path, seconds: float, out: Path, model: Path, arguments: list[str]) -> None:
    """The inside of such a process."""
    results = Saved(file)
    deadline = time.monotonic() + seconds - 20
    try:
        measure = importlib.import_module(f"tools.gpu.{module}").measure
        measure(results, out, deadline, *([] if module in ("cost", "step", "long") else [model, *arguments]))
    except BaseException:
        results["failed"] = traceback.format_exc()
        raise
    finally:
        results.save()
    sys.stdout.flush()
    os._exit(0)  # closing an engine may hang; everything is in the file


def variants(out: Path, model: Path, seconds: float, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """Small campaigns in engines of several kinds, side by side, compared with the first one."""
    with ThreadPoolExecutor(len(wanted)) as pool:
        names = ["-".join(str(value) for value in variant.values()) for variant in wanted]
        jobs = [
            pool.submit(part, "variants", out, model, seconds, json.dumps(variant), name=f"variant-{name}")
            for name, variant in zip(names, wanted, strict=True)
        ]
        found = {name: job.result() for name, job in zip(names, jobs, strict=True)}
    whole = [result for result in found.values() if "flips" in result]
    kept = [{name: result.pop(name) for name in ("flips", "token_ids")} for result in whole]
    for result, mine in zip(whole, kept, strict=True):
        for name, told in (("flips", "flips_as_first"), ("token_ids", "outputs_as_first")):
            here, first = mine[name], kept[0][name]
            common = here.keys() & first.keys()  # formats with scales have trials of their own
            result[told] = [sum(here[trial] == first[trial] for trial in common), len(common)]
    return found


def checks(out: Path, model: Path, seconds: float) -> dict[str, Any]:
    """Tests of the kernels and engines of every kind, side by side: nothing here is timed."""
    with ThreadPoolExecutor(2) as pool:
        tests = pool.submit(process, "tests", TESTS, seconds, out)
        formats = pool.submit(variants, out, model, seconds, FORMATS)
        found = variants(out, model, seconds, VARIANTS)
        return {"tests": tests.result(), **found, **formats.result()}


def floor(out: Path, model: Path, seconds: float, settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Stock vLLM alone, in every setting side by side, spread over the GPUs: nothing here is timed."""
    from tools.gpu.quiet import visible_gpus

    gpus = visible_gpus() or [""]
    with ThreadPoolExecutor(len(settings)) as pool:
        names = ["-".join(map(str, setting.values())) for setting in settings]
        jobs = [
            pool.submit(
                part, "floor", out, model, seconds, json.dumps(setting), name=f"floor-{name}",
                extra={"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]},
            )
            for i, (name, setting) in enumerate(zip(names, settings, strict=True))
        ]  # fmt: skip
        return {name: job.result() for name, job in zip(names, jobs, strict=True)}


def pair(out: Path, model: Path, seconds: float) -> dict[str, Any]:
    """On two GPUs: tensor parallelism 2 against one GPU."""
    return variants(out, model, seconds, PARALLEL)


def launches(out: Path, seconds: float) -> dict[str, Any]:
    """What each kernel costs, dense rates included."""
    file = out / "launch.json"
    went = process("launch", [*LAUNCH, "--out", str(file)], seconds, out)
    return {**(json.loads(file.read_text()) if file.exists() else {}), "process": went}


def lanes(wanted: list[list[str]], out: Path, model: Path, seconds: float) -> dict[str, Any]:
    """Parts side by side, each lane (GPUs, cores, parts) with sessions of its own; the results of all of them."""
    children = {}
    for gpus, cores, *parts in wanted:
        folder = out / f"gpu{gpus.replace(',', '')}"
        command = ["taskset", "-c", cores, sys.executable, __file__, str(model), str(folder), "--seconds", str(seconds)]
        children[folder] = subprocess.Popen(
            [*command, "--only", *parts], env={**os.environ, "CUDA_VISIBLE_DEVICES": gpus}
        )
    found: dict[str, Any] = {}
    for folder, child in children.items():
        child.wait()
        if (file := folder / "results.json").exists():
            found |= json.loads(file.read_text())
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for package in ("vllm", "triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def whole(results: Any) -> bool:
    """Whether every process ended with 0 and nothing was left out."""
    if not isinstance(results, dict):
        return True
    return "skipped" not in results and results.get("exit", 0) == 0 and all(map(whole, results.values()))


def main() -> int:
    """Run the parts that were asked for. Exit 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["cost", "checks", "campaign", "guide"])
    parser.add_argument(
        "--lane", nargs="+", action="append", metavar=("GPUS", "CORES PART"), help="parts side by side; may be repeated"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="stop after this; one part alone uses all of it")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        parser.error(f"{args.model} is no folder of a model")
    if unknown := {part for lane in args.lane or () for part in lane[2:]} - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        module, file, seconds, *rest = args.part
        inside(module, Path(file), float(seconds), args.out, args.model, rest)
    from tools.gpu.report import markdown

    began = time.monotonic()
    command = f"tools/gpu_session.py MODEL OUT {' '.join(sys.argv[3:])}"
    results: dict[str, Any] = {}

    def save() -> None:
        (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (args.out / "results.md").write_text(markdown(results), encoding="utf-8")

    if args.lane:
        results |= lanes(args.lane, args.out, args.model, args.seconds)
        results |= {"command": command, "machine": machine()}
        save()
        return int(not whole(results))
    results |= {"command": command, "machine": machine()}
    for name in args.only:
        left = args.seconds - (time.monotonic() - began)
        limit = left if len(args.only) == 1 else min(PARTS[name], left)
        if limit < 30:
            results[name] = {"skipped": f"{left:.0f} s were left"}
            print(f"{name}: skipped, {left:.0f} s were left", flush=True)
        elif name == "checks":
            results[name] = checks(args.out, args.model, limit)
        elif name == "pair":
            results["parallel"] = pair(args.out, args.model, limit)
        elif name == "floor":
            results[name] = floor(args.out, args.model, limit, FLOOR)
        elif name == "launch":
            results[name] = launches(args.out, limit)
        else:
            results[name] = part(name, args.out, args.model, limit)
        save()
    return int(not whole(results))


if __name__ == "__main__":
    sys.exit(main())
