"""Every value of a map against what its header allows; the geometry of a map against that of a model."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from kvspec import _native
from kvspec.errors import Diagnostic, RecordsError
from kvspec.maps.columns import DTYPES, IdHasher, names
from kvspec.maps.model import OPS, Columns, Header, MapGeometry

_TITLES = {"bounds": "KVS509", "order": "KVS510", "duplicate": "KVS510", "length": "KVS508", "step": "KVS508"}


class MapValidator:
    """Checks blocks of columns as they come and computes the id. Memory: one block."""

    def __init__(self, header: Header, what: str) -> None:
        """`what` names the map in messages, usually its file."""
        self._header, self._what = header, what
        geometry, coverage, steps = header.geometry, header.coverage, header.coverage.steps
        request = (header.trial or {}).get("request")
        elements, bits = geometry.elements(header.target)
        self._check = _native.MapCheck(
            request=(0, 2**32) if request is None else (request, request + 1),
            step=(steps.start, steps.stop) if header.site == "read" else None,
            layer=(0, geometry.layers),
            kv=(0, geometry.planes),
            head=(0, geometry.kv_heads),
            token=(0, coverage.tokens),
            elem=(0, elements),
            bit=(0, bits),
        )
        self._hasher = IdHasher(header)
        self._names = names(header.site, header.op)

    @property
    def rows(self) -> int:
        """Rows that were accepted."""
        return self._hasher.rows

    def push(self, columns: Columns) -> None:
        """Check the next rows. Raises `RecordsError`: KVS508, KVS509 or KVS510 with column and row."""
        if tuple(columns) != self._names or any(columns[n].dtype != DTYPES[n] for n in columns):
            raise self._wrong("KVS508", "$", "holds other columns than its header says", ", ".join(self._names))
        if self.rows + len(columns["request"]) > self._header.flips:
            raise self._wrong("KVS511", "$.flips", f"holds more rows than the {self._header.flips} of its header")
        if found := self._check.push({name: column for name, column in columns.items() if name != "op"}):
            kind, column, row, message = found
            path = f"$.columns.{column}[{row}]" if column else f"$.columns[{row}]"
            expected = "rows in ascending order, each site once" if kind in ("order", "duplicate") else None
            raise self._wrong(_TITLES[kind], path, f": {message}", expected)
        if "op" in columns and (wrong := np.flatnonzero(columns["op"] >= len(OPS))).size:
            row = int(wrong[0]) + self.rows
            code = int(columns["op"][wrong[0]])
            raise self._wrong("KVS509", f"$.columns.op[{row}]", f": op {code} of row {row} is outside 0..{len(OPS)}")
        self._hasher.push(columns)

    def finish(self) -> None:
        """All rows have come: compare count and id. Raises KVS511."""
        header = self._header
        if self.rows != header.flips:
            raise self._wrong("KVS511", "$.flips", f"holds {self.rows} rows, its header says {header.flips}")
        if (found := self._hasher.finish()) != header.id:
            raise self._wrong("KVS511", "$.id", f"has the content `{found}`, its header says `{header.id}`")

    def _wrong(self, code: str, path: str, message: str, expected: str | None = None) -> RecordsError:
        text = f"`{self._what}`{'' if message.startswith(':') else ' '}{message}"
        return RecordsError.one(code, text, path=path, expected=expected)


def require_geometry(header: Header, geometry: MapGeometry) -> None:
    """Refuse a map for another cache (KVS512), naming every field that differs. Nothing overrides this: the sites
    of one geometry mean other bits, or none, in another."""
    has, wants = asdict(geometry), asdict(header.geometry)
    if wrong := [name for name in wants if wants[name] != has[name]]:
        raise RecordsError(
            Diagnostic(
                "KVS512",
                f"the map `{header.name}` is for {name} `{wants[name]}`, the model has `{has[name]}`",
                path=f"$.geometry.{name}",
                expected="a model with the geometry of the map",
            )
            for name in wrong
        )
