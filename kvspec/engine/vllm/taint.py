"""Isolation: blocks that held faults are zeroed before anyone else gets them.

Attention multiplies the masked tail of a block by zero, and 0 x NaN is NaN: one NaN left in a freed block would
silently corrupt its next owner, the golden rows included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec.engine.vllm.step import Grants

Zero = Callable[[list[int]], None]
"""Zeroes blocks in the caches of all layers."""


class Taint:
    """Remembers which blocks held faults since they were last zeroed."""

    def __init__(self) -> None:
        self._tainted: set[int] = set()

    def hand_out(self, grants: Grants, faulty: NDArray[np.bool_], zero: Zero) -> int:
        """Zero the tainted ones among newly granted blocks; taint those granted to faulty entries.

        `faulty` has one flag per table entry and a last one, False, that `FOREIGN` points at.
        Returns how many blocks were zeroed in every layer.
        """
        dirty = sorted(self._tainted.intersection(grants.block.tolist()))
        if dirty:
            zero(dirty)
        self._tainted.difference_update(dirty)
        self._tainted.update(grants.block[faulty[grants.entry]].tolist())
        return len(dirty)


def zero_blocks(caches: Sequence[torch.Tensor], blocks: list[int]) -> None:
    """Zero blocks of all layers, one after the other: `[blocks, ...]` each."""
    index = torch.tensor(blocks, device=caches[0].device)
    for cache in caches:
        # torch fills no tensors of float8
        (cache.view(torch.uint8) if cache.element_size() == 1 else cache).index_fill_(0, index, 0)
