"""Host time of kvspec's hooks in the steps of a device engine, on a machine without a GPU: launches are left out.

    uv run --extra cpu python benches/host_step.py [--requests 16 64 256] [--layers 32]

What is left out: the launches themselves (2 to 3 us each), and pinned copies. What is told, in microseconds (a tenth of
the calls took less: others may use the machine):

    enter     requests enter at once: blocks, slots, records
    prefill   the step in which they write their prompts, without the layers
    layer     what a layer adds to a step that is in no graph
    quiet     a decode step that hands out no block
    block     a decode step that hands a block to every 16th request, which held faults before
    end       the counts of requests that ended
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from kvspec_kernels import launch, zero

from kvspec.engine.table import TableData
from kvspec.engine.vllm import cuda
from kvspec.engine.vllm.layers import AttentionLayer, Shard
from kvspec.engine.vllm.runner import DeviceRunnerV2
from kvspec.plan.dose import SamplerParameters
from kvspec.spec.model import Selector

HEADS, DIM, BLOCK, BLOCKS = 3, 64, 16, 4096
PROMPT = 16


class Kernel:
    """A kernel whose launches do nothing."""

    def __getitem__(self, grid: object) -> Callable[..., Any]:
        return self._launch

    def _launch(self, *_: object, **constants: object) -> Kernel | None:
        return self if constants else None


class Runner:
    """As much of a V2 model runner as the hooks see."""

    def __init__(self, requests: int) -> None:
        self.device = torch.device("cpu")
        self.max_num_reqs, self.max_num_tokens, self.max_model_len = requests, 8192, 4096
        self.block_tables = SimpleNamespace(input_block_tables=[torch.zeros(requests, 256, dtype=torch.int32)])
        group = SimpleNamespace()
        self.kv_cache_config = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group])
        self.req_states = SimpleNamespace(req_id_to_index={str(i): i for i in range(requests)})
        self.model = SimpleNamespace(compute_logits=lambda hidden: hidden)

    def update_requests(self, scheduled: Any) -> None: ...

    def prepare_attn(self, batch: Any) -> None: ...

    def prepare_dummy_attn(self) -> None: ...


class Impl:
    """A backend that keeps rows as they come."""

    def do_kv_cache_update(self, _: Any, key: Any, value: Any, kv_cache: Any, slots: Any) -> None:
        block, inside = slots // BLOCK, slots % BLOCK
        kv_cache[block, 0, inside], kv_cache[block, 1, inside] = key, value


class Attention:
    """A layer with a cache of its own."""

    num_kv_heads, head_size = HEADS, DIM

    def __init__(self) -> None:
        self.kv_cache = torch.zeros(BLOCKS, 2, BLOCK, HEADS, DIM, dtype=torch.bfloat16)
        self.impl = Impl()


def table(requests: int) -> TableData:
    """Faults that are drawn for every token and never hit; their blocks count as faulty."""
    fault = SamplerParameters(per="bit", rate=1e-18, mask=0xFFFF, burst_len=1, page_tokens=0, page_rate=1.0)
    keys = np.arange(4 * requests, dtype=np.uint32).reshape(2, requests, 2)
    return TableData(
        storage_format="bf16", faults=(fault,), sites=("KV_WRITE",), ops=("flip",), selectors=(Selector(),),
        fault=np.zeros(requests, np.uint32), write_key=keys[0], read_master=keys[1],
        request=np.arange(requests, dtype=np.uint32), prompt_len=np.full(requests, PROMPT, np.uint32),
        armed=np.ones(requests, bool), faulty=np.ones(requests, bool),
    )  # fmt: skip


class Steps:
    """The steps of one engine, launches left out."""

    def __init__(self, requests: int, layers: int) -> None:
        self.names = [str(i) for i in range(requests)]
        self.runner = Runner(requests)
        self.attentions = [Attention() for _ in range(layers)]
        self.injector = cuda.CudaInjector(
            DeviceRunnerV2(self.runner), [AttentionLayer(i, a) for i, a in enumerate(self.attentions)], "bf16",
            shard=Shard(HEADS, 0),
        )  # fmt: skip
        self.injector.bind()
        self.injector.load(table(requests))
        n = requests
        self.batch = SimpleNamespace(
            num_reqs=n, idx_mapping=torch.arange(n, dtype=torch.int32), idx_mapping_np=np.arange(n, dtype=np.int32),
            req_ids=self.names, num_computed_tokens_np=np.full(n, PROMPT, np.int32),
            num_scheduled_tokens=np.ones(n, np.int32), query_start_loc=torch.arange(n + 1, dtype=torch.int32),
            seq_lens=torch.full((n,), PROMPT + 1, dtype=torch.int32),
        )  # fmt: skip
        self.hidden = torch.zeros(n, 64, dtype=torch.bfloat16)
        self.rows = torch.zeros(n, HEADS, DIM, dtype=torch.bfloat16)
        self.slots = torch.arange(n) + BLOCK

    def scheduled(self, *, new: bool = False, every: int = 0, first: int = 1) -> Any:
        """A step; every so many requests get a block, from `first` on."""
        names, blocks = self.names, iter(range(first, BLOCKS))
        cached = [] if new else names
        given: list[Any] = [([next(blocks)],) if every and i % every == 0 else None for i in range(len(cached))]
        return SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name, sampling_params=SimpleNamespace(extra_args={"kvspec": int(name)}),
                    block_ids=([next(blocks)],),
                )
                for name in (names if new else ())
            ],
            scheduled_cached_reqs=SimpleNamespace(req_ids=cached, new_block_ids=given), finished_req_ids=set(),
            total_num_scheduled_tokens=len(names) * (PROMPT if new else 1),
        )  # fmt: skip

    def step(self, scheduled: Any) -> None:
        """One step without its layers."""
        self.runner.update_requests(scheduled)
        self.runner.prepare_attn(self.batch)
        self.runner.model.compute_logits(self.hidden)

    def layer(self) -> None:
        """The cache write of layer 0."""
        attention = self.attentions[0]
        attention.impl.do_kv_cache_update(None, self.rows, self.rows, attention.kv_cache, self.slots)


def microseconds(run: Callable[[], object], times: int, before: Callable[[], object] = lambda: None) -> float:
    """Time of a call that a tenth of the calls stayed below."""
    taken = []
    for _ in range(times):
        before()
        began = time.perf_counter_ns()
        run()
        taken.append(time.perf_counter_ns() - began)
    return statistics.quantiles(taken, n=10)[0] / 1000


def measure(requests: int, layers: int, times: int) -> dict[str, float]:
    """All figures for one batch size."""
    steps = Steps(requests, layers)
    entries = list(range(requests))
    prompt = steps.batch.num_scheduled_tokens * PROMPT

    def enter() -> None:
        steps.runner.update_requests(steps.scheduled(new=True))

    def prefill() -> None:
        steps.runner.prepare_attn(steps.batch)
        steps.runner.model.compute_logits(steps.hidden)

    new = steps.scheduled(new=True)
    found = {"enter": microseconds(lambda: steps.runner.update_requests(new), times, lambda: steps.injector.load(
        table(requests)))}  # fmt: skip
    decode, steps.batch.num_scheduled_tokens = steps.batch.num_scheduled_tokens, prompt
    found["prefill"] = microseconds(prefill, times)
    steps.batch.num_scheduled_tokens = decode
    found["layer"] = microseconds(steps.layer, 4 * times)
    quiet, block = steps.scheduled(), steps.scheduled(every=16)
    found["quiet"] = microseconds(lambda: steps.step(quiet), 4 * times)
    steps.step(block)
    found["block"] = microseconds(lambda: steps.step(block), 4 * times)
    found["end"] = microseconds(lambda: steps.injector.counts(entries), times, enter)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--times", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kernel: Any = Kernel()
    for module, names in (
        (launch, ("list_cells_kernel", "find_nonfinite_kernel", "store_kernel", "inject_reads_kernel")),
        (zero, ("zero_blocks_kernel",)),
    ):
        for name in names:
            setattr(module, name, kernel)
    for requests in args.requests:
        print(json.dumps({"requests": requests, **measure(requests, args.layers, args.times)}), flush=True)


if __name__ == "__main__":
    main()
