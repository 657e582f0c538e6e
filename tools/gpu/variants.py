"""The same small campaign in engines of every kind: model runners, attention backends, storage formats, GPUs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tools.gpu.campaign import PROMPTS, plan_of, run

SPEC: dict[str, Any] = {
    "prompts": {"inline": PROMPTS},
    "generation": {"max_tokens": 24},
    "faults": [
        {"name": "W", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-6, 1e-3]}},
        {"name": "R", "model": "random", "site": "KV_READ", "rate": {"per_bit": [1e-7, 1e-5]}},
        {"name": "Both", "model": "burst", "burst_len": 4, "site": "BOTH", "rate": {"per_element": 1e-5}},
    ],
    "controls": {"null_trials": 4, "golden_repeats": 4},
    "trials": 4,
    "seed": 42,
    "engine": {"max_num_seqs": 16, "kv_cache_gib": 2},
}


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


def measure(results: dict[str, Any], out: Path, _: float, model: Path, variant: str) -> None:
    """`variant`: JSON with `runner` (V1 or V2), `backend`, `format` and `gpus`, all optional."""
    if "gpus" in json.loads(variant):
        model = even_llama(out / f"even{json.loads(variant)['gpus']}", model)
    wanted = {"runner": "V2", "backend": "FLASH_ATTN", "format": "bf16", "gpus": 1, **json.loads(variant)}
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if wanted["runner"] == "V2" else "0"
    from kvspec.engine import session

    settings = session._settings
    session._settings = lambda *args: {
        **settings(*args), "attention_config": {"backend": wanted["backend"]}, "gpu_memory_utilization": 0.3,
    }  # fmt: skip
    spec = {**SPEC, "engine": {**SPEC["engine"], "tensor_parallel": wanted["gpus"]}}
    if wanted["gpus"] == 1:
        del spec["engine"]["tensor_parallel"]
    name = "-".join(str(value) for value in wanted.values()).replace("_", "").lower()
    plan = plan_of(out, name, model, {**spec, "model": {"id": str(model), "kv_cache_dtype": wanted["format"]}})
    figures, rows = run(out, name, plan)
    texts = {trial: row["token_ids"] for trial, row in rows.items()}
    flips = {trial: row["flips_landed"] for trial, row in rows.items()}
    results.update({"wanted": wanted, "figures": figures, "flips": flips, "token_ids": texts})
