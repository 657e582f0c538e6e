"""Requests that come, go and come back, in the engine's device injector: blocks and counts of one are never
another's."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_rig import DEVICE
from made_up import BLOCK, DIM, HEADS, LAYERS, SHAPE, Attention, Runner, few_programs, table

from kvspec.engine.planned import PlannedFlips
from kvspec.engine.vllm.cuda import CudaInjector
from kvspec.engine.vllm.layers import AttentionLayer, Shard
from kvspec.engine.vllm.runner import Batch

FAULTY, OTHER, GOLDEN = "0", "1", "3"
"""Requests, named by their entries of the table."""
PROMPT, TOKENS = 5, 8
ALONE = Shard(HEADS, 0)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    few_programs(monkeypatch)


class Rows(Runner):
    """Requests enter the rows that the test says."""

    def entering(self, scheduled):
        return scheduled.rows


class Engine:
    """An injector, and steps of it in which requests write tokens from 0 on into blocks of their own."""

    def __init__(self, shard=ALONE):
        self.runner = Rows()
        self.attentions = [Attention("bf16", False) for _ in range(LAYERS)]
        layers = [AttentionLayer(i, a) for i, a in enumerate(self.attentions)]
        self.injector = CudaInjector(self.runner, layers, "bf16", shard=shard)
        self.injector.bind()
        self.data = replace(table("bf16", "KV_WRITE", "flip"), prompt_len=np.full(4, PROMPT, np.uint32))
        self.injector.load(self.data)
        for attention in self.attentions:
            attention.kv_cache.fill_(1.0)

    def enter(self, rows, *, new=None, more=None, finished=()):
        """`rows`: (request, row) that enter the batch; `new`, `more`: blocks of new and of other requests."""
        new, more = new or {}, more or {}
        self.scheduled = SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name, sampling_params=SimpleNamespace(extra_args={"kvspec": int(name)}), block_ids=(blocks,)
                )
                for name, blocks in new.items()
            ],
            scheduled_cached_reqs=SimpleNamespace(req_ids=[*more], new_block_ids=[(b,) for b in more.values()]),
            finished_req_ids=set(finished), total_num_scheduled_tokens=TOKENS * len(rows), rows=rows,
        )  # fmt: skip
        self.runner.enter(self.scheduled)

    def forward(self, blocks, *, tokens=TOKENS, nan=()):
        """Each request of `self.scheduled` writes `tokens` tokens to its `blocks`; logits of `nan` are not finite."""
        names, slot = (list(x) for x in zip(*self.scheduled.rows, strict=True))
        n, ints = len(names), {"dtype": torch.int32, "device": DEVICE}
        batch = Batch(
            req_ids=names, slot=np.array(slot), start=np.zeros(n, np.int64), count=np.full(n, tokens),
            slots=torch.tensor(slot, **ints), query_start=torch.arange(n + 1, **ints) * tokens,
            seq_lens=torch.full((n,), tokens, **ints),
        )  # fmt: skip
        self.runner.step(self.scheduled, batch)
        at = torch.tensor([blocks[name][t // BLOCK] * BLOCK + t % BLOCK for name in names for t in range(tokens)])
        for attention in self.attentions:
            rows = torch.ones(len(at), HEADS, DIM, dtype=torch.bfloat16, device=DEVICE)
            attention.impl.do_kv_cache_update(None, rows, rows, attention.kv_cache, at.to(DEVICE))
        logits = torch.zeros(n, 32, device=DEVICE)
        logits[[names.index(name) for name in nan]] = torch.nan
        self.runner.logits(torch.full((n, 8), torch.nan, dtype=torch.bfloat16, device=DEVICE), logits)

    def blocks(self, value):
        """Blocks that hold nothing but `value`, in every layer."""
        held = [a.kv_cache.flatten(1).eq(value).all(dim=1).cpu().numpy() for a in self.attentions]
        assert (held[0] == held[1]).all()
        return set(np.flatnonzero(held[0]).tolist())


def test_blocks_that_held_faults_are_zero_for_their_next_owner():
    engine = Engine()
    engine.enter([(FAULTY, 0)], new={FAULTY: [1, 9]})
    engine.forward({FAULTY: [1, 9]})
    engine.enter([], more={FAULTY: [4]})
    assert engine.blocks(0.0) == set()
    # to a golden request, at its start and as it grows; 5 held none
    engine.enter([(GOLDEN, 0)], new={GOLDEN: [9, 5]}, finished=[FAULTY])
    assert engine.blocks(0.0) == {9}
    engine.enter([], more={GOLDEN: [4]})
    assert engine.blocks(0.0) == {4, 9}
    for attention in engine.attentions:
        attention.kv_cache[[4, 9]] = 1.0
    # what the golden request held is nobody's fault; 1 still is, and a faulty request finds no fault either
    engine.enter([(OTHER, 0)], new={OTHER: [9, 4, 1]}, finished=[GOLDEN])
    assert engine.blocks(0.0) == {1}
    engine.enter([], more={OTHER: [9]})
    assert engine.blocks(0.0) == {1, 9}


@pytest.mark.parametrize(
    ("back", "meanwhile"),
    [(0, None), (2, None), (2, "before"), (2, "at once"), (2, "after")],
    ids=["old row", "new row", "row taken before", "row taken at once", "row taken after"],
)
def test_a_request_that_starts_over_counts_anew(back, meanwhile):
    """Preempted after its prompt, in row 0; its blocks and perhaps its row are another's meanwhile."""
    engine, mine, its = Engine(), {FAULTY: [1, 9]}, {OTHER: [2, 4]}
    engine.enter([(FAULTY, 0)], new=mine)
    engine.forward(mine, tokens=PROMPT, nan=[FAULTY])
    if meanwhile == "before":
        engine.enter([(OTHER, 0)], new=its)
        engine.forward(its)
    if meanwhile == "at once":
        engine.enter([(FAULTY, back), (OTHER, 0)], new=its, more=mine)
    else:
        engine.enter([(FAULTY, back)], more=mine)
    engine.forward(mine | its)
    if meanwhile == "after":
        engine.enter([(OTHER, 0)], new=its)
        engine.forward(its)
    planned = PlannedFlips(engine.data, SHAPE)
    counts = engine.injector.counts([0, 1])
    assert counts["landed"] == planned.count_all([0, 1], [TOKENS, TOKENS if meanwhile else 0])
    assert counts["landed"][0] > 10
    assert counts["preemptions"] == [1, 0]
    assert counts["nonfinite_at"] == [-1, -1]


def test_one_of_two_ranks_with_the_same_heads_tells_of_them():
    """Its faults are in its cache all the same."""
    told, silent = Engine(), Engine(Shard(HEADS, 0, counts=False))
    for engine in (told, silent):
        engine.enter([(FAULTY, 0)], new={FAULTY: [1, 9]})
        engine.forward({FAULTY: [1, 9]})
    assert torch.equal(told.attentions[0].kv_cache, silent.attentions[0].kv_cache)
    assert told.injector.counts([0])["landed"][0] > 10
    assert silent.injector.counts([0])["landed"] == [0]
