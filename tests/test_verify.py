"""The measures of the self-test against samples whose truth is known. No engine runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft7Validator

from kvspec import _native
from kvspec.errors import PlanError, RecordsError
from kvspec.models import Geometry
from kvspec.plan.dose import SamplerParameters, sampler_parameters
from kvspec.spec import load_spec
from kvspec.verify import measure
from kvspec.verify.certificate import Certificate, Check, FaultRow, write_certificate
from kvspec.verify.plan import policies, standard_faults
from kvspec.verify.run import verify

SHAPE = Geometry(4, 3, 16)
TOKENS = 43


def sampled(fault: SamplerParameters, keys: int = 4, **damage: Any) -> list[measure.Draw]:
    """Trials as a sound injector changes them, optionally damaged."""
    sampler = fault.sampler(SHAPE, 16)
    trials = []
    for key in range(keys):
        flips = sampler.enumerate(key=(key, 7), request=0, layers=(0, SHAPE.layers), tokens=(0, TOKENS))
        dense = np.zeros((SHAPE.layers, 2, SHAPE.kv_heads, TOKENS, SHAPE.head_size), np.int64)
        at = tuple(flips[n].astype(np.int64) for n in ("layer", "kv", "head", "token", "elem"))
        np.bitwise_xor.at(dense, at, np.int64(1) << flips["bit"].astype(np.int64))
        if damage.get("repeat"):
            dense[:] = dense[:, :, :, :1]
        if damage.get("drop"):
            dense[0] = 0
        if damage.get("shift"):
            dense <<= 1
        where = np.nonzero(dense)
        changes = dict(zip(("layer", "kv", "head", "token", "elem"), where, strict=True))
        changes |= {
            "step": np.zeros(len(where[0]), np.int64),
            "before": np.full(len(where[0]), 0x3F80),
            "after": dense[where] ^ 0x3F80,
        }
        trials.append(measure.Draw(changes, TOKENS))
    return trials


FAULTS = {f.name: f for f in standard_faults("bf16") if f.name != "selected"}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_sound_sampler_passes_and_a_deaf_one_does_not(name: str) -> None:
    fault = sampler_parameters(FAULTS[name], "bf16", SHAPE)
    found = measure.rate(sampled(fault), fault, SHAPE)
    assert found.p_value > 1e-3
    assert found.measured == pytest.approx(found.expected, rel=0.5)
    assert measure.stray_bits(sampled(fault), fault.mask) == 0
    denser = replace(fault, rate=fault.rate * 2, page_rate=min(1.0, fault.page_rate * 2))
    assert measure.rate(sampled(denser, keys=16), fault, SHAPE).p_value < found.p_value


def test_dropped_flips_are_seen() -> None:
    fault = sampler_parameters(FAULTS["random per bit"], "bf16", SHAPE)
    assert not measure.rate(sampled(fault, keys=16, drop=True), fault, SHAPE).passed


def test_bits_outside_the_mask_are_seen() -> None:
    fault = sampler_parameters(FAULTS["msb FP16_EXPONENT"], "bf16", SHAPE)
    assert measure.stray_bits(sampled(fault, shift=True), fault.mask) > 0


def test_repeated_bits_are_seen() -> None:
    fault = sampler_parameters(FAULTS["random per bit"], "bf16", SHAPE)
    sites = 4 * (TOKENS - 1) * SHAPE.layers * SHAPE.rows_per_token * SHAPE.head_size * 16
    assert measure.coincidences(sampled(fault), "token", fault.rate, sites).passed
    assert not measure.coincidences(sampled(fault, repeat=True), "token", fault.rate, sites).passed


@pytest.mark.parametrize(
    ("storage", "known"),
    [("bf16", 3), ("fp16", 3), ("fp8_e4m3", 3), ("int8_per_token_head", 2), ("int4_per_token_head", None)],
)
def test_every_policy_that_a_format_knows_is_tested(storage: str, known: int | None) -> None:
    assert known is None or len(policies(storage)) == known
    scales = [fault.site for fault in standard_faults(storage) if fault.target == "scales"]
    assert scales == (["KV_WRITE", "KV_READ"] if "per_token_head" in storage else [])
    assert len(standard_faults(storage)) == 8 + len(policies(storage)) + len(scales)


def certificate(**changes: Any) -> Certificate:
    row = FaultRow("F", "ffff", 2, 3, 3, "bits", 10, 3.0, 3, 0.9, 0, True, True)
    facts: dict[str, Any] = {
        "model": {"id": "m", "revision": None},
        "geometry": asdict(SHAPE) | {"format": "bf16"},
        "environment": {"vllm": "0"},
        "seed": 1,
        "alpha": 1e-5,
        "faults": (row, replace(row, unit=None, exposed=None, expected=None, measured=None, p_value=None)),
        "checks": (Check("a", "b", True, "c"), Check("d", "e", None, "f")),
        "seconds": 1.23,
    }
    return Certificate(**facts | changes)


def test_a_certificate_fits_its_schema(tmp_path: Path) -> None:
    whole = certificate()
    assert whole.passed
    path = write_certificate(whole.to_json(), tmp_path)
    assert path == tmp_path / "certificate.json"
    Draft7Validator(json.loads(_native.schema("certificate"))).validate(json.loads(path.read_text(encoding="utf-8")))
    assert not certificate(checks=(Check("a", "b", False, "c"),)).passed
    assert not certificate(faults=(replace(whole.faults[0], passed=False),)).passed
    with pytest.raises(RecordsError):
        write_certificate(whole.to_json(), tmp_path / "none" / "c.json")


def test_the_report_shows_the_certificate_of_its_run(tmp_path: Path) -> None:
    from kvspec.report import render_text
    from kvspec.score import score_run
    from tests.run_folders import make_plan, write_run

    run = write_run(tmp_path / "run", make_plan((1e-6,)))
    assert "self-test" not in render_text(score_run(run))
    facts = json.loads((run / "environment.json").read_text(encoding="utf-8"))["packages"]
    model = score_run(run).run
    mine = {"model": {"id": model.model, "revision": None}, "environment": facts}
    mine["geometry"] = asdict(SHAPE) | {"format": model.storage_format}
    write_certificate(certificate(**mine).to_json(), run)
    assert "the injector passed its self-test (2 checks, 2 faults)" in render_text(score_run(run))
    write_certificate(certificate(**mine, checks=(Check("masks", "b", False, "c"),)).to_json(), run)
    assert "the injector FAILED its self-test (masks)" in render_text(score_run(run))
    write_certificate(certificate(**{**mine, "model": {"id": "other", "revision": None}}).to_json(), run)
    assert "NOT OF THIS RUN: model is other in the certificate" in render_text(score_run(run))
    (run / "certificate.json").write_text('{"checks": 3}', encoding="utf-8")
    assert "NOT READABLE" in render_text(score_run(run))


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ("model.kv_cache_dtype=int8_per_token_head", "KVS304", "$.faults[2]"),  # its exponent bits
        ("faults.0.rate.per_bit=[0.1]", "", ""),
    ],
)
def test_what_cannot_be_injected_is_refused_before_the_engine_starts(change: str, code: str, place: str) -> None:
    """With its place in the user's spec, not among the standard faults that come first."""
    spec = load_spec(Path(__file__).parents[1] / "specs" / "quickstart.yaml", [change])

    def phase(text: str) -> None:
        if text != "preparing the model":
            raise RuntimeError(text)

    if not code:
        with pytest.raises(RuntimeError, match="starting vLLM"):
            verify(spec.model, spec, SimpleNamespace(phase=phase))  # type: ignore[arg-type]
        return
    with pytest.raises(PlanError) as caught:
        verify(spec.model, spec, SimpleNamespace(phase=phase))  # type: ignore[arg-type]
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.path) == (code, place)
