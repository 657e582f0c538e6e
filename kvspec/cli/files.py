"""Output files of commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all. Raises KVS501 if the file system refuses, KVS502 if a run needs that file."""
    from kvspec.errors import RecordsError
    from kvspec.records import refuse_files_of_a_run
    from kvspec.records.files import write_atomic

    refuse_files_of_a_run(path)
    try:
        write_atomic(path, write)
    except OSError as error:
        raise RecordsError.one(
            "KVS501",
            f"cannot write `{path}`: {error.strerror or error}",
            hint="name a file in a folder that exists and that you may write to",
        ) from error
