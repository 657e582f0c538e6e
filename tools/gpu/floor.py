"""Does stock vLLM answer a prompt alike in every batch? The same prompts alone, together, many times over, and in other
orders, with nothing of kvspec in the process: what differs here is a floor that no campaign can go below.

`one_pass` keeps vLLM's Triton attention from splitting a context among programs whose sums are added up afterwards: it
does so only in steps that have few requests and no prefill, so a request is rounded as the others in its batch decide.
`batch_invariant` is vLLM's own switch, which does the same and gives matrix products fixed kernels besides.
"""

from __future__ import annotations

import json
import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

SUBJECTS = (
    "quantum entanglement", "the capital of France", "photosynthesis", "the first US president", "prime numbers",
    "a red apple", "the Roman Empire", "how tides work", "a sorted list", "the speed of light", "jazz", "volcanoes",
    "honey bees", "the violin", "a haiku", "glaciers",
)  # fmt: skip
PROMPTS = [f"Explain {subject} in one sentence." if i % 2 else f"{subject}:" for i, subject in enumerate(SUBJECTS)]
COPIES = 10
TOKENS = 48
SEQUENCES = 16
"""Requests in a batch at most, as in the campaigns of variants.py."""
MODES = ("stock", "one_pass", "batch_invariant")


def measure(results: dict[str, Any], _out: Path, _: float, model: Path, setting: str) -> None:
    """`setting`: JSON with `format` (vLLM's `kv_cache_dtype`), `mode` (one of MODES) and `backend` (or null)."""
    wanted = {"mode": "stock", "backend": "TRITON_ATTN", **json.loads(setting)}
    assert wanted["mode"] in MODES, wanted
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_BATCH_INVARIANT"] = "1" if wanted["mode"] == "batch_invariant" else "0"
    from vllm import LLM, SamplingParams

    if wanted["mode"] == "one_pass":
        from vllm.v1.attention.backends import triton_attn

        triton_attn.unified_attention = partial(_one_pass, triton_attn.unified_attention)
    backend = {"attention_config": {"backend": wanted["backend"]}} if wanted["backend"] else {}
    llm = LLM(
        str(model), kv_cache_dtype=wanted["format"], max_num_seqs=SEQUENCES, max_model_len=128, seed=0,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**30, gpu_memory_utilization=0.1, **backend,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=2)

    def ask(order: list[int]) -> list[tuple[int, Any]]:
        """(prompt, its answer) of a batch in this order."""
        outputs = llm.generate([PROMPTS[i] for i in order], params, use_tqdm=False)
        return [(i, output.outputs[0]) for i, output in zip(order, outputs, strict=True)]

    every = list(range(len(PROMPTS)))
    alone = [ask([i])[0][1] for i in every]
    results["wanted"], results["answers"], results["differences"] = wanted, {}, []
    many = every * COPIES
    orders = {
        "alone again": [[i] for i in every],
        "together": [every],
        "together again": [every],
        "many": [many],
        "many, reversed": [many[::-1]],
        "many, shuffled": [random.Random(7).sample(many, len(many))],
    }
    for name, batches in orders.items():
        answers = [answer for batch in batches for answer in ask(batch)]
        found = [(i, _difference(alone[i], answer)) for i, answer in answers]
        results["answers"][name] = [sum(d is None for _, d in found), len(found)]
        results["differences"] += [{"batch": name, "prompt": i, **d} for i, d in found if d is not None]
        results["of_kvspec"] = sorted(module for module in sys.modules if module.startswith("kvspec"))
    print(wanted, results["answers"], flush=True)


def _one_pass(attention: Any, *args: Any, **named: Any) -> Any:
    return attention(*args, **{**named, "seq_threshold_3D": None})


def _difference(alone: Any, answer: Any) -> dict[str, Any] | None:
    """Where an answer leaves that of the prompt alone, and by how much (in nats) its two likeliest tokens differed
    there: a near tie is rounding, anything else is not."""
    a, b = list(alone.token_ids), list(answer.token_ids)
    if a == b:
        return None
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    first, second = sorted((entry.logprob for entry in alone.logprobs[at].values()), reverse=True)[:2]
    return {"token": at, "margin": first - second}
