"""Per-trial scores as JSON lines, CSV or Parquet, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import IO

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from kvspec.score.trials import TrialScores, to_table


def write_trials(batches: Iterable[TrialScores], output: str, file: IO[bytes]) -> None:
    """Write all batches as `json` (one object per line), `csv` or `parquet`."""
    writer: pq.ParquetWriter | None = None
    try:
        for number, batch in enumerate(batches):
            table = to_table(batch)
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
