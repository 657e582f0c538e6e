"""Cells and trials as columns, for data frames and files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from kvspec.score import CellScore, Scores, score_trials
from kvspec.score.trials import to_table


def cell_table(scores: Scores) -> pa.Table:
    """One row per cell. Values that do not exist are null."""
    rows = [_row(cell) for cell in scores.cells]
    return pa.Table.from_pylist(rows, _SCHEMA)


def to_csv(scores: Scores) -> str:
    """The cells as CSV with a header; what does not exist is empty."""
    stream = io.BytesIO()
    pa_csv.write_csv(cell_table(scores), stream)
    return stream.getvalue().decode()


def to_parquet(scores: Scores) -> bytes:
    """The cells as a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(cell_table(scores), stream, compression="zstd")
    return stream.getvalue()


def trial_table(path: Path | str) -> pa.Table:
    """One row per trial, as `kvspec score` writes them. Raises like `score_run`."""
    _, batches = score_trials(path)
    return pa.concat_tables([to_table(batch) for batch in batches])


_SCHEMA: pa.Schema = pa.schema(
    [
        ("cell", pa.int32()),
        ("name", pa.string()),
        ("model", pa.string()),
        ("site", pa.string()),
        ("unit", pa.string()),
        ("rate", pa.float64()),
        ("expected_flips_per_trial", pa.float64()),
        ("n", pa.int64()),
        ("identical", pa.int64()),
        ("accuracy", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("below_floor", pa.bool_()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p_holm", pa.float64()),
        ("detectable_drop", pa.float64()),
        ("clustered_low", pa.float64()),
        ("clustered_high", pa.float64()),
        ("masked", pa.int64()),
        ("sdc", pa.int64()),
        ("due", pa.int64()),
        ("crash", pa.int64()),
        ("invalid", pa.int64()),
        ("unscored", pa.int64()),
        ("char_drift_mean", pa.float64()),
        ("token_drift_mean", pa.float64()),
        ("kl_mean", pa.float64()),
        ("top1_agreement_mean", pa.float64()),
        ("first_divergence_median", pa.float64()),
        ("flips_planned", pa.int64()),
        ("flips_landed", pa.int64()),
    ]
)


def _row(cell: CellScore) -> dict[str, Any]:
    match, fault, effect = cell.exact_match, cell.plan.fault, cell.effect
    return {
        "cell": cell.plan.index,
        "name": cell.plan.name,
        "model": fault["model"],
        "site": fault["site"],
        "unit": fault["rate"]["unit"],
        "rate": float(fault["rate"]["value"]),
        "expected_flips_per_trial": cell.plan.expected_per_trial,
        "n": match.n,
        "identical": match.k,
        "accuracy": match.rate,
        "low": match.low,
        "high": match.high,
        "below_floor": cell.below_floor,
        "difference": effect.difference and effect.difference.value,
        "difference_low": effect.difference and effect.difference.low,
        "difference_high": effect.difference and effect.difference.high,
        "p_holm": effect.p_holm,
        "detectable_drop": effect.detectable_drop,
        "clustered_low": effect.clustered and effect.clustered[0],
        "clustered_high": effect.clustered and effect.clustered[1],
        **cell.outcome,
        "crash": cell.status["crash"],
        "invalid": cell.invalid,
        "unscored": cell.unscored,
        "char_drift_mean": cell.drift_means["char_drift"],
        "token_drift_mean": cell.drift_means["token_drift"],
        "kl_mean": cell.logprobs.kl_mean,
        "top1_agreement_mean": cell.logprobs.top1_agreement_mean,
        "first_divergence_median": cell.first_divergence_median,
        "flips_planned": cell.flips.planned,
        "flips_landed": cell.flips.landed,
    }
