"""Device memory that the injector takes beside the cache: held back before vLLM gives the rest to the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kvspec.errors import EngineError

READ_LIST_BYTES = 2**30
"""Most memory for the lists of read cells of a target. What does not fit is counted, and its trials are marked as not
landed."""
CELL_BYTES = 12
"""Of a listed cell, in each layer."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an injector will allocate once the cache exists."""

    layers: int
    rows: int
    """Rows of the largest batch: cells per layer of a list of writes."""
    batch_tokens: int
    """Tokens that a full batch of longest requests holds."""
    targets: int
    """1, or 2 with faults of scales."""
    reads: bool
    stuck_reads: bool
    """Whether what stuck-ats of reads overwrite is kept: for two layers."""

    def read_tokens(self, cache_tokens: int) -> int:
        """Cells per layer of a list of reads: all tokens that can be read in a step, if they fit."""
        if not self.reads:
            return 0
        return min(cache_tokens, self.batch_tokens, READ_LIST_BYTES // (CELL_BYTES * self.layers))

    def left(self, available: int) -> int:
        """Bytes that the cache can have of those available for both."""
        # the tokens of the cache are not known yet: those of a batch are never fewer than a list needs
        cells = self.rows + self.read_tokens(self.batch_tokens)
        left = available - self.targets * CELL_BYTES * self.layers * cells
        if self.stuck_reads:
            # scales lie between the codes, so each target keeps as much as a layer spans
            left = left * self.layers // (self.layers + 2 * self.targets)
        return max(0, left)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say what there was no memory for, and what to lower. Raises `EngineError` (KVS406)."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError.one(
            "KVS406",
            f"no device memory is left for {what}",
            path="$.engine.kv_cache_gib",
            expected="a cache that leaves room for it",
            hint="lower engine.kv_cache_gib or engine.max_num_seqs, or shorten the requests",
        ) from error
