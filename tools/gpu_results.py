"""The campaigns of docs/results on GPUs: `python tools/gpu_results.py OUT --seconds 420 --gpus 0,1 --cores 0-31`.

Workers, each with its own GPU and its share of the cores, take one job after the other; `--only` chooses among the
jobs (by default all but the needle campaigns), `--set` overrides every spec (for a rehearsal on a CPU). A job that
fails or runs out of time is told, and its worker goes on. Run folders and logs stay in OUT for `tools/results.py`.
`--tar FILE` packs them after every job, and when the time is up or SIGTERM comes, so that whatever ends the machine
leaves a whole archive behind; one above PIECE bytes is cut into FILE.0, FILE.1, ... (`cat FILE.? | tar xz`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.gpu import PATH  # noqa: E402

PIECE = 15 * 2**20
FORMATS = ("int4_per_token_head", "bf16", "fp8_e4m3", "int8_per_token_head")
CONTROLS = "--set controls.null_trials=20 --set controls.golden_repeats=20"
FIVE = f"--set trials=200 {CONTROLS}"
"""n = 1,000 a cell over the five prompts of the guide, and 200 controls."""
TWICE = "--set controls.null_trials=2 --set controls.golden_repeats=2"
HUNDRED = f"--set trials=10 {TWICE}"
"""n = 1,000 a cell over the hundred prompts of specs/prompts.txt, and 400 controls."""
BATCH = "--set engine.max_num_batched_tokens=131072 --set engine.max_num_seqs=192"
"""For prompts of at most 650 tokens: as many as may run fit into one step whole. It makes no cleaner floor: of needle
46 of 4,900 golden answers differ from both controls, of zombie_search 15 of 600 controls from golden. Golden
comes first, up to 192 prompts in a step, controls about 10. docs/design/architecture.md (E) has what was looked at."""
WHOLE = "--set engine.max_num_batched_tokens=65536 --set engine.max_num_seqs=32"
"""The same for prompts of 1,900 tokens, of which 12 of 308 controls differ from golden (13 at vLLM's own settings)."""
MIXED = f"{BATCH} --set engine.submission_seed=1"
"""And all cells in turn, so that what is interrupted has nearly equal n in all of them."""
JOBS = {
    # The longest first, so that the workers end together.
    "bit_anatomy": f"run specs/bit_anatomy.yaml --set trials=15 {TWICE}",
    "context_length": f"run specs/context_length.yaml --set prompts.items=77 --set trials=5 {WHOLE}",
    "early_vs_late": "run specs/early_vs_late.yaml --set prompts.items=100 --set trials=5",
    **{name: f"run specs/fp8_vs_int4.yaml --set model.kv_cache_dtype={name} {HUNDRED}" for name in FORMATS},
    "prompt_vs_decode": f"run specs/prompt_vs_decode.yaml {HUNDRED}",
    "k_vs_v": f"run specs/k_vs_v.yaml {HUNDRED}",
    "layer_sensitivity": f"run specs/layer_sensitivity.yaml {HUNDRED}",
    "head_sensitivity": f"run specs/head_sensitivity.yaml {HUNDRED}",
    "burst_length": f"run specs/burst_length.yaml {HUNDRED}",
    "page_local": f"run specs/page_local.yaml {HUNDRED}",
    "msb": f"run specs/msb.yaml {HUNDRED}",
    "reads": f"run specs/reads.yaml {HUNDRED}",
    "scale_faults": f"run specs/scale_faults.yaml --set trials=4 {TWICE}",
    "scale_faults_int4": f"run specs/scale_faults.yaml --set model.kv_cache_dtype={FORMATS[0]} --set trials=4 {TWICE}",
    # One prompt: more trials decide nothing.
    "high_rate_demo": "run specs/high_rate_demo.yaml --set trials=40 --set controls.golden_repeats=20",
    "smoke": "run specs/smoke.yaml --set trials=40 --set controls.golden_repeats=20",
    "quickstart": f"run specs/quickstart.yaml {FIVE}",
    "gpt2_bitrot": f"run specs/gpt2_bitrot.yaml --set model.id=bundled:smollm2 --set trials=40 {CONTROLS}",
    "needle": f"run specs/needle_smollm2_full.yaml {MIXED}",
    "needle_reads": f"run specs/needle_smollm2_reads.yaml {MIXED}",
    "needle_lengths": f"run specs/needle_lengths.yaml --set prompts.items=560 {MIXED}",
    # About 64,000 requests at 200 a second, and 22,000.
    "zombie": f"search specs/zombie_search.yaml --set prompts.items=150 --steps 3 {BATCH}",
    "zombie_int8": f"search specs/zombie_int8.yaml --set prompts.items=150 --steps 3 {BATCH}",
}
HOURS = ("needle", "needle_reads", "needle_lengths", "zombie", "zombie_int8")
"""Not unless asked for: 93,100 requests of 630 tokens each for the first two, 60,480 for the third. Beside five to
seven engines on one H200 these took 584, 566 and 473 s; the searches were interrupted after 687 and 696 s."""
CACHE_GIB = {"context_length": 14, **dict.fromkeys(HOURS, 14)}
"""Contents of the cache that fit at once; four workers share a card of 80 GB."""


@dataclass
class Session:
    """What the workers share."""

    out: Path
    deadline: float
    """Of `time.monotonic`: what still runs is interrupted then."""
    extra: Sequence[str]
    """Words after those of every job."""
    tar: Path | None
    done: list[dict[str, object]] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, jobs: queue.SimpleQueue[str], gpu: str, cores: Sequence[int]) -> None:
        """Take jobs until none is left."""
        while True:
            try:
                name = jobs.get_nowait()
            except queue.Empty:
                return
            found = self.run(name, gpu, cores)
            print(json.dumps(found), flush=True)
            with self.lock:
                self.done.append(found)
                self.pack()

    def run(self, name: str, gpu: str, cores: Sequence[int]) -> dict[str, object]:
        """Run a job to its end or to the deadline."""
        kind, spec, *rest = JOBS[name].split()
        words = [kind, spec, *rest, "--set", f"engine.kv_cache_gib={CACHE_GIB.get(name, 4)}", *self.extra]
        pinned = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "kvspec"]
        began, code = time.monotonic(), "no time left"
        if self.deadline - began > 20:
            with (self.out / f"{name}.log").open("wb") as log:
                child = subprocess.Popen(
                    [*pinned, *words, "--out", str(self.out / name)],
                    cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                    env={**os.environ, "KVSPEC_TRACEBACK": "1", "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": PATH},
                )  # fmt: skip
                self.running[name] = child
                code = _end(child, self.deadline)
                del self.running[name]
        seconds = round(time.monotonic() - began, 1)
        return {"job": name, "command": f"kvspec {' '.join(words)}", "gpu": gpu, "exit": code, "seconds": seconds}

    def pack(self) -> None:
        """Write `session.json`, and everything in OUT to the archive; call it with the lock held."""
        (self.out / "session.json").write_text(json.dumps(self.done, indent=1), encoding="utf-8")
        if self.tar is None:
            return
        fresh = self.tar.with_name(f".{self.tar.name}.new")
        with tarfile.open(fresh, "w:gz", compresslevel=6) as archive:
            for file in sorted(self.out.rglob("*")):
                try:
                    content = file.read_bytes() if file.is_file() else None
                except FileNotFoundError:  # other jobs go on: a temporary name became its final one
                    continue
                if content is not None:
                    entry = tarfile.TarInfo(f"results/{file.relative_to(self.out)}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        if fresh.stat().st_size <= PIECE:
            fresh.replace(self.tar)
            return
        whole = fresh.read_bytes()
        for index, start in enumerate(range(0, len(whole), PIECE)):
            self.tar.with_name(f"{self.tar.name}.{index}").write_bytes(whole[start : start + PIECE])
        fresh.unlink()
        self.tar.unlink(missing_ok=True)


def _end(child: subprocess.Popen[bytes], deadline: float) -> str:
    """Wait for a job; at the deadline interrupt it, which leaves the trials that are done on disk."""
    try:
        return str(child.wait(max(0.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGINT)
    try:
        return f"interrupted, {child.wait(15)}"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return "killed"


def _cores(text: str) -> list[int]:
    """`0-3,8` -> 0, 1, 2, 3, 8."""
    parts = (part.partition("-") for part in text.split(","))
    return [core for first, _, last in parts for core in range(int(first), int(last or first) + 1)]


def main() -> int:
    """Run all jobs, or those that were asked for. Exit 0 if all ended with 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="when what still runs is interrupted")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=[name for name in JOBS if name not in HOURS])
    parser.add_argument("--gpus", default="0", help="CUDA devices, with commas")
    parser.add_argument("--cores", type=_cores, default=sorted(os.sched_getaffinity(0)), help="as in 0-31")
    parser.add_argument("--each", type=int, default=4, help="workers on each GPU")
    parser.add_argument("--tar", type=Path, help="archive to leave")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="for every job")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    extra = [word for value in given.set for word in ("--set", value)]
    session = Session(given.out, time.monotonic() + given.seconds, extra, given.tar and given.tar.absolute())

    def stop(signum: int, _frame: FrameType | None) -> None:
        session.deadline = 0.0  # too late for the jobs that wait
        for child in list(session.running.values()):
            os.killpg(child.pid, signal.SIGKILL)  # the trials that are done are on disk
        if session.lock.acquire(timeout=5):
            session.pack()
        os._exit(128 + signum)

    # Also where a shell's background made SIGINT ignored: the jobs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in given.only:
        jobs.put(name)
    gpus = given.gpus.split(",") * given.each
    workers = []
    for index, gpu in enumerate(gpus):
        mine = given.cores[index :: len(gpus)] or given.cores
        workers.append(threading.Thread(target=session.work, args=(jobs, gpu, mine)))
        workers[-1].start()
    for worker in workers:
        while worker.is_alive():
            worker.join(1.0)
    return int(any(found["exit"] != "0" for found in session.done))


if __name__ == "__main__":
    sys.exit(main())
