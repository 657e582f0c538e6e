"""One scheduler step, as facts about trials: which rows write which tokens. Pure: knows no torch and no vLLM class.

vLLM's `SchedulerOutput` says everything but the order of the rows in the batch, and its fields used here are the
same in every supported version. Trials are recognised by the table entry that each request carries in
`SamplingParams.extra_args`, because vLLM appends a suffix to request ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXTRA_ARG = "kvspec"
"""Key of the table entry in `SamplingParams.extra_args`."""

FOREIGN = -1

U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one step that belong to trials. Column i of every array is the same row."""

    row: U32
    """Row in the batch, hence in the block table."""
    entry: U32
    """Entry of the trial table."""
    start: U32
    """First logical position that the row writes."""
    count: U32
    """Positions it writes: `start .. start + count - 1`."""


@dataclass(frozen=True, slots=True)
class Grants:
    """Cache blocks handed out in this step, as parallel arrays."""

    entry: NDArray[np.int64]
    """Entry of the trial table, `FOREIGN` for requests that are not trials."""
    block: NDArray[np.int64]
    """Block id."""


NO_GRANTS = Grants(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Requests:
    """Which live request is which trial. Survives preemption: only `finished_req_ids` forgets a request."""

    def __init__(self) -> None:
        self._entry: dict[str, int] = {}

    def entry(self, request: str) -> int:
        """Table entry of a live request, `FOREIGN` if it is not a trial."""
        return self._entry.get(request, FOREIGN)

    def observe(self, scheduled: Any) -> Grants:
        """Take in a `SchedulerOutput`: new and finished requests, and the blocks that it hands out."""
        for new in scheduled.scheduled_new_reqs:
            extra = getattr(new.sampling_params, "extra_args", None) or {}
            if EXTRA_ARG in extra:
                self._entry[new.req_id] = int(extra[EXTRA_ARG])
        for request in scheduled.finished_req_ids:
            self._entry.pop(request, None)
        cached = scheduled.scheduled_cached_reqs
        grants: list[tuple[str, Sequence[Iterable[int]] | None]] = [
            (new.req_id, new.block_ids) for new in scheduled.scheduled_new_reqs
        ]
        # most decode steps hand out no block, and of the others most requests get none
        if any(cached.new_block_ids):
            grants += [pair for pair in zip(cached.req_ids, cached.new_block_ids, strict=True) if pair[1]]
        if not grants:
            return NO_GRANTS
        entries: list[int] = []
        blocks: list[int] = []
        for request, groups in grants:
            before = len(blocks)
            for group in groups or ():
                blocks += group
            entries += [self._entry.get(request, FOREIGN)] * (len(blocks) - before)
        return Grants(np.array(entries, dtype=np.int64), np.array(blocks, dtype=np.int64))

    def step(self, scheduled: Any, order: Sequence[str]) -> Step:
        """The rows of a step, given the request ids in batch order."""
        computed = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        counts = scheduled.num_scheduled_tokens
        rows = [
            (row, entry, computed[request], counts[request])
            for row, request in enumerate(order)
            if (entry := self._entry.get(request)) is not None
        ]
        columns = np.array(rows, dtype=np.uint32).reshape(-1, 4)
        return Step(*(np.ascontiguousarray(columns[:, i]) for i in range(4)))
