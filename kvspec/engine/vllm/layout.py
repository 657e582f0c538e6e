"""Where in a cache block the attention backend puts (K|V, token, head, element): probed, never assumed.

Block layouts differ between backends, instruction sets and versions (K transposed, K and V packed, ...). The probe
writes the bits of a running index as planes of zeros and ones through the backend's own `do_kv_cache_update` and
looks where they went. 0 and 1 are exact in every storage type, so no knowledge of the layout is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec.errors import EngineError

NULL_BLOCK = 0
"""vLLM's padding block: no request ever owns it, so the probe may write there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Addresses within one layer's cache, in elements."""

    offsets: NDArray[np.int64]
    """`[2, T, H, D]`: offset of (K|V, token in block, head, element) inside a block."""
    block_stride: int
    """Elements from one block to the next."""

    @property
    def block_tokens(self) -> int:
        """Tokens per block (T)."""
        return int(self.offsets.shape[1])

    @property
    def digest(self) -> str:
        """Short hash of the layout, for the fingerprint."""
        return hashlib.sha256(self.offsets.tobytes()).hexdigest()[:16]


def words_of(kv_cache: torch.Tensor) -> NDArray[np.uint32]:
    """The cache of a layer as a flat, writable view of its 32-bit words. Raises `EngineError` (KVS402)."""
    if kv_cache.element_size() != 4 or not kv_cache.is_contiguous():
        raise EngineError.one(
            "KVS402",
            f"the cache is {kv_cache.dtype} with strides {tuple(kv_cache.stride())}",
            expected="a contiguous float32 cache on the CPU",
        )
    words: NDArray[np.uint32] = kv_cache.view(torch.int32).view(-1).numpy().view(np.uint32)
    return words


def probe(impl: Any, layer: Any, kv_cache: torch.Tensor, block_tokens: int) -> Layout:
    """Find the layout of one layer by writing through its own backend.

    `impl` is the attention implementation with its original, unwrapped `do_kv_cache_update`. The probed block is
    restored. Raises `EngineError` (KVS402) if writes do not map one to one onto the block.
    """
    heads, dim = layer.num_kv_heads, layer.head_size
    count = 2 * block_tokens * heads * dim
    block = kv_cache[NULL_BLOCK]
    if block.numel() != count:
        raise EngineError.one(
            "KVS402",
            f"a cache block of {type(impl).__name__} holds {block.numel()} elements",
            expected=f"{count}: 2 planes x {block_tokens} tokens x {heads} heads x {dim} elements",
            hint="formats with scales inside the block are not supported by this engine",
        )
    saved = block.clone()
    index = torch.arange(count).view(2, block_tokens, heads, dim)
    slots = torch.arange(block_tokens, dtype=torch.int64) + NULL_BLOCK * block_tokens
    seen = torch.zeros(count, dtype=torch.int64)
    for bit in range(count.bit_length()):
        plane = ((index >> bit) & 1).to(kv_cache.dtype)
        impl.do_kv_cache_update(layer, plane[0].contiguous(), plane[1].contiguous(), kv_cache, slots)
        seen |= (block.reshape(-1) != 0).long() << bit
    block.copy_(saved)
    if not torch.equal(seen.sort().values, torch.arange(count)):
        raise EngineError.one(
            "KVS402",
            f"the layout probe of {type(impl).__name__} did not come out one to one",
            expected="every written element at a place of its own in the block",
        )
    offsets = torch.empty(count, dtype=torch.int64)
    offsets[seen] = torch.arange(count)
    return Layout(offsets.view(2, block_tokens, heads, dim).numpy(), int(kv_cache.stride(0)))
