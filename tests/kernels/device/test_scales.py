"""Faults of scales in the engine's device injector: int8 and int4 rows with their float32 behind them, byte for byte
against the enumerated flips, between a made-up runner and a made-up backend."""

import numpy as np
import pytest
import torch
from kernel_rig import DEVICE
from made_up import (
    BLOCK,
    DIM,
    HEADS,
    LAYERS,
    NEW,
    PROMPT,
    SHAPE,
    TABLE,
    Attention,
    Runner,
    few_programs,
    scheduled,
    table,
)

from kvspec import _native
from kvspec.engine.events import SITE_COLUMNS, TYPES, EventData
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.vllm.cuda import CudaInjector
from kvspec.engine.vllm.layers import AttentionLayer, Shard
from kvspec.engine.vllm.readback import ReadBack
from kvspec.engine.vllm.runner import Batch
from kvspec.models import Geometry

ALONE = Shard(HEADS, 0)
WHOLE = Geometry(LAYERS, 2 * HEADS, DIM)
"""The model of which a made-up layer is one of two ranks."""


def drawn(data, op, shape=SHAPE):
    """What a table strikes, enumerated: (entry, layer, read event or `None`, tokens) -> sites with op and target."""
    from kvspec.engine.table import native_selector

    def changes(entry, layer, event, tokens):
        parameters, site = data.faults[entry], data.sites[entry]
        if site == ("KV_READ" if event is None else "KV_WRITE"):
            return
        keys = data.write_key if event is None else data.read_master
        key = tuple(keys[entry].tolist())
        found = parameters.sampler(shape, _native.format_bits(data.storage_format)).enumerate(
            key=key if event is None else _native.read_key(key, entry, event), request=entry, layers=(layer, layer + 1),
            tokens=tokens, prompt_len=PROMPT, selector=native_selector(data.selectors[entry]),
        )  # fmt: skip
        for site in zip(*(found[n].tolist() for n in ("kv", "head", "token", "elem", "bit")), strict=True):
            yield *site, op, parameters.target

    return changes


def listed_in(data):
    """What listed faults strike, in the same form."""
    from kvspec.engine.events import OPS, WRITE
    from kvspec.spec.model import TARGETS

    names = ("step", "layer", "token", "kv", "head", "elem", "bit", "op", "target")
    rows = np.stack([data.columns[n].astype(np.int64) for n in names], axis=1)

    def changes(entry, layer, event, tokens):
        mine = rows[int(data.starts[entry]) : int(data.starts[entry + 1])]
        for step, at, token, kv, head, elem, bit, op, target in mine.tolist():
            if (step, at) == (WRITE if event is None else event, layer) and tokens[0] <= token < tokens[1]:
                yield kv, head, token, elem, bit, OPS[op], TARGETS[target]

    return changes


def strike(rows, entry, sites, row_bytes):
    """Apply sites to `rows` `[2, blocks, tokens, heads, codes | scale]`, numpy uint8."""
    for kv, head, token, elem, bit, op, target in sites:
        row = rows[kv, TABLE[entry][token // BLOCK], token % BLOCK, head]
        if target == "scales":
            at, bit = row_bytes + bit // 8, bit % 8
        elif row_bytes == 2 * DIM:
            at, bit = 2 * elem + bit // 8, bit % 8
        else:
            at, bit = (elem // 2, bit + 4 * (elem % 2)) if row_bytes != DIM else (elem, bit)
        mask = np.uint8(1 << bit)
        row[at] = {"flip": row[at] ^ mask, "set0": row[at] & ~mask, "set1": row[at] | mask}[op]


def of_rank(changes, shard):
    """Those of `changes` in the heads of a rank, whose first one is number 0 of its cache."""

    def mine(*where):
        for kv, head, *rest in changes(*where):
            if shard.first_head <= head < shard.first_head + HEADS:
                yield kv, head - shard.first_head, *rest

    return mine


def drive(data, storage, packed, changes, watch=None, shard=ALONE, **kinds):
    """Write a prompt and a few tokens, and hold every byte against `changes`, before and after each attention; what was
    counted."""
    changes = of_rank(changes, shard)
    runner = Runner()
    attentions, clean = ([Attention(storage, packed) for _ in range(LAYERS)] for _ in range(2))
    injector = CudaInjector(
        runner, [AttentionLayer(i, a) for i, a in enumerate(attentions)], storage, shard=shard, **kinds
    )
    injector.bind()
    injector.load(data)
    injector.watch(watch)
    expected = [np.zeros(tuple(clean[0].rows(clean[0].kv_cache).shape), np.uint8) for _ in range(LAYERS)]
    random = torch.Generator().manual_seed(7)
    n, ints = len(TABLE), {"dtype": torch.int32, "device": DEVICE}
    for start, count in ((0, PROMPT), *((PROMPT + i, 1) for i in range(NEW))):
        step, seen = scheduled(start, count, n), start + count
        runner.enter(step)
        batch = Batch(
            req_ids=[str(i) for i in range(n)], slot=np.arange(n), start=np.full(n, start), count=np.full(n, count),
            slots=torch.arange(n, **ints), query_start=torch.arange(n + 1, **ints) * count,
            seq_lens=torch.full((n,), seen, **ints),
        )  # fmt: skip
        runner.step(step, batch)
        tokens = np.arange(start, seen)
        slots = np.concatenate([np.array(row)[tokens // BLOCK] * BLOCK + tokens % BLOCK for row in TABLE])
        for layer, (attention, held) in enumerate(zip(attentions, expected, strict=True)):
            key, value = torch.randn(2, len(slots), HEADS, DIM, generator=random).to(torch.bfloat16).to(DEVICE)
            at = torch.from_numpy(slots).to(DEVICE)
            attention.impl.do_kv_cache_update(None, key, value, attention.kv_cache, at)
            clean[layer].impl.do_kv_cache_update(None, key, value, clean[layer].kv_cache, at)
            fresh = clean[layer].rows(clean[layer].kv_cache).cpu().numpy()
            held[:, slots // BLOCK, slots % BLOCK] = fresh[:, slots // BLOCK, slots % BLOCK]
            for entry in range(n):
                strike(held, entry, changes(entry, layer, None, (start, seen)), attention.row)
            shown = held.copy()
            for entry in range(n):
                strike(shown, entry, changes(entry, layer, max(seen, PROMPT), (0, seen)), attention.row)
            attention.impl.forward(None, None, None, None, attention.kv_cache)
            np.testing.assert_array_equal(attention.rows(attention.seen[-1]).cpu().numpy(), shown)
        for attention, held in zip(attentions, expected, strict=True):
            np.testing.assert_array_equal(attention.rows(attention.kv_cache).cpu().numpy(), held)
    counts = injector.counts(list(range(n)))
    assert counts["exposed"] == counts["restored"]
    return counts, injector.canary


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    few_programs(monkeypatch)


@pytest.mark.parametrize("storage", ["bf16", "int8_per_token_head", "int4_per_token_head"])
@pytest.mark.parametrize(("site", "op", "packed"), [("BOTH", "flip", False), ("BOTH", "set0", True)])
def test_drawn_faults_strike_codes_and_scales_byte_for_byte(storage, site, op, packed):
    data = table(storage, site, op)
    counts, _ = drive(
        data, storage, packed, drawn(data, op), reads=True, stuck_reads=op != "flip", scales=storage != "bf16"
    )
    planned = PlannedFlips(data, SHAPE)
    assert counts["landed"] == planned.count_all(range(4), [PROMPT + NEW] * 4)
    assert all(landed > 0 for landed in counts["landed"][:3])
    assert all(exposed > 0 for exposed in counts["exposed"][:3])
    assert counts["landed"][3] == counts["exposed"][3] == 0


def test_two_ranks_hold_the_faults_of_one_model_each_in_its_heads():
    data = table("bf16", "KV_WRITE", "flip")
    ranks = [Shard(2 * HEADS, 0), Shard(2 * HEADS, HEADS)]
    struck = drawn(data, "flip", WHOLE)
    found = [drive(data, "bf16", False, struck, shard=rank)[0]["landed"] for rank in ranks]
    planned = PlannedFlips(data, WHOLE)
    assert [sum(landed) for landed in zip(*found, strict=True)] == planned.count_all(range(4), [PROMPT + NEW] * 4)
    assert min(found[0][0], found[1][0], found[0][1], found[1][1]) > 0


@pytest.mark.parametrize(
    ("storage", "first"), [("bf16", 0), ("bf16", HEADS), ("int8_per_token_head", 0), ("int4_per_token_head", 0)]
)
def test_listed_faults_strike_codes_and_scales_byte_for_byte(storage, first):
    """Of rank 0 of one, and of the second rank of two."""
    rng, parts, scaled = np.random.default_rng(5), [], storage != "bf16"
    for _ in range(3):
        values = (1, 1, LAYERS, 2, first + HEADS, PROMPT + NEW, DIM, _native.format_bits(storage), 1)
        scales = (*values[:6], 1, 32, 1) if scaled else values
        tops = zip(values, scales, strict=True)
        sites = np.stack([np.append(rng.integers(0, v, 30), rng.integers(0, s, 30)) for v, s in tops], 1)
        sites[30:, 8] = scaled
        sites[::2, 1] = rng.integers(PROMPT, PROMPT + NEW + 1, 30)  # the others are of writes
        sites = np.unique(sites, axis=0)
        parts.append(sites[(sites[:, 1] == 0) | (sites[:, 5] < sites[:, 1])])
    sites = np.concatenate(parts)
    columns = [*sites.T[:8], rng.integers(0, 3, len(sites)), sites.T[8]]
    data = EventData(
        storage_format=storage,
        starts=np.cumsum([0, *map(len, parts), 0]).astype(np.uint64),
        columns={n: c.astype(t) for n, c, t in zip(SITE_COLUMNS, columns, TYPES, strict=True)},
        prompt_len=np.full(4, PROMPT, np.uint32),
        armed=np.ones(4, bool),
        faulty=np.array([True, True, True, False]),
    )
    watch = ReadBack(storage, data.starts, data.columns, data.prompt_len, record=True)
    shard = Shard(first + HEADS, first)
    counts, seen = drive(data, storage, False, listed_in(data), watch, shard, reads=True, scales=scaled)
    shown = [
        sum(
            int(head >= first and (token < PROMPT + NEW if step == 0 else step <= PROMPT + NEW))
            for step, head, token in part[:, [1, 4, 5]].tolist()
        )
        for part in parts
    ]
    assert counts["landed"] == [*shown, 0]
    assert (seen.landed.tolist(), seen.mismatches.tolist()) == ([*shown, 0], [0] * 4)
    assert all(exposed > 0 for exposed in counts["exposed"][:3])
