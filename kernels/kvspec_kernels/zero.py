# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""Zeroing of blocks, in all layers at once.

    words[starts[layer] + blocks[i] * stride + 0 .. words - 1] = 0

A block that held faults must hold nothing when it is handed out again. A torch call per layer costs the host more than
the rest of a step's injection does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from kvspec_kernels.repeated import Repeated

WORD = 4
"""Bytes of a word."""


@triton.jit(do_not_specialize=["stride", "words"])
def zero_blocks_kernel(blocks_ptr, words_ptr, starts_ptr, stride, words, BLOCK: tl.constexpr):
    """Grid (blocks, layers). `stride` and `words`: from a block to the next, and of a block, in 32-bit words."""
    block = tl.load(blocks_ptr + tl.program_id(0))
    start_ptr = words_ptr + tl.load(starts_ptr + tl.program_id(1)) + block * stride
    nothing = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, words, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        tl.store(start_ptr + at, nothing, mask=at < words)


class ZeroBlocks:
    """Zeroes blocks of the caches of some layers in one launch."""

    def __init__(self, caches: Sequence[torch.Tensor], *, block: int = 1024) -> None:
        """`caches`: one per layer, `[blocks, ...]`, all of one shape, type and strides. `block`: words that a program
        zeroes at a time. Raises `ValueError` where the elements of a block do not lie side by side as whole words."""
        first = caches[0]
        for cache in caches:
            if (cache.shape, cache.stride(), cache.dtype) != (first.shape, first.stride(), first.dtype):
                raise ValueError(f"the layers differ: {_words(first)} and {_words(cache)}")
        size, stride = (x * first.element_size() for x in (first[0].numel(), first.stride(0)))
        starts = [cache.data_ptr() for cache in caches]
        if not _dense(first[0]) or size % WORD or stride % WORD or any(start % WORD for start in starts):
            raise ValueError(f"the blocks of {_words(first)} are not whole words side by side")
        self._device = first.device
        storage = first.untyped_storage()
        self._first = torch.empty(0, dtype=torch.int32, device=first.device).set_(
            storage, (starts[0] - storage.data_ptr()) // WORD, (1,)
        )
        """Where the offsets start. The kernel addresses all layers from here."""
        self._starts = torch.tensor([(start - starts[0]) // WORD for start in starts]).to(first.device)
        self._layers = len(starts)
        self._sizes = stride // WORD, size // WORD
        self._block = block
        self._zero = Repeated(zero_blocks_kernel)

    def __call__(self, blocks: Sequence[int]) -> None:
        """Zero them, as the stream has it: nothing waits."""
        index = torch.from_numpy(np.array(blocks, dtype=np.int64))
        if self._device.type == "cuda":
            # a fresh pinned buffer each time: the copy may still run when the next step is prepared
            index = index.pin_memory().to(self._device, non_blocking=True)
        grid = (len(blocks), self._layers, 1)
        self._zero(None, grid, (index,), (self._first, self._starts, *self._sizes), BLOCK=self._block)


def _dense(block: torch.Tensor) -> bool:
    """Whether the elements of a tensor fill the memory from its first to its last one."""
    expected = 1
    for stride, size in sorted(zip(block.stride(), block.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _words(cache: torch.Tensor) -> str:
    return f"a cache {cache.dtype} {tuple(cache.shape)} with strides {cache.stride()}"
