"""Per-trial scores: each record against the golden answer of its request, one Arrow batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvspec import _native
from kvspec.records import RunStore
from kvspec.score.golden import Golden
from kvspec.score.logprobs import compare, likeliest
from kvspec.score.outcome import FINISHED, OUTCOMES, REASONS, classify

KINDS = ("golden", "golden_repeat", "null", "fault")
GOLDEN, GOLDEN_REPEAT, NULL, FAULT = range(4)
UNKNOWN = 255

DRIFTS = (
    "char_drift",
    "token_drift",
    "first_divergence",
    "token_edit_distance",
    "char_edit_distance",
)
T = TypeVar("T", bound=np.generic)

ABSENT = -1
"""In a drift column: not defined for this trial."""


@dataclass(frozen=True, slots=True)
class TrialScores:
    """Scores of a batch of trials. All arrays are `[N]`."""

    batch: pa.RecordBatch
    """The records themselves."""
    kind: NDArray[np.uint8]
    """Index into `KINDS`, `UNKNOWN` for a word that is none of them."""
    cell: NDArray[np.int32]
    request: NDArray[np.uint32]
    outcome: NDArray[np.uint8]
    """Index into `OUTCOMES`."""
    reason: NDArray[np.uint8]
    """Index into `REASONS`."""
    crash: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    """Token ids equal to golden; never true for a crash."""
    drift: dict[str, NDArray[np.int64]]
    """One column per name in `DRIFTS`, in tokens or characters; `ABSENT` where not defined."""
    planned: NDArray[np.uint64]
    """Flips that the plan's key gives over the tokens written."""
    landed: NDArray[np.uint64]
    """Flips counted in the cache."""
    changed: NDArray[np.uint64]
    """Those that changed a bit."""
    exposed: NDArray[np.uint64]
    """Bits that reads changed, in every forward."""
    reruns: NDArray[np.uint32]
    """How often the trial ran again."""
    finished: NDArray[np.bool_]
    """The engine ended the request by itself."""
    preempted: NDArray[np.bool_]
    kl: NDArray[np.float64]
    """Mean KL divergence from golden over the positions of the same context, in nats; NaN where not defined."""
    top1: NDArray[np.float64]
    """Share of those positions at which the likeliest token is golden's; NaN where not defined."""


def iter_trials(store: RunStore, golden: Golden, batch_rows: int = 32_768) -> Iterator[TrialScores]:
    """Score all records of a run, in the order they were written."""
    for batch in store.iter_batches(None, batch_rows):
        yield score_batch(batch, golden)


def score_batch(batch: pa.RecordBatch, golden: Golden) -> TrialScores:
    """Score one batch of records. No Python per token; one crossing into Rust for tokens, one for texts."""
    request = _numbers(batch, "request", np.uint32)
    known = request < len(golden.index)
    answer = np.where(known, golden.index[np.where(known, request, 0)] if len(golden.index) else -1, -1)
    has_golden = answer >= 0
    finished = _bools(pc.is_in(batch.column("finish_reason"), pa.array(FINISHED)))
    planned, landed = _numbers(batch, "flips_planned", np.uint64), _numbers(batch, "flips_landed", np.uint64)
    # What a read changed and did not put back stays in the cache, as no planned flip does.
    exposed = _numbers(batch, "flips_exposed", np.uint64)
    restored = exposed == _numbers(batch, "flips_restored", np.uint64)
    drift = _drift(batch, golden, answer)
    identical = drift["token_drift"] == 0
    outcome, reason, crash = classify(
        finished=finished,
        error=_bools(pc.is_valid(batch.column("error"))),
        landed=(landed == planned) & restored,
        golden=has_golden,
        nonfinite=_bools(pc.is_valid(batch.column("nonfinite_at"))),
        identical=identical,
    )
    kl, top1 = _logprobs(batch, golden, answer, drift["first_divergence"], identical)
    for values in (kl, top1):
        values[crash] = np.nan
    for column in drift.values():
        column[crash] = ABSENT
    kind = pc.fill_null(pc.index_in(batch.column("kind"), pa.array(KINDS)), UNKNOWN)
    return TrialScores(
        batch=batch,
        kind=kind.to_numpy(zero_copy_only=False).astype(np.uint8),
        cell=_numbers(batch, "cell", np.int32),
        request=request,
        outcome=outcome,
        reason=reason,
        crash=crash,
        exact=identical & ~crash,
        drift=drift,
        planned=planned,
        landed=landed,
        changed=_numbers(batch, "flips_changed", np.uint64),
        exposed=exposed,
        reruns=_numbers(batch, "reruns", np.uint32),
        finished=finished,
        preempted=_numbers(batch, "preemptions", np.uint32) > 0,
        kl=kl,
        top1=top1,
    )


def to_table(scores: TrialScores) -> pa.Table:
    """The scores of a batch as columns for people and other tools; null where a value is not defined."""
    columns: dict[str, pa.Array] = {
        name: scores.batch.column(name) for name in ("trial_id", "kind", "cell", "request", "trial")
    }
    columns["outcome"] = pa.array(OUTCOMES).take(pa.array(scores.outcome))
    columns["reason"] = pa.array([word or None for word in REASONS]).take(pa.array(scores.reason))
    columns["status"] = pa.array(("ok", "crash")).take(pa.array(scores.crash.astype(np.uint8)))
    unscored = scores.drift["token_drift"] == ABSENT
    columns["exact_match"] = pa.array(scores.exact, mask=unscored & ~scores.crash)
    for name in DRIFTS:
        columns[name] = pa.array(scores.drift[name], mask=scores.drift[name] == ABSENT)
    for name, values in (("kl", scores.kl), ("top1_agreement", scores.top1)):
        columns[name] = pa.array(values, mask=np.isnan(values))
    for name in ("flips_planned", "flips_landed", "tokens_written", "preemptions", "nonfinite_at", "error"):
        columns[name] = scores.batch.column(name)
    return pa.table(columns)


def _drift(batch: pa.RecordBatch, golden: Golden, answer: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    drift = {name: np.full(batch.num_rows, ABSENT, np.int64) for name in DRIFTS}
    rows = np.flatnonzero(answer >= 0)
    if not rows.size:
        return drift
    tokens = batch.column("token_ids").take(pa.array(rows))
    scored = _native.score_tokens(
        golden.values,
        golden.offsets,
        np.ascontiguousarray(tokens.flatten().to_numpy(), np.uint32),
        _offsets(tokens),
        answer[rows].astype(np.uint32),
    )
    for name in ("token_drift", "first_divergence", "token_edit_distance"):
        drift[name][rows] = scored[name].astype(np.int64)
    same = drift["token_drift"][rows] == 0
    drift["first_divergence"][rows[same]] = ABSENT
    for name in ("char_drift", "char_edit_distance"):
        drift[name][rows[same]] = 0
    # Equal ids decode to equal text, so only the others are worth a text comparison.
    rows = rows[~same]
    if rows.size:
        texts = batch.column("text").take(pa.array(rows)).to_pylist()
        compared = _native.score_texts(list(golden.texts), texts, answer[rows].astype(np.uint32))
        for name in ("char_drift", "char_edit_distance"):
            drift[name][rows] = compared[name].astype(np.int64)
    return drift


def _logprobs(
    batch: pa.RecordBatch,
    golden: Golden,
    answer: NDArray[np.int64],
    divergence: NDArray[np.int64],
    identical: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kl, top1 = np.full(batch.num_rows, np.nan), np.full(batch.num_rows, np.nan)
    rows = np.flatnonzero((answer >= 0) & _bools(pc.is_valid(batch.column("logprobs"))))
    if golden.likeliest is None or not rows.size:
        return kl, top1
    some = batch.take(pa.array(rows))
    offsets = _offsets(some.column("token_ids"))
    own = np.diff(offsets)
    faulty = likeliest(some, own)
    if faulty is None:
        return kl, top1
    start = golden.offsets[answer[rows]]
    shortest = np.minimum(own, golden.offsets[answer[rows] + 1] - start)
    shared = np.where(identical[rows], shortest, np.minimum(shortest, divergence[rows] + 1))
    kl[rows], top1[rows] = compare(golden.likeliest, start, faulty, offsets[:-1], shared)
    return kl, top1


def _offsets(lists: pa.ListArray) -> NDArray[np.int64]:
    offsets: NDArray[np.int64] = lists.offsets.to_numpy().astype(np.int64)
    shifted: NDArray[np.int64] = offsets - offsets[0]
    return shifted


def _numbers(batch: pa.RecordBatch, name: str, kind: type[T]) -> NDArray[T]:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(kind, copy=False)  # type: ignore[no-any-return]


def _bools(column: pa.Array) -> NDArray[np.bool_]:
    return column.to_numpy(zero_copy_only=False).astype(bool)  # type: ignore[no-any-return]
