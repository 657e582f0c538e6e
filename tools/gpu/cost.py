"""What an armed injector costs on a Llama-3.1-8B shape with dummy weights, against stock vLLM in the same engine.

Faults are armed but do not hit, because corrupted data can run faster; the blocks of their trials count as faulty, so
that they are zeroed when the next round takes them. The modes take turns, in an order that rotates;
the minimum of the rounds counts. For decode cases the time of a step with the full batch is given as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tools.gpu.look import Sampler, device
from tools.gpu.quiet import wait
from tools.gpu.worker import MODES, WORKER

CASES = {
    # name: (requests, prompt tokens, new tokens, modes)
    "decode 256": (256, 16, 64, MODES),
    "64 x 2000-token contexts": (64, 2000, 64, ("stock", "reads")),
    "decode 64": (64, 16, 64, MODES),
    "decode 16": (16, 16, 64, MODES),
    "prefill 32 x 2000": (32, 2000, 1, MODES),
}
BATCHED_TOKENS = 8192
ROUNDS = 6
PROFILED = 24
"""Steps of a profile."""


def llama_shape(folder: Path) -> Path:
    """Configuration of a Llama-3.1-8B-shaped model."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, architectures=["LlamaForCausalLM"],
        torch_dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def table(site: str, requests: int, prompt: int) -> Any:
    """Faults at a rate that never hits here, but is drawn for every token, of trials whose blocks are scrubbed."""
    import numpy as np

    from kvspec.engine.table import TableData
    from kvspec.plan.dose import SamplerParameters
    from kvspec.spec.model import Selector

    fault = SamplerParameters(per="bit", rate=1e-18, mask=0xFFFF, burst_len=1, page_tokens=0, page_rate=1.0)
    keys = np.arange(4 * requests, dtype=np.uint32).reshape(2, requests, 2)
    return TableData(
        storage_format="bf16", faults=(fault,), sites=(site,), ops=("flip",), selectors=(Selector(),),
        fault=np.zeros(requests, np.uint32), write_key=keys[0], read_master=keys[1],
        request=np.arange(requests, dtype=np.uint32), prompt_len=np.full(requests, prompt, np.uint32),
        armed=np.ones(requests, bool), faulty=np.ones(requests, bool),
    )  # fmt: skip


def measure(
    results: dict[str, Any], out: Path, deadline: float, cases: Collection[str] = tuple(CASES), rounds: int = ROUNDS
) -> None:
    """Fill `results`; stops starting rounds at the deadline (`time.monotonic`)."""
    from kvspec.engine.session import prepare_environment

    prepare_environment()
    import numpy as np
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(llama_shape(out / "llama8b")), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
        max_model_len=4096, max_num_seqs=256, max_num_batched_tokens=BATCHED_TOKENS, enable_prefix_caching=False,
        kv_cache_memory_bytes=20 * 2**30, gpu_memory_utilization=0.3, disable_log_stats=True, worker_cls=WORKER,
        additional_config={"kvspec": {"storage_format": "bf16", "reads": True}},
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256]},
    )  # fmt: skip
    engine = llm.llm_engine
    wait()
    results["engine"] = llm.collective_rpc("kvspec_facts")[0]
    rng = np.random.default_rng(0)

    def prepare(mode: str, case: tuple[int, int, int, Any]) -> list[list[int]]:
        llm.collective_rpc("kvspec_mode", args=(mode,))
        if mode != "stock":
            site = "KV_WRITE" if mode == "writes" else "KV_READ"
            llm.collective_rpc("kvspec_load", args=(table(site, *case[:2]),))
        prompts: list[list[int]] = rng.integers(10, 100000, case[:2]).tolist()
        return prompts

    def submit(mode: str, prompts: list[list[int]], new: int, number: int) -> None:
        for i, ids in enumerate(prompts):
            params = SamplingParams(
                temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, skip_clone=True,
                extra_args=None if mode == "stock" else {"kvspec": i},
            )  # fmt: skip
            engine.add_request(f"{mode}-{number}-{i}", {"prompt_token_ids": ids}, params)

    def once(mode: str, case: tuple[int, int, int, Any], number: int) -> tuple[float, float, float, dict[str, float]]:
        """Seconds: whole, mean and median step with the full batch, and what lies before and after these steps."""
        batch, prompt, new, _ = case
        prompts = prepare(mode, case)
        began = time.perf_counter()
        submit(mode, prompts, new, number)
        ends = [time.perf_counter()]
        while engine.has_unfinished_requests():
            engine.step()
            ends.append(time.perf_counter())
        # all requests decode from the end of the last prefill to the end of the first request
        first, last = -(-batch * prompt // BATCHED_TOKENS) + 4, new - 2
        whole, phases = ends[-1] - began, {"submit": ends[0] - began, "first step": ends[1] - ends[0]}
        if last - first <= 8 or len(ends) <= last:
            return whole, float("nan"), float("nan"), phases
        between = np.diff(ends[first : last + 1])
        phases |= {"to the full batch": ends[first] - ends[1], "after it": ends[-1] - ends[last]}
        return whole, float(between.mean()), float(np.median(between)), phases

    def kernels(mode: str) -> dict[str, Any]:
        """Where a decode step of 256 requests spends its time: microseconds per step by kernel."""
        case = CASES["decode 256"]
        submit(mode, prepare(mode, case), case[2], -1)
        for _ in range(8):
            engine.step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for _ in range(PROFILED):
                engine.step()
            torch.cuda.synchronize()
            wall = time.perf_counter() - began
        while engine.has_unfinished_requests():
            engine.step()
        return device(seen, PROFILED, wall)

    def host(mode: str) -> dict[str, Any]:
        """Where the host is meanwhile."""
        with Sampler(0.001) as sampler:
            once(mode, CASES["decode 256"], -2)
        return sampler.result()

    for name, case in CASES.items():
        if name not in cases:
            continue
        modes = case[3]
        totals, steps, medians = ({mode: list[float]() for mode in modes} for _ in range(3))
        phases: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
        for number in range(rounds + 1):
            if number > 2 and time.monotonic() > deadline:
                break
            for turn in range(len(modes)):
                mode = modes[(number + turn) % len(modes)]
                *taken, found = once(mode, case, number)
                if number:  # the first round warms up
                    phases[mode].append(found)
                    for values, value in zip((totals, steps, medians), taken, strict=True):
                        values[mode].append(value)
        best, step_best, median_best = (
            {mode: min(values) for mode, values in kind.items()} for kind in (totals, steps, medians)
        )
        results.setdefault("cases", {})[name] = {
            "rounds": len(totals["stock"]),
            "seconds": best,
            "ratio": {mode: best[mode] / best["stock"] for mode in modes[1:]},
            "step_ms": {mode: 1000 * value for mode, value in step_best.items()},
            "step_ratio": {mode: step_best[mode] / step_best["stock"] for mode in modes[1:]},
            "median_step_ms": {mode: 1000 * value for mode, value in median_best.items()},
            "median_step_ratio": {mode: median_best[mode] / median_best["stock"] for mode in modes[1:]},
            "median_ratio": {
                mode: statistics.median(totals[mode]) / statistics.median(totals["stock"]) for mode in modes[1:]
            },
            "phases_ms": {
                mode: {name: 1000 * statistics.median(x[name] for x in each) for name in each[0]}
                for mode, each in phases.items()
            },
            "all": totals,
            "all_steps": steps,
            "all_median_steps": medians,
        }
        results["cases"] = results["cases"]  # saves
        print(name, results["cases"][name]["ratio"], results["cases"][name]["step_ratio"], flush=True)
        if name == "decode 256":
            results["profile"] = {mode: kernels(mode) for mode in MODES}
            results["host"] = {mode: host(mode) for mode in MODES}
