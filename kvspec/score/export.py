"""Per-trial scores as JSON lines, CSV or Parquet, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from kvspec.errors import RecordsError
from kvspec.records import RunStore
from kvspec.score.trials import TrialScores, to_table
from kvspec.spec.model import METRICS

COLUMNS = {name: (name,) for name in METRICS} | {"outcome": ("outcome", "reason", "status")}
"""Columns of the per-trial table by the metric they belong to. All others identify or describe a trial."""


def declared_metrics(path: Path | str) -> tuple[str, ...]:
    """The metrics that the spec of a run names; all of them if it names none.

    Raises:
        RecordsError: KVS502 no run, KVS505 `spec.json` is missing, not the run's, or names a metric that is not known.
    """
    store = RunStore.open(path)
    metrics = store.spec().get("metrics", list(METRICS))
    if not isinstance(metrics, list) or not metrics or any(name not in METRICS for name in metrics):
        raise RecordsError.one(
            "KVS505", f"`{store.path / 'spec.json'}` has other `metrics`", expected=f"names from {', '.join(METRICS)}"
        )
    return tuple(metrics)


def write_trials(
    batches: Iterable[TrialScores], output: str, file: IO[bytes], *, metrics: Sequence[str] = METRICS
) -> None:
    """Write all batches as `json` (one object per line), `csv` or `parquet`, with the columns of these metrics."""
    unwanted = [column for name in METRICS if name not in metrics for column in COLUMNS[name]]
    writer: pq.ParquetWriter | None = None
    try:
        for number, batch in enumerate(batches):
            table = to_table(batch).drop_columns(unwanted)
            if output == "json":
                lines = (json.dumps(row, ensure_ascii=True, allow_nan=False) for row in table.to_pylist())
                file.write("".join(f"{line}\n" for line in lines).encode())
            elif output == "csv":
                pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=number == 0))
            else:
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
