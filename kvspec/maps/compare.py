"""What differs between two maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.maps.columns import DTYPES, names
from kvspec.maps.generate import explicit
from kvspec.maps.model import OPS, FaultMap

_SAME_BY_NATURE = {"id", "provenance", "kind", "flips"}


@dataclass(frozen=True)
class MapDiff:
    """The differences of two maps."""

    same_flips: bool
    """Equal ids: the same geometry, site, target and flips."""
    header: tuple[tuple[str, Any, Any], ...]
    """(JSON path, value in A, value in B) of every header field that differs."""
    common: int | None
    """Flips in both; `None` where the geometries differ and sites cannot be compared."""
    only_a: int | None
    only_b: int | None
    first_a: tuple[dict[str, int | str], ...]
    """The first flips that only A has."""
    first_b: tuple[dict[str, int | str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "same_flips": self.same_flips,
            "header": [{"path": path, "a": a, "b": b} for path, a, b in self.header],
            "common": self.common,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "first_a": list(self.first_a),
            "first_b": list(self.first_b),
        }


def diff_maps(a: FaultMap, b: FaultMap, limit: int = 10) -> MapDiff:
    """Compare two maps, generative ones by their flips. Raises like `explicit`."""
    header = tuple(_fields(_comparable(a), _comparable(b), "$"))
    if a.id == b.id:
        return MapDiff(True, header, len(a), 0, 0, (), ())
    comparable = all(getattr(a.header, name) == getattr(b.header, name) for name in ("geometry", "site", "target"))
    if not comparable:
        return MapDiff(False, header, None, None, None, (), ())
    left, right = _sites(explicit(a)), _sites(explicit(b))
    only_a, only_b = np.setdiff1d(left, right, assume_unique=True), np.setdiff1d(right, left, assume_unique=True)
    return MapDiff(
        False, header, len(left) - len(only_a), len(only_a), len(only_b), _rows(only_a[:limit]), _rows(only_b[:limit])
    )


def _comparable(fault_map: FaultMap) -> dict[str, Any]:
    return {key: value for key, value in fault_map.header.to_json().items() if key not in _SAME_BY_NATURE}


def _fields(a: Any, b: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = dict.fromkeys((*a, *b))
        return [found for key in keys for found in _fields(a.get(key), b.get(key), f"{path}.{key}")]
    return [] if a == b else [(path, a, b)]


def _sites(fault_map: FaultMap) -> NDArray[np.void]:
    """Rows as one structured array; the order of its fields is the canonical order."""
    assert fault_map.columns is not None
    wanted = names(fault_map.header.site, None)
    sites = np.empty(len(fault_map), dtype=[(name, DTYPES[name]) for name in wanted])
    for name in wanted:
        uniform = name == "op" and fault_map.header.op is not None
        sites[name] = OPS.index(fault_map.header.op or "flip") if uniform else fault_map.columns[name]
    return sites


def _rows(sites: NDArray[np.void]) -> tuple[dict[str, int | str], ...]:
    rows = ({name: int(site[name]) for name in site.dtype.names or ()} for site in sites)
    return tuple({**row, "op": OPS[row["op"]]} for row in rows)
