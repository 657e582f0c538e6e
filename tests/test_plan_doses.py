"""Doses of a plan: rates, what they expect of the sampler, and what selectors leave of it. No engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvspec import _native
from kvspec.errors import PlanError
from kvspec.plan.dose import dose, fit_probability, highest_rate, sampler_parameters
from kvspec.plan.estimate import estimate, expected_flips, shown, shown_tokens
from kvspec.spec.model import RATE_UNITS, Fault, Rate, Selector
from tests.small_plans import SMALL, SPEC, info, plan_maker


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return plan_maker(tmp_path)


@pytest.mark.parametrize(
    ("rate", "per_row"),
    [
        ({"per_bit": 1e-3}, 1e-3 * 64 * 16),
        ({"per_element": 1e-3}, 1e-3 * 64),
        ({"per_row": 1e-3}, 1e-3),
        ({"per_token": 1e-3}, 1e-3 / 6),
        (
            {"fit": {"raw_fit_per_mbit": 1e6, "residency_hours": 24}},
            fit_probability(1e6, 24) * 64 * 16,
        ),
    ],
)
def test_rates_convert_into_expected_flips_per_row(make: Any, rate: dict[str, Any], per_row: float) -> None:
    fault = make({"faults": [{"name": "A", "model": "random", "site": "KV_WRITE", "rate": rate}]}).cells[0].fault
    figures = dose(sampler_parameters(fault, "bf16", SMALL), SMALL, 16)
    assert figures.per_row == pytest.approx(per_row, rel=1e-9)
    assert figures.per_element == pytest.approx(per_row / 64)
    assert figures.per_token == pytest.approx(per_row * 6 * 4)
    assert figures.per_gib == pytest.approx(per_row / (64 * 16) * 2**33)


def test_fit_is_the_textbook_formula() -> None:
    assert fit_probability(1000, 1000) == pytest.approx(1000 * 1000 / (1e9 * 2**20), rel=1e-6)
    assert fit_probability(0, 5) == 0
    assert fit_probability(1e30, 1e9) == 1


@pytest.mark.parametrize("density", [1.0, 0.3, 4e-6])
@pytest.mark.parametrize("model", ["random", "page_local"])
@pytest.mark.parametrize("unit", RATE_UNITS)
@pytest.mark.parametrize(("bits", "target"), [("all", "values"), ((0, 2, 5), "values"), ("all", "scales")])
def test_the_highest_rate_is_one_that_a_plan_takes_and_no_higher_one(
    model: str, unit: str, density: float, bits: Any, target: str
) -> None:
    if unit == "per_page" and model == "random":
        return
    rate = Rate(unit, 0.0, 24.0 if unit == "fit" else None)
    fault = Fault("F", 0, "KV_WRITE", model, rate, bits=bits, page_density=density, target=target)

    def probability(value: float) -> float:
        found = sampler_parameters(replace(fault, rate=replace(rate, value=value)), "int8_per_token_head", SMALL)
        return found.page_rate if model == "page_local" else found.rate

    highest = highest_rate(fault, "int8_per_token_head", SMALL)
    if unit == "fit" and (model == "random" or density == 1.0):
        assert highest == math.inf
        assert probability(1e300) == 1.0
        return
    assert probability(highest) == pytest.approx(1.0, rel=1e-9)
    with pytest.raises(PlanError, match="gives a probability of"):
        probability(highest * (1 + 1e-9))


def test_page_local_at_a_bit_rate_has_the_same_expected_flips_as_random(make: Any) -> None:
    faults = [
        {"name": "R", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-4}},
        {"name": "P", "model": "page_local", "site": "KV_WRITE", "rate": {"per_bit": 1e-4}, "page_density": 0.01},
        {"name": "E", "model": "page_local", "site": "KV_WRITE", "rate": {"per_element": 1.6e-3}, "page_density": 0.01},
    ]
    rows = [dose(sampler_parameters(c.fault, "bf16", SMALL), SMALL, 16).per_row for c in make({"faults": faults}).cells]
    assert rows[1] == pytest.approx(rows[0])
    assert rows[2] == pytest.approx(rows[0])


@pytest.mark.parametrize(
    "fault",
    [
        {"model": "random", "rate": {"per_bit": 2e-3}},
        {"model": "random", "rate": {"per_element": 0.02}, "bits": "exponent"},
        {"model": "burst", "rate": {"per_bit": 2e-4}, "burst_len": 9},
        {"model": "msb_biased", "msb_policy": "BYTE_TOPBITS", "rate": {"per_bit": 2e-3}},
        {"model": "page_local", "rate": {"per_page": 0.5}, "page_density": 5e-3, "page_tokens": 2},
        {"model": "random", "rate": {"per_row": 0.1}, "where": {"layers": [0, 3], "cache": ["V"], "tokens": "decode"}},
        {"model": "random", "rate": {"per_bit": 2e-3}, "where": {"heads": [1], "tokens": ["3-9"]}},
    ],
)
def test_expected_flips_are_what_the_sampler_gives_on_average(make: Any, fault: dict[str, Any]) -> None:
    from kvspec.engine.table import native_selector

    cell = make({"faults": [{"name": "A", "site": "KV_WRITE", **fault}]}).cells[0]
    parameters = sampler_parameters(cell.fault, "bf16", SMALL)
    prompt, written, trials = 12, 19, 300
    expected = expected_flips(cell, parameters, SMALL, 16, prompt, written)
    counts = [
        parameters.sampler(SMALL, 16).count(
            key=_native.derive_keys(1, cell.experiment, t, 0)[0],
            request=0,
            layers=(0, 4),
            tokens=(0, written),
            prompt_len=prompt,
            selector=native_selector(cell.fault.where),
        )
        for t in range(trials)
    ]
    mean = sum(counts) / trials
    spread = math.sqrt(sum((c - mean) ** 2 for c in counts) / (trials - 1) / trials)
    assert abs(mean - expected) < 5 * spread, (mean, expected, spread)


@pytest.mark.parametrize(
    ("site", "where", "events"),
    [
        ("KV_READ", {}, range(12, 20)),
        ("BOTH", {}, range(12, 20)),
        ("KV_READ", {"steps": "prefill"}, [12]),
        ("KV_READ", {"steps": "decode", "tokens": "decode"}, range(13, 20)),
        ("BOTH", {"steps": [0, "2-3", "7-"], "tokens": ["3-14"], "cache": ["K"]}, [12, 14, 15, 19]),
    ],
)
def test_reads_are_expected_once_per_event_and_token(
    make: Any, site: str, where: dict[str, Any], events: Sequence[int]
) -> None:
    from kvspec.engine.table import native_selector

    fault = {"name": "A", "model": "burst", "burst_len": 5, "site": site, "rate": {"per_bit": 2e-4}, "where": where}
    cell = make({"faults": [fault]}).cells[0]
    parameters = sampler_parameters(cell.fault, "bf16", SMALL)
    prompt, written, trials = 12, 19, 200
    expected = expected_flips(cell, parameters, SMALL, 16, prompt, written)
    counts = []
    for t in range(trials):
        write, master = _native.derive_keys(1, cell.experiment, t, 0)
        draws = [(_native.read_key(master, 0, step), step) for step in events]
        draws += [(write, written)] if site == "BOTH" else []
        found = [
            parameters.sampler(SMALL, 16).count(
                key=key, request=0, layers=(0, 4), tokens=(0, tokens), prompt_len=prompt,
                selector=native_selector(cell.fault.where),
            )
            for key, tokens in draws
        ]  # fmt: skip
        counts.append(sum(found))
    mean = sum(counts) / trials
    spread = math.sqrt(sum((c - mean) ** 2 for c in counts) / (trials - 1) / trials)
    assert abs(mean - expected) < 5 * spread, (mean, expected, spread)


def test_selectors_count_what_they_show() -> None:
    assert shown(None, 7) == 7
    assert shown(((0, 2), (1, 4), (6, None)), 8) == 6
    assert shown_tokens(Selector(tokens="prompt"), 5, 9) == 5
    assert shown_tokens(Selector(tokens="decode"), 5, 9) == 4
    assert shown_tokens(Selector(tokens="decode"), 5, 5) == 0
    assert shown_tokens(Selector(tokens=((2, 4),)), 5, 9) == 2


def test_expectations_add_up(make: Any) -> None:
    found = estimate(make(), info(), [5, 6, 7], exact=True)
    assert found.requests == 63
    assert found.generated_tokens == 63 * 8
    assert found.prompt_tokens == 21 * 18
    first = found.cells[0]
    mean_written = sum(p + 7 for p in (5, 6, 7)) / 3
    assert first.expected_flips_per_trial == pytest.approx(1e-5 * SMALL.bits_per_token(16) * mean_written)
    assert first.expected_flips == pytest.approx(first.expected_flips_per_trial * 15)


def test_doses_of_scales_count_scales(make: Any) -> None:
    fault = {"name": "F", "model": "random", "site": "KV_WRITE", "target": ["values", "scales"]}
    model = {**SPEC["model"], "kv_cache_dtype": "int8_per_token_head"}
    plan = make({"model": model, "faults": [{**fault, "rate": {"per_token": 0.5}}]})
    assert [cell.name for cell in plan.cells] == ["F[values]", "F[scales]"]
    values, scales = (sampler_parameters(c.fault, "int8_per_token_head", SMALL) for c in plan.cells)
    assert (values.mask, scales.mask) == (0xFF, 0xFFFFFFFF)
    doses = [dose(p, SMALL, 8) for p in (values, scales)]
    assert doses[0].per_row == doses[1].per_row == 0.5 / SMALL.rows_per_token
    assert doses[1].per_element == doses[1].per_row
    assert doses[1].per_eligible_bit == doses[1].per_row / 32
    assert doses[1].per_gib == pytest.approx(doses[1].per_row * 2**28)  # 4 bytes each
    assert doses[0].per_gib == pytest.approx(doses[0].per_row * 2**30 / SMALL.head_size)
    expected = [cell.expected_flips for cell in estimate(plan, info(), [5], True).cells]
    assert expected[0] == expected[1] > 0
    per_bit = make({"model": model, "faults": [{**fault, "rate": {"per_bit": 1e-3}}]})
    ratio = [cell.expected_flips for cell in estimate(per_bit, info(), [5], True).cells]
    assert ratio[0] / ratio[1] == pytest.approx(SMALL.head_size * 8 / 32)


@pytest.mark.parametrize("change", [{}, {"bits": (3,)}, {"bits": "sign"}])
def test_scales_that_a_format_does_not_have_are_errors_of_the_plan(change: dict[str, Any]) -> None:
    fault = Fault("F", 0, "KV_WRITE", "random", Rate("per_bit", 1e-3), target="scales", **change)
    with pytest.raises(PlanError, match="rows of fp8_e4m3 have no scales") as caught:
        sampler_parameters(fault, "fp8_e4m3", SMALL)
    assert [(d.code, d.path) for d in caught.value.diagnostics] == [("KVS304", "$.faults[0].target")]
    outside = Fault("F", 0, "KV_WRITE", "random", Rate("per_bit", 1e-3), target="scales", bits=(32,))
    with pytest.raises(PlanError, match="bit `32` does not exist in scales of int4_per_token_head"):
        sampler_parameters(outside, "int4_per_token_head", SMALL)
