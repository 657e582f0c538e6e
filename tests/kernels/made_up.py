"""A made-up runner and a made-up backend for the engine's device injector: real caches, real hooks, no vLLM."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from kernel_rig import DEVICE
from kvspec_kernels import Tuning

from kvspec import _native
from kvspec.engine.table import TableData
from kvspec.engine.vllm import struck
from kvspec.models import Geometry
from kvspec.plan.dose import SamplerParameters
from kvspec.spec.model import Selector

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 2, 3, 8, 16, 12
PROMPT, NEW = 18, 1
FEW = Tuning(write_programs=1, read_programs=1, inject_programs=2, event_programs=1, vocab_programs=1)
"""The interpreter runs one program after the other."""
SHAPE = Geometry(LAYERS, HEADS, DIM)
TABLE = [[1, 9, 3], [2, 4, 11], [6, 8, 10], [5, 7, 0]]


class Attention:
    """Quantizes rows as vLLM does and keeps them as `[blocks, 2, tokens, heads, codes | scale]` (0.25.1) or
    `[blocks, heads, tokens, K | V]` (0.32)."""

    num_kv_heads, head_size = HEADS, DIM

    def __init__(self, storage, packed):
        self.storage, self.packed = storage, packed
        self.row = {"int4_per_token_head": DIM // 2, "bf16": 2 * DIM}.get(storage, DIM)
        whole = self.row + 4 * _native.format_scaled(storage)
        shape = (BLOCKS, HEADS, BLOCK, 2 * whole) if packed else (BLOCKS, 2, BLOCK, HEADS, whole)
        self.whole, self.dtype = whole, torch.bfloat16 if storage == "bf16" else torch.uint8
        self.kv_cache = torch.zeros(shape, dtype=torch.uint8, device=DEVICE).view(self.dtype)
        self.impl = Impl(self)
        self.seen = []

    def rows(self, cache):
        """`[2, blocks, tokens, heads, codes | scale]`, bytes"""
        cache = cache.view(torch.uint8)
        if not self.packed:
            return cache.permute(1, 0, 2, 3, 4)
        return torch.stack(cache.transpose(1, 2).split(self.whole, dim=-1))


class Impl:
    def __init__(self, layer):
        self._layer = layer

    def do_kv_cache_update(self, layer, key, value, kv_cache, slots):
        mine = self._layer
        planes = []
        for rows in (key, value):
            if mine.storage == "bf16":
                planes.append(rows.cpu().contiguous().view(torch.uint8))
                continue
            values = rows.float().cpu().contiguous().view(-1, DIM).numpy().copy()
            codes = np.zeros(values.shape, np.uint8)
            scales = _native.quantize(mine.storage, values, codes)
            if mine.row != DIM:
                codes = codes[:, ::2] | codes[:, 1::2] << 4
            whole = np.concatenate([codes, scales.view(np.uint8).reshape(-1, 4)], axis=1)
            planes.append(torch.from_numpy(whole).view(len(rows), HEADS, -1))
        kv_cache = kv_cache.view(torch.uint8)
        where, inside = slots.cpu() // BLOCK, slots.cpu() % BLOCK
        real = slots.cpu() >= 0
        if mine.packed:
            kv_cache[where[real], :, inside[real]] = torch.cat(planes, dim=-1)[real].to(DEVICE)
        else:
            for plane, rows in enumerate(planes):
                kv_cache[where[real], plane, inside[real]] = rows[real].to(DEVICE)

    def forward(self, layer, query, key, value, kv_cache, *_):
        self._layer.seen.append(kv_cache.clone())


class Runner:
    name, max_requests, max_tokens, max_model_len, blocks = "made up", 4, 128, 64, BLOCKS
    device = torch.device(DEVICE)
    block_table = torch.tensor(TABLE, dtype=torch.int32, device=DEVICE)

    def check_cache(self): ...

    def hook(self, on_requests, on_step, on_dummy, on_logits):
        self.enter, self.step, self.logits = on_requests, on_step, on_logits

    def entering(self, scheduled):
        return [(new.req_id, int(new.req_id)) for new in scheduled.scheduled_new_reqs]


def scheduled(start, count, entries):
    names = [str(i) for i in range(entries)]
    new = [
        SimpleNamespace(
            req_id=name, sampling_params=SimpleNamespace(extra_args={"kvspec": int(name)}), num_computed_tokens=0,
            block_ids=([],),
        )
        for name in (names if start == 0 else [])
    ]  # fmt: skip
    cached = names if start else []
    return SimpleNamespace(
        scheduled_new_reqs=new,
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached, num_computed_tokens=[start] * len(cached), new_block_ids=[None] * len(cached)
        ),
        num_scheduled_tokens=dict.fromkeys(names, count),
        total_num_scheduled_tokens=count * entries, finished_req_ids=set(),
    )  # fmt: skip


def table(storage, site, op):
    """A trial of values, two of scales, and one that hits nothing."""
    bits = _native.format_bits(storage)
    values = SamplerParameters("bit", 0.002, (1 << bits) - 1, 1, 0, 1.0)
    scales = SamplerParameters("bit", 0.004, 0xFFFFFFFF, 3, 0, 1.0, "scales")
    rows = SamplerParameters("row", 0.05, 0x7F800000, 1, 0, 1.0, "scales")
    if storage == "bf16":
        scales, rows = (replace(p, target="values", mask=0xFF80) for p in (scales, rows))
    keys = np.arange(16, dtype=np.uint32).reshape(2, 4, 2)
    return TableData(
        storage_format=storage,
        faults=(values, scales, rows, SamplerParameters("bit", 0.0, 1, 1, 0, 1.0)),
        sites=(site,) * 4,
        ops=(op,) * 4,
        selectors=(Selector(), Selector(), Selector(heads=((1, 3),), cache=("V",)), Selector()),
        fault=np.arange(4, dtype=np.uint32),
        write_key=keys[0],
        read_master=keys[1],
        request=np.arange(4, dtype=np.uint32),
        prompt_len=np.full(4, PROMPT, dtype=np.uint32),
        armed=np.ones(4, dtype=bool),
        faulty=np.array([True, True, True, False]),
    )


def few_programs(monkeypatch):
    """Let the injector launch few programs where they run one after the other."""
    if DEVICE == "cpu":
        monkeypatch.setattr(struck, "Kernels", partial(struck.Kernels, tuning=FEW))
