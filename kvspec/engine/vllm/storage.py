"""What the cache holds: K and V rounded to the declared storage format, as vLLM's own cache write rounds them.

The cache of a CPU is a float32 container. Rounding before the write makes its contents exactly those of a cache of the
declared format, and a fault then flips bits of the stored code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
class Rows:
    """Positions of one layer as they lie in a cache."""

    values: torch.Tensor
    """`[2, n, H, D]`: what attention reads; of a device's quantized cache its codes, uint8."""
    codes: NDArray[np.uint8] | None = None
    """`[2, n, H, D]`: of scaled formats in a float32 container, the codes that the values stand for."""
    scales: NDArray[np.uint32] | None = None
    """`[2, n, H]`: of scaled formats, the scale of each row as float32 bits."""

    @classmethod
    def of(cls, key: Plane, value: Plane) -> Rows:
        """Both planes."""
        values = torch.stack([key.values, value.values])
        if key.codes is None or value.codes is None or key.scales is None or value.scales is None:
            return cls(values)
        return cls(values, np.stack([key.codes, value.codes]), np.stack([key.scales, value.scales]))

    def take(self, positions: slice) -> Rows:
        """Some positions."""
        return self._part((slice(None), positions))

    def of_heads(self, heads: slice) -> Rows:
        """Some KV heads."""
        return self._part((slice(None), slice(None), heads))

    def _part(self, at: tuple[slice, ...]) -> Rows:
        codes = None if self.codes is None else self.codes[at]
        return Rows(self.values[at], codes, None if self.scales is None else self.scales[at])

    def differences(self, other: Rows) -> Iterator[NDArray[np.bool_]]:
        """Where bits differ from those of other rows: `[2, n, H, D]` of values and codes, `[2, n, H, 1]` of scales."""
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[self.values.element_size()]
        yield (self.values.view(integer) != other.values.view(integer)).cpu().numpy()
        if self.codes is not None:
            yield self.codes != other.codes
        if self.scales is not None and other.scales is not None:
            yield self.scales[..., None] != other.scales[..., None]

    def stored(self, storage_format: str) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Codes `[2, n, H, D]`, and where the values are not what codes and scales stand for, or nothing that the
        format can hold: rounding here would hide it."""
        if not self.values.is_floating_point():
            return self.values.cpu().numpy().astype(np.uint32), np.zeros(self.values.shape, bool)
        if self.values.dtype == TORCH_DTYPES.get(storage_format):
            # Bits as they lie there: a conversion to float32 would quiet signalling NaN of fp16.
            bits = self.values.detach().contiguous().view(torch.int16).cpu().numpy().view(np.uint16)
            return bits.astype(np.uint32), np.zeros(self.values.shape, bool)
        held = self.values.detach().to("cpu", torch.float32).contiguous().numpy()
        scales = None
        if self.codes is not None and self.scales is not None:
            codes, scales = self.codes.astype(np.uint32), self.scales.view(np.float32)
        else:
            codes = _native.encode(storage_format, held)
        lost = _native.decode(storage_format, codes, scales).view(np.uint32) != held.view(np.uint32)
        return codes, lost


@dataclass(frozen=True, slots=True)
class Written:
    """K and V of one step and layer as they lie in the cache, in the order of the batch's rows, before their faults."""

    rows: Rows
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
        k, v = rounded(key, storage_format), rounded(value, storage_format)
        write(layer, k.values, v.values, kv_cache, slots)
        after_write(attention.index, Written(Rows.of(k, v), slots))

    impl.do_kv_cache_update = do_kv_cache_update
    if storage_format == ROTATED:
        _wrap_forward(impl)


@dataclass(frozen=True, slots=True)
class Plane:
    """K or V of some tokens as a cache holds them."""

    values: torch.Tensor
    """float32 `[tokens, H, D]`"""
    codes: NDArray[np.uint8] | None = None
    """`[tokens, H, D]`, of scaled formats."""
    scales: NDArray[np.uint32] | None = None
    """`[tokens, H]`, of scaled formats: float32 as bits."""


def rounded(rows: torch.Tensor, storage_format: str) -> Plane:
    """float32 `[tokens, H, D]` as the cache holds it."""
    if storage_format in TORCH_DTYPES:
        return Plane(rows.to(TORCH_DTYPES[storage_format]).to(rows.dtype))
    rows = _rotation()(rows) if storage_format == ROTATED else rows
    rows = rows.clone(memory_format=torch.contiguous_format)
    flat = rows.view(-1, rows.shape[-1]).numpy()
    if not _native.format_scaled(storage_format):
        _native.quantize(storage_format, flat)
        return Plane(rows)
    codes = np.empty(flat.shape, np.uint8)
    scales = _native.quantize(storage_format, flat, codes)
    return Plane(rows, codes.reshape(rows.shape), scales.view(np.uint32).reshape(rows.shape[:2]))


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
