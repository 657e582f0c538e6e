"""What a self-test injects: a cell for every fault model and policy of the storage format, dense enough to measure."""

from __future__ import annotations

from dataclasses import replace

from kvspec import _native
from kvspec.plan import Plan, compile_plan
from kvspec.spec.model import (
    MSB_POLICIES,
    Controls,
    EngineSpec,
    Fault,
    GenerationSpec,
    ModelSpec,
    PromptSpec,
    Rate,
    Selector,
    Spec,
    TrialSpec,
)

PROMPTS = ("The capital of France is", "Memory faults in a cache of keys and values can")
NEW_TOKENS = 6
SEED = 0x5E1F
SEQUENCES = 32
"""Requests that run together: few, so that cache blocks change hands."""


def self_test(model: ModelSpec, own: Spec | None) -> Plan:
    """The plan: the standard faults, then those of a user's spec, on that spec's first prompts."""
    texts = PROMPTS if own is None else own.prompts.texts[:2]
    faults = standard_faults(model.storage_format)
    if own is not None:
        standard = len(faults)
        faults += [replace(f, name=f"spec: {f.name}", index=standard + f.index) for f in own.faults]
    return compile_plan(
        Spec(
            name="self-test",
            model=model,
            prompts=PromptSpec(tuple(texts)),
            generation=GenerationSpec(max_tokens=NEW_TOKENS),
            faults=tuple(faults),
            controls=Controls(null_trials=4, golden_repeats=4),
            trials=TrialSpec(per_prompt=2),
            seed=SEED,
            metrics=(),
            engine=EngineSpec(max_num_seqs=SEQUENCES),
        )
    )


WRITES, READS = "random per bit", "reads per bit"
"""The faults whose flips are looked at for repetition."""


def standard_faults(storage_format: str) -> list[Fault]:
    """Every model, unit and policy, everywhere; one behind a selector; and where a format has scales, theirs."""
    faults = [
        _fault(WRITES, "random", "per_bit", 2e-3),
        _fault(READS, "random", "per_bit", 1e-3, site="KV_READ"),
        _fault("both, page_local", "page_local", "per_page", 0.2, page_tokens=4, page_density=2e-3, site="BOTH"),
        _fault("random per element", "random", "per_element", 1e-2),
        _fault("random per row", "random", "per_row", 0.2),
        _fault("burst of 4", "burst", "per_bit", 5e-4, burst_len=4),
        _fault("page_local", "page_local", "per_page", 0.2, page_tokens=4, page_density=5e-3),
        _fault("selected", "random", "per_bit", 2e-2, where=Selector(layers=((0, 1),), cache=("V",), tokens="decode")),
    ]
    faults += [_fault(f"msb {p}", "msb_biased", "per_bit", 5e-3, msb_policy=p) for p in policies(storage_format)]
    if _native.format_scaled(storage_format):
        faults += [
            _fault("scales per bit", "random", "per_bit", 2e-3, target="scales"),
            _fault("scales, reads per bit", "random", "per_bit", 1e-3, site="KV_READ", target="scales"),
        ]
    return [replace(fault, index=index) for index, fault in enumerate(faults)]


def policies(storage_format: str) -> list[str]:
    """The MSB policies that are defined for a format."""
    found = []
    for policy in MSB_POLICIES:
        try:
            _native.format_mask(storage_format, policy)
        except ValueError:
            continue
        found.append(policy)
    return found


def _fault(name: str, model: str, unit: str, rate: float, site: str = "KV_WRITE", **more: object) -> Fault:
    return Fault(name=name, index=0, site=site, model=model, rate=Rate(unit, rate), **more)  # type: ignore[arg-type]
