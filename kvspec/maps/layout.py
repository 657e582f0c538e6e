"""What a Parquet file says of itself, checked before pyarrow may believe it: footer, column chunks, page headers.

A map uses a small part of Parquet (docs/faultmap.md, section 4): flat columns, no compression, four encodings. In that
part every size is implied by another one, so that a claim can be held against the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from kvspec.errors import RecordsError
from kvspec.maps.limits import MAX_FOOTER_BYTES, MAX_GROUP_ROWS, MAX_PAGES, MAX_ROW_GROUPS, MAX_ROWS
from kvspec.maps.thrift import Reader, Struct, ThriftError

MAGIC = b"PAR1"
_INT32 = 1
_PAGE_HEADER_BYTES = 1 << 12
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_CODECS = ("none", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 5: "DELTA_BINARY_PACKED", 8: "RLE_DICTIONARY"}


@dataclass(frozen=True)
class Layout:
    """The footer, as far as a map needs it."""

    rows: int
    columns: tuple[str, ...]
    metadata: dict[bytes, bytes]
    groups: tuple[Struct, ...]


class LayoutReader:
    """Reads and checks the layout of one file. All its errors are KVS508, or KVS513 over a limit."""

    def __init__(self, file: IO[bytes], size: int, what: str) -> None:
        """`size` is that of the file in bytes; `what` names it in messages."""
        self._file, self._size, self._what = file, size, what

    def read(self) -> Layout:
        """The footer, its limits checked. `check_chunks` looks at the rest."""
        footer = self._footer()
        try:
            data = Reader(footer).struct()
            pairs = {p[1]: p.get(2, b"") for p in data.get(5, [])}
            layout = Layout(data[3], self._columns(data[2]), pairs, tuple(data[4]))
        except (ThriftError, KeyError, TypeError, AttributeError) as error:
            raise self._wrong(f"is truncated or damaged (footer: {error})") from None
        if not isinstance(layout.rows, int) or layout.rows < 0 or 8 in data:
            raise self._wrong("has a footer that no map has")
        if layout.rows > MAX_ROWS:
            raise self._over(f"claims {layout.rows} rows", MAX_ROWS, "rows")
        if len(layout.groups) > MAX_ROW_GROUPS:
            raise self._over(f"has {len(layout.groups)} row groups", MAX_ROW_GROUPS, "row groups")
        return layout

    def check_chunks(self, layout: Layout) -> None:
        """Every column chunk and page header: size, rows, codec, encoding."""
        total = 0
        for number, group in enumerate(layout.groups):
            try:
                rows, chunks = group[3], group[1]
                if not 1 <= rows <= MAX_GROUP_ROWS:
                    raise self._over(f"has {rows} rows in row group {number}", MAX_GROUP_ROWS, "rows, and at least 1")
                if len(chunks) != len(layout.columns):
                    raise self._wrong(f"has {len(chunks)} columns in row group {number}")
                for name, chunk in zip(layout.columns, chunks, strict=True):
                    self._check_chunk(chunk, name, number, rows)
            except (ThriftError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise self._wrong(f"is truncated or damaged (row group {number}: {error})") from None
            total += rows
        if total != layout.rows:
            raise self._wrong(f"claims {layout.rows} rows, its row groups have {total}")

    def _footer(self) -> bytes:
        self._file.seek(max(0, self._size - 8))
        tail = self._file.read(8)
        if self._size < 12 or tail[4:] != MAGIC:
            raise self._wrong("is truncated: it does not end as a Parquet file")
        # The length is the writer's claim, and a reader allocates it.
        length = int.from_bytes(tail[:4], "little")
        if length > self._size - 12:
            raise self._wrong("is truncated: its footer is longer than the file")
        if length > MAX_FOOTER_BYTES:
            raise self._over(f"has {length} bytes of metadata", MAX_FOOTER_BYTES, "bytes")
        self._file.seek(self._size - 8 - length)
        return self._file.read(length)

    def _columns(self, schema: list[Struct]) -> tuple[str, ...]:
        root, *leaves = schema
        names = tuple(leaf[4].decode("utf-8", "replace") for leaf in leaves)
        if nested := [
            name for name, leaf in zip(names, leaves, strict=True) if leaf.get(5) or leaf.get(3) not in (0, 1)
        ]:
            raise self._wrong("has a nested column", f"$.columns.{nested[0][:40]}", "a flat column of numbers")
        for name, leaf in zip(names, leaves, strict=True):
            if leaf.get(1) != _INT32:
                raise self._wrong("has a column of another type", f"$.columns.{name[:40]}", "an unsigned integer")
        if root.get(5) != len(leaves):
            raise self._wrong("has a schema that contradicts itself")
        return names

    def _check_chunk(self, chunk: Struct, name: str, group: int, rows: int) -> None:
        data, path = chunk[3], f"$.columns.{name[:40]}"
        codec = data[4]
        if codec != 0:
            known = _CODECS[codec] if 0 < codec < len(_CODECS) else f"codec {codec}"
            raise self._wrong(
                f"is compressed with {known} in row group {group}",
                path,
                "no compression, so that a map cannot unpack to more than it is",
            )
        if 1 in chunk or 8 in chunk or [p.decode("utf-8", "replace") for p in data[3]] != [name]:
            raise self._wrong(f"keeps a column elsewhere in row group {group}", path)
        start = min(data[9], data.get(11) or data[9])
        length = data[7]
        if start < len(MAGIC) or length < 1 or start + length > self._size or (data[1], data[5]) != (_INT32, rows):
            raise self._wrong(f"claims bytes or rows that it does not have in row group {group}", path)
        values = 0
        for header, size in self._pages(start, start + length):
            values += self._check_page(header, size, path, rows)
        if values != rows:
            raise self._wrong(f"claims {rows} rows in row group {group}, its pages have {values}", path)

    def _pages(self, at: int, end: int) -> Iterator[tuple[Struct, int]]:
        """(header, bytes of the content) of each page."""
        for _ in range(MAX_PAGES):
            if at >= end:
                return
            self._file.seek(at)
            reader = Reader(self._file.read(min(_PAGE_HEADER_BYTES, end - at)))
            header = reader.struct()
            size = header[3]
            at += reader.at + size
            if size < 0 or at > end:
                raise ThriftError("a page is longer than its column")
            yield header, size
        raise self._over("has a column of too many pages", MAX_PAGES, "pages")

    def _check_page(self, header: Struct, size: int, path: str, rows: int) -> int:
        """The rows of a page, 0 for a dictionary."""
        kind = header[1]
        body = header[{_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}[kind]]
        values, encoding = body[1], body[4 if kind == _DATA_2 else 2]
        if header[2] != size or not 0 <= values <= rows:
            raise self._wrong("has a page that claims another size than it has", path)
        if encoding not in _ENCODINGS:
            raise self._wrong(f"uses encoding {encoding}", path, ", ".join(_ENCODINGS.values()))
        if kind == _DICTIONARY:
            if values * 4 != size:
                raise self._wrong(f"has a dictionary that claims {values} values in {size} bytes", path)
            return 0
        return int(values)

    def _wrong(self, message: str, path: str | None = None, expected: str | None = None) -> RecordsError:
        return RecordsError.one("KVS508", f"`{self._what}` {message}", path=path, expected=expected)

    def _over(self, message: str, limit: int, unit: str) -> RecordsError:
        return RecordsError.one("KVS513", f"`{self._what}` {message}", expected=f"at most {limit} {unit}")
