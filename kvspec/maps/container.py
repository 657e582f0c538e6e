"""Map files: which container it is, read with every check, write whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from kvspec import _native
from kvspec.errors import RecordsError
from kvspec.maps import parquet, textual
from kvspec.maps.generate import count_and_id
from kvspec.maps.layout import MAGIC
from kvspec.maps.limits import MAX_FILE_BYTES, MAX_JSON_BYTES
from kvspec.maps.model import FaultMap, Header
from kvspec.maps.validate import MapValidator
from kvspec.records import refuse_files_of_a_run
from kvspec.records.files import write_atomic


def read_map(path: Path | str) -> FaultMap:
    """Read and check a map: every value of every column, order, count, geometry, hash.

    Of a generative map the header is checked; `explicit` checks its id as it enumerates.
    Raises `RecordsError`: KVS505 unreadable, KVS507 header, KVS508 container, KVS509 a value outside the geometry,
    KVS510 order or a site twice, KVS511 a hash or count that differs, KVS513 over a limit.
    """
    path = Path(path)
    with _open(path) as file:
        source = _container(path, file)
        header = source.header
        if header.kind == "generative":
            return FaultMap(header)
        validator, columns = MapValidator(header, str(path)), parquet.allocate(header)
        for batch in source.batches():
            start = validator.rows
            validator.push(batch)
            for name, column in batch.items():
                columns[name][start : validator.rows] = column
        validator.finish()
    return FaultMap(header, columns)


def verify_map(path: Path | str) -> Header:
    """Check a map as `read_map` does, in the memory of one batch, and all that its header claims of itself.

    Where a generator is given, its flips must be those of the map, and its key the one of the trial. Raises like
    `read_map`.
    """
    path = Path(path)
    with _open(path) as file:
        source = _container(path, file)
        header = source.header
        if header.kind == "explicit":
            validator = MapValidator(header, str(path))
            for batch in source.batches():
                validator.push(batch)
            validator.finish()
    _verify_key(header, path)
    if header.generator is not None and (found := count_and_id(header)) != (header.flips, header.id):
        raise RecordsError.one(
            "KVS511",
            f"the generator of `{path}` gives {found[0]} flips with the id `{found[1]}`, "
            f"the header says {header.flips} and `{header.id}`",
            path="$.generator",
        )
    return header


def _verify_key(header: Header, path: Path) -> None:
    trial, generator = header.trial, header.generator
    if trial is None or generator is None:
        return
    experiment = int(trial["experiment"], 16)
    keys = _native.derive_keys(trial["seed"], experiment, trial["trial"], trial["fault"], header.target)
    if generator.key != keys[0 if header.site == "write" else 1]:
        raise RecordsError.one(
            "KVS511",
            f"the key of `{path}` is not that of its trial `{trial['id']}`",
            path="$.generator.key",
            expected="the key that seed, experiment, trial and fault give",
        )


def write_map(fault_map: FaultMap, path: Path | str) -> None:
    """Write a map: JSON if the name ends in `.json`, else Parquet. Raises KVS501 if the file system refuses, KVS502 if
    a run needs that file.
    """
    path = Path(path)
    refuse_files_of_a_run(path)
    try:
        if path.suffix == ".json":
            text = textual.write_text(fault_map)
            write_atomic(path, lambda file: file.write(text))
        else:
            write_atomic(path, lambda file: parquet.write(fault_map, file))
    except OSError as error:
        raise RecordsError.one(
            "KVS501",
            f"cannot write `{path}`: {error.strerror or error}",
            hint="name a file in a folder that exists and that you may write to",
        ) from error


def _open(path: Path) -> IO[bytes]:
    try:
        # Not blocking: opening a pipe would otherwise wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecordsError.one("KVS505", f"`{path}` cannot be read: {reason}") from error
    mode, refused = os.fstat(descriptor), None
    if not stat.S_ISREG(mode.st_mode):
        refused = RecordsError.one("KVS505", f"`{path}` is not a file", expected="a fault map: .parquet or .json")
    elif mode.st_size > MAX_FILE_BYTES:
        expected = f"at most {MAX_FILE_BYTES} bytes"
        refused = RecordsError.one("KVS513", f"`{path}` has {mode.st_size} bytes", expected=expected)
    if refused is not None:
        os.close(descriptor)
        raise refused
    return os.fdopen(descriptor, "rb")


def _container(path: Path, file: IO[bytes]) -> parquet.ParquetMap | textual.JsonMap:
    size = os.fstat(file.fileno()).st_size
    if file.read(4) == MAGIC:
        return parquet.ParquetMap(file, size, str(path))
    file.seek(0)
    start = file.read(64).lstrip()
    if not start.startswith(b"{"):
        raise RecordsError.one("KVS508", f"`{path}` is not a fault map", expected="Parquet, or a JSON object")
    file.seek(0)
    return textual.JsonMap(file.read(MAX_JSON_BYTES + 1), str(path))
