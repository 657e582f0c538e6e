"""What only a GPU can show, in one command: `python tools/gpu_session.py MODEL OUT`.

MODEL is a SmolLM2-135M folder, OUT a folder for the results. Runs the campaign checks on stock vLLM with CUDA graphs
and measures the cost of an armed injector on a Llama-3.1-8B shape (dummy weights), interleaved with stock vLLM in one
process. Writes `results.json` and `results.md`. Every part is tried even if another fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPEC: dict[str, Any] = {
    "kvspec": 1,
    "name": "gpu",
    "prompts": {
        "inline": [
            "Explain quantum entanglement in one sentence.",
            "Write a Python function to reverse a list.",
            "Who was the first US president?",
            "What is 25 * 4?",
            "The capital of France is",
        ],
        "repeat": 2,
    },
    "generation": {"max_tokens": 50},
    "faults": [
        {
            "name": "BitRot",
            "model": "random",
            "site": "KV_WRITE",
            "rate": {"per_bit": [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]},
        }
    ],
    "controls": {"null_trials": 10, "golden_repeats": 10},
    "trials": 40,
    "seed": 42,
}
NAN = {
    "name": "NaN",
    "model": "msb_biased",
    "msb_policy": "FP16_EXPONENT",
    "site": "KV_WRITE",
    "rate": {"per_bit": 0.5},
    "where": {"cache": ["V"]},
}


class Silent:
    """An observer that only warns."""

    def phase(self, text: str) -> None:
        """Say what comes."""
        print(text, flush=True)

    def warn(self, warning: Any) -> None:
        """Print a warning."""
        print(warning, flush=True)

    def start(self, *_: object) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def shrink(self, *_: object) -> None:
        """Nothing."""

    def trial(self, *_: object) -> None:
        """Nothing."""


def campaign(out: Path, name: str, model: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run a variant of the spec; figures and records by trial id."""
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.records import RunStore
    from kvspec.spec import load_spec

    path = out / f"{name}.yaml"
    path.write_text(json.dumps({**SPEC, "model": {"id": str(model)}, **changes}), encoding="utf-8")
    began = time.monotonic()
    outcome = run_campaign(compile_plan(load_spec(path)), out / name, Silent())
    store = RunStore.open(out / name)
    rows = {row["trial_id"]: row for row in store.table().to_pylist()}
    golden = {row["request"]: row["token_ids"] for row in rows.values() if row["kind"] == "golden"}
    cells: dict[int, list[int]] = {}
    for row in rows.values():
        cells.setdefault(row["cell"], []).append(row["token_ids"] == golden[row["request"]])
    controls = cells.pop(-1)
    figures = {
        "trials": len(rows),
        "seconds": outcome.seconds,
        "whole_seconds": time.monotonic() - began,
        "planned_is_landed": sum(r["flips_planned"] == r["flips_landed"] for r in rows.values()),
        "flips": sum(r["flips_landed"] for r in rows.values()),
        "controls_identical": [sum(controls), len(controls)],
        "accuracy_by_cell": [sum(c) / len(c) for _, c in sorted(cells.items())],
        "nonfinite_trials": sum(r["nonfinite_at"] is not None for r in rows.values()),
        "environment": store.read_json("environment.json"),
    }
    return figures, rows


def same(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[int]:
    """[trials with equal token ids, trials]."""
    return [sum(b[t]["token_ids"] == row["token_ids"] for t, row in a.items() if t in b), len(a)]


def check_campaigns(results: dict[str, Any], model: Path, out: Path) -> None:
    """Planned = landed, golden floor, shuffled order, isolation after NaN, the same flips as the CPU plans."""
    results["campaign"], first = campaign(out, "first", model)
    results["shuffled"], other = campaign(out, "shuffled", model, engine={"submission_seed": 7})
    results["shuffled_identical"] = same(first, other)
    nan = {"faults": [NAN], "trials": 20, "controls": {"golden_repeats": 20, "null_trials": 20}}
    results["isolation"], _ = campaign(out, "nan", model, engine={"max_num_seqs": 16}, **nan)


def llama_shape(out: Path) -> Path:
    """Configuration of a Llama-3.1-8B-shaped model."""
    from transformers import LlamaConfig

    folder = out / "llama8b"
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, architectures=["LlamaForCausalLM"],
        torch_dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def measure_cost(results: dict[str, Any], _: Path, out: Path) -> None:
    """Stock against armed without hits, interleaved: two engines in one process, each with a share of the memory."""
    import numpy as np
    from vllm import LLM, SamplingParams

    from kvspec.engine.session import WORKER
    from kvspec.engine.table import TableData
    from kvspec.plan.dose import SamplerParameters
    from kvspec.spec.model import Selector

    folder = llama_shape(out)
    common: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "max_num_seqs": 256,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.45,
        "kv_cache_memory_bytes": 14 * 2**30,
        "disable_log_stats": True,
    }
    engines = {"stock": LLM(**common)}
    engines["armed"] = LLM(
        **common,
        worker_cls=WORKER,
        additional_config={"kvspec": {"storage_format": "bf16"}},
    )
    n = 256
    fault = SamplerParameters(per="bit", rate=1e-18, mask=0xFFFF, burst_len=1, page_tokens=0, page_rate=1.0)
    cases = {
        "decode 16": (16, 16, 50),
        "decode 64": (64, 16, 50),
        "decode 256": (256, 16, 50),
        "prefill 32 x 2000": (32, 2000, 1),
    }
    rounds = 7
    for name, (batch, prompt, new) in cases.items():
        table = TableData(
            storage_format="bf16", faults=(fault,), sites=("KV_WRITE",), ops=("flip",), selectors=(Selector(),),
            fault=np.zeros(n, np.uint32), write_key=np.arange(2 * n, dtype=np.uint32).reshape(n, 2),
            read_master=np.zeros((n, 2), np.uint32), request=np.arange(n, dtype=np.uint32),
            prompt_len=np.full(n, prompt, np.uint32), armed=np.ones(n, bool), faulty=np.zeros(n, bool),
        )  # fmt: skip
        rng = np.random.default_rng(0)
        prompts = [{"prompt_token_ids": rng.integers(10, 100000, prompt).tolist()} for _ in range(batch)]
        times: dict[str, list[float]] = {side: [] for side in engines}
        for round_ in range(rounds + 1):
            for side, engine in engines.items():
                if side == "armed":
                    engine.collective_rpc("kvspec_load", args=(table,))
                params = [
                    SamplingParams(
                        temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False,
                        extra_args={"kvspec": i} if side == "armed" else None,
                    )
                    for i in range(batch)
                ]  # fmt: skip
                began = time.perf_counter()
                engine.generate(prompts, params, use_tqdm=False)
                if round_:  # the first round warms up
                    times[side].append(time.perf_counter() - began)
        best = {side: min(values) for side, values in times.items()}
        results.setdefault("cost", {})[name] = {
            **best, "ratio": best["armed"] / best["stock"], "all": times,
        }  # fmt: skip
        print(name, results["cost"][name]["ratio"], best, flush=True)


def main() -> int:
    """Run everything, keep what succeeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=["campaign", "cost"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"command": " ".join(sys.argv)}
    parts: dict[str, Callable[[dict[str, Any], Path, Path], None]] = {"campaign": check_campaigns, "cost": measure_cost}
    failed = False
    for name, part in parts.items():
        if args.only in (None, name):
            try:
                part(results, args.model, args.out)
            except Exception:
                failed = True
                results.setdefault("failed", {})[name] = traceback.format_exc()
                traceback.print_exc()
            (args.out / "results.json").write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
