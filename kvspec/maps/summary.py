"""What a map holds, counted: where its flips are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.maps.columns import names
from kvspec.maps.generate import explicit
from kvspec.maps.model import OPS, FaultMap, Header


@dataclass(frozen=True)
class MapSummary:
    """Counts of flips. Arrays are indexed by the coordinate that they are named after."""

    header: Header
    layer: NDArray[np.int64]
    kv: NDArray[np.int64]
    head: NDArray[np.int64]
    bit: NDArray[np.int64]
    step: dict[int, int]
    """Flips of each read event that has any; empty for writes."""
    prompt: int
    """Flips in tokens of the prompt."""
    first: tuple[dict[str, Any], ...]
    """The first flips in canonical order."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "header": self.header.to_json(),
            "histogram": {
                "layer": self.layer.tolist(),
                "kv": self.kv.tolist(),
                "head": self.head.tolist(),
                "bit": self.bit.tolist(),
                "step": {str(step): count for step, count in self.step.items()},
                "prompt": self.prompt,
                "decode": self.header.flips - self.prompt,
            },
            "first": list(self.first),
        }


def summarize(fault_map: FaultMap, limit: int) -> MapSummary:
    """Count the flips of a map; a generative one is enumerated for it. Raises like `explicit`."""
    header = fault_map.header
    whole = explicit(fault_map)
    columns = whole.columns
    assert columns is not None
    geometry = header.geometry
    _, bits = geometry.elements(header.target)
    counts = {
        name: np.bincount(columns[name], minlength=size)
        for name, size in (
            ("layer", geometry.layers),
            ("kv", geometry.planes),
            ("head", geometry.kv_heads),
            ("bit", bits),
        )
    }
    steps: dict[int, int] = {}
    if header.site == "read":
        found, number = np.unique(columns["step"], return_counts=True)
        steps = dict(zip(found.tolist(), number.tolist(), strict=True))
    wanted = names(header.site, header.op)
    rows = zip(*(columns[name][:limit].tolist() for name in wanted), strict=True)
    first = [dict(zip(wanted, row, strict=True)) for row in rows]
    for row in first:
        row["op"] = OPS[row["op"]] if "op" in row else header.op
    return MapSummary(
        header=header,
        **counts,
        step=steps,
        prompt=int(np.count_nonzero(columns["token"] < header.coverage.prompt_tokens)),
        first=tuple(first),
    )
