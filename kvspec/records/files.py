"""Writing files so that a reader sees the old content or the new one, never half of either."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

_TEMPORARY = ".kvspec-tmp"


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write through `write` into a temporary file beside `path`, make it durable, rename it into place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    if os.name != "posix":  # Other systems cannot open a folder, and order their renames themselves.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a crashed writer may have left this file behind."""
    return name.endswith(_TEMPORARY)


def remove_temporaries(folder: Path) -> None:
    """Remove what crashed writers left in `folder`. Only safe while holding the run's lock."""
    for entry in folder.iterdir():
        if is_temporary(entry.name):
            entry.unlink(missing_ok=True)
