"""What the cache holds: K and V rounded to the declared storage format, as vLLM's own cache write rounds them.

The cache of a CPU is a float32 container. Rounding before the write makes its contents exactly those of a cache of the
declared format, and a fault then flips bits of the stored code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.vllm.layers import AttentionLayer

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Formats that torch rounds to as the Rust codec does, and faster."""
ROTATED = "int4_per_token_head"
"""vLLM rotates K and V (randomized Hadamard transform) before it quantizes to int4, and the query likewise."""


@dataclass(frozen=True, slots=True)
class Written:
    """K and V of one step and layer as they lie in the cache, in the order of the batch's rows."""

    key: torch.Tensor
    """`[tokens, H, D]`"""
    value: torch.Tensor
    scales: NDArray[np.float32] | None
    """`[2, tokens, H]`: what a scaled format stores beside the codes of each row."""
    slots: torch.Tensor
    """int64 `[tokens]`: block * tokens of a block + token in the block; -1 for padding."""


AfterWrite = Callable[[int, Written], None]
"""Called with the index of the layer."""


def wrap_attention(attention: AttentionLayer, storage_format: str, after_write: AfterWrite) -> None:
    """Round K and V to the storage format, let the backend store them, then call `after_write`.

    Methods are wrapped on the instance.
    """
    impl = attention.layer.impl
    write = impl.do_kv_cache_update

    def do_kv_cache_update(
        layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
    ) -> None:
        key, k_scales = rounded(key, storage_format)
        value, v_scales = rounded(value, storage_format)
        write(layer, key, value, kv_cache, slots)
        scales = np.stack([k_scales, v_scales]) if k_scales is not None and v_scales is not None else None
        after_write(attention.index, Written(key, value, scales, slots))

    impl.do_kv_cache_update = do_kv_cache_update
    if storage_format == ROTATED:
        _wrap_forward(impl)


def rounded(rows: torch.Tensor, storage_format: str) -> tuple[torch.Tensor, NDArray[np.float32] | None]:
    """float32 `[tokens, H, D]` as the cache holds it, and the scales `[tokens, H]` of a scaled format."""
    if storage_format in TORCH_DTYPES:
        return rows.to(TORCH_DTYPES[storage_format]).to(rows.dtype), None
    rows = _rotation()(rows) if storage_format == ROTATED else rows
    rows = rows.clone(memory_format=torch.contiguous_format)
    scales = _native.quantize(storage_format, rows.view(-1, rows.shape[-1]).numpy())
    return rows, scales.reshape(rows.shape[:2]) if _native.format_scaled(storage_format) else None


def _rotation() -> Any:
    from vllm.v1.attention.ops.int4_per_token_head import single_rht

    return single_rht


def _wrap_forward(impl: Any) -> None:
    """Attention over a rotated cache, as in vLLM's `unified_attention_int4`: q' k' = b q k for rotations of norm b."""
    rotate, forward = _rotation(), impl.forward

    def attend(
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
        output: torch.Tensor,
        **fused: Any,
    ) -> torch.Tensor:
        dim = query.shape[-1]
        norm = dim & -dim
        forward(layer, rotate(query) / norm, key, value, kv_cache, metadata, output, **fused)
        rows = output.view(-1, query.shape[1], dim)
        rows.copy_(rotate(rows, inverse=True) / norm)
        return output

    impl.forward = attend
