"""The columns of a map: names, types, digest. What is hashed here is what `docs/faultmap.md` defines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.maps.model import MAP_VERSION, OPS, Columns, Header, MapGeometry
from kvspec.plan import canonical_json

DTYPES: dict[str, np.dtype[Any]] = {
    "request": np.dtype("<u4"),
    "step": np.dtype("<u4"),
    "layer": np.dtype("<u2"),
    "kv": np.dtype("u1"),
    "head": np.dtype("<u2"),
    "token": np.dtype("<u4"),
    "elem": np.dtype("<u2"),
    "bit": np.dtype("u1"),
    "op": np.dtype("u1"),
}
"""In canonical order; `op` is not part of the order."""


def names(site: str, op: object) -> tuple[str, ...]:
    """The columns that a map stores: `step` for reads only, `op` only where flips differ in it."""
    return tuple(name for name in DTYPES if (name != "step" or site == "read") and (name != "op" or op is None))


def empty(site: str, op: object) -> Columns:
    """No rows."""
    return {name: np.zeros(0, DTYPES[name]) for name in names(site, op)}


def concatenate(blocks: list[Columns], site: str, op: object) -> Columns:
    """The rows of all blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([b[name] for b in blocks]) for name in names(site, op)} if blocks else empty(site, op)


class IdHasher:
    """The id of a map, from blocks of columns in canonical order."""

    def __init__(self, header: Header) -> None:
        """Start a map without rows."""
        self._site, self._op = header.site, header.op
        self._target = {} if header.target == "values" else {"target": header.target}
        self._geometry: MapGeometry = header.geometry
        self._hashes = {name: hashlib.sha256() for name in names(self._site, None)}
        self.rows = 0

    def push(self, columns: Columns) -> None:
        """Take the next rows."""
        rows = len(columns["request"])
        for name, running in self._hashes.items():
            running.update(self._column(name, columns, rows))
        self.rows += rows

    def _column(self, name: str, columns: Columns, rows: int) -> Any:
        if name == "op" and self._op is not None:
            column: NDArray[Any] = np.full(rows, OPS.index(self._op), np.uint8)
        else:
            column = np.ascontiguousarray(columns[name], DTYPES[name])
        return column.view(np.uint8)

    def finish(self) -> str:
        """The id, in hexadecimal."""
        content = {
            "kvspec_faultmap": MAP_VERSION,
            "site": self._site,
            **self._target,
            "geometry": asdict(self._geometry),
            "flips": self.rows,
            "columns": {name: running.hexdigest() for name, running in self._hashes.items()},
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def map_id(header: Header, columns: Columns) -> str:
    """The id of an explicit map."""
    hasher = IdHasher(header)
    hasher.push(columns)
    return hasher.finish()


def slices(columns: Columns, rows: int) -> Iterator[Columns]:
    """Views of at most `rows` rows."""
    total = len(columns["request"])
    for start in range(0, total, rows):
        yield {name: column[start : start + rows] for name, column in columns.items()}
