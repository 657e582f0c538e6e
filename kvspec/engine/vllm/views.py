"""K and V of a GPU cache as logical views `[blocks, tokens, heads, D]`, found by writing through the backend itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvspec import _native
from kvspec.engine.vllm.layout import NULL_BLOCK
from kvspec.engine.vllm.storage import Rows
from kvspec.errors import EngineError

PLAIN = ("bf16", "fp16")
"""Formats whose cache holds K and V as they come."""
PACKED = "int4_per_token_head"
SCALE_BYTES = 4
"""Formats with a scale per token and head keep it as a float32 behind the codes of the row."""


@dataclass(frozen=True, slots=True)
class Views:
    """One layer's cache."""

    key: torch.Tensor
    """`[blocks, tokens, heads, D]`, any strides; `D / 2` bytes where two codes share one."""
    value: torch.Tensor
    storage_format: str = "bf16"
    scales: tuple[torch.Tensor, torch.Tensor] | None = None
    """Of K and of V, of scaled formats: int32 `[blocks, tokens, heads, 1]`, the bits of a float32 behind each row."""

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return int(self.key.shape[1])

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return _native.format_bits(self.storage_format)

    @property
    def words(self) -> str:
        """The layout in words, for the fingerprint."""
        behind = self.value.storage_offset() - self.key.storage_offset()
        return f"{tuple(self.key.shape[1:])} strides {self.key.stride()}, V {behind:+d}"

    def at(self, block: torch.Tensor, inside: torch.Tensor) -> Rows:
        """What tokens hold: values of plain formats, codes (uint8) and scales of the others."""
        rows = torch.stack([self.key[block, inside], self.value[block, inside]])
        if self.storage_format in PLAIN:
            return Rows(rows)
        rows = rows.view(torch.uint8)
        if self.storage_format == PACKED:
            rows = torch.stack([rows & 15, rows >> 4], dim=-1).flatten(-2)
        if self.scales is None:
            return Rows(rows)
        scales = torch.stack([plane[block, inside, :, 0] for plane in self.scales])
        return Rows(rows, scales=scales.cpu().numpy().view(np.uint32))


def find_views(impl: Any, layer: Any, kv_cache: torch.Tensor, storage_format: str) -> Views:
    """The views of one layer. `impl` has its own, unwrapped `do_kv_cache_update`; the probed block is restored.

    Raises `EngineError` (KVS402) if no known reading of the cache gives back what the backend wrote.
    """
    saved = kv_cache[NULL_BLOCK].clone()
    probe = _probe_values if storage_format in PLAIN else _probe_codes
    try:
        for views in _readings(kv_cache, layer.num_kv_heads, layer.head_size, storage_format):
            tokens = views.block_tokens
            slots = torch.arange(tokens, dtype=torch.int64, device=kv_cache.device) + NULL_BLOCK * tokens

            def write(rows: torch.Tensor, slots: torch.Tensor = slots) -> None:
                impl.do_kv_cache_update(layer, rows[0].contiguous(), rows[1].contiguous(), kv_cache, slots)

            if probe(views, write, layer.num_kv_heads, layer.head_size):
                return views
    finally:
        kv_cache[NULL_BLOCK].copy_(saved)
    raise EngineError.one(
        "KVS402",
        f"the cache of {type(impl).__name__}, {kv_cache.dtype} {tuple(kv_cache.shape)}, is laid out in an unknown way",
        expected=f"{storage_format} as [blocks, 2, tokens, heads, D] or [blocks, heads, tokens, 2 D]",
    )


def _readings(kv_cache: torch.Tensor, heads: int, dim: int, storage_format: str) -> Iterator[Views]:
    shape = tuple(kv_cache.shape)
    row = dim if storage_format != PACKED else dim // 2
    if _native.format_scaled(storage_format) and (dim % 2 or row % SCALE_BYTES):
        raise EngineError.one(
            "KVS402",
            f"rows of {dim} elements in {storage_format}: the scale behind {row} bytes of codes is no aligned word",
            expected=f"a head size that is a multiple of {SCALE_BYTES * (2 if storage_format == PACKED else 1)}",
        )
    whole = row + (SCALE_BYTES if _native.format_scaled(storage_format) else 0)

    def views(rows: torch.Tensor, behind: torch.Tensor) -> Views:
        """Views of K and V, `[blocks, tokens, heads, whole]` each."""
        scales = None
        if whole > row:
            scales = rows[..., row:].view(torch.int32), behind[..., row:].view(torch.int32)
        return Views(rows[..., :row], behind[..., :row], storage_format, scales)

    if kv_cache.element_size() * 8 != max(8, _native.format_bits(storage_format)):
        return
    if len(shape) == 5 and shape[1] == 2 and shape[3:] == (heads, whole):
        yield views(kv_cache[:, 0], kv_cache[:, 1])
    if len(shape) == 4 and (shape[1], shape[3]) == (heads, 2 * whole):
        tokens_first = kv_cache.transpose(1, 2)
        yield views(tokens_first[..., :whole], tokens_first[..., whole:])


Write = Callable[[torch.Tensor], None]
"""Writes rows `[2, tokens, heads, D]` to the null block through the backend."""


def _probe_values(views: Views, write: Write, heads: int, dim: int) -> bool:
    """Whether random rows are found as they were written."""
    generator = torch.Generator().manual_seed(1)
    written = torch.randn(2, views.block_tokens, heads, dim, generator=generator).to(views.key.device, views.key.dtype)
    write(written)
    return bool(torch.equal(torch.stack([views.key[NULL_BLOCK], views.value[NULL_BLOCK]]), written))


def _probe_codes(views: Views, write: Write, heads: int, dim: int) -> bool:
    """Whether single ones among zeros are found where they were written: the bits of a running index of the rows, as
    planes. Zero is code 0 in these formats; int4 rotates a row, so there only the row is known."""
    tokens, device = views.block_tokens, views.key.device
    index = torch.arange(2 * tokens * heads, device=device).view(2, tokens, heads)
    places = torch.nn.functional.one_hot(index % dim, dim)
    block, inside = torch.full((tokens,), NULL_BLOCK, device=device), torch.arange(tokens, device=device)
    for bit in range(index.numel().bit_length()):
        ones = places * ((index >> bit) & 1)[..., None]
        write(ones.to(torch.bfloat16))
        seen = views.at(block, inside).values != 0
        found, expected = (seen.any(-1), ones.any(-1)) if views.storage_format == PACKED else (seen, ones != 0)
        if not torch.equal(found, expected):
            return False
    return True
