"""Parts of the engine that need torch but no engine."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvspec.engine.vllm.cpu import nonfinite_rows
from kvspec.engine.vllm.step import FOREIGN, Grants, Requests, Step
from kvspec.engine.vllm.taint import Taint, zero_blocks
from kvspec.engine.vllm.tally import FLIPS, Tally

BAD = [float("nan"), float("inf"), float("-inf")]


@given(
    st.lists(st.sampled_from(["fine", "nan", "inf", "huge"]), min_size=1, max_size=9),
    st.integers(0, 2**31),
)
def test_nonfinite_logits_are_found_exactly(rows: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(rows), 16, generator=generator)
    weights = torch.randn(16, 50, generator=generator)
    for row, kind in zip(hidden, rows, strict=True):
        if kind != "fine":
            row[3] = {"nan": float("nan"), "inf": float("inf"), "huge": 2e38}[kind]
    logits = hidden @ weights
    assert nonfinite_rows(hidden, logits).tolist() == (~torch.isfinite(logits).all(-1)).tolist()


def scheduled(**changes: Any) -> SimpleNamespace:
    base: dict[str, Any] = {
        "scheduled_new_reqs": [],
        "scheduled_cached_reqs": SimpleNamespace(req_ids=[], num_computed_tokens=[], new_block_ids=[]),
        "num_scheduled_tokens": {},
        "finished_req_ids": set(),
    }
    return SimpleNamespace(**{**base, **changes})


def new(request: str, entry: int | None, blocks: list[int], computed: int = 0) -> SimpleNamespace:
    extra = None if entry is None else {"kvspec": entry}
    return SimpleNamespace(
        req_id=request,
        sampling_params=SimpleNamespace(extra_args=extra),
        num_computed_tokens=computed,
        block_ids=(blocks,),
    )


def test_rows_follow_the_batch_order_and_foreign_requests_are_left_out() -> None:
    requests = Requests()
    first = scheduled(
        scheduled_new_reqs=[new("a", 7, [1, 2]), new("x", None, [3]), new("b", 4, [5])],
        num_scheduled_tokens={"a": 9, "x": 2, "b": 5},
    )
    grants = requests.observe(first)
    assert grants.entry.tolist() == [7, 7, FOREIGN, 4]
    assert grants.block.tolist() == [1, 2, 3, 5]
    step = requests.step(first, ["b", "x", "a"])
    assert step.row.tolist() == [0, 2]
    assert step.entry.tolist() == [4, 7]
    assert step.start.tolist() == [0, 0]
    assert step.count.tolist() == [5, 9]
    second = scheduled(
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=["a", "b"], num_computed_tokens=[9, 5], new_block_ids=[None, ([8],)]
        ),
        num_scheduled_tokens={"a": 1, "b": 1},
    )
    assert requests.observe(second).block.tolist() == [8]
    assert requests.step(second, ["a", "b"]).start.tolist() == [9, 5]
    requests.observe(scheduled(finished_req_ids={"a"}))
    assert requests.step(second, ["a", "b"]).entry.tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_tainted_blocks_are_zeroed_once_when_handed_out_again(dtype: torch.dtype) -> None:
    taint, cache = Taint(), torch.full((6, 2), float("nan")).to(dtype)
    faulty = np.array([True, False, False])

    def grants(*pairs: tuple[int, int]) -> Grants:
        entry, block = zip(*pairs, strict=True)
        return Grants(np.array(entry), np.array(block))

    layers = [cache, cache.clone()]
    zero = partial(zero_blocks, layers)
    assert taint.hand_out(grants((0, 1), (1, 2)), faulty, zero) == 0
    assert taint.hand_out(grants((1, 1), (1, 2), (FOREIGN, 3)), faulty, zero) == 1
    for layer in layers:
        assert layer[1].tolist() == [0, 0]
        assert all(torch.isnan(layer[i].float()).all() for i in (0, 2, 3, 4, 5))
    cache[1] = float("nan")
    assert taint.hand_out(grants((1, 1)), faulty, zero) == 0


def test_a_request_that_starts_over_is_counted_anew() -> None:
    tally = Tally(2)

    def step(start: int, count: int) -> Step:
        return Step(*(np.array([x], dtype=np.uint32) for x in (0, 1, start, count)))

    tally.begin(step(0, 5))
    faults = SimpleNamespace(**{name: np.array([i + 1, i]) for i, name in enumerate(FLIPS)})
    tally.add(np.array([1, 1], dtype=np.uint32), faults)  # type: ignore[arg-type]
    tally.nonfinite_at[1] = 2
    tally.begin(step(5, 1))
    flips = {"landed": [1], "changed": [3], "exposed": [5], "restored": [7]}
    assert tally.of([1]) == {**flips, "written": [6], "preemptions": [0], "nonfinite_at": [2]}
    tally.begin(step(0, 6))
    flips = {name: [0] for name in FLIPS}
    assert tally.of([1]) == {**flips, "written": [6], "preemptions": [1], "nonfinite_at": [-1]}


def test_listed_faults_are_found_in_the_steps_that_write_or_read_their_tokens() -> None:
    pytest.importorskip("kvspec_kernels")
    from kvspec.engine.events import EventData
    from kvspec.engine.vllm.listed import Listed

    rng = np.random.default_rng(3)
    sizes, prompts = [0, 900, 140, 420], [4, 13, 25, 6]
    tops = {"request": 1, "layer": 3, "kv": 2, "head": 4, "token": 20, "elem": 8, "bit": 16, "op": 3, "target": 1}
    columns = {name: rng.integers(0, top, sum(sizes)) for name, top in tops.items()}
    columns["step"] = rng.choice([0, 12, 13, 25], sum(sizes))
    entry = np.repeat(np.arange(4), sizes)
    starts = np.cumsum([0, *sizes]).astype(np.uint64)
    prompt_len = np.array(prompts, np.uint32)
    listed = Listed(EventData("bf16", starts, columns, prompt_len, np.ones(4, bool), np.ones(4, bool)))
    assert len(listed) == sum(sizes)
    assert listed.reads
    assert listed.stuck_reads
    # rows of the batch: entry 3 decodes, a stranger, entry 1 ends its prefill, entry 0 prefills, entry 2 is in a chunk
    # of one token; then entry 1 comes back after a preemption, as one prefill of several events
    entries = np.array([3, FOREIGN, 1, 0, 2])
    batch = SimpleNamespace(
        slot=np.array([7, 2, 5, 0, 1]), start=np.array([11, 0, 4, 0, 19]), count=np.array([1, 6, 9, 3, 1])
    )
    again = SimpleNamespace(slot=np.array([3]), start=np.array([0]), count=np.array([14]))
    found = {"write": set(), "read": set()}
    for now, who in ((batch, entries), (again, np.array([1]))):
        rows = np.cumsum(now.count) - now.count
        expected: dict[str, list[Any]] = {"write": [], "read": []}
        for i, e in enumerate(who):
            seen, event = now.start[i] + now.count[i], None
            if e != FOREIGN and (seen <= prompts[e] or now.count[i] == 1):
                event = max(seen, prompts[e])
            for n in np.flatnonzero(entry == e):
                c = {name: int(column[n]) for name, column in columns.items()}
                site = (c["token"], c["kv"], c["head"], c["elem"], 1 << c["bit"], c["op"])
                if c["step"] == 0 and now.start[i] <= c["token"] < seen:
                    place = rows[i] + c["token"] - now.start[i]
                    expected["write"].append((c["layer"], int(now.slot[i]), int(place), *site, 1))
                if c["step"] > 0 and c["step"] == event and c["token"] < seen:
                    new = int(c["token"] >= now.start[i] or seen > prompts[e])
                    expected["read"].append((c["layer"], int(now.slot[i]), i, *site, new))
        for kind, of in (("write", listed.writes_of), ("read", listed.reads_of)):
            layer, table = of(now, who)  # type: ignore[arg-type]
            assert layer.tolist() == sorted(layer.tolist())
            assert sorted(zip(layer.tolist(), *table.tolist(), strict=True)) == sorted(expected[kind])
            found[kind] |= {(row[1], row[-1]) for row in expected[kind]}
    assert found == {"write": {(7, 1), (5, 1), (1, 1), (3, 1)}, "read": {(7, 1), (5, 0), (5, 1), (1, 0), (1, 1)}}
    nothing, none = listed.reads_of(batch, np.full(5, FOREIGN))  # type: ignore[arg-type]
    assert (len(nothing), none.shape) == (0, (9, 0))


CLOSING = """
import faulthandler, gc, sys, types
from vllm.distributed.device_communicators import shm_broadcast
from kvspec.engine.vllm.sockets import worker_sockets

queue = shm_broadcast.MessageQueue
if hasattr(queue, "_close_zmq_on_collect"):
    queue._close_zmq_on_collect = lambda *_: None  # as before vLLM 0.32
writer = queue(1, 1)
executor = types.SimpleNamespace(rpc_broadcast_mq=writer, response_mqs=[queue.create_from_handle(writer.handle, 0)])
executor.itself = writer.executor = executor.response_mqs[0].executor = executor  # only the collector frees these
core = types.SimpleNamespace(model_executor=executor)
sockets = worker_sockets(types.SimpleNamespace(engine_core=types.SimpleNamespace(engine_core=core)))
if sys.argv[1] == "closed":
    for socket in sockets:
        socket.close(linger=0)
faulthandler.dump_traceback_later(5, exit=True)
del sockets, core, executor, writer
gc.collect()
print("collected")
"""


@pytest.mark.parametrize("way", ["closed", "left open"])
def test_an_engine_with_workers_can_be_collected_once_its_sockets_are_closed(way: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CLOSING, way], capture_output=True, text=True, timeout=120, check=False
    )
    assert ("collected" in ended.stdout) == (way == "closed"), ended.stderr[-2000:]
