"""Golden cases of docs/sampling-scales.md, computed in plain Python: `python -m tests.scale_vectors` writes the file.

`test_sampling_scales.py` holds the file, and the core, against this. Thresholds are exact rationals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.reference_sampler import READ, Reference, exact_thresholds, philox

SCALES = 6
FILE = Path(__file__).parent / "vectors" / "sampling_scales.json"
FORMAT = (
    "Golden cases of sampling-scales.md, in the format of sampling.json. keys: of faults of scales, as are `key`, "
    "`seed`, `experiment`, `trial` and `fault` of a case. A row is one element of 32 bits."
)
SEED, EXPERIMENT = 0x0123456789ABCDEF, 0xFEDCBA9876543210
EVERY, SIGN, EXPONENT = 0xFFFFFFFF, 0x80000000, 0x7F800000

WRITES: list[dict[str, Any]] = [
    {"name": "scales: rare hits", "rate": 2e-3, "tokens": 40},
    {"name": "scales: per element, signs", "rate": 0.05, "per": "element", "mask": SIGN, "tokens": 12},
    {"name": "scales: per row, exponents", "rate": 0.1, "per": "row", "mask": EXPONENT, "tokens": 12},
    {"name": "scales: bursts end with their scale", "rate": 0.01, "burst_len": 12, "tokens": 12},
    {"name": "scales: pages", "rate": 0.03, "page_tokens": 4, "page_rate": 0.3, "tokens": 20},
    {"name": "scales: level head", "rate": 0.2, "heads": 8, "tokens": 3},
    {"name": "scales: rate 1", "rate": 1.0, "heads": 1, "mask": 0xF, "tokens": 3},
    {"name": "scales: V alone", "rate": 0.02, "planes": 1, "first_plane": 1, "tokens": 20},
    {"name": "scales: set0", "rate": 0.01, "op": "set0", "tokens": 12},
    {"name": "scales: set1", "rate": 0.01, "op": "set1", "layer": 65533, "first_token": 2**32 - 8, "tokens": 8},
]
READS: list[dict[str, Any]] = [
    {"name": "scales: read of the prefill", "rate": 4e-3, "step": 20, "tokens": 20},
    {"name": "scales: read of a decode step", "rate": 4e-3, "step": 21, "tokens": 21},
]


def hexes(words: Any) -> list[str]:
    return [f"0x{word:x}" for word in words]


def scale_keys(seed: int, experiment: int, trial: int, fault: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Write key and read master of faults of scales."""
    words = philox((trial, fault, experiment % 2**32, experiment >> 32), (seed % 2**32, seed >> 32))
    a, b, c, d = philox((0, 0, 0, SCALES << 24), (words[0], words[1]))
    return (a, b), (c, d)


def reference(case: dict[str, Any]) -> Reference:
    """The sampler of a case."""
    shape, model = case["layer_shape"], case["model"]
    page = exact_thresholds(1, model["page_rate"]) if model["page_tokens"] else []
    found = Reference(
        shape["dim"], shape["bits"], shape["heads"], shape["planes"], shape["first_plane"], model["rate"],
        model["per"], model["mask"], model["burst_len"], model["page_tokens"], [], page[0] if page else None,
    )  # fmt: skip
    n, _ = found.units
    units = {"token": found.planes * found.heads * n, "head": n, "dense": 1}[found.level]
    found.table.extend(exact_thresholds(units, model["rate"]))
    return found


def case_of(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """A whole case from what is particular to it."""
    given = {"per": "bit", "mask": EVERY, "burst_len": 1, "page_tokens": 0, "page_rate": 0.0, "op": "flip"} | given
    step, trial, fault, request = given.get("step"), number, number % 3, 5 + number
    write, master = scale_keys(SEED, EXPERIMENT, trial, fault)
    key = write if step is None else philox((step, 0, request, READ << 24), master)[:2]
    case: dict[str, Any] = {
        "name": given["name"],
        "target": "scales",
        "layer_shape": {
            "dim": 1, "bits": 32, "planes": given.get("planes", 2), "heads": given.get("heads", 3),
            "first_plane": given.get("first_plane", 0),
        },
        "model": {name: given[name] for name in ("rate", "per", "mask", "burst_len", "page_tokens", "page_rate")},
        "site": "KV_WRITE" if step is None else "KV_READ",
        "op": given["op"],
        "seed": f"0x{SEED:x}",
        "experiment": f"0x{EXPERIMENT:x}",
        "trial": trial,
        "fault": fault,
        **({} if step is None else {"step": step}),
        "key": hexes(key),
        "request": request,
        "layer": given.get("layer", 7),
        "first_token": given.get("first_token", 0 if step is not None else 3),
        "tokens": given["tokens"],
    }  # fmt: skip
    sampler = reference(case)
    flips = [
        [kv, head, token, elem, bit]
        for token in range(case["tokens"])
        for kv, head, elem, bit in sampler.flips((key[0], key[1]), request, case["layer"], case["first_token"] + token)
    ]
    case |= {
        "level": sampler.level,
        "thresholds_head": hexes(sampler.table[:3]),
        "thresholds_len": len(sampler.table),
        "flips": sorted(flips),
    }
    return case


def document() -> dict[str, Any]:
    """What the file holds."""
    write, master = scale_keys(SEED, EXPERIMENT, 7, 2)
    steps = {str(step): hexes(philox((step, 0, 3, READ << 24), master)[:2]) for step in (10, 11, 2**32 - 1)}
    keys = {
        "seed": f"0x{SEED:x}", "experiment": f"0x{EXPERIMENT:x}", "trial": 7, "fault": 2, "target": "scales",
        "write_key": hexes(write), "read_master": hexes(master), "request": 3, "read_key_of_step": steps,
    }  # fmt: skip
    cases = [case_of(number, given) for number, given in enumerate(WRITES + READS)]
    return {"format": FORMAT, "version": 2, "philox4x32_10": [], "keys": [keys], "read_steps": [], "cases": cases}


def text() -> str:
    """The file, a case a line."""
    found = document()
    lists = {name: ",\n".join("  " + json.dumps(x) for x in found.pop(name)) for name in ("keys", "cases")}
    head = json.dumps(found)[:-1]
    return f'{head},\n "keys": [\n{lists["keys"]}\n ],\n "cases": [\n{lists["cases"]}\n ]}}\n'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
