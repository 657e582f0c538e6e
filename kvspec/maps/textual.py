"""The JSON view: for people, for small maps, and for generative ones, which are a header and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvspec.errors import RecordsError
from kvspec.maps.columns import DTYPES, names, slices
from kvspec.maps.header import check_size, parse_json, read_header
from kvspec.maps.limits import MAX_HEADER_BYTES, MAX_JSON_BYTES, MAX_JSON_PARTS, MAX_JSON_ROWS
from kvspec.maps.model import OPS, Columns, FaultMap, Header
from kvspec.plan import canonical_json

ROWS, COLUMNS = "rows", "columns"
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]', re.DOTALL)
"""A string, or where a list or an object begins. It never goes back, so hostile text takes linear time too."""


def to_json(fault_map: FaultMap, limit: int | None = None) -> dict[str, Any]:
    """Header and rows `[request, (step,) layer, kv, head, token, elem, bit (, op)]`, at most `limit` of them."""
    data = fault_map.header.to_json()
    if fault_map.columns is not None:
        wanted = names(fault_map.header.site, fault_map.header.op)
        shown = [fault_map.columns[name][:limit].tolist() for name in wanted]
        data |= {COLUMNS: list(wanted), ROWS: [list(row) for row in zip(*shown, strict=True)]}
    return data


def write_text(fault_map: FaultMap) -> bytes:
    """A JSON file. Raises KVS513 for more rows than one should read as text."""
    if fault_map.columns is not None and len(fault_map) > MAX_JSON_ROWS:
        raise RecordsError.one(
            "KVS513",
            f"a JSON map of {len(fault_map)} rows",
            expected=f"at most {MAX_JSON_ROWS} rows",
            hint="write it as .parquet, or generative",
        )
    data = to_json(fault_map)
    rows = data.pop(ROWS, None)
    text = json.dumps(data, indent=2, allow_nan=False)
    if rows is not None:
        # One row a line: lines are what people compare.
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        text = text[:-2] + f',\n  "{ROWS}": [\n{lines}\n  ]\n}}' if rows else text[:-2] + f',\n  "{ROWS}": []\n}}'
    return (text + "\n").encode()


class JsonMap:
    """A map in JSON: its header, then its columns."""

    def __init__(self, text: bytes, what: str) -> None:
        """Parse. Raises `RecordsError`: KVS507, KVS508, KVS511, KVS513."""
        if len(text) > MAX_JSON_BYTES:
            raise RecordsError.one(
                "KVS513", f"`{what}` has {len(text)} bytes of JSON", expected=f"at most {MAX_JSON_BYTES} bytes"
            )
        _check_parts(text, what)
        data = parse_json(text, what)
        self._what = what
        rows, columns = data.pop(ROWS, None), data.pop(COLUMNS, None)
        self.header: Header = read_header(data, what)
        if len(text) > MAX_HEADER_BYTES:
            check_size(canonical_json(self.header.to_json()).encode(), what)
        self._columns: Columns | None = None
        if self.header.kind == "explicit":
            self._columns = self._read(rows, columns)
        elif rows is not None:
            raise self._wrong("is generative and has rows", f"$.{ROWS}")

    def batches(self) -> Iterator[Columns]:
        """The columns in order."""
        if self._columns is not None:
            yield from slices(self._columns, 1 << 16)

    def _read(self, rows: Any, columns: Any) -> Columns:
        wanted = names(self.header.site, self.header.op)
        if columns != list(wanted):
            raise self._wrong("names other columns than its header asks for", f"$.{COLUMNS}", ", ".join(wanted))
        if not isinstance(rows, list):
            raise self._wrong("is explicit and has no rows", f"$.{ROWS}")
        if len(rows) > MAX_JSON_ROWS:
            raise RecordsError.one(
                "KVS513", f"`{self._what}` has {len(rows)} rows of JSON", expected=f"at most {MAX_JSON_ROWS}"
            )
        table = np.zeros((len(wanted), len(rows)), np.uint32)
        limits = [np.iinfo(DTYPES[name]).max if name != "op" else len(OPS) - 1 for name in wanted]
        for number, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(wanted):
                raise self._wrong(
                    f"has a row {number} that is not a list of {len(wanted)} numbers", f"$.{ROWS}[{number}]"
                )
            for name, value, limit in zip(wanted, row, limits, strict=True):
                if type(value) is not int or not 0 <= value <= limit:
                    path = f"$.columns.{name}[{number}]"
                    raise self._wrong(f"has a wrong number for {name} in row {number}", path, f"0 to {limit}")
            table[:, number] = row
        return {name: table[i].astype(DTYPES[name]) for i, name in enumerate(wanted)}

    def _wrong(self, message: str, path: str | None = None, expected: str | None = None) -> RecordsError:
        return RecordsError.one("KVS508", f"`{self._what}` {message}", path=path, expected=expected)


def _check_parts(text: bytes, what: str) -> None:
    """Refuse what would take gigabytes once parsed (KVS513), before it is parsed."""
    limit = MAX_JSON_ROWS + MAX_JSON_PARTS
    if any(number >= limit for number, _ in enumerate(_PART.finditer(text))):
        raise RecordsError.one(
            "KVS513",
            f"`{what}` has too many lists, objects and strings",
            expected=f"at most {MAX_JSON_ROWS} rows, and {MAX_JSON_PARTS} in the header",
        )
