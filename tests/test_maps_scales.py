"""Fault maps of scales: what their header says, what their rows may be, and that maps of values are as they were."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from kvspec import _native
from kvspec.errors import RecordsError
from kvspec.maps import Coverage, FaultMap, MapGeometry, explicit, read_map, verify_map, write_map
from kvspec.maps.compare import diff_maps
from kvspec.maps.generate import events_of
from kvspec.maps.summary import summarize
from kvspec.maps.trial import explicit_map, maps_of_trial
from kvspec.models import Geometry
from kvspec.plan import canonical_json, compile_plan
from kvspec.spec.model import Fault, Rate
from tests.maps.made import GENERATOR, TRIAL, generative
from tests.run_folders import make_plan

INT8 = MapGeometry(layers=3, kv_heads=2, head_size=16, planes=2, format="int8_per_token_head")
SCALES: dict[str, Any] = {
    "geometry": INT8,
    "target": "scales",
    "generator": replace(GENERATOR, rate=0.02, mask=0xFFFFFFFF),
    "coverage": Coverage(prompt_tokens=5, tokens=12),
}


@pytest.mark.parametrize("name", ["m.parquet", "m.json"])
@pytest.mark.parametrize("site", ["write", "read"])
def test_written_is_read(tmp_path: Path, name: str, site: str) -> None:
    lazy = generative(**SCALES, site=site)
    rows = explicit(lazy)
    assert lazy.id == rows.id
    assert len(rows) > 50
    jsonschema.validate(lazy.header.to_json(), json.loads(_native.schema("faultmap")))
    for fault_map in (lazy, rows):
        write_map(fault_map, tmp_path / name)
        found = read_map(tmp_path / name)
        assert found.header == fault_map.header
        assert found.header.target == "scales"
        assert verify_map(tmp_path / name).id == lazy.id
    columns = rows.columns or {}
    assert set(columns["elem"].tolist()) == {0}
    assert columns["bit"].max() > 15
    assert explicit_map(rows.header, {n: c[::-1].copy() for n, c in columns.items()}).id == lazy.id


def test_the_id_is_what_the_document_says() -> None:
    fault_map = explicit(generative(**SCALES))
    columns = dict(fault_map.columns or {}) | {"op": np.zeros(len(fault_map), np.uint8)}
    content = {
        "kvspec_faultmap": 1,
        "site": "write",
        "target": "scales",
        "geometry": {"layers": 3, "kv_heads": 2, "head_size": 16, "planes": 2, "format": "int8_per_token_head"},
        "flips": len(fault_map),
        "columns": {name: hashlib.sha256(column.tobytes()).hexdigest() for name, column in columns.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == fault_map.id


def test_the_rows_are_those_of_a_sampler_of_scales() -> None:
    columns = explicit(generative(**SCALES)).columns or {}
    sampler = _native.Sampler(head_size=1, bits=32, heads=2, rate=0.02, mask=0xFFFFFFFF)
    expected = sampler.enumerate(key=GENERATOR.key, request=0, layers=(0, 3), tokens=(0, 12))
    assert all(np.array_equal(columns[name], expected[name]) for name in expected)


def refusal(header: dict[str, Any], path: Path) -> Any:
    kept = {k: v for k, v in header.items() if k not in ("id", "kind", "provenance")}
    path.write_text(json.dumps(header | {"provenance": hashlib.sha256(canonical_json(kept).encode()).hexdigest()}))
    with pytest.raises(RecordsError) as caught:
        verify_map(path)
    return caught.value.diagnostics[0]


def test_headers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    header, path = generative(**SCALES).header.to_json(), tmp_path / "m.json"
    for change, where in (
        ({"target": "values"}, "$.target"),
        ({"target": "zeros"}, "$.target"),
        ({"target": None}, "$.target"),
        ({"geometry": header["geometry"] | {"format": "fp8_e4m3"}}, "$.geometry"),
    ):
        found = refusal(header | change, path)
        assert found.code == "KVS507", change
        assert where == found.path or "scales, which a fp8_e4m3 cache does not have" in found.message
    # without its target it is another map
    assert refusal({k: v for k, v in header.items() if k != "target"}, path).code in ("KVS507", "KVS511")


def test_the_key_is_that_of_scales(tmp_path: Path) -> None:
    identity = TRIAL["seed"], int(str(TRIAL["experiment"]), 16), TRIAL["trial"], TRIAL["fault"]
    path = tmp_path / "m.json"
    for target, sound in (("scales", True), ("values", False)):
        key = _native.derive_keys(*identity, target)[0]  # type: ignore[arg-type]
        made = generative(**SCALES | {"generator": replace(SCALES["generator"], key=key), "trial": TRIAL})
        write_map(made, path)
        if sound:
            verify_map(path)
            continue
        with pytest.raises(RecordsError, match=r"the key of .* is not that of its trial"):
            verify_map(path)


@pytest.mark.parametrize(("column", "value"), [("elem", 1), ("bit", 32), ("head", 2), ("kv", 2), ("token", 12)])
def test_rows_outside_are_refused(tmp_path: Path, column: str, value: int) -> None:
    whole = explicit(generative(**SCALES))
    columns = {name: c.copy() for name, c in (whole.columns or {}).items()}
    columns[column][-1] = value
    write_map(FaultMap(whole.header, columns), tmp_path / "m.parquet")
    with pytest.raises(RecordsError) as caught:
        read_map(tmp_path / "m.parquet")
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KVS509", f"$.columns.{column}[{len(whole) - 1}]")


def test_maps_of_values_and_of_scales_are_not_compared() -> None:
    values = generative(geometry=INT8, generator=replace(GENERATOR, mask=0xFF))
    found = diff_maps(values, generative(**SCALES))
    assert found.common is None
    assert ("$.target", None, "scales") in found.header
    assert summarize(generative(**SCALES), 3).bit.size == 32


def test_a_trial_of_scales_gives_its_maps() -> None:
    plan, shape = make_plan(), Geometry(12, 12, 64)
    model = replace(plan.spec.model, kv_cache_dtype="int8_per_token_head")
    fault = Fault("F", 0, "BOTH", "random", Rate("per_element", 1e-2), target="scales")
    plan = compile_plan(replace(plan.spec, model=model, faults=(fault,)))
    trial = next(t for t in plan.trials() if t.kind == "fault")
    maps = maps_of_trial(plan, trial, shape, prompt_len=4, written=13)
    keys = _native.derive_keys(plan.spec.seed, plan.cells[0].experiment, trial.trial, 0, "scales")
    assert [m.header.target for m in maps] == ["scales", "scales"]
    assert tuple(m.header.generator.key for m in maps if m.header.generator) == keys
    events = events_of(maps)
    assert set(events["target"].tolist()) == {1}
    assert len(events["target"]) == sum(map(len, maps)) > 0
    assert set(events_of([generative()])["target"].tolist()) == {0}
