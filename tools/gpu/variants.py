"""The same small campaign in engines of every kind: model runners, attention backends, storage formats, GPUs.

Where flips are compared between engines it is how many landed in each trial; their places are proven by replay."""

from __future__ import annotations

import faulthandler
import json
import os
import time
from pathlib import Path
from typing import Any

from tools.gpu.campaign import NAN, PROMPTS, Silent, plan_of, run, same

SPEC: dict[str, Any] = {
    "prompts": {"inline": PROMPTS},
    "generation": {"max_tokens": 24},
    "faults": [
        {"name": "W", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-6, 1e-3]}},
        {"name": "R", "model": "random", "site": "KV_READ", "rate": {"per_bit": [1e-7, 1e-5]}},
        {"name": "Both", "model": "burst", "burst_len": 4, "site": "BOTH", "rate": {"per_element": 1e-5}},
        {"name": "Stuck", "model": "random", "site": "KV_WRITE", "op": "set1", "rate": {"per_bit": 1e-4}},
        {"name": "StuckRead", "model": "random", "site": "KV_READ", "op": "set1", "rate": {"per_bit": 1e-5}},
    ],
    "controls": {"null_trials": 4, "golden_repeats": 4},
    "trials": 4,
    "seed": 42,
    "engine": {"max_num_seqs": 16, "kv_cache_gib": 2},
}

SCALES: list[dict[str, Any]] = [
    {"name": "Ws", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-5, 1e-3]}},
    {"name": "Rs", "model": "random", "site": "KV_READ", "rate": {"per_bit": 1e-5}},
    {"name": "Bs", "model": "burst", "burst_len": 4, "site": "BOTH", "rate": {"per_element": 1e-4}},
    {"name": "Ss", "model": "random", "site": ["KV_WRITE", "KV_READ"], "op": "set1", "rate": {"per_bit": 1e-5}},
]
"""In caches with a scale per token and head, the same of scales."""

HANG, CLOSING = 150, 40
"""Seconds after which a stage, or closing the engine, is taken to hang: the process says where it stands, and ends.
What was measured before is in its file."""


def even_llama(folder: Path, tokenizer: Path) -> Path:
    """A small Llama with random weights, whose 4 KV heads can be dealt out to two GPUs; SmolLM2 has 3."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048, initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def stage(seconds: float) -> None:
    """A stage begins, and must be followed by the next one in time; the last may take until the part ends."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def measure(results: dict[str, Any], out: Path, _: float, model: Path, variant: str) -> None:
    """`variant`: JSON with `runner` (V1 or V2), `backend`, `format` and `gpus`, all optional."""
    if "gpus" in json.loads(variant):
        model = even_llama(out / f"even{json.loads(variant)['gpus']}", model)
    wanted = {"runner": "V2", "backend": "FLASH_ATTN", "format": "bf16", "gpus": 1, **json.loads(variant)}
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if wanted["runner"] == "V2" else "0"
    import torch

    from kvspec.engine.campaign import Inputs
    from kvspec.engine.session import Session, Shape

    chosen = {"tensor_parallel": wanted["gpus"]}
    if torch.cuda.is_available():
        chosen["attention_backend"] = wanted["backend"]
    spec = {**SPEC, "engine": {**SPEC["engine"], **chosen}}
    scaled = wanted["format"].endswith("per_token_head")
    if scaled:
        spec["faults"] = [*SPEC["faults"], *({**fault, "target": "scales"} for fault in SCALES)]
    name = "-".join(str(value) for value in wanted.values()).replace("_", "").lower()
    spec["model"] = {"id": str(model), "kv_cache_dtype": wanted["format"]}
    plan = plan_of(out, name, model, spec)
    again = {**spec, "engine": {**spec["engine"], "submission_seed": 7}}
    inputs = Inputs.of(plan)
    shape = Shape(max(map(len, inputs.prompts)) + 24, 10000, None)
    results["wanted"] = wanted
    stage(HANG)
    kinds = {"reads": True, "stuck_reads": True, "scales": scaled}
    with Session(plan.spec.model, inputs.source, plan.spec.engine, wanted["format"], shape, **kinds) as engine:
        figures, rows = run(out, name, plan, engine)
        texts = {trial: row["token_ids"] for trial, row in rows.items()}
        flips = {trial: row["flips_landed"] for trial, row in rows.items()}
        results["figures"] = figures
        results["flips"], results["token_ids"] = flips, texts
        stage(HANG)
        shuffled = plan_of(out, f"{name}-shuffled", model, again)
        results["shuffled_identical"] = same(rows, run(out, f"{name}-shuffled", shuffled, engine)[1])
        if "gpus" in json.loads(variant):
            stage(HANG)
            poisoned = plan_of(out, f"{name}-nan", model, {**NAN, "model": spec["model"], "engine": spec["engine"]})
            results["isolation"] = run(out, f"{name}-nan", poisoned, engine)[0]
        stage(CLOSING)
        began = time.monotonic()
    results["close_seconds"] = time.monotonic() - began
    if scaled:
        stage(HANG)
        results["codes"] = codes(plan)
    for what, cells in (
        ("replay", ["W[1e-06]", "W[0.001]", "Stuck"]),
        ("replay_reads", ["R[1e-05]", "Both", "StuckRead"]),
    ):
        stage(HANG)
        results[what] = replayed(out / name, out / f"{name}-{what}", cells, spec["engine"])
    if scaled:
        cells = ["Ws[1e-05]", "Ws[0.001]", "Rs", "Bs", "Ss[KV_WRITE]"]
        stage(HANG)
        results["replay_scales"] = replayed(out / name, out / f"{name}-scales", cells, spec["engine"])


def codes(plan: Any) -> dict[str, int]:
    """How many codes and scales of the backend's own cache write are those of the CPU's emulation, on random rows."""
    import torch

    from kvspec.engine import session as sessions
    from kvspec.engine.session import Session, Shape

    model = plan.spec.model
    sessions.WORKER, stock = "tools.gpu.worker.CodesWorker", sessions.WORKER
    try:
        shape = Shape(128, 16, None)
        with Session(model, model.id, plan.spec.engine, model.storage_format, shape, eager=True) as session:
            heads, dim = session.geometry.kv_heads, session.geometry.head_size
            rows = torch.randn(2, 16, heads, dim, generator=torch.Generator().manual_seed(3))
            rows = (rows * torch.logspace(-3, 2, 16)[:, None, None]).to(torch.bfloat16)
            native, scales, rows = session.rpc("kvspec_codes", rows)
    finally:
        sessions.WORKER = stock
    return compared(model.storage_format, rows.float().numpy(), native.numpy(), scales.numpy())


def compared(storage_format: str, rows: Any, native: Any, scales: Any) -> dict[str, int]:
    """Codes `[2, tokens, heads, D]` and scales `[2, tokens, heads]` of a backend against the CPU's emulation of the
    same float32 rows. A compiled kernel may divide and fuse with another last bit than IEEE's, so how far apart they
    are is told too: codes in steps, scales in units in the last place (the low 4 bits of int4's are the zero point)."""
    import numpy as np

    from kvspec import _native

    held = np.ascontiguousarray(rows)
    expected_scales = _native.quantize(storage_format, held.reshape(-1, held.shape[-1])).reshape(scales.shape)
    expected = _native.encode(storage_format, held, expected_scales)
    half = 1 << (_native.format_bits(storage_format) - 1)
    apart = abs((expected.astype(int) - native.astype(int) + half) % (2 * half) - half)
    ulps = abs(expected_scales.view(np.int32).astype(int) - np.ascontiguousarray(scales).view(np.int32))
    return {
        "codes": apart.size, "codes_equal": int((apart == 0).sum()), "codes_most_apart": int(apart.max()),
        "scales": ulps.size, "scales_equal": int((ulps == 0).sum()), "scales_most_apart": int(ulps.max()),
    }  # fmt: skip


def replayed(folder: Path, maps: Path, cells: list[str], engine: dict[str, Any]) -> dict[str, Any]:
    """Replay the maps of some cells in an engine of the same kind, without graphs: how many faults were listed,
    counted, and read back from the caches of all ranks."""
    from kvspec.engine.session import quiet
    from kvspec.maps import write_map
    from kvspec.maps.runs import Run, file_name
    from kvspec.replay.case import load_cases, one_model
    from kvspec.replay.run import replay
    from kvspec.spec.model import EngineSpec

    source = Run(folder)
    maps.mkdir()
    for fault_map in source.maps(source.choose(cells, ())):
        write_map(fault_map, maps / file_name(fault_map))
    cases = load_cases([maps])
    with quiet():
        result = replay(cases, one_model(cases, None), Silent(), engine=EngineSpec(**engine))
    names = ("planned", "landed", "read_back", "mismatches")
    return {
        "trials": len(result.trials),
        "proven": sum(trial.proven for trial in result.trials),
        "identical": result.count("identical"),
        **{name: sum(getattr(trial, name) for trial in result.trials) for name in names},
    }
