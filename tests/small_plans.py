"""Plans of a small spec, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvspec.models import Geometry, ModelInfo
from kvspec.plan import Plan, compile_plan
from kvspec.spec import load_spec

SMALL = Geometry(layers=4, kv_heads=3, head_size=64)

SPEC: dict[str, Any] = {
    "kvspec": 1,
    "name": "t",
    "model": {"id": "bundled:smollm2"},
    "prompts": {"inline": ["one", "two", "three"]},
    "generation": {"max_tokens": 8},
    "faults": [
        {"name": "A", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-5, 1e-3]}},
        {"name": "B", "model": "burst", "site": "KV_WRITE", "rate": {"per_element": 1e-3}, "burst_len": 4},
    ],
    "controls": {"golden_repeats": 2, "null_trials": 3},
    "trials": 5,
    "seed": 42,
}


def plan_maker(folder: Path) -> Callable[..., Plan]:
    """Makes plans of `SPEC` with changes, or of a spec given as text, in a folder."""

    def make_plan(changes: dict[str, Any] | None = None, text: str | None = None) -> Plan:
        path = folder / "spec.yaml"
        path.write_text(text or json.dumps({**SPEC, **(changes or {})}), encoding="utf-8")
        return compile_plan(load_spec(path))

    return make_plan


def info(geometry: Geometry | None = SMALL) -> ModelInfo:
    return ModelInfo("m", None, geometry, 100, None)
