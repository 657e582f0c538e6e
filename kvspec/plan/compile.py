"""Expansion of a spec into the cells of a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from kvspec.plan.model import Cell, Plan, experiment_id
from kvspec.spec.model import Fault, Range, Selector, Spec


def compile_plan(spec: Spec) -> Plan:
    """Turn a validated spec into its plan. Pure: no model, file or network is touched."""
    by_entry: dict[int, list[Fault]] = defaultdict(list)
    for fault in spec.faults:
        by_entry[fault.index].append(fault)
    cells: list[Cell] = []
    for faults in by_entry.values():
        for fault, suffix in zip(faults, _what_varies(faults), strict=True):
            cells.append(Cell(len(cells), fault.name + suffix, fault, experiment_id(fault)))
    return Plan(spec, tuple(cells))


def _what_varies(faults: list[Fault]) -> Iterable[str]:
    """A suffix per cell that names only the swept parameters, such as `[1e-05]` or `[KV_READ, 1e-05]`."""
    aspects: tuple[Callable[[Fault], str], ...] = (
        lambda f: f.site,
        lambda f: f.target,
        lambda f: f.op,
        lambda f: f"burst {f.burst_len}",
        lambda f: f.msb_policy or "",
        lambda f: describe_selector(f.where),
        lambda f: f"{f.rate.value:g}",
    )
    swept = [aspect for aspect in aspects if len({aspect(f) for f in faults}) > 1]
    for fault in faults:
        yield f"[{', '.join(aspect(fault) for aspect in swept)}]" if swept else ""


def describe_selector(where: Selector) -> str:
    """A selector in a few words; `everywhere` if it hides nothing."""
    parts: list[str] = []
    if where.cache != ("K", "V"):
        parts.append("".join(where.cache))
    for name, ranges in (("layers", where.layers), ("heads", where.heads)):
        if ranges is not None:
            parts.append(f"{name} {describe_ranges(ranges)}")
    for name, choice in (("tokens", where.tokens), ("steps", where.steps)):
        if choice != "all":
            parts.append(f"{name} {choice if isinstance(choice, str) else describe_ranges(choice)}")
    return ", ".join(parts) or "everywhere"


def describe_ranges(ranges: tuple[Range, ...]) -> str:
    """Half-open ranges the way a spec writes them: `0,4-7,20-`."""
    words = []
    for start, stop in ranges:
        if stop is None:
            words.append(f"{start}-")
        else:
            words.append(str(start) if stop == start + 1 else f"{start}-{stop - 1}")
    return ",".join(words)
