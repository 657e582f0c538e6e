"""The columns of a record, in one place: the dataclass that a caller fills and the Arrow schema on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Record:
    """What one trial did, as observed. Never a judgement: scores are computed later, from records alone."""

    trial_id: str
    """`Trial.id` of the plan, unique in the run."""
    kind: str
    """golden, golden_repeat, null or fault."""
    cell: int
    """Index of the plan's cell, -1 for trials without faults."""
    request: int
    """Index of the prompt in the plan."""
    trial: int
    """Number of the trial within (cell, request)."""
    prompt_tokens: int
    """Length of the prompt in tokens."""
    token_ids: Sequence[int]
    """Generated token ids `[T]` as decoded, never re-tokenized text."""
    text: str
    """The generated text as the engine decoded it."""
    finish_reason: str
    """length, stop, or abort; empty if the request never finished."""
    tokens_written: int
    """Tokens whose K and V reached the cache: the exposure over which flips are planned."""
    flips_planned: int
    """Sites (bits), enumerated from the trial's keys over `tokens_written`; a site of reads once per read event."""
    flips_landed: int
    """Sites, counted in the cache words: bits that a flip inverted, bits of a stuck-at that then read as stuck."""
    flips_changed: int = 0
    """Bits among those landed that had another value before. Equal to them for flips, about half for stuck-ats."""
    flips_exposed: int = 0
    """Bits that reads changed, in every forward: above those planned where a prefill is chunked."""
    flips_restored: int = 0
    """Bits that were put back after the read. Equal to those exposed, or the record has an error."""
    preemptions: int = 0
    """How often the scheduler took the request's cache away."""
    reruns: int = 0
    """How often the trial was run before and not counted, because a preemption made it read twice."""
    nonfinite_at: int | None = None
    """Index of the first generated token whose logits were not finite; `None` if all were."""
    error: str | None = None
    """Text of the exception that ended the trial, or of the mismatch between landed and planned flips."""
    logprob_ids: Sequence[int] | None = None
    """The k likeliest tokens at each position `[T * k]`, likeliest first; `None` where they were not asked for."""
    logprobs: Sequence[float] | None = None
    """Natural logarithms of their probabilities `[T * k]`."""
    token_ends: Sequence[int] | None = None
    """Characters (code points) of `text` after each generated token `[T]`, never falling; tokens that end within a
    character show it later. Golden trials only, `None` for others."""


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SCHEMA: pa.Schema = pa.schema(
    [
        _field("trial_id", pa.string()),
        _field("kind", pa.string()),
        _field("cell", pa.int32()),
        _field("request", pa.uint32()),
        _field("trial", pa.uint32()),
        _field("prompt_tokens", pa.uint32()),
        _field("token_ids", pa.list_(pa.field("item", pa.uint32(), nullable=False))),
        _field("text", pa.string()),
        _field("finish_reason", pa.string()),
        _field("tokens_written", pa.uint32()),
        _field("flips_planned", pa.uint64()),
        _field("flips_landed", pa.uint64()),
        _field("flips_changed", pa.uint64()),
        _field("flips_exposed", pa.uint64()),
        _field("flips_restored", pa.uint64()),
        _field("preemptions", pa.uint32()),
        _field("reruns", pa.uint32()),
        _field("nonfinite_at", pa.int32(), nullable=True),
        _field("error", pa.string(), nullable=True),
        _field("logprob_ids", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=True),
        _field("logprobs", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=True),
        _field("token_ends", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=True),
    ]
)
"""One row per trial. A test holds it equal to the fields of `Record`."""
LATER = ("logprob_ids", "logprobs", "token_ends")
"""Columns that older parts lack, the last ones first: read as null."""


def to_table(records: Sequence[Record]) -> pa.Table:
    """Rows to columns. Raises `pa.ArrowInvalid` or `OverflowError` if a value does not fit its column."""
    # through one getter and one zip: a campaign waits for this
    rows: Any = map(attrgetter(*SCHEMA.names), records)
    columns = zip(*rows, strict=True) if records else ([] for _ in SCHEMA.names)
    arrays = [_array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except UnicodeEncodeError:
        return pa.array([None if value is None else _clean(value) for value in values], type=kind)


def _clean(text: str) -> str:
    # A corrupted decode may hold half a surrogate pair, which UTF-8 cannot store.
    return text.encode("utf-8", "replace").decode("utf-8")
