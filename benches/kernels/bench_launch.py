# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""What each kernel costs on a GPU, per launch inside a CUDA graph and per step outside it.

    python benches/kernels/bench_launch.py [--out FILE.json]

For the shapes of Llama-3.1-8B and SmolLM2-135M (bf16) and batches of 16, 64 and 256 decode rows and 8192 prefill rows:

    copy          the backend's cache write: vLLM's `reshape_and_cache_flash`, without vLLM a plain Triton copy
    triton copy   that plain copy
    store         kvspec's write with injection in its place
    copy+writes   the backend's write and a kernel after it (any cache format)
    reads         apply a layer's read faults, undo those of the layer before
    list          the once-per-step listing of cells, for writes and for reads
    nonfinite     the check of logits

each idle (no request armed), armed (rate 1e-18 per bit: every draw is made, none hits) and hitting (1e-6 to 1e-1).
A captured graph holds one launch per layer, as a forward does; times are the minimum of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl
from kvspec_kernels import CacheView, FaultModel, FaultTable, Injector, Selector, SlotFault

from kvspec import _native

SHAPES = {"llama8b": (32, 8, 128), "smollm2": (30, 3, 64)}
STATES = {"idle": None, "armed": 1e-18, "1e-6": 1e-6, "1e-4": 1e-4, "1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 1e-1}
BLOCK_TOKENS = 16
ROUNDS = 7
REPLAYS = 20


@triton.jit
def copy_kernel(
    key_ptr, value_ptr, stride, key_cache_ptr, value_cache_ptr, slots_ptr, block_stride, token_stride,
    N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The plain write of one row: what `store_kernel` does without faults."""
    row = tl.program_id(0)
    at = tl.load(slots_ptr + row)
    i = tl.arange(0, TILE)
    key = tl.load(key_ptr + row.to(tl.int64) * stride + i, mask=i < N)
    value = tl.load(value_ptr + row.to(tl.int64) * stride + i, mask=i < N)
    if at < 0:
        return
    to = (at // 16) * block_stride + (at % 16) * token_stride + i
    tl.store(key_cache_ptr + to, key, mask=i < N)
    tl.store(value_cache_ptr + to, value, mask=i < N)


def vllm_write() -> Callable[..., None] | None:
    """vLLM's own cache write for 16-bit caches, or `None` without vLLM."""
    try:
        from vllm import _custom_ops as ops

        write = torch.ops._C_cache_ops.reshape_and_cache_flash
    except (ImportError, AttributeError) as error:
        print(f"no vLLM write: {error}", file=sys.stderr)
        return None
    assert write is not None
    one = torch.ones(1, device="cuda")
    return lambda key, value, key_cache, value_cache, slots: ops.reshape_and_cache_flash(
        key, value, key_cache, value_cache, slots, "auto", one, one
    )


class Bench:
    """A model's caches, one batch, and a table whose faults can be exchanged."""

    def __init__(self, shape: str, rows: int, requests: int, context: int) -> None:
        self.layers, heads, dim = SHAPES[shape]
        self.rows, self.requests, self.context = rows, requests, context
        blocks_each = -(-context // BLOCK_TOKENS)
        self.caches = [
            torch.zeros(requests * blocks_each, 2, BLOCK_TOKENS, heads, dim, dtype=torch.bfloat16, device="cuda")
            for _ in range(self.layers)
        ]
        self.heads, self.dim = heads, dim
        self.table = FaultTable(slots=requests, layers=self.layers, heads=heads, device="cuda")
        self.injector = Injector(self.table, max_rows=rows, max_requests=requests, read_tokens=requests * context)
        self.injector.bind([CacheView.of(*cache.unbind(1)) for cache in self.caches])
        width = heads * dim
        self.qkv = torch.randn(rows, 6 * width, device="cuda", dtype=torch.bfloat16)
        self.key = self.qkv[:, 4 * width : 5 * width].view(rows, heads, dim)
        self.value = self.qkv[:, 5 * width :].view(rows, heads, dim)
        order = torch.randperm(requests * blocks_each)
        self.block_table = order.view(requests, blocks_each).int().cuda()
        query = rows // requests
        tokens = torch.arange(context - query, context)
        self.slot_mapping = (
            self.block_table.cpu()[:, tokens // BLOCK_TOKENS].long() * BLOCK_TOKENS + tokens % BLOCK_TOKENS
        ).view(-1)
        self.slot_mapping = self.slot_mapping.cuda()
        self.query_start = torch.arange(0, rows + 1, query, dtype=torch.int32, device="cuda")
        self.batch_slot = torch.arange(requests, dtype=torch.int32, device="cuda")
        self.seq_lens = torch.full((requests,), context, dtype=torch.int32, device="cuda")
        self.query = query
        self.stock = vllm_write()

    def arm(self, rate: float | None) -> None:
        sampler = _native.Sampler(head_size=self.dim, bits=16, heads=self.heads, rate=rate or 0.0, mask=0xFFFF)
        model = FaultModel(
            level=sampler.level, thresholds=sampler.thresholds, head_size=self.dim, heads=self.heads, mask=0xFFFF
        )
        self.table.load([model], [Selector()])
        if rate is not None:
            faults = [
                SlotFault(model=0, selector=0, request=i, prompt_len=1, write_key=(i, 1), read_master=(i, 2))
                for i in range(self.requests)
            ]
            self.table.assign(list(range(self.requests)), faults)
        self.begin(writes=True, reads=True)

    def begin(self, *, writes: bool, reads: bool) -> None:
        self.injector.begin_step(
            self.query_start, self.batch_slot, self.seq_lens, self.requests, max_query=self.query, writes=writes,
            reads=reads, max_seq=self.context,
        )  # fmt: skip

    def copy(self) -> None:
        for cache in self.caches:
            if self.stock is not None:
                self.stock(self.key, self.value, *cache.unbind(1), self.slot_mapping)
            else:
                self.triton_copy(cache)

    def triton_copy(self, cache: torch.Tensor) -> None:
        key_cache, value_cache = cache.unbind(1)
        copy_kernel[(self.rows,)](
            self.key, self.value, self.key.stride(0), key_cache, value_cache, self.slot_mapping, cache.stride(0),
            cache.stride(2), N=self.heads * self.dim, TILE=triton.next_power_of_2(self.heads * self.dim),
        )  # fmt: skip

    def plain(self) -> None:
        for cache in self.caches:
            self.triton_copy(cache)

    def store(self) -> None:
        for layer, cache in enumerate(self.caches):
            self.injector.store(layer, self.key, self.value, *cache.unbind(1), self.slot_mapping)

    def copy_and_writes(self) -> None:
        for layer, cache in enumerate(self.caches):
            if self.stock is not None:
                self.stock(self.key, self.value, *cache.unbind(1), self.slot_mapping)
            else:
                self.triton_copy(cache)
            self.injector.writes(layer, self.slot_mapping)

    def reads(self) -> None:
        for layer in range(self.layers + 1):
            self.injector.reads(layer, self.block_table)


def graph_of(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def microseconds(run: Callable[[], None], times: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    start.record()
    for _ in range(times):
        run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) * 1000 / times


def measure(shape: str, rows: int, requests: int, context: int) -> list[dict[str, object]]:
    bench = Bench(shape, rows, requests, context)
    bench.arm(None)
    graphs = {
        "copy": graph_of(bench.copy),
        "triton copy": graph_of(bench.plain),
        "store": graph_of(bench.store),
        "copy+writes": graph_of(bench.copy_and_writes),
        "reads": graph_of(bench.reads),
    }
    # the listings are launched eagerly in an engine; captured here too, to see the GPU's time and not the launcher's
    graphs["list writes"] = graph_of(lambda: bench.begin(writes=True, reads=False))
    graphs["list reads"] = graph_of(lambda: bench.begin(writes=False, reads=True))
    out = []
    for state, rate in STATES.items():
        bench.arm(rate)
        best = dict.fromkeys(graphs, float("inf"))
        for _ in range(ROUNDS):
            for name, graph in graphs.items():
                # a listing leaves only its own list behind: restore both
                bench.begin(writes=True, reads=True)
                best[name] = min(best[name], microseconds(graph.replay, REPLAYS))
        for name, time in best.items():
            launches = 1 if name.startswith("list") else bench.layers
            row = {"shape": shape, "rows": rows, "requests": requests, "context": context, "kernel": name}
            out.append(
                {**row, "state": state, "us_per_step": round(time, 2), "us_per_layer": round(time / launches, 3)}
            )
            print(json.dumps(out[-1]), flush=True)
    return out


def measure_logits(rows: int, vocab: int, dtype: torch.dtype) -> dict[str, object]:
    table = FaultTable(slots=rows, layers=1, heads=1, device="cuda")
    injector = Injector(table, max_rows=1, max_requests=1)
    model = FaultModel(level="token", thresholds=np.zeros(1, np.uint64), head_size=1, heads=1, mask=1)
    table.load([model], [Selector()])
    fault = SlotFault(model=0, selector=0, request=0, prompt_len=1)
    table.assign(list(range(rows)), [fault] * rows)
    logits = torch.zeros(rows, vocab, dtype=dtype, device="cuda")
    slots = torch.arange(rows, dtype=torch.int32, device="cuda")
    lengths = torch.full((rows,), 5, dtype=torch.int32, device="cuda")
    graph = graph_of(lambda: injector.find_nonfinite(logits, slots, lengths))
    time = min(microseconds(graph.replay, REPLAYS) for _ in range(ROUNDS))
    row = {"kernel": "nonfinite", "rows": rows, "vocab": vocab, "dtype": str(dtype), "us_per_step": round(time, 2)}
    print(json.dumps(row), flush=True)
    return row


def measure_host() -> dict[str, object]:
    """Time of the host per launch, where a forward is not captured."""
    import time

    bench = Bench("smollm2", 16, 16, 64)
    bench.arm(1e-18)
    logits, hidden = (torch.zeros(16, width, dtype=torch.bfloat16, device="cuda") for width in (49152, 576))
    out: dict[str, object] = {"kernel": "host"}
    for name, run, launches in (
        ("store", bench.store, bench.layers),
        ("reads", bench.reads, bench.layers + 1),
        ("begin_step", lambda: bench.begin(writes=True, reads=True), 1),
        ("begin_step_writes", lambda: bench.begin(writes=True, reads=False), 1),
        ("nonfinite", lambda: bench.injector.find_nonfinite(logits, bench.batch_slot, bench.seq_lens, hidden), 1),
        ("copy", bench.copy, bench.layers),
    ):
        best = float("inf")
        for _ in range(20):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            best = min(best, (time.perf_counter() - start) * 1e6 / launches)
        out[f"{name}_us"] = round(best, 1)
    print(json.dumps(out), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES], action="append")
    parser.add_argument("--rows", type=int, action="append", help="batches of these sizes only")
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    for shape in arguments.shape or SHAPES:
        for rows, requests, context in ((16, 16, 256), (64, 64, 256), (256, 256, 256), (64, 64, 2000), (8192, 4, 2048)):
            if arguments.rows and rows not in arguments.rows:
                continue
            results += measure(shape, rows, requests, context)
            torch.cuda.empty_cache()
    results += [measure_logits(rows, 128256, dtype) for rows in (16, 256) for dtype in (torch.bfloat16, torch.float32)]
    results.append(measure_host())
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "write": "vllm" if vllm_write() is not None else "triton copy",
    }
    document = json.dumps({"machine": machine, "results": results}, indent=1)
    if arguments.out:
        arguments.out.write_text(document)


if __name__ == "__main__":
    main()
