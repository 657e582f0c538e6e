"""The CPU injector between a made-up runner and made-up attention layers: reads without an engine, in a second."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kvspec.engine.planned import PlannedFlips
from kvspec.engine.table import TableData
from kvspec.engine.vllm.cpu import CpuInjector
from kvspec.engine.vllm.layers import AttentionLayer
from kvspec.models import Geometry
from kvspec.plan.dose import SamplerParameters
from kvspec.spec.model import Selector

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 2, 2, 4, 8, 12
PROMPT, NEW = 21, 6


class Attention:
    """Stores K and V as vLLM's CPU backend does, blocks `[H, T, 2 D]`, and remembers what its forward could read."""

    num_kv_heads, head_size = HEADS, DIM

    def __init__(self) -> None:
        self.kv_cache = torch.zeros(BLOCKS, HEADS, BLOCK, 2 * DIM)
        self.impl = Impl(self)
        self.seen: list[np.ndarray[Any, Any]] = []


class Impl:
    def __init__(self, layer: Attention) -> None:
        self._layer = layer

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, kv_cache: torch.Tensor, slots: Any) -> None:
        for k, v, slot in zip(key, value, slots.tolist(), strict=True):
            kv_cache[slot // BLOCK, :, slot % BLOCK] = torch.cat([k, v], dim=-1)

    def forward(self) -> None:
        self._layer.seen.append(self._layer.kv_cache.clone().numpy().view(np.uint32))


class Runner:
    name = "made up"

    def __init__(self, blocks: list[list[int]]) -> None:
        self._blocks = np.array(blocks, dtype=np.int32)

    def hook(self, on_step: Any, on_dummy: Any, on_logits: Any) -> None: ...

    def check_cache(self) -> None: ...

    def block_table(self, rows: int) -> Any:
        return self._blocks[:rows]


STRUCK = {
    ("bf16", "values"): 0xFFFF,
    ("int8_per_token_head", "values"): 0xFF,
    ("int8_per_token_head", "scales"): 0xFFFFFFFF,
}
"""Format and target, and the eligible bits."""


def table(sites: tuple[str, ...], op: str, where: Selector, struck: tuple[str, str] = ("bf16", "values")) -> TableData:
    n, (storage, target) = len(sites), struck
    parameters = SamplerParameters("bit", 0.05, STRUCK[struck], 2, page_tokens=0, page_rate=1.0, target=target)
    keys = np.arange(4 * n, dtype=np.uint32).reshape(2, n, 2)
    return TableData(
        storage_format=storage,
        faults=(parameters,) * n,
        sites=sites,
        ops=(op,) * n,
        selectors=(where,) * n,
        fault=np.arange(n, dtype=np.uint32),
        write_key=keys[0],
        read_master=keys[1],
        request=np.arange(n, dtype=np.uint32),
        prompt_len=np.full(n, PROMPT, dtype=np.uint32),
        armed=np.ones(n, dtype=bool),
        faulty=np.ones(n, dtype=bool),
    )


def scheduled(start: int, count: int, entries: int) -> Any:
    names = [str(i) for i in range(entries)]
    new = [
        SimpleNamespace(
            req_id=name,
            sampling_params=SimpleNamespace(extra_args={"kvspec": int(name)}),
            num_computed_tokens=0,
            block_ids=([],),
        )
        for name in (names if start == 0 else [])
    ]
    cached = names if start else []
    return SimpleNamespace(
        scheduled_new_reqs=new,
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached, num_computed_tokens=[start] * len(cached), new_block_ids=[None] * len(cached)
        ),
        num_scheduled_tokens=dict.fromkeys(names, count),
        finished_req_ids=set(),
    )


@pytest.mark.parametrize("struck", STRUCK)
@pytest.mark.parametrize("op", ["flip", "set0", "set1"])
@pytest.mark.parametrize("chunk", [PROMPT, 5, 1])
@pytest.mark.parametrize("where", [Selector(), Selector(steps=((0, 1), (3, 5)), tokens="prompt", cache=("V",))])
def test_attention_sees_the_faults_and_the_cache_keeps_none(
    op: str, chunk: int, where: Selector, struck: tuple[str, str]
) -> None:
    sites = ("KV_WRITE", "KV_READ", "BOTH")
    blocks = [[1, 9, 3, 7], [2, 4, 11, 5], [6, 8, 10, 0]]
    data, attentions = table(sites, op, where, struck), [Attention() for _ in range(LAYERS)]
    injector = CpuInjector(Runner(blocks), [AttentionLayer(i, a) for i, a in enumerate(attentions)], struck[0])  # type: ignore[arg-type]
    injector.bind()
    injector.load(data)
    random = torch.Generator().manual_seed(chunk)
    forwards = [(s, min(chunk, PROMPT - s)) for s in range(0, PROMPT, chunk)]
    forwards += [(PROMPT + i, 1) for i in range(NEW - 1)]
    for start, count in forwards:
        injector._begin_step(scheduled(start, count, len(sites)), [str(i) for i in range(len(sites))])
        tokens = np.arange(start, start + count)
        slots = np.concatenate([np.array(row)[tokens // BLOCK] * BLOCK + tokens % BLOCK for row in blocks])
        for attention in attentions:
            key, value = torch.randn(2, len(slots), HEADS, DIM, generator=random)
            attention.impl.do_kv_cache_update(None, key, value, attention.kv_cache, torch.from_numpy(slots))
            written = attention.kv_cache.clone().numpy().view(np.uint32)
            attention.impl.forward()
            assert np.array_equal(attention.kv_cache.numpy().view(np.uint32), written)
            differs = (attention.seen[-1] != written).any(axis=(1, 2, 3))
            mine = [differs[row] for row in blocks]
            assert not mine[0].any()
            shown = where.steps == "all" or max(start + count, PROMPT) - PROMPT in (0, 3, 4)
            # of fewer bits, an event of a few tokens may draw none
            assert not shown or op != "flip" or struck[0] != "bf16" or (mine[1].any() and mine[2].any())
            assert shown or not differs.any()
    counts = injector.counts([0, 1, 2])
    planned = PlannedFlips(data, Geometry(LAYERS, HEADS, DIM))
    assert counts["written"] == [PROMPT + NEW - 1] * 3
    assert counts["landed"] == planned.count_all(range(3), [PROMPT + NEW - 1] * 3)
    assert counts["exposed"] == counts["restored"]
    assert counts["exposed"][0] == 0 < counts["exposed"][1]
    changed = np.array(counts["changed"]) / counts["landed"]
    assert (changed == 1).all() if op == "flip" else ((changed > 0.2) & (changed < 0.8)).all()


def test_a_row_is_written_anew_whatever_became_of_its_scale() -> None:
    """Blocks change hands: a scale that a fault left NaN means nothing to the next owner of the row."""
    everything = ("int8_per_token_head", "scales")
    data, attention = table(("KV_WRITE", "KV_WRITE"), "set1", Selector(), everything), Attention()
    data.armed[1] = data.faulty[1] = False
    object.__setattr__(data, "faults", (replace(data.faults[0], rate=1.0),) * 2)
    injector = CpuInjector(Runner([[1, 2, 3, 4]]), [AttentionLayer(0, attention)], everything[0])  # type: ignore[arg-type]
    injector.bind()
    injector.load(data)
    rows = []
    for entry in (0, 1):
        step = scheduled(0, PROMPT, 2)
        step.scheduled_new_reqs = [step.scheduled_new_reqs[entry]]
        step.num_scheduled_tokens = {str(entry): PROMPT}
        injector._begin_step(step, [str(entry)])
        key, value = torch.randn(2, PROMPT, HEADS, DIM, generator=torch.Generator().manual_seed(3))
        slots = torch.from_numpy(np.array([1, 2, 3])[np.arange(PROMPT) // BLOCK] * BLOCK + np.arange(PROMPT) % BLOCK)
        attention.impl.do_kv_cache_update(None, key, value, attention.kv_cache, slots)
        rows.append(attention.kv_cache[1:3].clone())
    assert torch.isnan(rows[0]).all()
    assert torch.isfinite(rows[1]).all()
    assert rows[1].any()


def test_a_read_that_fails_is_taken_back_too() -> None:
    data, attention = table(("KV_READ",), "flip", Selector()), Attention()
    forward = attention.impl.forward

    def fail() -> None:
        forward()
        raise RuntimeError("out of memory")

    attention.impl.forward = fail  # type: ignore[method-assign]
    injector = CpuInjector(Runner([[1, 2, 3, 4]]), [AttentionLayer(0, attention)], "bf16")  # type: ignore[arg-type]
    injector.bind()
    injector.load(data)
    injector._begin_step(scheduled(0, PROMPT, 1), ["0"])
    with pytest.raises(RuntimeError, match="out of memory"):
        attention.impl.forward()
    assert attention.seen[-1].any()
    assert not attention.kv_cache.any()
