"""The golden answers of a run: what every other trial of the same request is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvspec.records import RunStore
from kvspec.score.logprobs import Likeliest, likeliest
from kvspec.score.outcome import FINISHED

_COLUMNS = (
    "kind",
    "request",
    "token_ids",
    "text",
    "finish_reason",
    "error",
    "nonfinite_at",
    "flips_planned",
    "flips_landed",
    "logprob_ids",
    "logprobs",
)


@dataclass(frozen=True, slots=True)
class Golden:
    """Usable golden answers, `[G]`, and where to find the one of a request."""

    index: NDArray[np.int64]
    """Position of the golden answer of each request `[requests]`, -1 where there is none."""
    values: NDArray[np.uint32]
    """All golden token ids, one answer after the other."""
    offsets: NDArray[np.int64]
    """Where each answer begins in `values`, `[G + 1]`."""
    texts: tuple[str, ...]
    likeliest: Likeliest | None
    """Logprobs of all golden answers, at the positions of `values`; `None` unless all have them."""
    unusable: tuple[int, ...]
    """Requests whose golden trial failed, was not finite, or held a flip."""

    def __len__(self) -> int:
        """Number of usable answers."""
        return len(self.texts)


def read_golden(store: RunStore, requests: int) -> tuple[Golden, int]:
    """Collect the golden answers. Returns them with the number of all records.

    Two passes, so that memory holds only golden rows: the first reads one column, the second stops early, for
    golden trials come first in a plan.
    """
    total = wanted = 0
    for batch in store.iter_batches(["kind"]):
        total += batch.num_rows
        wanted += pc.sum(pc.equal(batch.column(0), "golden")).as_py() or 0
    index = np.full(requests, -1, np.int64)
    answers: list[NDArray[np.uint32]] = []
    texts: list[str] = []
    unusable: list[int] = []
    logprobs: list[pa.Table] = []
    found = 0
    for batch in store.iter_batches(_COLUMNS) if wanted else ():
        rows = pa.Table.from_batches([batch]).filter(pc.equal(batch.column("kind"), "golden"))
        for number, row in enumerate(rows.drop_columns(["logprob_ids", "logprobs"]).to_pylist()):
            usable = row["finish_reason"] in FINISHED and row["error"] is None and row["nonfinite_at"] is None
            if not usable or row["flips_planned"] or row["flips_landed"]:
                unusable.append(row["request"])
            elif row["request"] < requests:
                index[row["request"]] = len(texts)
                answers.append(np.asarray(row["token_ids"], np.uint32))
                texts.append(row["text"])
                logprobs.append(rows.select(["logprob_ids", "logprobs"]).slice(number, 1))
        found += rows.num_rows
        if found >= wanted:
            break
    offsets = np.zeros(len(answers) + 1, np.int64)
    np.cumsum([len(answer) for answer in answers], out=offsets[1:])
    values = np.concatenate(answers) if answers else np.zeros(0, np.uint32)
    top = likeliest(pa.concat_tables(logprobs), np.diff(offsets)) if logprobs else None
    return Golden(index, values, offsets, tuple(texts), top, tuple(sorted(unusable))), total
