"""Run the start-up canary and judge it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.session import Session
from kvspec.engine.table import TableData
from kvspec.engine.vllm.canary import CanaryWatch
from kvspec.errors import EngineError
from kvspec.plan.dose import SamplerParameters
from kvspec.plan.events import read_events
from kvspec.spec.model import GenerationSpec, Selector

PROMPT_TOKENS = 40
"""Prompts are cut to this: more than a cache block, so that the second block is checked too."""
NEW_TOKENS = 4
LENGTH = PROMPT_TOKENS + NEW_TOKENS
"""The engine must hold requests of this length, unless the model itself is shorter."""
EXPERIMENT = 0x6B76_7370_6563_0001
"""Not the hash of any fault, so the canary shares no draws with a campaign."""
FLIPS_PER_ELEMENT = 0.05


def run_canaries(
    session: Session, prompt: list[int], storage_format: str, seed: int, *, scales: bool = False
) -> dict[str, Any]:
    """The canary of values, and where there are faults of scales theirs too. Raises like `run_canary`."""
    found = run_canary(session, prompt, storage_format, seed)
    return found if not scales else {**found, "scales": run_canary(session, prompt, storage_format, seed, "scales")}


def run_canary(
    session: Session, prompt: list[int], storage_format: str, seed: int, target: str = "values"
) -> dict[str, Any]:
    """Send one request with flips in every layer through the engine and compare its whole cache: after each write, and
    where reads can be injected before and after each attention.

    Every value stays finite, so the request goes on as a real one would.
    Steps inside a captured CUDA graph (decode, where the backend has full graphs) are not looked at: their flips are
    counted only, as those of the whole request are.
    `target` is what flips: values, or the scales of a format that has them.
    Raises `EngineError` (KVS403) if one element differs from what was planned, or if nothing was checked or flipped.
    """
    geometry = session.geometry
    ids = (prompt * (PROMPT_TOKENS // len(prompt) + 1))[: min(PROMPT_TOKENS, session.max_model_len - NEW_TOKENS)]
    fault = SamplerParameters(
        per="element",
        rate=FLIPS_PER_ELEMENT,
        mask=_finite_bits(storage_format, target),
        burst_len=1,
        page_tokens=0,
        page_rate=1.0,
        target=target,
    )
    keys = _native.derive_keys(seed, EXPERIMENT, 0, 0, target)
    bits = _native.format_bits(storage_format)
    sampler, layers = fault.sampler(geometry, bits), (0, geometry.layers)
    elements, _ = fault.elements(geometry, bits)
    length = len(ids) + NEW_TOKENS

    def flips(key: tuple[int, int], tokens: int) -> NDArray[np.uint32]:
        """Masks `[L, 2, tokens, H, D]` of the flips that a key gives."""
        found = sampler.enumerate(key=key, request=0, layers=layers, tokens=(0, tokens))
        masks = np.zeros((geometry.layers, 2, tokens, geometry.kv_heads, elements), dtype=np.uint32)
        where = tuple(found[name].astype(np.int64) for name in ("layer", "kv", "token", "head", "elem"))
        np.bitwise_xor.at(masks, where, np.uint32(1) << found["bit"].astype(np.uint32))
        return masks

    site = "BOTH" if session.reads else "KV_WRITE"
    masks = flips(keys[0], length)
    events = read_events(len(ids), length) if site == "BOTH" else ()
    reads = {step: flips(_native.read_key(keys[1], 0, step), step) for step in events}
    table = TableData(
        storage_format=storage_format,
        faults=(fault,),
        sites=(site,),
        ops=("flip",),
        selectors=(Selector(),),
        fault=np.zeros(1, dtype=np.uint32),
        write_key=np.array([keys[0]], dtype=np.uint32),
        read_master=np.array([keys[1]], dtype=np.uint32),
        request=np.zeros(1, dtype=np.uint32),
        prompt_len=np.array([len(ids)], dtype=np.uint32),
        armed=np.ones(1, dtype=bool),
        faulty=np.ones(1, dtype=bool),
    )
    session.rpc("kvspec_load", table)
    session.rpc("kvspec_watch", CanaryWatch(0, storage_format, masks, reads, target))
    session.generate([ids], GenerationSpec(max_tokens=NEW_TOKENS), seed)
    tally, result = session.tally([0]), session.canary()
    session.rpc("kvspec_watch", None)
    written, landed = tally["written"][0], tally["landed"][0]
    shown = [masks[:, :, :written], *(mask for step, mask in reads.items() if step <= written)]
    planned = sum(int(np.bitwise_count(mask).sum()) for mask in shown)
    blind = not result["checked"] or (bool(reads) and not result["checked_reads"])
    blind |= not all(mask.any() for mask in shown)
    if result["mismatches"] or blind or landed != planned:
        raise EngineError.one(
            "KVS403",
            f"the canary planned {planned} flips of {target}; {landed} landed, and {result['mismatches']} of "
            f"{result['checked'] + result['checked_reads']} elements read back differ from what was planned"
            + (f" ({result['first_mismatch']})" if result["first_mismatch"] else ""),
            hint="this vLLM stores its cache in a way that kvspec does not understand: please report it",
        )
    return {
        "checked": result["checked"],
        "checked_reads": result["checked_reads"],
        "planned": planned,
        "landed": landed,
    }


def _finite_bits(storage_format: str, target: str) -> int:
    """Bits whose flips keep every value finite: any of an integer, signs of floats, all but the exponent of a scale."""
    if target == "scales":
        every, exponent = (_native.format_mask(storage_format, word, target) for word in ("all", "exponent"))
        return every & ~exponent
    return _native.format_mask(storage_format, "all" if _native.format_scaled(storage_format) else "sign")
