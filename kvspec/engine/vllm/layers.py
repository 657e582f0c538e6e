"""The attention layers of a loaded model: which ones there are, and the seam where faults enter each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kvspec.errors import EngineError
from kvspec.models import Geometry
from kvspec.plan.estimate import check_ranks

SUPPORTED = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
"""Backends whose attention reads the cache, prefill included, and whose write is a call of its own."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention layer of the model."""

    index: int
    """Global layer index."""
    layer: Any
    """`vllm.model_executor.layers.attention.Attention`."""

    @property
    def kv_cache(self) -> torch.Tensor:
        """The cache of this layer, `[blocks, ...]`; allocated after the model is loaded."""
        cache = self.layer.kv_cache
        return cache[0] if isinstance(cache, list) else cache


class Unwrapped:
    """An attention implementation with its class's own `do_kv_cache_update`, whatever was wrapped on the instance."""

    def __init__(self, impl: Any) -> None:
        self._impl = impl

    def do_kv_cache_update(self, *args: Any) -> None:
        """The backend's write, without injection."""
        type(self._impl).do_kv_cache_update(self._impl, *args)


def attention_layers(forward_context: dict[str, Any]) -> list[AttentionLayer]:
    """All attention layers in layer order. Raises `EngineError` (KVS402) for anything that could be mis-addressed."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.models.utils import extract_layer_index

    layers = []
    for name, layer in forward_context.items():
        if not isinstance(layer, Attention):
            raise EngineError.one(
                "KVS402",
                f"layer `{name}` is a {type(layer).__name__}",
                expected="only full attention layers with a paged KV cache",
            )
        _check(name, layer)
        layers.append(AttentionLayer(extract_layer_index(name), layer))
    layers.sort(key=lambda a: a.index)
    if not layers or [a.index for a in layers] != list(range(len(layers))):
        raise EngineError.one(
            "KVS402",
            f"the model has attention layers {[a.index for a in layers]}",
            expected="layers 0, 1, 2, ... with one attention each",
        )
    return layers


def _check(name: str, layer: Any) -> None:
    backend = layer.attn_backend.get_name()
    if backend not in SUPPORTED:
        raise EngineError.one(
            "KVS402",
            f"attention backend `{backend}` of layer `{name}` is not supported",
            expected=" or ".join(SUPPORTED),
            hint="on a GPU, `engine: {attention_backend: TRITON_ATTN}` has vLLM take another one",
        )
    for condition, what in (
        (getattr(layer.attn_backend, "forward_includes_kv_cache_update", False), "writes its cache inside forward"),
        (getattr(layer, "kv_sharing_target_layer_name", None) is not None, "shares the cache of another layer"),
        (getattr(layer, "sliding_window", None) is not None, "uses a sliding window"),
    ):
        if condition:
            raise EngineError.one("KVS402", f"layer `{name}` {what}", expected="plain full attention")


@dataclass(frozen=True, slots=True)
class Shard:
    """The KV heads of one tensor-parallel rank among those of the whole model."""

    total_heads: int
    first_head: int
    """Global index of the rank's first head."""
    counts: bool = True
    """Whether this rank reports what landed. Where several ranks hold a copy of the same head only one of them does."""

    @classmethod
    def of(cls, total_heads: int, rank: int, ranks: int) -> Shard:
        """As vLLM deals heads out: in order, or each to several ranks if there are fewer heads than ranks. Raises
        `EngineError` (KVS401) where that leaves ranks with more than others."""
        if uneven := check_ranks(total_heads, ranks):
            raise EngineError(uneven)
        if total_heads >= ranks:
            return cls(total_heads, rank * (total_heads // ranks))
        copies = ranks // total_heads
        return cls(total_heads, rank // copies, counts=rank % copies == 0)


def geometry(layers: list[AttentionLayer], total_heads: int | None = None) -> Geometry:
    """The geometry that all layers share, with the KV heads of all tensor-parallel ranks (default: there is one rank).
    Raises `EngineError` (KVS402) if layers differ."""
    shapes = {(a.layer.num_kv_heads, a.layer.head_size) for a in layers}
    if len(shapes) != 1:
        raise EngineError.one(
            "KVS402", f"layers differ in (KV heads, head size): {sorted(shapes)}", expected="one shape for all layers"
        )
    ((heads, dim),) = shapes
    return Geometry(len(layers), heads if total_heads is None else total_heads, dim)


def wrap_read(attention: AttentionLayer, before: Callable[[int], None], after: Callable[[int], None]) -> None:
    """Call `before` and `after` with the layer around each attention, which is what reads the cache; `after` always."""
    impl = attention.layer.impl
    attend = impl.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        before(attention.index)
        try:
            return attend(*args, **kwargs)
        finally:
            after(attention.index)

    impl.forward = forward
