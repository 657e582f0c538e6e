"""What docs/benchmarks says of the last GPU session is what its JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
PAGE = (DOCS / "h100-session.md").read_text(encoding="utf-8")
CHANGELOG = (DOCS.parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@pytest.fixture(scope="module")
def sessions() -> dict[int, dict[str, Any]]:
    """The parts of each session together."""
    found: dict[int, dict[str, Any]] = {}
    text = (DOCS / "h100-session.json").read_text(encoding="utf-8")
    for part in json.loads(text, parse_constant=no_constant):
        found.setdefault(part["session"], {}).update(part)
    return found


def test_the_guides_ratios_and_why_they_end_there(sessions: dict[int, dict[str, Any]]) -> None:
    guide = sessions[8]["guide"]
    ours, theirs, large, script = (
        [run for run in guide[name] if run["warm"]] for name in ("ours", "theirs", "ours_320", "script")
    )
    seven, each, many, loop = (mean(run["seconds"] for run in runs) for runs in (ours, theirs, large, script))
    assert len(theirs) == len(large) == len(script) == 1
    engines, imports = script[0]["engines"], script[0]["import"]
    assert f"7 x {each:.1f} / {seven:.1f} = **{7 * each / seven:.2f}**" in PAGE
    assert f"320 x {each:.1f} / {many:.1f} = **{320 * each / many:.0f}**" in PAGE
    assert f"{loop:.1f} / {seven:.1f} = **{loop / seven:.2f}**" in PAGE
    whole = loop + 313 * mean(engines)
    assert f"({loop:.1f} + 313 x {mean(engines):.2f}) / {many:.1f} = **{whole / many:.1f}**" in PAGE
    least = imports + min(engines)
    assert least > loop / 6  # out of reach
    assert least > whole / 250
    assert f"A sixth of {loop:.1f} s is {loop / 6:.1f} s" in PAGE
    assert f"{imports:.1f} + {min(engines):.1f} = {least:.1f} s" in PAGE
    assert f"would come to {loop / least:.1f}x" in PAGE
    assert f"would be {whole / least:.0f}x" in PAGE
    assert f"= {whole:,.0f} s; one 250th of that is {whole / 250:.1f} s" in PAGE
    told = f"{7 * each / seven:.1f} times as fast as a process and an engine for each ({loop / seven:.1f} times"
    assert told in CHANGELOG
    assert f"320 cells {320 * each / many:.0f} times ({whole / many:.0f} times)" in CHANGELOG


def test_the_speed_of_a_campaign_is_told_by_minima_means_and_medians(sessions: dict[int, dict[str, Any]]) -> None:
    rounds = sessions[8]["speed"]["speed"]["all"]
    stock, campaign = rounds["stock"], rounds["campaign"]
    row = next(line for line in PAGE.splitlines() if line.startswith("| **8 (H200, alone, six rounds"))
    assert f"stock {', '.join(f'{s:.3f}' for s in stock)}, campaign {', '.join(f'{s:.3f}' for s in campaign)}" in row
    ratios = [a / b for a, b in zip(campaign, stock, strict=True)]
    least = min(campaign) / min(stock)
    assert f"{min(campaign):.3f} (**{least:.3f}**; median within rounds **{median(ratios):.3f}**)" in row
    text = " ".join(PAGE.split())
    by_means = mean(campaign) / mean(stock)
    assert f"{least:.3f} by minima, {by_means:.2f} by means, {median(ratios):.3f} by the median within rounds" in text
    assert f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})" in text
    assert least > 1.03  # not shown
    assert len(ratios) >= 5


def test_long_contexts_and_checks(sessions: dict[int, dict[str, Any]]) -> None:
    contexts, prefill = (
        sessions[8]["long"]["cases"][name] for name in ("64 x 2000-token contexts", "prefill 32 x 2000")
    )
    row = f"| 8 | {prefill['seconds']['stock']:.3f} | **{prefill['ratio']['writes']:.3f}** | "
    assert f"{row}**{prefill['ratio']['reads']:.3f}** |" in PAGE
    row = f"| 8 | {contexts['seconds']['stock']:.3f} | | **{contexts['ratio']['reads']:.3f}** | "
    assert f"{row}{contexts['step_ms']['stock']:.3f} | | {contexts['step_ratio']['reads']:.3f} |" in PAGE
    checks = sessions[8]["checks"]
    assert f"{checks.pop('tests')['output'].partition(' passed')[0]} passed: fp8_e4m3 equal everywhere" in PAGE
    for found in checks.values():
        assert found["figures"]["planned_is_landed"] == found["figures"]["trials"]
        assert f"{found['figures']['flips']:,}" in PAGE
    replays = {name: [found[what] for what in ("replay", "replay_reads")] for name, found in checks.items()}
    for name, (writes, reads) in replays.items():
        assert isinstance(reads, str) == name.startswith("V1-")  # did not run, and the page says so
        for replay in (writes, reads):
            if isinstance(replay, dict):
                assert replay["proven"] == replay["trials"] == 60
                assert replay["mismatches"] == 0
                assert replay["planned"] == replay["landed"] == replay["read_back"]
                assert f"{replay['planned']:,}" in PAGE
    assert {name for name, found in checks.items() if "replay_scales" in found} == {
        "TRITON_ATTN-int8_per_token_head", "TRITON_ATTN-int4_per_token_head",
    }  # fmt: skip
    assert "**What did not run in session 8**: the replays of reads under the V1 runner" in PAGE
