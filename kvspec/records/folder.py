"""The gate of the run folder: whose it is, who writes to it, and whether its JSON files can be trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from kvspec.errors import KvspecError, RecordsError
from kvspec.records.files import is_temporary

RUN_FORMAT = 1
"""Version of the layout. A newer one is refused, never guessed at."""

LOCK = "run.lock"
PARTS = "parts"
FILES = frozenset({"run.json", "spec.json", "plan.json", "environment.json", "estimate.json", LOCK, PARTS})
"""Names that belong to the run in its folder."""


class SpecLike(Protocol):
    """What the store needs of a spec."""

    @property
    def name(self) -> str:
        """Name of the campaign."""

    def to_json(self) -> dict[str, Any]:
        """Every field as plain data."""


class PlanLike(Protocol):
    """What the store needs of a plan: `kvspec.plan.Plan` has it, and records need not import it."""

    @property
    def spec(self) -> SpecLike:
        """The resolved spec."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""

    def __len__(self) -> int:
        """Number of trials, controls included."""


def require_free_or_same(path: Path, plan: PlanLike) -> None:
    """Refuse a folder that holds anything else, before a byte of it is touched."""
    try:
        names = {entry.name for entry in path.iterdir() if not is_temporary(entry.name)}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise RecordsError.one("KVS502", f"`{path}` is a file", expected="a folder, new or of this run") from error
    except OSError as error:
        raise not_writable(path, error) from error
    if "run.json" in names:
        found = str(read_manifest(path)["plan"])
        if found != plan.digest:
            raise RecordsError.one(
                "KVS503",
                f"`{path}` holds plan `{found}`, the spec gives plan `{plan.digest}`",
                expected="a run of the same plan, or a new folder",
                hint="name another folder with `--out`",
            )
    elif names - {LOCK, PARTS} or (PARTS in names and any((path / PARTS).iterdir())):
        raise RecordsError.one(
            "KVS502",
            f"`{path}` is not empty and not a kvspec run; nothing in it was touched",
            expected="a new or empty folder, or a run of the same plan",
            hint="name another folder with `--out`",
        )


def refuse_files_of_a_run(path: Path) -> None:
    """Raise KVS502 if `path` is a file that a run is made of: no output may take its place."""
    folder = path.parent
    run = folder.parent if folder.name == PARTS else folder
    if (folder.name == PARTS or path.name in FILES) and (run / "run.json").is_file():
        raise RecordsError.one(
            "KVS502",
            f"`{path}` belongs to the run in `{run}`; nothing was written",
            hint="write to another file",
        )


def acquire(path: Path) -> FileLock:
    """Take the run's lock or raise KVS501 at once."""
    # Not bound to a thread: the engine may write from another one than the one that opened the run.
    lock = FileLock(path / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RecordsError.one(
            "KVS501",
            f"another kvspec run is writing to `{path}`",
            hint="wait for it to finish, or name another folder with `--out`",
        ) from error
    return lock


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check `run.json`. Raises KVS505 if it is damaged or of a newer format."""
    file = path / "run.json"
    manifest = read_json(file)
    version = (manifest or {}).get("format")
    if manifest is None or not isinstance(version, int):
        raise RecordsError.one("KVS505", f"`{file}` is not a kvspec manifest", expected="a `format` number")
    if version < 1:
        raise RecordsError.one("KVS505", f"`{file}` has format {version}, which never was", expected="1 or more")
    if version > RUN_FORMAT:
        raise RecordsError.one(
            "KVS505",
            f"`{file}` has format {version}, this kvspec reads up to {RUN_FORMAT}",
            hint="update kvspec: pip install --upgrade kvspec",
        )
    wanted = {"plan": str, "trials": int, "recorded": int, "sessions": list, "status": str, "name": str}
    wrong = [key for key, kind in wanted.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise RecordsError.one("KVS505", f"`{file}` lacks {', '.join(f'`{key}`' for key in wrong)}")
    if manifest["trials"] < 0 or manifest["recorded"] < 0:
        raise RecordsError.one("KVS505", f"`{file}` counts fewer than no trials")
    return manifest


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object, `None` if there is no such file. Raises KVS505 if it is anything else."""
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordsError.one("KVS505", f"`{file}` cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecordsError.one("KVS505", f"`{file}` is not a JSON object")
    return data


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system into KVS501."""
    try:
        yield
    except OSError as error:
        raise not_writable(path, error) from error


def not_writable(path: Path, error: OSError) -> KvspecError:
    """The KVS501 for a refusal of the file system."""
    return RecordsError.one(
        "KVS501",
        f"cannot write to `{path}`: {error.strerror or error}",
        hint="name a folder you may write to with `--out`; records already written are kept",
    )
