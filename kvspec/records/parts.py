"""The Parquet parts of a run: numbered files that are written once and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kvspec.errors import KvspecError, RecordsError
from kvspec.records.files import write_atomic
from kvspec.records.schema import LATER, SCHEMA

_NAME = re.compile(r"part-(\d{6,})\.parquet")
_PLAN_KEY = b"kvspec.plan"


def list_parts(folder: Path) -> list[Path]:
    """The parts in order. Raises KVS505 for a gap in the numbers or a Parquet file that no run wrote."""
    parts: list[tuple[int, Path]] = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(entry.name)
        if match:
            parts.append((int(match[1]), entry))
        elif entry.suffix == ".parquet":
            raise _unreadable(entry, "is not a part that kvspec wrote")
    parts.sort()
    for number, (found, _) in enumerate(parts):
        if number != found:
            raise _unreadable(folder / part_name(number), "is missing: later parts are there")
    return [path for _, path in parts]


def part_name(number: int) -> str:
    """File name of the part with this number."""
    return f"part-{number:06d}.parquet"


def write_part(path: Path, table: pa.Table, digest: str) -> None:
    """Write one part, stamped with the digest of its plan. Checksums let a reader see damaged pages."""
    stamped = table.replace_schema_metadata({_PLAN_KEY: digest.encode()})
    write_atomic(path, lambda file: pq.write_table(stamped, file, compression="zstd", write_page_checksum=True))


def read_part(path: Path, digest: str, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Stream one part. Raises KVS505 if it is truncated, damaged, of another plan or of another shape."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check(path, file.schema_arrow, digest)
            wanted = SCHEMA.names if columns is None else list(columns)
            there = [name for name in wanted if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_rows, columns=there):
                yield _complete(batch, wanted)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, f"is truncated or damaged ({_first_line(error)})") from error


def _complete(batch: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
    for name in wanted:
        if name not in batch.schema.names:
            field = SCHEMA.field(name)
            batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
    return batch


def count_rows(path: Path, digest: str) -> int:
    """Rows of one part, from its footer alone. Raises KVS505 like `read_part`."""
    try:
        with pq.ParquetFile(path) as file:
            _check(path, file.schema_arrow, digest)
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, f"is truncated or damaged ({_first_line(error)})") from error


def _check(path: Path, schema: pa.Schema, digest: str) -> None:
    found = (schema.metadata or {}).get(_PLAN_KEY, b"").decode(errors="replace")
    if found != digest:
        raise _unreadable(path, f"belongs to plan `{found[:12] or 'none'}`, this run to `{digest[:12]}`")
    known = pa.schema([field for field in SCHEMA if field.name not in LATER or field.name in schema.names])
    if not schema.equals(known, check_metadata=False):
        raise _unreadable(path, "has other columns than a record")


def _unreadable(path: Path, what: str) -> KvspecError:
    return RecordsError.one(
        "KVS505",
        f"`{path}` {what}",
        expected="the parts of the run as kvspec wrote them, numbered without a gap",
        hint="restore the file from a copy, or run the campaign again with another `--out`",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
