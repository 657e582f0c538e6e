"""Fault maps: what is written is read, a generator and its rows have one id, any damage is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvspec import _native
from kvspec.errors import KvspecError, RecordsError
from kvspec.maps import (
    Coverage,
    FaultMap,
    Generator,
    Header,
    MapGeometry,
    diff_maps,
    explicit,
    explicit_map,
    from_trial,
    maps_of_trial,
    read_map,
    require_geometry,
    verify_map,
    write_map,
)
from kvspec.maps.columns import DTYPES, names
from kvspec.maps.generate import shown_steps
from kvspec.maps.parquet import KEY, MAX_GROUP_ROWS
from kvspec.maps.trial import subset
from kvspec.models import Geometry
from kvspec.plan import Trial, compile_plan
from kvspec.spec.model import Fault, Rate, Selector
from tests.maps.made import BASE, GENERATOR, GEOMETRY, TRIAL, generative, made
from tests.run_folders import make_plan

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a: FaultMap, b: FaultMap) -> bool:
    if a.header.to_json() != b.header.to_json() or (a.columns is None) != (b.columns is None):
        return False
    left, right = a.columns or {}, b.columns or {}
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype and np.array_equal(left[n], right[n]) for n in left
    )


@st.composite
def headers(draw: st.DrawFn) -> Header:
    ranges = st.lists(st.tuples(st.integers(0, 4), st.integers(4, 9) | st.none()), max_size=3).map(tuple)
    where = Selector(
        layers=draw(st.none() | ranges),
        heads=draw(st.none() | ranges),
        cache=draw(st.sampled_from([("K",), ("V",), ("K", "V")])),
        tokens=draw(st.sampled_from(["all", "prompt", "decode"]) | ranges),
        steps=draw(st.sampled_from(["all", "prefill", "decode"]) | ranges),
    )
    generator = Generator(
        per=draw(st.sampled_from(["bit", "element", "row"])),
        rate=draw(st.sampled_from([0.0, 1e-4, 0.01, 0.3, 1.0])),
        mask=draw(st.integers(1, 0xFFFF)),
        burst_len=draw(st.integers(1, 20)),
        page_tokens=draw(st.sampled_from([0, 4])),
        page_rate=draw(st.sampled_from([0.3, 1.0])),
        key=(draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1))),
        where=where,
    )
    geometry = MapGeometry(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 9)), 2, "bf16")
    prompt = draw(st.integers(1, 5))
    site = draw(st.sampled_from(["write", "read"]))
    trial = draw(st.none() | st.just(TRIAL))
    coverage = Coverage(prompt, prompt + draw(st.integers(0, 5)))
    return generative(geometry=geometry, coverage=coverage, site=site, generator=generator, trial=trial).header


@SLOW
@given(headers(), st.sampled_from(["m.parquet", "m.json"]))
def test_written_is_read_and_a_generator_has_the_id_of_its_rows(tmp_path: Path, header: Header, name: str) -> None:
    lazy = FaultMap(header)
    rows = explicit(lazy)
    assert rows.id == lazy.id
    assert rows.header.provenance == header.provenance
    for fault_map in (lazy, rows):
        write_map(fault_map, tmp_path / name)
        assert same(read_map(tmp_path / name), fault_map)
    # Once more from the rows alone, in another order.
    columns = {n: c[::-1].copy() for n, c in (rows.columns or {}).items()}
    assert explicit_map(header, columns).id == header.id


def test_every_header_fits_the_published_schema() -> None:
    schema = json.loads(_native.schema("faultmap"))
    jsonschema.Draft7Validator.check_schema(schema)
    for fault_map in (generative(), made(site="read"), replace(made(), header=replace(made().header, record={}))):
        jsonschema.validate(fault_map.header.to_json(), schema)
    assert set(schema["properties"]) - {"kvspec_faultmap", "provenance"} == {
        f for f in Header.__dataclass_fields__ if f != "notes"
    }
    assert _native.schema("faultmap") == Path(__file__).parents[1].joinpath("schemas/faultmap.schema.json").read_text()


def test_the_id_is_what_the_document_says() -> None:
    """docs/faultmap.md, section 3, written down a second time."""
    fault_map = made()
    assert fault_map.columns is not None
    columns = dict(fault_map.columns) | {"op": np.zeros(len(fault_map), np.uint8)}
    content = {
        "kvspec_faultmap": 1,
        "site": "write",
        "geometry": {"layers": 3, "kv_heads": 2, "head_size": 16, "planes": 2, "format": "bf16"},
        "flips": len(fault_map),
        "columns": {name: hashlib.sha256(column.tobytes()).hexdigest() for name, column in columns.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == fault_map.id


def test_the_id_of_a_known_map() -> None:
    """Golden: a change here breaks every map that was ever cited."""
    assert len(made()) == 72
    assert made().id == "19a7a5d498fc6623e5afa42bfa82bf34f8246c96cabcdb73f2837b512abba483"
    assert made(site="read").id == "0fbc28777c339e3bd549c35bb3c1d2449466f2dc9f6d19b935788d8a6c7e57c8"
    assert generative().header.provenance == "c18aef7824cd3e3687403012224829463b49bcccf0c8aa1c21b701008a81e07c"


def test_the_id_names_flips_and_geometry_only() -> None:
    base = generative().id
    assert generative(notes={"x-a": 1}, plan="0" * 64).id == base
    assert generative(geometry=replace(GEOMETRY, format="fp16")).id != base
    assert generative(op="set1").id != base
    assert generative(generator=replace(GENERATOR, key=(11, 23))).id != base
    assert generative(coverage=Coverage(4, 12)).id == base


def test_a_column_of_ops_counts_like_the_op_of_the_header() -> None:
    fault_map = made(op="set0")
    assert fault_map.columns is not None
    column = np.full(len(fault_map), 1, np.uint8)
    by_row = explicit_map(replace(fault_map.header, op=None), fault_map.columns | {"op": column})
    assert by_row.id == fault_map.id
    column[0] = 2
    assert explicit_map(replace(fault_map.header, op=None), fault_map.columns | {"op": column}).id != fault_map.id
    column[0] = 3
    with pytest.raises(RecordsError, match=r"op 3 of row 0"):
        explicit_map(replace(fault_map.header, op=None), fault_map.columns | {"op": column})


@pytest.mark.parametrize("name", ["m.parquet", "m.json"])
def test_any_damaged_byte_is_seen_or_harmless(tmp_path: Path, name: str) -> None:
    fault_map, path = made(trial=TRIAL, generator=replace(GENERATOR, rate=5e-4)), tmp_path / name
    write_map(fault_map, path)
    content = path.read_bytes()
    refused = 0
    for at in range(len(content)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[at] ^= flip
            path.write_bytes(damaged)
            try:
                found = read_map(path)
            except KvspecError:
                refused += 1
            else:
                assert same(found, fault_map), f"byte {at} ^ {flip:#x} gave another map"
    assert refused > len(content) / 2


def test_memory_and_files_are_typed_and_streamed(tmp_path: Path) -> None:
    dense = replace(GENERATOR, rate=0.9)
    geometry = MapGeometry(8, 4, 64, 2, "bf16")
    fault_map = made(geometry=geometry, coverage=Coverage(5, 50), generator=dense)
    write_map(fault_map, tmp_path / "m.parquet")
    found = read_map(tmp_path / "m.parquet")
    assert same(found, fault_map)
    assert len(found) > MAX_GROUP_ROWS
    assert pq.ParquetFile(tmp_path / "m.parquet").metadata.num_row_groups > 1
    assert {n: c.dtype for n, c in (found.columns or {}).items()} == {n: DTYPES[n] for n in names("write", "flip")}
    assert KEY in pq.ParquetFile(tmp_path / "m.parquet").metadata.metadata


def test_reads_are_the_draws_of_their_events() -> None:
    fault_map = made(site="read")
    coverage = BASE.coverage
    sampler = GENERATOR.parameters("values").sampler(Geometry(3, 2, 16), 16)
    assert list(coverage.steps) == list(range(5, 13))
    for step in coverage.steps:
        key = _native.read_key(GENERATOR.key, 0, step)
        expected = sampler.enumerate(key=key, request=0, layers=(0, 3), tokens=(0, step))
        event = fault_map.event(step)
        assert "step" not in event
        assert all(np.array_equal(event[n], expected[n]) for n in expected)
    assert set(fault_map.steps()) <= set(coverage.steps)
    assert len(fault_map.event(99)["bit"]) == 0


def test_steps_of_a_selector() -> None:
    steps = range(5, 10)
    assert shown_steps(Selector(steps="prefill"), steps) == [5]
    assert shown_steps(Selector(steps="decode"), steps) == [6, 7, 8, 9]
    assert shown_steps(Selector(steps=((1, 2), (3, None), (3, 99))), steps) == [6, 8, 9]


def test_another_geometry_is_refused_with_the_fields_that_differ() -> None:
    require_geometry(BASE, GEOMETRY)
    with pytest.raises(RecordsError) as caught:
        require_geometry(BASE, MapGeometry(3, 4, 16, 2, "fp16"))
    assert [d.path for d in caught.value.diagnostics] == ["$.geometry.kv_heads", "$.geometry.format"]
    assert {d.code for d in caught.value.diagnostics} == {"KVS512"}


def trials_of(site: str) -> Iterator[tuple[Trial, tuple[FaultMap, ...]]]:
    plan = make_plan()
    faults = (Fault("F", 0, site, "random", Rate("per_bit", 1e-5), where=Selector(layers=((2, 7),))),)
    plan = compile_plan(replace(plan.spec, faults=faults))
    for trial in plan.trials():
        if trial.kind == "fault":
            yield trial, maps_of_trial(plan, trial, Geometry(12, 12, 64), prompt_len=4, written=13)


def test_a_trial_gives_the_flips_that_the_engine_plans() -> None:
    for trial, (fault_map,) in trials_of("KV_WRITE"):
        assert fault_map.header.trial is not None
        key, _ = _native.derive_keys(42, int(fault_map.header.trial["experiment"], 16), trial.trial, 0)
        sampler = _native.Sampler(head_size=64, bits=16, heads=12, rate=1e-5, mask=0xFFFF)
        selector = _native.Selector(layers=[(2, 7)])
        where = {"layers": (0, 12), "tokens": (0, 13), "prompt_len": 4, "selector": selector}
        assert len(fault_map) == sampler.count(key=key, request=trial.request, **where)
        assert fault_map.header.generation is not None
        assert fault_map.header.generation["seed"] == 42 + trial.request


def test_both_sites_are_two_maps() -> None:
    _, (write, read) = next(trials_of("BOTH"))
    assert (write.header.site, read.header.site) == ("write", "read")
    assert write.header.generator != read.header.generator
    with pytest.raises(ValueError, match="no fault"):
        from_trial(make_plan(), Trial("golden", -1, 0, 0), Geometry(12, 12, 64), prompt_len=4, written=13)


def test_a_prompt_can_be_withheld() -> None:
    plan = make_plan()
    trial = next(t for t in plan.trials() if t.kind == "fault")
    keywords = {"prompt_len": 4, "written": 13}
    shown = from_trial(plan, trial, Geometry(12, 12, 64), **keywords)
    hidden = from_trial(plan, trial, Geometry(12, 12, 64), withhold_prompt=True, **keywords)
    text = plan.spec.prompts.texts[0]
    assert shown.header.prompt == {"text": text, "tokens": 4}
    assert hidden.header.prompt == {"sha256": hashlib.sha256(text.encode()).hexdigest(), "tokens": 4}
    assert text not in json.dumps(hidden.header.to_json())
    assert shown.id == hidden.id


def test_a_part_names_its_whole(tmp_path: Path) -> None:
    whole = made(trial=TRIAL | {"request": 0})
    part = subset(whole, np.array([1, 5, 6]))
    assert (len(part), part.header.derived_from, part.header.generator) == (3, whole.id, None)
    assert subset(part, np.array([True, False, True])).header.derived_from == whole.id
    write_map(part, tmp_path / "part.json")
    verify_map(tmp_path / "part.json")
    found = diff_maps(part, whole)
    assert (found.common, found.only_a, found.only_b) == (3, 0, len(whole) - 3)


def test_differences_are_counted_and_shown() -> None:
    a, b = generative(), made(generator=replace(GENERATOR, burst_len=2))
    found = diff_maps(a, b, limit=3)
    assert not found.same_flips
    assert (found.only_a, found.common) == (0, len(a))
    assert found.only_b == len(b) - len(a)
    assert len(found.first_b) == 3
    assert [path for path, _, _ in found.header] == ["$.generator.burst_len"]
    assert diff_maps(a, explicit(a)).same_flips
    other = generative(geometry=replace(GEOMETRY, layers=2))
    assert diff_maps(a, other).common is None
