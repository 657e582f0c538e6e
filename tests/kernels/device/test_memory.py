"""What the injector allocates once the cache exists is held back before vLLM sizes the cache."""

import pytest
import torch
from kernel_rig import DEVICE
from made_up import HEADS, LAYERS, Attention, Runner

from kvspec.engine.vllm import memory
from kvspec.engine.vllm.cuda import CudaInjector
from kvspec.engine.vllm.layers import AttentionLayer, Shard
from kvspec.errors import EngineError


def made(storage, **kinds):
    layers = [AttentionLayer(i, Attention(storage, False)) for i in range(LAYERS)]
    return CudaInjector(Runner(), layers, storage, shard=Shard(HEADS, 0), **kinds)


@pytest.mark.parametrize("most", [2**30, 500], ids=["all tokens", "a short list"])
@pytest.mark.parametrize(
    ("storage", "kinds"),
    [
        ("bf16", {}),
        ("bf16", {"reads": True}),
        ("bf16", {"reads": True, "stuck_reads": True}),
        ("int8_per_token_head", {"reads": True, "stuck_reads": True, "scales": True}),
    ],
    ids=["writes", "reads", "stuck reads", "scales"],
)
def test_it_takes_no_more_than_was_held_back(storage, kinds, most, monkeypatch):
    monkeypatch.setattr(memory, "READ_LIST_BYTES", most)
    injector = made(storage, **kinds)
    cache = sum(a.kv_cache.numel() * a.kv_cache.element_size() for a in injector.layers)
    # what was available if that cache is what was left
    available = next(n for n in range(cache, 10 * cache, 4) if injector.needs.left(n) >= cache)
    injector.bind()
    names = ("write_cells", "read_cells", "kept")
    sizes = {
        name: sum(getattr(s.kernels, name).numel() for s in injector._struck)
        * injector._values.kernels.kept.element_size()
        for name in names
    }
    taken = sum(sizes.values())
    assert [sizes[name] > 0 for name in names] == [True, "reads" in kinds, "stuck_reads" in kinds]
    assert taken <= available - cache < taken + cache


def test_what_does_not_fit_is_told_by_name(monkeypatch):
    injector = made("bf16", reads=True)

    def bind(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(injector._values, "bind", bind)
    with pytest.raises(EngineError, match="no device memory is left for the lists of faults of reads") as caught:
        injector.bind()
    found = caught.value.diagnostics[0]
    assert (found.code, found.path) == ("KVS406", "$.engine.kv_cache_gib")
    assert "engine.max_num_seqs" in found.hint


def test_a_cache_that_cannot_be_addressed_is_refused_by_name():
    injector = made("bf16")
    whole = torch.zeros(12, 2, 16, HEADS, 8, dtype=torch.bfloat16, device=DEVICE)
    # the planes of a block lie apart from each other
    injector.layers[0].layer.kv_cache = whole.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(EngineError, match="the cache cannot be addressed: the layers differ") as caught:
        injector.bind()
    assert caught.value.diagnostics[0].code == "KVS402"
