"""K and V of a GPU cache as logical views `[blocks, tokens, heads, D]`, found by writing through the backend itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kvspec.engine.vllm.layout import NULL_BLOCK
from kvspec.errors import EngineError


@dataclass(frozen=True, slots=True)
class Views:
    """One layer's cache."""

    key: torch.Tensor
    """`[blocks, tokens, heads, D]`, any strides."""
    value: torch.Tensor

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return int(self.key.shape[1])

    @property
    def words(self) -> str:
        """The layout in words, for the fingerprint."""
        behind = self.value.storage_offset() - self.key.storage_offset()
        return f"{tuple(self.key.shape[1:])} strides {self.key.stride()}, V {behind:+d}"


def find_views(impl: Any, layer: Any, kv_cache: torch.Tensor) -> Views:
    """The views of one layer. `impl` has its own, unwrapped `do_kv_cache_update`; the probed block is restored.

    Raises `EngineError` (KVS402) if no known reading of the cache gives back what the backend wrote.
    """
    saved = kv_cache[NULL_BLOCK].clone()
    try:
        for views in _readings(kv_cache, layer.num_kv_heads, layer.head_size):
            tokens = views.block_tokens
            generator = torch.Generator().manual_seed(1)
            written = torch.randn(2, tokens, layer.num_kv_heads, layer.head_size, generator=generator)
            written = written.to(kv_cache.device, kv_cache.dtype)
            slots = torch.arange(tokens, dtype=torch.int64, device=kv_cache.device) + NULL_BLOCK * tokens
            impl.do_kv_cache_update(layer, written[0].contiguous(), written[1].contiguous(), kv_cache, slots)
            if torch.equal(views.key[NULL_BLOCK], written[0]) and torch.equal(views.value[NULL_BLOCK], written[1]):
                return views
    finally:
        kv_cache[NULL_BLOCK].copy_(saved)
    raise EngineError.one(
        "KVS402",
        f"the cache of {type(impl).__name__}, {kv_cache.dtype} {tuple(kv_cache.shape)}, is laid out in an unknown way",
        expected="[blocks, 2, tokens, heads, D] or [blocks, heads, tokens, 2 D]",
    )


def _readings(kv_cache: torch.Tensor, heads: int, dim: int) -> Iterator[Views]:
    shape = tuple(kv_cache.shape)
    if len(shape) == 5 and shape[1] == 2 and shape[3:] == (heads, dim):
        yield Views(kv_cache[:, 0], kv_cache[:, 1])
    if len(shape) == 4 and (shape[1], shape[3]) == (heads, 2 * dim):
        tokens_first = kv_cache.transpose(1, 2)
        yield Views(tokens_first[..., :dim], tokens_first[..., dim:])
