"""How the GPU engine finds its way in a cache, with backends that store formats as vLLM's do."""

import numpy as np
import pytest
import torch

pytest.importorskip("kvspec_kernels")

from types import SimpleNamespace

from kvspec_kernels.cache import CacheView

from kvspec import _native
from kvspec.engine.session import Shape, _settings
from kvspec.engine.vllm.layers import Shard
from kvspec.engine.vllm.views import find_views
from kvspec.errors import EngineError
from kvspec.models import Geometry
from kvspec.spec.model import EngineSpec, ModelSpec

HEADS, DIM, TOKENS, BLOCKS = 3, 16, 4, 5
LAYER = SimpleNamespace(num_kv_heads=HEADS, head_size=DIM)


class Backend:
    """Writes rows `[tokens, heads, D]` to `[blocks, 2, tokens, heads, D]` or `[blocks, heads, tokens, 2 D]`."""

    def __init__(self, storage_format, *, packed=False, swapped=False):
        self.format, self.packed, self.swapped = storage_format, packed, swapped
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(storage_format, torch.uint8)
        self.row = DIM // 2 if storage_format.startswith("int4") else DIM
        self.whole = self.row + (4 if _native.format_scaled(storage_format) else 0)

    def cache(self):
        shape = (BLOCKS, HEADS, TOKENS, 2 * self.whole) if self.packed else (BLOCKS, 2, TOKENS, HEADS, self.whole)
        return torch.full(shape, 7, dtype=self.dtype)

    def stored(self, rows):
        if self.dtype != torch.uint8:
            return rows.to(self.dtype)
        values = rows.float().reshape(-1, DIM).numpy()
        if self.format.startswith("int4"):
            values = values @ np.where(np.arange(DIM * DIM).reshape(DIM, DIM) * 7 % 3, 1, -1).astype(np.float32)
        values = np.ascontiguousarray(values)
        scales = _native.quantize(self.format, values) if _native.format_scaled(self.format) else None
        codes = torch.from_numpy(_native.encode(self.format, values, scales).astype(np.uint8)).view(*rows.shape)
        if self.format.startswith("int4"):
            codes = codes[..., ::2] | codes[..., 1::2] << 4
        if scales is None:
            return codes
        behind = torch.from_numpy(scales.view(np.uint8).copy()).view(*rows.shape[:2], 4)
        return torch.cat([codes, behind], dim=-1)

    def do_kv_cache_update(self, layer, key, value, cache, slots):
        if self.swapped:
            key = key.roll(1, dims=1)
        for plane, rows in enumerate((key, value)):
            for slot, row in zip(slots.tolist(), self.stored(rows), strict=True):
                block, inside = divmod(slot, TOKENS)
                if self.packed:
                    cache[block, :, inside, plane * self.whole : (plane + 1) * self.whole] = row
                else:
                    cache[block, plane, inside] = row


FORMATS = ["bf16", "fp16", "fp8_e4m3", "int8_per_token_head", "int4_per_token_head"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("storage_format", FORMATS)
def test_views_are_found_and_the_probed_block_is_restored(storage_format, packed):
    backend = Backend(storage_format, packed=packed)
    cache = backend.cache()
    views = find_views(backend, LAYER, cache, storage_format)
    assert (cache == 7).all()
    assert views.block_tokens == TOKENS
    assert views.key.shape == views.value.shape == (BLOCKS, TOKENS, HEADS, backend.row)
    # a flip by address is the flip that plain indexing sees
    cache.zero_()
    view = CacheView.of(views.key, views.value, bits=views.bits)
    at = 2 * view.block_stride + view.kv_stride + view.token_stride + 2 * view.head_stride + 5 * view.elem_stride
    words = cache.view(torch.uint8).view(-1).view(torch.int32)
    per_word = 32 // view.bits
    start = (view.words.data_ptr() - cache.data_ptr()) // 4
    words[start + at // per_word] ^= 1 << (at % per_word * view.bits)
    seen = views.at(torch.tensor([2]), torch.tensor([1]))
    assert [tuple(i) for i in torch.nonzero(seen.values.float() != 0).tolist()] == [(1, 0, 2, 5)]


@pytest.mark.parametrize("storage_format", FORMATS)
def test_a_backend_that_puts_heads_elsewhere_is_refused(storage_format):
    backend = Backend(storage_format, swapped=True)
    with pytest.raises(EngineError) as raised:
        find_views(backend, LAYER, backend.cache(), storage_format)
    assert raised.value.diagnostics[0].code == "KVS402"


def test_an_unknown_shape_is_refused_by_name():
    with pytest.raises(EngineError, match=r"\(5, 3, 4, 16, 2\)"):
        find_views(Backend("bf16"), LAYER, torch.zeros(5, 3, 4, 16, 2, dtype=torch.bfloat16), "bf16")


@pytest.mark.parametrize(("heads", "ranks"), [(8, 1), (8, 2), (8, 8), (3, 1), (2, 4), (1, 8)])
def test_ranks_hold_every_head_and_count_it_once(heads, ranks):
    shards = [Shard.of(heads, rank, ranks) for rank in range(ranks)]
    local = max(1, heads // ranks)
    held = [range(s.first_head, s.first_head + local) for s in shards]
    assert {h for r in held for h in r} == set(range(heads))
    counted = [h for s, r in zip(shards, held, strict=True) if s.counts for h in r]
    assert sorted(counted) == list(range(heads))


@pytest.mark.parametrize(("heads", "ranks"), [(8, 3), (3, 2), (2, 3), (4, 6)])
def test_ranks_that_heads_cannot_be_dealt_out_to_are_refused_before_the_engine_starts(heads, ranks):
    shape = Shape(64, 4, Geometry(2, heads, 16))
    with pytest.raises(EngineError, match=f"{heads} KV heads cannot be dealt out evenly to {ranks} GPUs") as caught:
        _settings(ModelSpec("m"), "m", EngineSpec(tensor_parallel=ranks), "bf16", shape, "cuda")
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KVS401", "$.engine.tensor_parallel")
    assert found.expected == f"a divisor or a multiple of {heads}"


def test_ranks_may_be_more_than_heads():
    shape = Shape(64, 4, Geometry(2, 2, 16))
    settings = _settings(ModelSpec("m"), "m", EngineSpec(tensor_parallel=4), "bf16", shape, "cuda")
    assert settings["tensor_parallel_size"] == 4


@pytest.mark.parametrize(
    ("storage_format", "dim", "multiple"),
    [("int8_per_token_head", 6, 4), ("int4_per_token_head", 12, 8), ("int4_per_token_head", 5, 8)],
)
def test_rows_whose_scale_is_no_aligned_word_are_refused_by_name(storage_format, dim, multiple):
    whole = (dim if storage_format.startswith("int8") else dim // 2) + 4
    cache = torch.zeros(BLOCKS, 2, TOKENS, HEADS, whole, dtype=torch.uint8)
    layer = SimpleNamespace(num_kv_heads=HEADS, head_size=dim)
    with pytest.raises(EngineError, match=f"rows of {dim} elements in {storage_format}") as caught:
        find_views(Backend(storage_format), layer, cache, storage_format)
    found = caught.value.diagnostics[0]
    assert (found.code, found.expected) == ("KVS402", f"a head size that is a multiple of {multiple}")
