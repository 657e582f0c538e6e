"""A campaign of a million trials from Parquet to Parquet: all cheap metrics and the edit distance.

    python benches/drift/scale.py [TRIALS]

The trials are half masked (identical), the rest spread over 1 % edits, half diverged and unrelated outputs. Prints
the time of each step, the trials per second and the peak resident memory of the process.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvspec.score.drift import ragged, score

LENGTH, VOCAB, GOLDEN, BATCH = 50, 32_000, 1000, 1 << 16
METRICS = ("exact", "first_divergence", "drift", "mismatches", "common_prefix", "common_suffix", "edit_distance")


def batches(trials: int, golden: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The outputs of all trials, in batches."""
    rng = np.random.default_rng(1)
    for start in range(0, trials, BATCH):
        n = min(BATCH, trials - start)
        index = rng.integers(0, GOLDEN, n).astype(np.uint32)
        rows = golden[index]
        kind = rng.choice(4, n, p=[0.5, 0.1, 0.3, 0.1])
        edits = np.flatnonzero(kind == 1)
        rows[edits, rng.integers(0, LENGTH, len(edits))] = rng.integers(0, VOCAB, len(edits))
        other = rng.integers(0, VOCAB, (n, LENGTH), dtype=np.int32)
        from_position = np.select([kind == 2, kind == 3], [LENGTH // 2, 0], LENGTH)[:, None]
        rows = np.where(np.arange(LENGTH) < from_position, rows, other)
        lengths = np.where(kind >= 2, rng.integers(45, LENGTH + 1, n), LENGTH)
        kept = np.arange(LENGTH) < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows[kept]))
        yield pa.RecordBatch.from_arrays([pa.array(index), tokens], names=["golden", "tokens"])


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(source: Path, target: Path, golden: np.ndarray) -> int:
    """Scores one Parquet file into another."""
    golden_rows = ragged(golden)
    writer, done = None, 0
    try:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=BATCH):
            columns = score(golden_rows, batch["tokens"], batch["golden"].to_numpy(), metrics=METRICS)
            table = pa.RecordBatch.from_pydict({name: pa.array(column) for name, column in columns.items()})
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_batch(table)
            done += len(batch)
    finally:
        if writer:
            writer.close()
    return done


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    golden = np.random.default_rng(0).integers(0, VOCAB, (GOLDEN, LENGTH), dtype=np.int32)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "trials.parquet"), Path(folder, "scores.parquet")
        first = next(batches(1, golden))
        with pq.ParquetWriter(source, first.schema) as writer:
            for batch in batches(trials, golden):
                writer.write_batch(batch)
        before = peak_mib()
        start = time.perf_counter()
        done = run(source, target, golden)
        seconds = time.perf_counter() - start
        sizes = source.stat().st_size / 2**20, target.stat().st_size / 2**20
        kept = pq.read_table(target)
        print(f"{done:,} trials x {LENGTH} tokens, Parquet ({sizes[0]:.0f} MiB) to Parquet ({sizes[1]:.0f} MiB)")
        print(f"{seconds:.2f} s, {done / seconds:,.0f} trials/s (goal for 1,000,000: 5 s on 2 cores)")
        print(f"peak resident memory {peak_mib():.0f} MiB, {before:.0f} MiB of it before scoring (goal: 1024 MiB)")
        print(f"masked {kept['exact'].to_numpy().mean():.4f}, mean drift {kept['drift'].to_numpy().mean():.3f}")


if __name__ == "__main__":
    main()
