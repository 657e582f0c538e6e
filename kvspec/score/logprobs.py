"""KL divergence and top-1 agreement of trials whose logprobs were recorded, as far as the contexts are the same.

Up to and including the first token that differs, golden and faulted run have seen the same tokens: only there do their
next-token distributions compare. Later ones differ because the texts do, which the drifts measure already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvspec.score.drift import kl_divergence

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The k likeliest tokens at every position of some answers, one answer after the other."""

    ids: NDArray[np.uint32]
    """`[positions, k]`, likeliest first."""
    logprobs: NDArray[np.float32]
    """`[positions, k]`, natural logarithms."""


def likeliest(batch: Any, lengths: NDArray[np.int64]) -> Likeliest | None:
    """Read the columns of a batch or table of answers of these lengths; `None` if not every row has k per token."""
    ids, values = batch.column("logprob_ids"), batch.column("logprobs")
    if isinstance(ids, pa.ChunkedArray):
        ids, values = ids.combine_chunks(), values.combine_chunks()
    total = int(lengths.sum())
    if not total or ids.null_count or values.null_count:
        return None
    counts = [pc.list_value_length(part).to_numpy(zero_copy_only=False) for part in (ids, values)]
    k = int(counts[0].sum()) // total
    if k < 1 or any((count != k * lengths).any() for count in counts):
        return None
    flat_ids = np.ascontiguousarray(ids.flatten().to_numpy(zero_copy_only=False), np.uint32)
    flat = np.ascontiguousarray(values.flatten().to_numpy(zero_copy_only=False), np.float32)
    return Likeliest(flat_ids.reshape(total, k), flat.reshape(total, k))


def compare(
    golden: Likeliest,
    golden_start: NDArray[np.int64],
    faulty: Likeliest,
    faulty_start: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """Mean KL divergence (nats) and share of equal likeliest tokens of each trial, both `[N]`.

    Args:
        golden: all golden answers.
        golden_start: `[N]`, first position of each trial's golden answer.
        faulty: the trials' own answers.
        faulty_start: `[N]`, first position of each trial.
        shared: `[N]`, number of positions with the same context.

    Returns:
        NaN where nothing is shared, and where a logarithm is not finite.
    """
    trial = np.repeat(np.arange(len(shared)), shared)
    step = np.arange(len(trial)) - np.repeat(np.cumsum(shared) - shared, shared)
    g, f = golden_start[trial] + step, faulty_start[trial] + step
    p, q = golden.logprobs[g], faulty.logprobs[f]
    finite = np.isfinite(p).all(axis=1) & np.isfinite(q).all(axis=1)
    kl = np.full(len(trial), np.nan)
    if finite.any():
        ids = golden.ids[g[finite]], faulty.ids[f[finite]]
        kl[finite] = kl_divergence(p[finite], q[finite], golden_ids=ids[0], faulty_ids=ids[1])
    same = np.where(finite, golden.ids[g, 0] == faulty.ids[f, 0], np.nan)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(trial, weights=part, minlength=len(shared)) / shared for part in (kl, same)]
    return means[0], means[1]
