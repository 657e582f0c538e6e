"""SmolLM2 campaigns in one engine: speed against the same requests on stock vLLM, golden floor, order, isolation."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from tools.gpu.look import Sampler, counted, traced, watched
from tools.gpu.quiet import wait
from tools.gpu.worker import WORKER

PROMPTS = [
    "Explain quantum entanglement in one sentence.",
    "Write a Python function to reverse a list.",
    "Who was the first US president?",
    "What is 25 * 4?",
    "The capital of France is",
]
WRITES: dict[str, Any] = {
    "prompts": {"inline": PROMPTS, "repeat": 2},
    "generation": {"max_tokens": 50},
    "faults": [
        {
            "name": "BitRot",
            "model": "random",
            "site": "KV_WRITE",
            "rate": {"per_bit": [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]},
        }
    ],
    "controls": {"null_trials": 1, "golden_repeats": 1},
    "trials": 40,
    "seed": 42,
    "engine": {"kv_cache_gib": 8},
}
ARMED = {**WRITES, "faults": [{**WRITES["faults"][0], "rate": {"per_bit": 1e-15}}], "trials": 320}
"""As many requests, whose faults never hit."""
READS = {
    **WRITES,
    "faults": [
        {"name": "Transient", "model": "random", "site": "KV_READ", "rate": {"per_bit": [1e-9, 1e-8, 1e-7, 1e-6]}},
        {
            "name": "Both", "model": "burst", "burst_len": 4, "site": "BOTH", "rate": {"per_bit": 1e-7},
            "where": {"steps": "decode"},
        },
    ],
    "controls": {"null_trials": 10, "golden_repeats": 10},
    "trials": 20,
}  # fmt: skip
NAN = {
    **WRITES,
    "faults": [
        {
            "name": "NaN", "model": "msb_biased", "msb_policy": "FP16_EXPONENT", "site": "KV_WRITE",
            "rate": {"per_bit": 0.5}, "where": {"cache": ["V"]},
        }
    ],
    "controls": {"null_trials": 20, "golden_repeats": 20},
    "trials": 20,
}  # fmt: skip
ROUNDS = 5
ROUND = 25
"""Seconds for which a first round is begun."""
PROFILES = 50
"""Seconds that the profiles take after the rounds, a `PROFILE` each."""
PROFILE = 10
EQUAL = 40
"""Seconds that the campaigns take which must be equal."""
STRETCH = 51
"""Steps in which a batch of requests comes and goes: one for each token, and the one in which they end."""
DENSEST = 11 * STRETCH + 30
"""Among the 663 steps of `WRITES`, one with 256 trials of its highest rate, the last of eight."""


class Silent:
    """An observer that only warns."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def warn(self, warning: Any) -> None:
        """Print a warning."""
        print(warning, flush=True)

    def start(self, *_: object) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def shrink(self, *_: object) -> None:
        """Nothing."""

    def trial(self, *_: object) -> None:
        """Nothing."""

    def done(self) -> None:
        """Nothing."""


def plan_of(out: Path, name: str, model: Path, spec: dict[str, Any]) -> Any:
    """The plan of a spec given as data."""
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    path = out / f"{name}.yaml"
    path.write_text(json.dumps({"kvspec": 1, "name": name, "model": {"id": str(model)}, **spec}), encoding="utf-8")
    return compile_plan(load_spec(path))


def run(out: Path, name: str, plan: Any, session: Any = None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run a plan, in `session` if given; figures and records by trial id."""
    from kvspec.engine.campaign import run_campaign
    from kvspec.records import RunStore

    began = time.monotonic()
    outcome = run_campaign(plan, out / name, Silent(), session)
    whole = time.monotonic() - began
    store = RunStore.open(out / name)
    rows = {row["trial_id"]: row for row in store.table().to_pylist()}
    golden = {row["request"]: row["token_ids"] for row in rows.values() if row["kind"] == "golden"}
    cells: dict[int, list[bool]] = {}
    for row in rows.values():
        cells.setdefault(row["cell"], []).append(row["token_ids"] == golden[row["request"]])
    controls = cells.pop(-1)
    figures = {
        "trials": len(rows),
        "seconds": outcome.seconds,
        "whole_seconds": whole,
        "planned_is_landed": sum(r["flips_planned"] == r["flips_landed"] and r["error"] is None for r in rows.values()),
        "flips": sum(r["flips_landed"] for r in rows.values()),
        "exposed": sum(r["flips_exposed"] for r in rows.values()),
        "restored": sum(r["flips_restored"] for r in rows.values()),
        "controls_identical": [sum(controls), len(controls)],
        "accuracy_by_cell": {plan.cells[c].name: sum(x) / len(x) for c, x in sorted(cells.items())},
        "nonfinite_trials": sum(r["nonfinite_at"] is not None for r in rows.values()),
        "environment": store.read_json("environment.json"),
        "errors": sorted({r["error"] for r in rows.values() if r["error"]})[:5],
    }
    return figures, rows


def same(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[int]:
    """[trials with equal token ids, trials]."""
    return [sum(b[t]["token_ids"] == row["token_ids"] for t, row in a.items() if t in b), len(a)]


def stock_requests(session: Any, requests: list[list[int]], *, detokenize: bool = True) -> float:
    """Seconds for the requests on stock vLLM, as a user of it would ask: as many in the engine as the campaign keeps.
    Without `detokenize` it gives token ids only, which is less than a campaign records, and copies no parameters."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from kvspec.engine.campaign import QUEUE_FACTOR

    session.rpc("kvspec_mode", "stock")
    engine, queue = session._engine, enumerate(requests)
    room = QUEUE_FACTOR * session.settings["max_num_seqs"]
    generation = WRITES["generation"]
    session._finished = lambda _: None  # what vLLM gives is all that its user gets
    begun = time.monotonic()
    while True:
        for entry, ids in itertools.islice(queue, max(0, room - session.pending)):
            params = SamplingParams(
                temperature=0, max_tokens=generation["max_tokens"], ignore_eos=True, detokenize=detokenize,
                skip_clone=not detokenize, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            engine.add_request(str(entry), {"prompt_token_ids": ids}, params)
        if not session.pending:
            del session._finished
            return time.monotonic() - begun
        session.step()


def interleaved(
    sides: dict[str, Callable[[], float]],
    look: Callable[[], AbstractContextManager[dict[str, Any]]],
    rounds: int,
    deadline: float,
    save: Callable[[dict[str, list[float]], dict[str, list[dict[str, Any]]]], None],
    *,
    least: float = 0.0,
) -> None:
    """Every side once in each round, another one first and the other way round each time, inside `look`; saved after
    each round. A round is begun if the slowest one before it, or `least` seconds, fit before the deadline
    (`time.monotonic`)."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    steps: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    slowest = least
    for number in range(rounds):
        if number and time.monotonic() + slowest > deadline:
            return
        began = time.monotonic()
        order = (*sides, *sides)[number % len(sides) :][: len(sides)]
        for side in order if number % 2 == 0 else order[::-1]:
            with look() as found:
                times[side].append(sides[side]())
            steps[side].append(found)
        slowest = max(slowest, time.monotonic() - began)
        save(times, steps)


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Seconds of each side, the least of its rounds, and `a_to_b`: its ratio to each stock side; `_paired`: the median
    of the ratios within rounds."""
    best = {side: min(values) for side, values in times.items()}
    found = {"rounds": float(min(map(len, times.values()))), **best}
    for base in ("stock", "stock_ids"):
        for side, values in times.items():
            found[f"{side}_to_{base}"] = best[side] / best[base]
            found[f"{side}_to_{base}_paired"] = statistics.median(
                a / b for a, b in zip(values, times[base], strict=True)
            )
    return found


def fastest(seconds: list[float], looks: list[dict[str, Any]], stretch: int) -> float | None:
    """Seconds of a side if nothing of the host's had come between: every `stretch` steps as fast as in their fastest
    round, and what is not a step as short as in the shortest one. `None` if its rounds do not correspond step by step:
    other counts of steps, or other requests that end in them."""
    if not all("each_us" in look for look in looks):
        return None
    if any((len(look["each_us"]), look["ended"]) != (len(looks[0]["each_us"]), looks[0]["ended"]) for look in looks):
        return None
    each = np.array([look["each_us"] for look in looks])  # rounds x steps
    stretches = np.add.reduceat(each, np.arange(0, each.shape[1], stretch), axis=1)
    outside = np.array(seconds) - each.sum(axis=1) / 1e6
    return float(stretches.min(axis=0).sum() / 1e6 + outside.min())


def undisturbed(
    times: dict[str, list[float]], steps: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, float | None]]:
    """The fastest of each side, of `steps` and of `stretches` of them, and `a_to_b`: its ratio to each stock side.

    All rounds of a side do the same steps with the same requests, so a step that noise struck in one round has another
    round that it did not strike, where every whole round has some. But work that falls into another step in each round
    (threads that count in the background) goes with the noise: the fastest of `steps` is a lower bound. In a `stretch`
    such work stays where it is. What is not a step (submitting, recording) is taken as a whole for the same reason."""
    found: dict[str, dict[str, float | None]] = {}
    for name, stretch in (("steps", 1), ("stretches", STRETCH)):
        least = {side: fastest(times[side], steps[side], stretch) for side in times}
        ratio = {
            f"{side}_to_{base}": seconds / below if seconds and (below := least[base]) else None
            for base in ("stock", "stock_ids")
            for side, seconds in least.items()
        }
        found[name] = {**least, **ratio}
    return found


def profile(
    results: dict[str, Any], out: Path, session: Any, sides: dict[str, Callable[[], float]], deadline: float
) -> None:
    """Fill `results` with where the time of each side goes; none is begun after the deadline (`time.monotonic`)."""
    for side, once in sides.items():
        if time.monotonic() > deadline:
            return
        with Sampler(0.001) as sampler:
            once()
        sampler.write(out / f"campaign-{side}.folded")
        results[f"sampled_{side}"] = sampler.result()
    # a campaign goes from its lowest rate to its highest, where most of its flips are
    for side, first in (("stock", 200), ("armed", 200), ("campaign", DENSEST)):
        if time.monotonic() < deadline:
            with traced(session, first, 60) as found:
                sides[side]()
            results[f"traced_{side}"] = found
    for side in ("stock", "armed", "campaign"):
        if time.monotonic() < deadline:
            results[f"calls_{side}"] = counted(sides[side])


def measure(
    results: dict[str, Any], out: Path, deadline: float, model: Path, *, rounds: int = ROUNDS, more: bool = True
) -> None:
    """Fill `results`: speed in up to `rounds` rounds, then profiles and, if `more`, what must be equal."""
    from kvspec.engine import session as sessions
    from kvspec.engine.campaign import Inputs
    from kvspec.engine.session import Session, Shape

    sessions.WORKER = WORKER
    plan = plan_of(out, "writes", model, WRITES)
    inputs, spec = Inputs.of(plan), plan.spec
    assert spec.generation.ignore_eos
    longest = max(map(len, inputs.prompts)) + 50
    began = time.monotonic()
    session = Session(spec.model, inputs.source, spec.engine, "bf16", Shape(longest, 10000, None), reads=True)
    results["start_seconds"] = time.monotonic() - began
    requests = [inputs.prompts[trial.request] for trial in plan.trials()]
    numbers = itertools.count()

    def injecting(name: str, mode: str, plan: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        session.rpc("kvspec_mode", mode)
        session.reads = mode == "reads"
        return run(out, f"{name}{next(numbers)}", plan, session)

    armed = plan_of(out, "armed", model, ARMED)
    first: dict[str, dict[str, Any]] = {}

    def writes() -> float:
        results["writes"], rows = injecting("writes", "writes", plan)
        first.update(rows)
        return float(results["writes"]["seconds"])

    sides: dict[str, Callable[[], float]] = {
        "stock": lambda: stock_requests(session, requests),
        "stock_ids": lambda: stock_requests(session, requests, detokenize=False),
        "armed": lambda: float(injecting("armed", "writes", armed)[0]["seconds"]),
        "campaign": writes,
    }
    wait()
    for warm in ("stock", "campaign"):
        sides[warm]()

    def save(times: dict[str, list[float]], steps: dict[str, list[dict[str, Any]]]) -> None:
        results["speed"] = {**ratios(times), "undisturbed": undisturbed(times, steps), "all": times, "steps": steps}

    last = deadline if more else deadline - PROFILES
    interleaved(sides, lambda: watched(session), rounds, last, save, least=ROUND)
    print("campaign", {k: v for k, v in results["speed"].items() if isinstance(v, float)}, flush=True)
    profile(results, out, session, sides, deadline - (EQUAL if more else PROFILE))
    if not more or time.monotonic() > deadline - 30:
        return
    shuffled = plan_of(out, "shuffled", model, {**WRITES, "engine": {**WRITES["engine"], "submission_seed": 7}})
    results["shuffled_identical"] = same(first, injecting("shuffled", "writes", shuffled)[1])
    reads = plan_of(out, "reads", model, READS)
    results["reads"], first = injecting("reads", "reads", reads)
    shuffled = plan_of(out, "reads_shuffled", model, {**READS, "engine": {**WRITES["engine"], "submission_seed": 7}})
    results["reads_shuffled_identical"] = same(first, injecting("reads_shuffled", "reads", shuffled)[1])
    results["isolation"], _ = injecting("nan", "writes", plan_of(out, "nan", model, NAN))
