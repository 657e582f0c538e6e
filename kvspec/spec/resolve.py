"""A valid tree -> `Spec`: defaults filled in, sweeps expanded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from kvspec.errors import Diagnostic, SpecError
from kvspec.spec.model import (
    BIT_FIELDS,
    LOGPROB_METRICS,
    METRICS,
    Controls,
    EngineSpec,
    Fault,
    GenerationSpec,
    ModelSpec,
    PromptSpec,
    Rate,
    Selector,
    Spec,
    TrialSpec,
)
from kvspec.spec.ranges import canonical, parse_range
from kvspec.spec.tree import Node

MAX_CELLS = 10_000
MAX_TRIALS = 10_000_000

DEFAULT_BURST_LEN = 8
DEFAULT_MSB_POLICY = "BYTE_TOPBITS"
DEFAULT_PAGE_TOKENS = 16
DEFAULT_PAGE_DENSITY = 1.0e-3
DEFAULT_ALPHA = 0.05
DEFAULT_POWER = 0.8

Data = dict[str, Any]


def build_spec(root: Node, prompts: PromptSpec, source: str) -> Spec:
    """Build the spec from a tree that `check_tree` has passed and from its prompts.

    Raises `SpecError` (KVS305) if there are more cells or trials than the limits.
    """
    data: Data = root.plain()
    cells = sum(math.prod(map(len, _axes(entry))) for entry in data["faults"])
    _check_limit(root, "faults", "cells", cells, MAX_CELLS)
    trials = _trials(root, data["trials"], len(prompts.texts))
    controls = Controls(**_whole(data.get("controls", {})))
    per_prompt = cells * trials.per_prompt + 1 + controls.null_trials + controls.golden_repeats
    _check_limit(root, "trials", "trials", len(prompts.texts) * per_prompt, MAX_TRIALS)
    return Spec(
        name=data["name"],
        description=data.get("description", ""),
        model=ModelSpec(**_whole(data["model"])),
        prompts=prompts,
        generation=_generation(data.get("generation", {})),
        faults=tuple(fault for index, entry in enumerate(data["faults"]) for fault in _expand(index, entry)),
        controls=controls,
        trials=trials,
        seed=int(data.get("seed", 0)),
        metrics=_metrics(data),
        engine=_engine(data.get("engine", {})),
        source=source,
        marks={path: node.mark for path, node in root.walk()},
    )


def _axes(entry: Data) -> tuple[list[Any], ...]:
    """What an entry sweeps, slowest first: site, target, op, burst_len, msb_policy, where, rate."""
    model = entry["model"]
    return (
        _list(entry["site"]),
        _list(entry.get("target", "values")),
        _list(entry.get("op", "flip")),
        _list(entry.get("burst_len", DEFAULT_BURST_LEN)) if model == "burst" else [1],
        _list(entry.get("msb_policy", DEFAULT_MSB_POLICY)) if model == "msb_biased" else [None],
        [_selector(where) for where in _list(entry.get("where", {}))],
        list(_rates(entry["rate"])),
    )


def _expand(index: int, entry: Data) -> Iterator[Fault]:
    """The concrete faults of an entry: one per cell."""
    bits = entry.get("bits", "all")
    for site, target, op, burst_len, msb_policy, where, rate in itertools.product(*_axes(entry)):
        yield Fault(
            name=entry["name"],
            index=index,
            site=site,
            model=entry["model"],
            rate=rate,
            burst_len=int(burst_len),
            op=op,
            target=target,
            msb_policy=msb_policy,
            bits=bits if bits in BIT_FIELDS else tuple(sorted(map(int, bits))),
            page_tokens=int(entry.get("page_tokens", DEFAULT_PAGE_TOKENS)),
            page_density=float(entry.get("page_density", DEFAULT_PAGE_DENSITY)),
            where=where,
        )


def _rates(rate: Data) -> Iterator[Rate]:
    ((unit, value),) = rate.items()
    hours = float(value["residency_hours"]) if unit == "fit" else None
    for dose in _list(value["raw_fit_per_mbit"] if unit == "fit" else value):
        yield Rate(unit, float(dose) + 0.0, hours)  # + 0.0 takes the sign off -0.0


def _selector(where: Data) -> Selector:
    def ranges(key: str, everything: Any) -> Any:
        chosen = where.get(key, "all")
        if chosen == "all":
            return everything
        return chosen if isinstance(chosen, str) else canonical(parse_range(entry) for entry in chosen)

    cache = where.get("cache", ("K", "V"))
    return Selector(
        layers=ranges("layers", None),
        heads=ranges("heads", None),
        cache=tuple(plane for plane in ("K", "V") if plane in cache),
        tokens=ranges("tokens", "all"),
        steps=ranges("steps", "all"),
    )


def _generation(data: Data) -> GenerationSpec:
    whole = _whole({key: value for key, value in data.items() if key not in ("temperature", "stop", "choices")})
    temperature = float(data.get("temperature", 0)) + 0.0
    stop, choices = (tuple(data.get(key, ())) for key in ("stop", "choices"))
    return GenerationSpec(**whole, temperature=temperature, stop=stop, choices=choices)


def _engine(data: Data) -> EngineSpec:
    gib = data.get("kv_cache_gib")
    whole = _whole({key: value for key, value in data.items() if key != "kv_cache_gib"})
    return EngineSpec(**whole, kv_cache_gib=None if gib is None else float(gib))


def _trials(root: Node, trials: int | float | Data, prompts: int) -> TrialSpec:
    """Trials per prompt; what a target or a power asks for is rounded up to whole trials."""
    if not isinstance(trials, dict):
        return TrialSpec(int(trials))
    if "per_prompt" in trials:
        return TrialSpec(int(trials["per_prompt"]))
    from kvspec.stats.design import paired_sample_size, plan_looks, sample_size

    if "power" in trials:
        power = trials["power"]
        alpha, wanted = power.get("alpha", DEFAULT_ALPHA), power.get("power", DEFAULT_POWER)
        pairs = paired_sample_size(power["from"], power["to"], alpha, wanted)
        if pairs is None:
            raise SpecError(
                Diagnostic(
                    "KVS305",
                    "`power` takes more pairs of trials per cell than anybody runs",
                    (root.get("trials", "power") or root).mark,
                    "$.trials.power",
                    f"a design of at most {MAX_TRIALS} trials",
                    "a larger difference between `from` and `to`, a smaller power or a larger alpha",
                )
            )
        return TrialSpec(math.ceil(pairs / prompts))
    target = trials["target"]
    if (most := int(target.get("looks", 1))) > 1:
        looks = plan_looks(target["confidence"], target["margin"], most, prompts)
        return TrialSpec(looks.rounds[-1], looks)
    return TrialSpec(math.ceil(sample_size(target["confidence"], target["margin"]) / prompts))


def _metrics(data: Data) -> tuple[str, ...]:
    logprobs = "logprobs" in data.get("generation", {})
    every = [name for name in METRICS if logprobs or name not in LOGPROB_METRICS]
    return tuple(name for name in METRICS if name in data.get("metrics", every))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _whole(data: Data) -> Data:
    """The same data with whole numbers as `int`: as in JSON Schema, `1e3` is one."""
    return {key: int(value) if isinstance(value, float) else value for key, value in data.items()}


def _check_limit(root: Node, key: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        node = root.get(key) or root
        expected = f"at most {limit} {what}"
        raise SpecError(Diagnostic("KVS305", f"the spec asks for {count} {what}", node.mark, f"$.{key}", expected))
