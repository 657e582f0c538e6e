"""Faults of scales on real vLLM with a tiny model: what lands, what leaks, and what must not matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvspec.errors import EngineError
from tests.engine.rows import golden, ids

Run = Callable[..., dict[str, dict[str, Any]]]
PROMPTS = ["Who was the first US president?", "The capital of France is", "a" * 70]
SPEC: dict[str, Any] = {
    "prompts": {"inline": PROMPTS},
    "generation": {"max_tokens": 8},
    "faults": [
        {"name": "Few", "model": "random", "target": ["values", "scales"], "site": "KV_WRITE",
         "rate": {"per_token": 0.2}},
        {"name": "Low", "model": "random", "target": "scales", "site": "BOTH", "rate": {"per_row": 0.1},
         "bits": [0, 1, 2]},
        {"name": "Burst", "model": "burst", "target": "scales", "site": "KV_READ", "rate": {"per_row": 0.01}},
        {"name": "Page", "model": "page_local", "target": "scales", "site": "KV_WRITE", "rate": {"per_page": 0.3}},
        {"name": "Stuck", "model": "random", "target": "scales", "site": "BOTH", "op": ["set0", "set1"],
         "rate": {"per_row": 0.1}, "bits": "mantissa"},
        {"name": "Nan", "model": "msb_biased", "msb_policy": "FP16_EXPONENT", "target": "scales", "site": "KV_WRITE",
         "op": "set1", "rate": {"per_bit": 1.0}, "where": {"cache": ["V"], "layers": [1], "tokens": "prompt"}},
    ],
    "controls": {"null_trials": 2, "golden_repeats": 2},
    "trials": 3,
    "seed": 42,
}  # fmt: skip
NAMES = ["Few[values]", "Few[scales]", "Low", "Burst", "Page", "Stuck[set0]", "Stuck[set1]", "Nan"]


def spec(folder: Path, storage: str, **changes: Any) -> dict[str, Any]:
    return {**SPEC, "model": {"id": str(folder), "kv_cache_dtype": storage}, **changes}


@pytest.mark.parametrize("storage", ["int8_per_token_head", "int4_per_token_head"])
def test_scales_land_as_planned_and_nothing_leaks(storage: str, gpt2: Path, run: Run) -> None:
    rows = run(spec(gpt2, storage), max_num_seqs=6)  # few slots: blocks of NaN trials go to controls
    reference = golden(rows)
    for row in rows.values():
        assert row["error"] is None
        assert row["flips_landed"] == row["flips_planned"]
        assert row["flips_exposed"] == row["flips_restored"]
        if row["kind"] != "fault":
            assert row["flips_planned"] == 0
            assert row["token_ids"] == reference[row["request"]], row["trial_id"]
    cells = [[r for r in rows.values() if r["cell"] == cell] for cell in range(len(NAMES))]
    for name, cell in zip(NAMES, cells, strict=True):
        landed, changed = (sum(r[f"flips_{what}"] for r in cell) for what in ("landed", "changed"))
        assert landed > 0, name
        assert (changed == landed) == (not name.startswith("Stuck") and name != "Nan"), name
        assert (sum(r["flips_exposed"] for r in cell) > 0) == (name[:3] in ("Low", "Bur", "Stu")), name
    assert all(r["nonfinite_at"] == 0 for r in cells[-1])
    assert all(r["nonfinite_at"] is None for r in cells[2])
    # 2 bits of 2^-20 of a scale, or of the zero point of int4, which shifts a whole row by steps of its scale
    changed = np.mean([r["token_ids"] != reference[r["request"]] for r in cells[2]])
    assert changed < 0.5 if storage.startswith("int8") else changed > 0.5


def test_order_chunks_and_preemption_move_nothing(gpt2: Path, run: Run) -> None:
    base = run(spec(gpt2, "int8_per_token_head"))
    for settings in ({"submission_seed": 5, "max_num_seqs": 3}, {"max_num_batched_tokens": 16, "max_num_seqs": 8}):
        other = run(spec(gpt2, "int8_per_token_head"), **settings)
        assert ids(other) == ids(base)
        assert {t: r["flips_landed"] for t, r in other.items()} == {t: r["flips_landed"] for t, r in base.items()}


def test_formats_without_scales_in_the_cache_are_refused(gpt2: Path, run: Run) -> None:
    for storage in ("bf16", "fp8_e4m3"):
        with pytest.raises(Exception, match="strikes scales in the cache") as caught:
            run(spec(gpt2, storage))
        assert {d.code for d in caught.value.diagnostics} >= {"KVS206"}  # type: ignore[attr-defined]


def test_a_scale_in_the_wrong_row_stops_the_campaign(gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm import cpu

    original = cpu.Cache.arrays

    def shifted(self: Any, layer: int) -> dict[str, Any]:
        """As if each scale lay one head further."""
        found = original(self, layer)
        return {**found, "scales": np.roll(found["scales"], 1, axis=-1)}

    monkeypatch.setattr(cpu.Cache, "arrays", shifted)
    with pytest.raises(EngineError) as caught:
        run(spec(gpt2, "int8_per_token_head"))
    assert caught.value.diagnostics[0].code == "KVS403"


def test_words_that_do_not_follow_their_scale_stop_the_campaign(
    gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What attention reads is checked, not only the state that a fault changes."""
    from kvspec.engine.vllm.cpu import CpuInjector

    original = CpuInjector._inject

    def forgetful(self: Any, faults: Any, layer: int) -> None:
        before = self.cache.words[layer].copy()
        original(self, faults, layer)
        self.cache.words[layer][:] = before

    monkeypatch.setattr(CpuInjector, "_inject", forgetful)
    with pytest.raises(EngineError) as caught:
        run(spec(gpt2, "int8_per_token_head", faults=SPEC["faults"][3:4]))
    assert caught.value.diagnostics[0].code == "KVS403"
