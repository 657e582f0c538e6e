"""Run the start-up canary and judge it."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvspec import _native
from kvspec.engine.session import Session
from kvspec.engine.table import TableData
from kvspec.engine.vllm.canary import CanaryWatch
from kvspec.errors import EngineError
from kvspec.plan.dose import SamplerParameters
from kvspec.spec.model import GenerationSpec, Selector

PROMPT_TOKENS = 40
"""Prompts are cut to this: more than a cache block, so that the second block is checked too."""
NEW_TOKENS = 4
LENGTH = PROMPT_TOKENS + NEW_TOKENS
"""The engine must hold requests of this length, unless the model itself is shorter."""
EXPERIMENT = 0x6B76_7370_6563_0001
"""Not the hash of any fault, so the canary shares no draws with a campaign."""
FLIPS_PER_ELEMENT = 0.05


def run_canary(session: Session, prompt: list[int], storage_format: str, seed: int) -> dict[str, Any]:
    """Send one request with flips in every layer through the engine and compare its whole cache.

    Flips of signs, or of any bit of an integer, keep every value finite, so the request goes on as a real one would.
    Raises `EngineError` (KVS403) if one element differs from what was planned, or if nothing was checked or flipped.
    """
    geometry = session.geometry
    ids = (prompt * (PROMPT_TOKENS // len(prompt) + 1))[: min(PROMPT_TOKENS, session.max_model_len - NEW_TOKENS)]
    fault = SamplerParameters(
        per="element",
        rate=FLIPS_PER_ELEMENT,
        mask=_native.format_mask(storage_format, "all" if _native.format_scaled(storage_format) else "sign"),
        burst_len=1,
        page_tokens=0,
        page_rate=1.0,
    )
    key = _native.derive_keys(seed, EXPERIMENT, 0, 0)[0]
    length = len(ids) + NEW_TOKENS
    bits = _native.format_bits(storage_format)
    flips = fault.sampler(geometry, bits).enumerate(key=key, request=0, layers=(0, geometry.layers), tokens=(0, length))
    masks = np.zeros((geometry.layers, 2, length, geometry.kv_heads, geometry.head_size), dtype=np.uint32)
    where = tuple(flips[name].astype(np.int64) for name in ("layer", "kv", "token", "head", "elem"))
    np.bitwise_xor.at(masks, where, np.uint32(1) << flips["bit"].astype(np.uint32))
    table = TableData(
        storage_format=storage_format,
        faults=(fault,),
        selectors=(Selector(),),
        fault=np.zeros(1, dtype=np.uint32),
        write_key=np.array([key], dtype=np.uint32),
        request=np.zeros(1, dtype=np.uint32),
        prompt_len=np.array([len(ids)], dtype=np.uint32),
        armed=np.ones(1, dtype=bool),
        faulty=np.ones(1, dtype=bool),
    )
    session.rpc("kvspec_load", table)
    session.rpc("kvspec_watch", CanaryWatch(0, storage_format, masks))
    session.generate([ids], GenerationSpec(max_tokens=NEW_TOKENS), seed)
    tally = session.rpc("kvspec_tally", [0])
    result: dict[str, Any] = session.rpc("kvspec_canary")
    session.rpc("kvspec_watch", None)
    written = tally["written"][0]
    planned = int((flips["token"] < written).sum())
    if result["mismatches"] or not result["checked"] or planned == 0 or tally["landed"][0] != planned:
        raise EngineError.one(
            "KVS403",
            f"the canary planned {planned} flips; {tally['landed'][0]} landed, and {result['mismatches']} of "
            f"{result['checked']} elements read back differ from what was planned"
            + (f" ({result['first_mismatch']})" if result["first_mismatch"] else ""),
            hint="this vLLM stores its cache in a way that kvspec does not understand: please report it",
        )
    return {"checked": result["checked"], "planned": planned, "landed": tally["landed"][0]}
