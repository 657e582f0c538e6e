"""Where time goes: samples of the main thread's stack, counted calls, and what the GPU did. Never in a timed round."""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

KEPT = 150
"""Functions that are kept of a profile."""


class Sampler:
    """Looks at the main thread every few milliseconds: no instrumentation, hardly any disturbance."""

    def __init__(self, interval: float = 0.002) -> None:
        """`interval` in seconds."""
        self._interval = interval
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        """Start."""
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(self._interval / 4)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)

    def _run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._stop.wait(self._interval):
            frame = sys._current_frames().get(main)
            if frame is not None:
                self._stacks[_stack(frame)] += 1
                self.seconds = time.monotonic() - self._began

    def result(self) -> dict[str, Any]:
        """Seconds in each function itself, and with all that it calls, most first."""
        total = sum(self._stacks.values())
        if not total:
            return {"samples": 0}
        each = self.seconds / total
        own: Counter[str] = Counter()
        whole: Counter[str] = Counter()
        for stack, n in self._stacks.items():
            own[stack[-1]] += n
            whole.update(dict.fromkeys(stack, n))
        return {
            "samples": total,
            "seconds": self.seconds,
            "whole": {name: round(n * each, 4) for name, n in whole.most_common(KEPT)},
            "own": {name: round(n * each, 4) for name, n in own.most_common(KEPT)},
        }

    def write(self, file: Path) -> None:
        """All stacks in the folded form that flame graphs are made of."""
        lines = [f"{';'.join(stack)} {n}\n" for stack, n in self._stacks.most_common(20_000)]
        file.write_text("".join(lines), encoding="utf-8")


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    names = []
    while frame is not None:
        code = frame.f_code
        file = "/".join(Path(code.co_filename).parts[-3:])
        names.append(f"{file}:{code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(names))


def counted(run: Callable[[], object]) -> dict[str, Any]:
    """Calls and seconds per function, under a profiler that makes Python about twice as slow."""
    profile = cProfile.Profile()
    profile.runcall(run)
    rows = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = [
        {"at": f"{'/'.join(Path(f).parts[-3:])}:{line}:{name}", "calls": calls, "own": own, "whole": whole}
        for (f, line, name), (_, calls, own, whole, _) in rows.items()
    ]
    return {
        "own": sorted(found, key=lambda row: -row["own"])[:KEPT],
        "whole": sorted(found, key=lambda row: -row["whole"])[:KEPT],
    }


@contextmanager
def watched(session: Any) -> Iterator[dict[str, Any]]:
    """How long each step of a session takes, and what lies between, before and after the steps. `each_us`: microseconds
    of the steps since a table was last loaded, which a campaign does after its canary, whose steps are not among the
    seconds that it tells; `ended`: the requests that ended in which of them, as `[step, requests]`."""
    step, rpc = session.step, session.rpc
    spans: list[tuple[float, float]] = []
    ends: list[int] = []
    first = 0

    def timed() -> Any:
        began = time.perf_counter()
        result = step()
        spans.append((began, time.perf_counter()))
        ends.append(len(result))
        return result

    def called(method: str, *arguments: Any) -> Any:
        nonlocal first
        if method == "kvspec_load":
            first = len(spans)
        return rpc(method, *arguments)

    found: dict[str, Any] = {}
    session.step, session.rpc = timed, called
    began = time.perf_counter()
    try:
        yield found
    finally:
        session.__dict__.pop("step")
        session.__dict__.pop("rpc")
    ended = time.perf_counter()
    inside = sorted(b - a for a, b in spans)
    if spans:
        found |= {
            "steps": len(spans),
            "before": spans[0][0] - began,
            "in_steps": sum(inside),
            "between": spans[-1][1] - spans[0][0] - sum(inside),
            "after": ended - spans[-1][1],
            "median_step_ms": 1000 * inside[len(inside) // 2],
            "each_us": [round(1e6 * (b - a)) for a, b in spans[first:]],
            "ended": [[number, ended] for number, ended in enumerate(ends[first:]) if ended],
        }


@contextmanager
def traced(session: Any, first: int, steps: int) -> Iterator[dict[str, Any]]:
    """What the GPU does in `steps` steps of a session, from its step `first` on."""
    import torch

    step, number, found = session.step, 0, {}
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    running = ExitStack()
    began = 0.0

    def counting() -> Any:
        nonlocal number, began
        if number == first:
            running.enter_context(profile)
            began = time.perf_counter()
        result = step()
        number += 1
        if number == first + steps:
            torch.cuda.synchronize()
            wall = time.perf_counter() - began
            running.close()
            found.update(device(profile, steps, wall))
        return result

    session.step = counting
    try:
        yield found
    finally:
        running.close()
        session.__dict__.pop("step")


def device(profile: Any, steps: int, wall: float) -> dict[str, Any]:
    """Microseconds per step: in kernels, by kernel, and between them, by the kernels before and after the gap."""
    import torch

    cuda = torch.autograd.DeviceType.CUDA
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name[:70])
        for event in profile.events()
        if event.device_type == cuda
    )
    kernels: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    idle, busy_until, last = 0.0, spans[0][0] if spans else 0.0, ""
    for start, end, name in spans:
        kernels[name] += end - start
        calls[name] += 1
        if start > busy_until:
            idle += start - busy_until
            gaps[f"{last} -> {name}"] += start - busy_until
        if end > busy_until:
            busy_until, last = end, name
    return {
        "wall_us": 1e6 * wall / steps,
        "busy_us": sum(kernels.values()) / steps,
        "idle_us": idle / steps,
        "kernels": {name: [round(us / steps, 2), calls[name] / steps] for name, us in kernels.most_common()},
        "gaps": {name: round(us / steps, 2) for name, us in gaps.most_common(25)},
    }
