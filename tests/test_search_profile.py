"""A fault as an entry of a spec: a profile must give just the fault that was measured."""

from __future__ import annotations

from pathlib import Path

from kvspec.search.model import entry, series_of
from kvspec.spec import load_spec


def test_entries_of_a_profile_give_the_fault_again(tmp_path: Path) -> None:
    faults = """
  - name: A
    model: burst
    site: BOTH
    burst_len: 3
    bits: [14, 3]
    rate: {per_element: 1e-6}
    where: {steps: [0, "2-4"]}
  - {name: B, model: msb_biased, msb_policy: FP16_EXPONENT, site: KV_WRITE, rate: {per_row: 1e-6}, where: {heads: [1]}}
  - name: C
    model: page_local
    site: KV_WRITE
    page_tokens: 4
    page_density: 0.01
    rate: {per_page: 1e-2}
    where: {tokens: [5, "9-"]}
  - name: D
    model: random
    site: KV_WRITE
    op: set1
    bits: exponent
    rate: {fit: {raw_fit_per_mbit: 500, residency_hours: 2}}
  - {name: E, model: burst, burst_len: 1, site: KV_WRITE, rate: {per_bit: 1e-6}}
  - {name: F, model: page_local, page_tokens: 16, site: KV_WRITE, rate: {per_page: 1e-2}}
"""
    path = tmp_path / "a.yaml"
    head = "kvspec: 1\nname: t\nmodel: {id: gpt2}\nprompts: {inline: [a]}\ntrials: 1\nfaults: "
    path.write_text(head + faults, encoding="utf-8")
    spec = load_spec(path)
    again = tmp_path / "b.yaml"
    again.write_text(head + str([entry(fault) for fault in spec.faults]), encoding="utf-8")
    assert load_spec(again).faults == spec.faults
    assert len(series_of(spec.faults)) == 6


def test_the_entry_of_a_fault_of_scales_strikes_scales(tmp_path: Path) -> None:
    head = "kvspec: 1\nname: t\nmodel: {id: gpt2, kv_cache_dtype: int8_per_token_head}\n"
    head += "prompts: {inline: [a]}\ntrials: 1\nfaults: "
    fault = "{{name: {0}, model: random, site: KV_WRITE, target: {0}, rate: {{per_row: 1e-2}}}}"
    path, again = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(f"{head}[{fault.format('values')}, {fault.format('scales')}]", encoding="utf-8")
    spec = load_spec(path)
    again.write_text(head + str([entry(f) for f in spec.faults]), encoding="utf-8")
    assert [f.target for f in load_spec(again).faults] == ["values", "scales"]
    assert load_spec(again).faults == spec.faults
