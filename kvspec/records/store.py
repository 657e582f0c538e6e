"""The run folder.

| file | content |
|---|---|
| `run.json` | manifest: format, versions, plan digest, status, counts, sessions with their timings |
| `spec.json` | the spec with every default resolved |
| `plan.json` | the canonical plan: the sha256 of its bytes is the plan digest |
| `environment.json` | fingerprint of where it runs |
| `estimate.json` | what the plan expects; may be absent |
| `parts/part-000000.parquet` ... | the records, append-only |
| `run.lock` | held while a run writes |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from kvspec.errors import KvspecError, RecordsError
from kvspec.records.environment import normalise, require_same
from kvspec.records.files import remove_temporaries, write_atomic
from kvspec.records.folder import (
    PARTS,
    RUN_FORMAT,
    PlanLike,
    acquire,
    read_json,
    read_manifest,
    require_free_or_same,
    writing,
)
from kvspec.records.parts import count_rows, list_parts, part_name, read_part, write_part
from kvspec.records.schema import SCHEMA, Record, to_table

Status = Literal["running", "complete", "interrupted", "failed"]


class RunStore:
    """One run folder: `create` opens it for writing (new or to resume), `open` for reading only.

    As a context manager it records how the run ended: complete if every planned trial is there, else
    interrupted; failed if an exception other than Ctrl-C passes through.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: FileLock | None) -> None:
        """Internal: use `create` or `open`."""
        self.path = path
        self.manifest = manifest
        """Content of `run.json`."""
        self.resumed = False
        """Whether `create` found records of an earlier session."""
        self._lock = lock
        self._ids: set[str] | None = None
        self._next_part = 0
        self._before: dict[str, Any] | None = None
        """The manifest as `create` found it, until this session writes something."""

    @classmethod
    def create(cls, path: Path | str, plan: PlanLike, *, version: str) -> RunStore:
        """Make the folder, or take up the run of the same plan that is in it. One writer at a time.

        Raises:
            RecordsError: KVS501 not writable or in use, KVS502 no run, KVS503 another plan, KVS505 damaged.
        """
        path = Path(path)
        require_free_or_same(path, plan)
        with writing(path):
            (path / PARTS).mkdir(parents=True, exist_ok=True)
            lock = acquire(path)
        try:
            # Another writer may have come first between the check and the lock.
            require_free_or_same(path, plan)
            store = cls(path, {}, lock)
            with writing(path):
                store._start(plan, version)
        except BaseException:
            lock.release()
            raise
        return store

    @staticmethod
    def check(path: Path | str, plan: PlanLike) -> None:
        """Whether `create` would accept the folder, without making or touching anything.

        Raises:
            RecordsError: KVS501 not readable, KVS502 no run, KVS503 another plan, KVS505 damaged.
        """
        require_free_or_same(Path(path), plan)

    @classmethod
    def open(cls, path: Path | str) -> RunStore:
        """Open a run for reading, also while another process writes it.

        Raises:
            RecordsError: KVS502 not a run, KVS505 a newer format or a damaged manifest.
        """
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "is not a kvspec run: it has no `run.json`" if path.exists() else "does not exist"
            raise RecordsError.one("KVS502", f"`{path}` {what}", expected="a folder written by `kvspec run`")
        return cls(path, read_manifest(path), None)

    def _start(self, plan: PlanLike, version: str) -> None:
        remove_temporaries(self.path)
        remove_temporaries(self.path / PARTS)
        now = _now()
        if (self.path / "run.json").exists():
            self.manifest = read_manifest(self.path)
            self._before = read_manifest(self.path)
        else:
            self.manifest = {"format": RUN_FORMAT, "name": plan.spec.name, "plan": plan.digest}
            self.manifest |= {"trials": len(plan), "created": now, "sessions": []}
        # Read every id now: a damaged part must stop the run before it costs engine time.
        self.manifest["recorded"] = len(self.done())
        self._next_part = len(list_parts(self.path / PARTS))
        self.resumed = self.manifest["recorded"] > 0
        self.manifest["sessions"].append({"kvspec": version, "started": now})
        self.manifest |= {"kvspec": version, "status": "running", "error": None}
        self._save_manifest()
        # After run.json, so that a crash in between leaves a folder that is known as ours.
        self.write_json("spec.json", plan.spec.to_json())
        self.write_json("plan.json", plan.to_json())

    @property
    def digest(self) -> str:
        """Digest of the plan of this run, in hexadecimal."""
        return str(self.manifest["plan"])

    @property
    def status(self) -> Status:
        """How the run stands: running, complete, interrupted or failed."""
        status: Status = self.manifest["status"]
        return status

    def attach_environment(self, fingerprint: Mapping[str, Any]) -> None:
        """Record where the run happens; on resume require the same.

        Raises KVS504 naming each differing field with both values.
        """
        current = normalise(fingerprint)
        recorded = self.read_json("environment.json")
        if recorded is None:
            self.write_json("environment.json", current)
        else:
            require_same(recorded, current)

    def done(self) -> set[str]:
        """Ids of the trials that are on disk."""
        if self._ids is not None:
            return set(self._ids)
        ids: set[str] = set()
        rows = 0
        for batch in self.iter_batches(["trial_id"]):
            ids.update(batch.column(0).to_pylist())
            rows += batch.num_rows
        if rows != len(ids):
            raise RecordsError.one(
                "KVS505",
                f"`{self.path}` holds {rows - len(ids)} trials twice",
                expected="one record per trial",
            )
        if self._lock is not None:
            self._ids = ids
        return set(ids)

    def append(self, records: Sequence[Record]) -> None:
        """Write records as one part; returns when they are durable. Raises KVS501 if the disk refuses."""
        if self._lock is None or not self._lock.is_locked:
            raise RuntimeError("the run is not open for writing")
        if not records:
            return
        known = self._ids if self._ids is not None else set()
        fresh = {record.trial_id for record in records}
        twice = known & fresh
        if twice or len(fresh) != len(records):
            raise ValueError(f"trial recorded twice: {sorted(twice)[:3] or 'inside one batch'}")
        with writing(self.path):
            part = self.path / PARTS / part_name(self._next_part)
            write_part(part, to_table(records), self.digest)
        self._next_part += 1
        self._before = None
        known |= fresh
        self._ids = known
        self.manifest["recorded"] = len(known)

    def iter_batches(self, columns: Sequence[str] | None = None, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Stream the records in the order they were written, at most `batch_rows` in memory.

        Raises KVS505 naming the part that is truncated, damaged or foreign.
        """
        for part in list_parts(self.path / PARTS):
            yield from read_part(part, self.digest, columns, batch_rows)

    def require_unique(self) -> None:
        """Raise KVS505 if a trial was recorded twice: it would count twice."""
        ids = pa.chunked_array([batch.column(0) for batch in self.iter_batches(["trial_id"])], pa.string())
        if twice := len(ids) - pc.count_distinct(ids).as_py():
            raise RecordsError.one(
                "KVS505", f"`{self.path}` holds {twice} trials twice", expected="one record per trial"
            )

    def count(self) -> int:
        """Number of records on disk, from the footers alone."""
        return sum(count_rows(part, self.digest) for part in list_parts(self.path / PARTS))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All records at once `[N]`: for small runs and tests."""
        schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
        batches = [batch.replace_schema_metadata(None) for batch in self.iter_batches(columns)]
        return pa.Table.from_batches(batches, schema)

    def plan(self) -> dict[str, Any]:
        """Content of `plan.json`. Raises KVS505 if it is missing or is not what this run was made from."""
        plan = self._required("plan.json")
        if hashlib.sha256(_canonical(plan)).hexdigest() != self.digest:
            raise RecordsError.one(
                "KVS505", f"`{self.path / 'plan.json'}` is not the plan of this run: its digest differs"
            )
        return plan

    def spec(self) -> dict[str, Any]:
        """Content of `spec.json`. Raises KVS505 if it is missing or contradicts the plan of this run."""
        spec, planned = self._required("spec.json"), self.plan().get("spec")
        planned = planned if isinstance(planned, dict) else {}
        if changed := sorted(key for key, value in planned.items() if key not in spec or spec[key] != value):
            raise RecordsError.one(
                "KVS505",
                f"`{self.path / 'spec.json'}` is not the spec of this run: {', '.join(changed)} differ from its plan",
            )
        return spec

    def certificate(self) -> dict[str, Any] | None:
        """What `kvspec verify --out RUN` left in the folder, `None` if nothing, empty if it cannot be read: no figure
        of the run depends on it."""
        try:
            return self.read_json("certificate.json")
        except RecordsError:
            return {}

    def _required(self, name: str) -> dict[str, Any]:
        data = self.read_json(name)
        if data is None:
            raise RecordsError.one("KVS505", f"`{self.path}` has no `{name}`")
        return data

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write one of the folder's JSON files atomically, in canonical form."""
        with writing(self.path):
            write_atomic(self.path / name, lambda file: file.write(_canonical(data)))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read one of the folder's JSON files, `None` if absent. Raises KVS505 if it is not a JSON object."""
        return read_json(self.path / name)

    def finish(
        self,
        status: Status | None = None,
        *,
        timings: Mapping[str, float] | None = None,
        error: str | None = None,
    ) -> None:
        """Write how this session ended, with its timings in seconds.

        Without a status it follows from the counts: complete or interrupted.
        """
        recorded, planned = self.manifest["recorded"], self.manifest["trials"]
        if status is None:
            status = "complete" if recorded >= planned else "interrupted"
        self.manifest |= {"status": status, "error": error}
        session = self.manifest["sessions"][-1]
        session |= {"ended": _now(), "status": status, "recorded": recorded}
        session |= {} if timings is None else {"timings_s": dict(timings)}
        self._save_manifest()

    def close(self) -> None:
        """Let another process write. The records stay readable through this object."""
        if self._lock is not None:
            self._lock.release()

    def _save_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with writing(self.path):
            write_atomic(self.path / "run.json", lambda file: file.write(text.encode()))

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the session ended, and let another process write."""
        try:
            if self._lock is None or not self._lock.is_locked:
                return
            if error is not None and not isinstance(error, KeyboardInterrupt):
                if isinstance(error, KvspecError) and self._before is not None:
                    # Refused before it did anything, say for another environment: the run stands as it stood.
                    self.manifest = self._before
                    self._save_manifest()
                else:
                    self.finish("failed", error=f"{type(error).__name__}: {error}")
            elif self.status == "running":  # Not if `finish` was called by hand, with timings.
                self.finish()
        finally:
            self.close()


def _canonical(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
