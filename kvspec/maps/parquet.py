"""The Parquet container, read as hostile.

Columns are never compressed: their encodings (dictionary and run length) make them as small, and what is not
compressed cannot be a decompression bomb.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvspec.errors import PrerequisiteError, RecordsError
from kvspec.maps.columns import DTYPES, empty, names
from kvspec.maps.header import check_size, parse_json, read_header
from kvspec.maps.layout import LayoutReader
from kvspec.maps.limits import MAX_FOOTER_BYTES, MAX_GROUP_ROWS
from kvspec.maps.model import Columns, FaultMap, Header
from kvspec.plan import canonical_json

KEY = b"kvspec.faultmap"
_BATCH_ROWS = 1 << 16
PYARROW = 26
"""First version that can be told how deep a schema may be."""
_DAMAGE = (pa.ArrowException, OSError)
"""What pyarrow raises over damaged bytes. Anything else is a mistake of ours, or another pyarrow, and no damage."""


def write(fault_map: FaultMap, file: IO[bytes]) -> None:
    """Write a map. Row groups are small, so that a reader can stream it."""
    header = fault_map.header
    columns = fault_map.columns if fault_map.columns is not None else empty(header.site, header.op)
    fields = [
        pa.field(name, pa.from_numpy_dtype(DTYPES[name]), nullable=False) for name in names(header.site, header.op)
    ]
    table = pa.Table.from_arrays([pa.array(columns[f.name]) for f in fields], schema=pa.schema(fields))
    # No Arrow schema in the file: its types are those of the format, and a reader need not parse a second schema.
    options: dict[str, Any] = {"compression": "none", "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(file, table.schema, write_page_checksum=True, **options) as writer:
        writer.add_key_value_metadata({KEY.decode(): canonical_json(header.to_json())})
        if table.num_rows:
            writer.write_table(table, row_group_size=MAX_GROUP_ROWS)


class ParquetMap:
    """An open container: its header, then its columns batch by batch."""

    def __init__(self, file: IO[bytes], size: int, what: str) -> None:
        """Open. Raises `RecordsError`: KVS508 no map, KVS513 over a limit, KVS507 or KVS511 a wrong header, and
        `PrerequisiteError` (KVS901) for a pyarrow that is too old."""
        _require_pyarrow()
        self._what = what
        reader = LayoutReader(file, size, what)
        layout = reader.read()
        text = layout.metadata.get(KEY)
        if text is None:
            raise self._wrong(f"is a Parquet file, but no fault map: it has no metadata `{KEY.decode()}`")
        check_size(text, what)
        self.header: Header = read_header(parse_json(text, what), what)
        self._check_rows(layout.rows)
        self._check_names(layout.columns)
        reader.check_chunks(layout)
        file.seek(0)
        try:
            self._file = pq.ParquetFile(
                file,
                pre_buffer=False,
                thrift_string_size_limit=MAX_FOOTER_BYTES,
                thrift_container_size_limit=1 << 20,
                schema_depth_limit=4,
                page_checksum_verification=True,
            )
            schema = self._file.schema_arrow
        except _DAMAGE as error:
            raise self._wrong(f"is truncated or damaged ({_first(error)})") from None
        self._check_types(schema)

    def batches(self) -> Iterator[Columns]:
        """The columns in order, zero-copy views into Arrow memory. Raises KVS508 for damage."""
        if self.header.kind == "generative":
            return
        wanted = names(self.header.site, self.header.op)
        batches = self._file.iter_batches(_BATCH_ROWS, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                if bad := [name for name in wanted if batch.column(name).null_count]:
                    raise self._wrong("has rows without a value", f"$.columns.{bad[0]}")
                columns = {name: batch.column(name).to_numpy(zero_copy_only=True) for name in wanted}
            except _DAMAGE as error:
                raise self._wrong(f"is truncated or damaged ({_first(error)})") from None
            yield columns

    def _check_rows(self, rows: int) -> None:
        expected = 0 if self.header.kind == "generative" else self.header.flips
        if rows != expected:
            raise RecordsError.one(
                "KVS511", f"`{self._what}` holds {rows} rows, its header says {expected}", path="$.flips"
            )

    def _check_names(self, found: tuple[str, ...]) -> None:
        wanted = names(self.header.site, self.header.op)
        for position, name in enumerate(wanted):
            if name not in found:
                raise self._wrong(f"has no column `{name}`", f"$.columns.{name}", str(DTYPES[name]))
            if found[position] != name:
                raise self._wrong(
                    f"has the column `{found[position][:40]}` where `{name}` belongs", f"$.columns.{name}"
                )
        if len(found) != len(wanted):
            raise self._wrong(f"has the unknown column `{found[len(wanted)][:40]}`", expected=", ".join(wanted))

    def _check_types(self, schema: pa.Schema) -> None:
        for field in schema:
            if field.type != (kind := pa.from_numpy_dtype(DTYPES[field.name])):
                found = str(field.type)[:60]
                raise self._wrong(f"has a column `{field.name}` of type {found}", f"$.columns.{field.name}", str(kind))

    def _wrong(self, message: str, path: str | None = None, expected: str | None = None) -> RecordsError:
        return RecordsError.one("KVS508", f"`{self._what}` {message}", path=path, expected=expected)


def _require_pyarrow() -> None:
    if int(pa.__version__.partition(".")[0]) < PYARROW:
        raise PrerequisiteError.one(
            "KVS901",
            f"fault maps are read with pyarrow {PYARROW} or later, and {pa.__version__} is installed",
            hint=f"install it: `uv pip install 'pyarrow>={PYARROW}'`",
        )


def allocate(header: Header) -> Columns:
    """Memory for all rows; the system hands it out only as it is filled."""
    return {name: np.empty(header.flips, DTYPES[name]) for name in names(header.site, header.op)}


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
