"""The run folder: what was planned, where it ran, and one row per finished trial.

Append-only and crash-safe: whatever `RunStore.append` returned for survives a power cut, and an
interrupted run goes on where it stopped, by trial id.
"""

from kvspec.records.folder import RUN_FORMAT, PlanLike, refuse_files_of_a_run
from kvspec.records.schema import SCHEMA, Record
from kvspec.records.store import RunStore
from kvspec.records.writer import RecordWriter

__all__ = ["RUN_FORMAT", "SCHEMA", "PlanLike", "Record", "RecordWriter", "RunStore", "refuse_files_of_a_run"]
