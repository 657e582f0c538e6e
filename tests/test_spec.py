"""Specs: what is accepted, what it means, and what each mistake is called."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvspec import _native
from kvspec.errors import CODES, Diagnostic, KvspecError, Mark, SpecError
from kvspec.spec import load, load_spec, model, resolve
from kvspec.spec.parse import MAX_VALUES, parse, resolve_scalar
from kvspec.spec.ranges import canonical, parse_range
from kvspec.spec.schema import check, spec_schema
from kvspec.spec.tree import Findings, Node
from kvspec.stats.design import plan_looks

ROOT = Path(__file__).parents[1]
SCHEMA_FILE = ROOT / "schemas" / "spec.schema.json"
INVALID = sorted((ROOT / "tests" / "specs" / "invalid").glob("*.yaml"))
VALID = sorted([*(ROOT / "specs").glob("*.yaml"), *(ROOT / "tests" / "specs" / "valid").glob("*.yaml")])

MINIMAL = """\
kvspec: 1
name: t
model: {id: gpt2}
prompts: {inline: [a, b]}
faults:
  - {name: f, model: random, site: KV_WRITE, rate: {per_bit: 1e-6}}
trials: 4
"""


def write(folder: Path, text: str | bytes, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, *overrides: str) -> list[tuple[str, int, str | None]]:
    """Code, line and path of every diagnostic of a bad spec."""
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return [(d.code, d.mark.line if d.mark else 0, d.path) for d in caught.value.diagnostics]


# Files from disk: adding one adds a test.


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_file(path: Path) -> None:
    spec = load_spec(path)
    assert spec.faults
    assert spec.source == str(path)
    json.dumps(spec.to_json(), allow_nan=False)


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    expected = re.findall(r"^# expect: (KVS\d+) (\d+) (.+)$", path.read_text(), re.MULTILINE)
    assert expected, "the file must say what to expect: `# expect: CODE LINE PATH`"
    with pytest.raises(SpecError) as caught:
        load_spec(path.name)
    found = [(d.code, str(d.mark.line if d.mark else 0), d.path or "-") for d in caught.value.diagnostics]
    assert found == expected
    for diagnostic in caught.value.diagnostics:
        assert diagnostic.mark is not None
        assert diagnostic.mark.file == path.name
        assert diagnostic.message[0] in "`" or diagnostic.message[0].islower()
        assert not diagnostic.message.endswith(".")


def test_every_code_of_specs_has_an_example() -> None:
    """KVS101 and KVS106 come from outside the file, and have tests of their own below."""
    shown = {code for path in INVALID for code in re.findall(r"^# expect: (KVS\d+)", path.read_text(), re.MULTILINE)}
    assert {code for code in CODES if code < "KVS300"} - shown == {"KVS106"}


# The schema.


def described(schema: Any, place: str = "$") -> list[str]:
    """Places of the properties, definitions and words that have no description."""
    bare: list[str] = []
    if isinstance(schema, dict):
        for key in ("properties", "definitions"):
            # Below `then` a property repeats one that is described where it is declared.
            entries = {} if place.endswith("then") and key == "properties" else schema.get(key, {})
            bare += [f"{place}.{name}" for name, field in entries.items() if not field.get("description")]
        bare += [f"{place}={b['const']}" for b in schema.get("oneOf", []) if "const" in b and not b.get("description")]
        for key, child in schema.items():
            bare += described(child, f"{place}.{key}" if key != "if" else f"{place}.then")
    elif isinstance(schema, list):
        for index, child in enumerate(schema):
            bare += described(child, f"{place}[{index}]")
    return bare


def objects(schema: Any) -> list[Any]:
    """Every declared mapping of the schema."""
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = [schema] if isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema else []
    return own + [found for child in children for found in objects(child)]


def test_schema_is_sound_and_described() -> None:
    schema = spec_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$id"].startswith("https://")
    assert "/v1/" in schema["$id"]
    assert described(schema) == []
    assert len(objects(schema)) > 10
    for mapping in objects(schema):
        assert mapping["additionalProperties"] is False
        assert mapping["patternProperties"] == {"^x-": {}}


def test_every_number_of_the_schema_has_both_ends() -> None:
    """The messages say them."""
    numbers = re.findall(r'{[^{}]*"type": "(?:number|integer)"[^{}]*}', SCHEMA_FILE.read_text())
    assert len(numbers) > 20
    for text in numbers:
        assert '"const"' in text or ('inimum"' in text and '"maximum"' in text), text


def schemas(value: Any, *, inside: bool = True) -> Iterator[dict[str, Any]]:
    """The schema and all of its parts; `properties` and the like are mappings of schemas."""
    if isinstance(value, list):
        for child in value:
            yield from schemas(child)
    elif isinstance(value, dict):
        if inside:
            yield value
        for key, child in value.items():
            if key not in ("default", "examples", "const", "enum", "required"):
                yield from schemas(
                    child, inside=not inside or key not in ("properties", "patternProperties", "definitions")
                )


def test_every_keyword_of_the_schema_has_words() -> None:
    """And types come first, because a wrong type is the only error of its value."""
    silent = {"$schema", "$id", "$ref", "title", "description", "default", "examples", "definitions"}
    shown = {"type", "const", "required", "additionalProperties", "pattern", "uniqueItems", "not", "anyOf", "oneOf"}
    shown |= {"minimum", "exclusiveMinimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"}
    holds = {"properties", "patternProperties", "items", "allOf", "if", "then", "else"}
    conditions = [part["if"] for part in schemas(spec_schema()) if "if" in part]
    inside = [id(part) for condition in conditions for part in schemas(condition)]
    for part in schemas(spec_schema()):
        if id(part) not in inside:
            assert set(part) <= silent | shown | holds
            assert "type" not in part or next(key for key in part if key not in silent) == "type"


def test_schema_is_the_file_of_the_repository() -> None:
    assert _native.schema("spec") == SCHEMA_FILE.read_text()


def defaults(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: field["default"] for key, field in schema["properties"].items() if "default" in field}


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        ("model", model.ModelSpec),
        ("generation", model.GenerationSpec),
        ("controls", model.Controls),
        ("engine", model.EngineSpec),
    ],
)
def test_schema_and_dataclasses_agree(section: str, cls: Any) -> None:
    schema = spec_schema()["properties"][section]
    assert set(schema["properties"]) == {field.name for field in fields(cls)}
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in defaults(schema).items()}
    assert stated == {f.name: f.default for f in fields(cls) if f.name in stated}


def test_schema_words_are_the_words_of_the_model() -> None:
    definitions = spec_schema()["definitions"]
    fault = definitions["fault"]["properties"]

    def words(schema: Any) -> tuple[str, ...]:
        return tuple(branch["const"] for branch in schema["oneOf"])

    assert words(fault["model"]) == model.FAULT_MODELS
    assert words(definitions["site"]) == model.SITES
    assert words(definitions["msb_policy"]) == model.MSB_POLICIES
    assert words(fault["bits"]["anyOf"][0]) == model.BIT_FIELDS
    assert tuple(fault["rate"]["properties"]) == model.RATE_UNITS
    assert words(spec_schema()["properties"]["metrics"]["items"]) == model.METRICS
    assert words(spec_schema()["properties"]["model"]["properties"]["kv_cache_dtype"])[1:] == model.STORAGE_FORMATS
    assert defaults(definitions["fault"]) == {
        "burst_len": resolve.DEFAULT_BURST_LEN,
        "msb_policy": resolve.DEFAULT_MSB_POLICY,
        "bits": "all",
        "page_tokens": resolve.DEFAULT_PAGE_TOKENS,
        "page_density": resolve.DEFAULT_PAGE_DENSITY,
    }


# What a spec means.


def test_minimal_spec_has_all_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL))
    assert spec.model == model.ModelSpec("gpt2")
    assert spec.generation == model.GenerationSpec()
    assert spec.controls == model.Controls()
    assert spec.engine == model.EngineSpec()
    assert spec.prompts.texts == ("a", "b")
    assert spec.trials == model.TrialSpec(4)
    assert spec.seed == 0
    assert spec.metrics == tuple(name for name in model.METRICS if name not in model.LOGPROB_METRICS)
    assert spec.faults == (
        model.Fault(
            "f", 0, "KV_WRITE", "random", model.Rate("per_bit", 1e-6), 1, None, "all", 16, 1e-3, model.Selector()
        ),
    )


def test_everything() -> None:
    spec = load_spec(ROOT / "tests/specs/valid/everything.yaml")
    assert spec.model == model.ModelSpec("gpt2", "abc123", "float32", "fp16", 512)
    once = ("Hello, world", "25 * 4 =", "From a file", "And another")
    assert spec.prompts.texts == once * 3
    assert spec.generation == model.GenerationSpec(20, 0.5, False, 7, ("\n\n", "END"))
    assert spec.seed == 2**64 - 1
    assert spec.metrics == ("exact_match", "outcome")
    assert spec.trials.per_prompt == math.ceil(385 / 12)
    assert spec.engine == model.EngineSpec(64, 32, 512, 0.5, 1, 2, 4, "TRITON_ATTN")

    sweep = [fault for fault in spec.faults if fault.name == "sweep"]
    narrow = model.Selector(layers=((0, 4),))
    keys_values = model.Selector(heads=((8, None),), tokens="prompt")
    assert [(f.site, f.burst_len, f.where, f.rate.value) for f in sweep] == [
        (site, length, where, rate)
        for site in ("KV_WRITE", "BOTH")
        for length in (2, 8)
        for where in (narrow, keys_values)
        for rate in (1e-6, 1e-5)
    ]
    assert {f.bits for f in sweep} == {(3, 14)}
    assert {f.index for f in sweep} == {0}

    msb = [fault for fault in spec.faults if fault.name == "msb"]
    assert [f.msb_policy for f in msb] == ["BYTE_TOPBITS", "INT4_NIBBLE"]
    assert msb[0].where == model.Selector(tokens="decode", steps=((0, 1), (2, 6)))
    page = next(fault for fault in spec.faults if fault.name == "page")
    assert (page.rate, page.page_tokens, page.page_density) == (model.Rate("per_page", 0.1), 32, 0.01)
    fit = [fault.rate for fault in spec.faults if fault.name == "fit"]
    assert fit == [model.Rate("fit", 100.0, 24.0), model.Rate("fit", 1000.0, 24.0)]
    assert [fault.index for fault in spec.faults] == [0] * 16 + [1] * 2 + [2, 3, 4, 4]


def test_models_fill_only_their_own_parameters(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL), ["faults[0].model=burst"])
    assert (spec.faults[0].burst_len, spec.faults[0].msb_policy) == (8, None)
    spec = load_spec(write(tmp_path, MINIMAL), ["faults[0].model=msb_biased"])
    assert (spec.faults[0].burst_len, spec.faults[0].msb_policy) == (1, "BYTE_TOPBITS")


def test_negative_zero_is_zero(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL), ["faults[0].rate.per_bit=-0.0"])
    assert math.copysign(1, spec.faults[0].rate.value) == 1


@pytest.mark.parametrize("power", ["{from: 0.5, to: 0.5000001}", "{from: 0.5, to: 0.4995, power: 0.9999}"])
def test_a_power_that_nobody_can_run_has_no_number(tmp_path: Path, power: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, MINIMAL), [f"trials={{power: {power}}}"])
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KVS305", "$.trials.power")
    assert "takes more pairs of trials per cell than anybody runs" in found.message


@pytest.mark.parametrize(
    ("trials", "n"),
    [
        ("{target: {confidence: 0.95, margin: 0.05}}", 385),
        ("{target: {confidence: 0.95, margin: 0.05, looks: 1}}", 385),
        ("{target: {confidence: 0.99, margin: 0.01}}", 16588),
        ("{power: {from: 1.0, to: 0.9}}", 78),
        ("{power: {from: 0.9, to: 1, alpha: 0.05, power: 0.8, x-why: b}}", 78),
        ("{power: {from: 0.6, to: 0.5}}", 408),
    ],
)
def test_trials_follow_from_what_is_wanted(tmp_path: Path, trials: str, n: int) -> None:
    spec = load_spec(write(tmp_path, MINIMAL), [f"trials={trials}"])
    assert spec.trials == model.TrialSpec(math.ceil(n / len(spec.prompts.texts)))
    assert "looks" not in spec.to_json()["trials"]


def test_looks_are_part_of_the_spec(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL), ["trials={target: {confidence: 0.95, margin: 0.05, looks: 5}}"])
    prompts = len(spec.prompts.texts)
    assert spec.trials.looks == plan_looks(0.95, 0.05, 5, prompts)
    assert spec.trials.per_prompt == spec.trials.looks.rounds[-1] == math.ceil(680 / prompts)
    assert spec.to_json()["trials"]["looks"]["rounds"] == spec.trials.looks.rounds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("~", None),
        ("", None),
        *(
            (text, text)
            for text in ("no", "yes", "on", "off", "y", "1_000", "1:30", "2024-01-01", "nan", "inf", "e5", "0b1")
        ),
    ],
)
def test_yaml_1_2_scalars(text: str, value: object) -> None:
    resolved = resolve_scalar(text)
    assert (type(resolved), resolved) == (type(value), value)


def test_numbers_of_a_million_digits_are_infinite() -> None:
    """Python refuses to read the first, and reads the second but refuses to print it."""
    assert resolve_scalar("9" * 1_000_000) == math.inf
    assert resolve_scalar("0x" + "f" * 1_000_000) == math.inf


def test_ranges() -> None:
    assert [parse_range(entry) for entry in (3, "4-7", "8-", "5-5", 2.0)] == [(3, 4), (4, 8), (8, None), (5, 6), (2, 3)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9) | st.none()), max_size=8))
def test_canonical_ranges_hold_the_same_numbers(pairs: list[tuple[int, int | None]]) -> None:
    def numbers(ranges: Any) -> set[int]:
        return {n for start, stop in ranges for n in range(start, 60 if stop is None else stop)}

    ranges = [(start, None if length is None else start + length) for start, length in pairs]
    merged = canonical(ranges)
    assert numbers(merged) == numbers(ranges)
    assert all(a[1] is not None and a[1] < b[0] for a, b in itertools.pairwise(merged))


def test_marks_lead_back_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    spec = load_spec(path, ["faults[0].where={layers: [1]}"])
    column = MINIMAL.splitlines()[5].index("1e-6") + 1
    assert spec.mark("$.faults[0].rate.per_bit") == Mark(str(path), 6, column)
    assert spec.mark("$.faults[0].where.layers[7]") == Mark("--set", 1, 17)
    assert spec.mark("$.generation.seed") == Mark(str(path), 1, 1)
    assert spec.mark("$.faults[7].rate") == Mark(str(path), 6, 3)
    assert "marks" not in spec.to_json()


@pytest.mark.parametrize(
    ("where", "column"),
    [
        ("", 5),
        (", where: {}", MINIMAL.splitlines()[5].index("}}") + len(", where: ") + 2),
        (", where: {layers: [1]}", MINIMAL.splitlines()[5].index("}}") + len(", where: {layers: ") + 2),
        (", where: [{layers: [1]}]", MINIMAL.splitlines()[5].index("}}") + len(", where: ") + 2),
    ],
)
def test_mark_of_a_selector_is_the_nearest_value(tmp_path: Path, where: str, column: int) -> None:
    """The plan knows entries and keys, not whether and how they were written."""
    path = write(tmp_path, MINIMAL.replace("1e-6}}", f"1e-6}}{where}}}"))
    assert load_spec(path).mark("$.faults[0].where.layers") == Mark(str(path), 6, column)


def test_key_order_comments_and_notes_change_nothing(tmp_path: Path) -> None:
    reordered = """\
# A comment.
trials: 4
x-note: {owner: me}
faults: [{rate: {per_bit: 0.000001}, site: KV_WRITE, x-why: because, name: f, model: random}]
prompts:
  inline:
  - a   # first
  - 'b'
model:
  id: "gpt2"
name: t
kvspec: 1
"""
    original = load_spec(write(tmp_path, MINIMAL))
    assert load_spec(write(tmp_path, reordered)) == original
    assert load_spec(write(tmp_path, MINIMAL.replace("1e-6", "2e-6"))) != original


# include


def test_include_order(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\ncontrols: {null_trials: 5, golden_repeats: 5}\nmetrics: [outcome]\n", "parts/a.yaml")
    write(tmp_path, "include: c.yaml\nseed: 2\ncontrols: {null_trials: 6}\n", "parts/b.yaml")
    write(tmp_path, "seed: 3\ndescription: from c\nmetrics: [exact_match]\n", "parts/c.yaml")
    path = write(tmp_path, MINIMAL + "include: [parts/a.yaml, parts/b.yaml]\ncontrols: {golden_repeats: 7}\n")
    spec = load_spec(path)
    assert spec.seed == 2
    assert spec.controls == model.Controls(null_trials=6, golden_repeats=7)
    assert spec.metrics == ("exact_match",)
    assert spec.description == "from c"


def test_include_keeps_the_mark_of_the_part(tmp_path: Path) -> None:
    part = write(tmp_path, "\ncontrols:\n  null_trials: -1\n", "part.yaml")
    path = write(tmp_path, MINIMAL + "include: part.yaml\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [d.mark for d in caught.value.diagnostics] == [Mark(str(part), 3, 16)]


def test_include_cycle_over_two_files(tmp_path: Path) -> None:
    write(tmp_path, "include: spec.yaml\n", "part.yaml")
    assert refused(write(tmp_path, MINIMAL + "include: part.yaml\n")) == [("KVS105", 1, "$.include")]


def test_include_depth_and_count_are_limited(tmp_path: Path) -> None:
    for depth in range(10):
        write(tmp_path, f"include: d{depth + 1}.yaml\n", f"d{depth}.yaml")
    write(tmp_path, "seed: 1\n", "d10.yaml")
    assert load_spec(write(tmp_path, MINIMAL + "include: d3.yaml\n")).seed == 1
    assert refused(write(tmp_path, MINIMAL + "include: d2.yaml\n")) == [("KVS104", 1, "$.include")]
    many = "include: [" + ", ".join(["d10.yaml"] * 65) + "]\n"
    assert refused(write(tmp_path, MINIMAL + many)) == [("KVS104", 8, "$.include[64]")]


def test_included_files_share_one_budget(tmp_path: Path) -> None:
    """A file that is small by itself, included often, and by files that are included often."""
    write(tmp_path, "x-a: [" + "1, " * (MAX_VALUES // 20) + "]\n", "part.yaml")
    assert load_spec(write(tmp_path, MINIMAL + "include: [" + "part.yaml, " * 10 + "]\n"))
    assert refused(write(tmp_path, MINIMAL + "include: [" + "part.yaml, " * 30 + "]\n"))[0][0] == "KVS104"
    write(tmp_path, "seed: 1\n#" + "x" * 1_000_000, "long.yaml")
    assert load_spec(write(tmp_path, MINIMAL + "include: [" + "long.yaml, " * 4 + "]\n"))
    assert refused(write(tmp_path, MINIMAL + "include: [" + "long.yaml, " * 5 + "]\n"))[0][0] == "KVS104"


# --set


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("model.id=bundled:smollm2", lambda s: s.model.id, "bundled:smollm2"),
        ("faults[0].rate.per_bit=[1e-7, 1e-5]", lambda s: [f.rate.value for f in s.faults], [1e-7, 1e-5]),
        ("faults.0.rate.per_bit=1e-3", lambda s: s.faults[0].rate.value, 1e-3),
        ("faults[0].rate={per_element: 1e-3}", lambda s: s.faults[0].rate, model.Rate("per_element", 1e-3)),
        ("prompts.inline[1]=no", lambda s: s.prompts.texts, ("a", "no")),
        ("generation.max_tokens=3", lambda s: s.generation.max_tokens, 3),
        ("description='a = b'", lambda s: s.description, "a = b"),
        ("description=a=b", lambda s: s.description, "a=b"),
    ],
)
def test_set(tmp_path: Path, override: str, get: Any, value: object) -> None:
    assert get(load_spec(write(tmp_path, MINIMAL), [override])) == value


def test_set_is_applied_in_order_and_spares_aliases(tmp_path: Path) -> None:
    text = MINIMAL.replace("rate: {per_bit: 1e-6}", "rate: &r {per_bit: 1e-6}")
    text = text.replace("trials", "  - {name: g, model: random, site: KV_WRITE, rate: *r}\ntrials")
    spec = load_spec(write(tmp_path, text), ["faults[0].rate.per_bit=0.1", "faults[0].rate.per_bit=0.2"])
    assert [fault.rate.value for fault in spec.faults] == [0.2, 1e-6]


@pytest.mark.parametrize(
    "override",
    ["", "seed", "=1", "model.id.more=1", "faults[1].name=x", "faults.first.name=x", "seed.=1", "a b=1",
     "faults[0=1", "include=x.yaml", "seed=[1", "seed=!!int 1", "a" + ".a" * 20 + "=1", "[0]=1"],
)  # fmt: skip
def test_set_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, MINIMAL), ["trials=2", override])
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "KVS106"
    assert str(diagnostic.mark) == "--set:2:1"


def test_a_bad_value_of_set_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, MINIMAL), ["trials=2", "sede=3", "seed=x"])
    assert [(d.code, str(d.mark), d.path) for d in caught.value.diagnostics] == [
        ("KVS202", "--set:2:6", "$.sede"),
        ("KVS201", "--set:3:6", "$.seed"),
    ]


# Files and prompts


def test_file_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == [("KVS101", 1, None)]
    assert refused(tmp_path) == [("KVS101", 1, None)]
    assert refused(Path("a\0b")) == [("KVS101", 1, None)]
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == [("KVS101", 1, None)]


def test_text_is_utf8(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, b"\xef\xbb\xbf" + MINIMAL.encode())).name == "t"
    assert load_spec(write(tmp_path, MINIMAL.replace("\n", "\r\n"))) == load_spec(write(tmp_path, MINIMAL))
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, MINIMAL.encode() + b"description: \xff\n"))
    assert (caught.value.diagnostics[0].code, str(caught.value.diagnostics[0].mark)[-5:]) == ("KVS102", ":8:14")
    assert refused(write(tmp_path, MINIMAL.encode("utf-16")))[0][0] == "KVS102"


def test_prompts_from_text_file(tmp_path: Path) -> None:
    write(tmp_path, "first\r\n\n  \nsecond one \u2028 same line\n", "p/prompts.txt")
    spec = load_spec(write(tmp_path, MINIMAL.replace("{inline: [a, b]}", "{file: p/prompts.txt, repeat: 2}")))
    assert spec.prompts.texts == ("first", "second one \u2028 same line") * 2


def test_prompt_file_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "from the part\n", "parts/prompts.txt")
    write(tmp_path, "from here\n", "prompts.txt")
    write(tmp_path, "prompts: {file: prompts.txt}\n", "parts/part.yaml")
    path = write(tmp_path, MINIMAL.replace("prompts: {inline: [a, b]}", "include: parts/part.yaml"))
    assert load_spec(path).prompts.texts == ("from the part",)
    monkeypatch.chdir(tmp_path)
    assert load_spec(path, ["prompts.file=prompts.txt"]).prompts.texts == ("from here",)


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ("", "KVS207", 4),
        ('{"text": "a"}\n\nnot json\n', "KVS201", 3),
        ('{"text": 3}\n', "KVS201", 1),
        ('["a"]\n', "KVS201", 1),
        ("[" * 100_000, "KVS201", 1),
        ('{"text": ""}\n', "KVS207", 1),
        ('{"text": "\\ud800"}\n', "KVS210", 1),
        ('{"text": "a"}\n' * 100_001, "KVS207", 100_001),
        ('{"text": "' + "a" * (1 << 20) + 'a"}\n', "KVS207", 1),
    ],
    ids=range(9),
)
def test_bad_prompt_file(tmp_path: Path, lines: str, code: str, line: int) -> None:
    write(tmp_path, lines, "prompts.jsonl")
    path = write(tmp_path, MINIMAL.replace("{inline: [a, b]}", "{file: prompts.jsonl}"))
    assert refused(path) == [(code, line, "$.prompts.file")]


def test_all_bad_lines_of_a_prompt_file_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("{inline: [a, b]}", "{file: prompts.jsonl}"))
    write(tmp_path, '{"text": "a"}\nnot json\n{"text": ""}\n{"text": "\\ud800"}\n{"text": "b"}\n[]\n', "prompts.jsonl")
    place = "$.prompts.file"
    assert refused(path) == [("KVS201", 2, place), ("KVS207", 3, place), ("KVS210", 4, place), ("KVS201", 6, place)]
    for lines in (20, 21, 100_000):
        write(tmp_path, "x\n" * lines, "prompts.jsonl")
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert [d.mark.line for d in caught.value.diagnostics if d.mark] == list(range(1, 21))
        hints = [d.hint for d in caught.value.diagnostics if d.hint]
        assert hints == ([] if lines == 20 else ["more lines are wrong: these are the first 20"])


# Bounded time and memory


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_huge_files_are_refused_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    with path.open("wb") as stream:
        stream.truncate(100 << 20)  # sparse: nothing is written, and nothing must be read
    before = peak_bytes()
    assert refused(path) == [("KVS104", 1, None)]
    assert peak_bytes() - before < 50 << 20
    path.rename(tmp_path / "prompts.txt")
    spec = write(tmp_path, MINIMAL.replace("{inline: [a, b]}", "{file: prompts.txt}"), "small.yaml")
    assert refused(spec) == [("KVS104", 4, "$.prompts.file")]


def bomb(levels: int, width: int) -> str:
    """Billion laughs: every level repeats the one before `width` times."""
    lines = ["x-0: &x0 [lol]"]
    lines += [f"x-{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]" for i in range(1, levels)]
    return MINIMAL + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        bomb(levels=30, width=10),
        bomb(levels=70, width=1),
        "[" * (1 << 20),
        "{a: " * (1 << 18),
        "- " * (1 << 19),
        "? " * (1 << 19),
        "!" * (1 << 20),
        "!a" + "a" * ((1 << 20) - 2),
        "[" + "1," * ((1 << 19) - 2) + "]",
        "&a [" + "*a, " * 100_000 + "]",
        'a: "' + "x\n" * (1 << 19),
    ],
    ids=range(11),
)
def test_hostile_text_is_refused_in_bounded_time_and_memory(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    start, before = time.process_time(), peak_bytes()
    refused(path)
    assert time.process_time() - start < 30
    assert peak_bytes() - before < 256 << 20


def test_many_errors_are_all_reported_in_bounded_time(tmp_path: Path) -> None:
    entry = "  - {name: f, modle: random}\n"
    text = MINIMAL.replace("trials", entry * 3000 + "trials")
    start = time.process_time()
    assert len(refused(write(tmp_path, text))) == 3000 * 5
    assert time.process_time() - start < 60


def test_a_long_private_key_is_not_copied_for_every_value(tmp_path: Path) -> None:
    text = MINIMAL + "? x-" + "k" * (1 << 18) + "\n: [" + "1," * 5_000 + "]\n"
    before = peak_bytes()
    assert load_spec(write(tmp_path, text)).name == "t"
    assert peak_bytes() - before < 256 << 20


def test_largest_text_is_read(tmp_path: Path) -> None:
    """The limit is a limit, not a fence before it: a prompt may fill the file."""
    text = MINIMAL.replace("[a, b]", "[" + "a" * (load.MAX_FILE_BYTES - len(MINIMAL) - 10) + "]")
    assert len(load_spec(write(tmp_path, text)).prompts.texts[0]) > 1_000_000
    assert refused(write(tmp_path, text + " " * 20)) == [("KVS104", 1, None)]


# Nothing but KvspecError, whatever the text


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.text(alphabet="ab:-?[]{}&*!|>'\"%@#,\n \t\\x0u~<=0.e")
    | st.binary().map(lambda b: b.decode("latin-1"))
)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        node = parse(text, "text")
    except KvspecError:
        return
    for _, child in node.walk():
        assert child.mark.line >= 1
        assert child.mark.column >= 1


TEXTS = st.text(max_size=8)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
    | st.sampled_from(["all", "KV_READ", "burst", "page_local", "4-7", "9-2", "8-", "1e-6", "sign", 1, 0.5, -1, 1e30])
)  # fmt: skip
KEYS = st.sampled_from(
    ["kvspec", "name", "model", "id", "rate", "per_bit", "per_page", "fit", "where", "layers", "steps", "bits", "x-a",
     "site", "burst_len", "msb_policy", "page_density", "trials", "target", "prompts", "inline", "file", "null"]
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6)

SEEDS = [
    parse(MINIMAL, "").plain() | parse((ROOT / name).read_text(), "").plain()
    for name in ("tests/specs/valid/parts/faults.yaml", "specs/quickstart.yaml", "specs/gpt2_bitrot.yaml")
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in plain data."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in pairs for place in places(child, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid spec with a few values replaced, removed or added."""
    data = json.loads(json.dumps(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(places(data)[1:]))
        parent = data
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[last] = draw(VALUES)
            case "remove":
                del parent[last]
            case _:
                if isinstance(parent, dict):
                    parent[draw(KEYS)] = draw(VALUES)
        if not data:
            break
    return data


def to_node(value: Any) -> Node:
    """Plain data as a tree, without a detour over text."""
    mark = Mark("data", 1, 1)
    if isinstance(value, dict):
        return Node({key: to_node(child) for key, child in value.items()}, mark)
    return Node([to_node(child) for child in value] if isinstance(value, list) else value, mark)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


ORACLE = jsonschema.Draft7Validator(json.loads(SCHEMA_FILE.read_text()))
"""The package as it comes."""


def found_in(root: Node) -> list[Diagnostic]:
    findings = Findings()
    check(root, findings)
    return findings.diagnostics


def with_contexts(errors: Iterable[jsonschema.ValidationError]) -> Iterator[jsonschema.ValidationError]:
    for error in errors:
        yield error
        yield from with_contexts(error.context)


def place_of(error: jsonschema.ValidationError) -> str:
    return "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)


def same_or_below(path: str, place: str) -> bool:
    return path == place or path.startswith((f"{place}.", f"{place}["))


def hold_against_jsonschema(root: Node) -> None:
    """Every error of the package is told once, or covered by one that is; nothing else is told."""
    told = found_in(root)
    paths = [diagnostic.path or "" for diagnostic in told]
    assert len(set(told)) == len(told)
    mistyped = {d.path for d in told if d.code == "KVS201"}
    # A wrong type hides all but what is said of the key, or of the list around it.
    assert {d.code for d in told if d.path in mistyped} <= {"KVS201", "KVS206", "KVS210"}
    assert sum(d.code == "KVS201" for d in told) == len(mistyped)

    errors = list(ORACLE.iter_errors(root.plain()))
    # Of a list that is too long only that is told, so its entries may have errors that are not.
    long = {place_of(error) for error in with_contexts(errors) if error.validator == "maxItems"}
    for error in errors:
        place = place_of(error)
        assert any(same_or_below(path, place) for path in paths) or any(same_or_below(place, p) for p in long), place
    places = {place_of(error) for error in with_contexts(errors)}
    for diagnostic, path in zip(told, paths, strict=True):
        parent = path[: max(path.rfind("."), path.rfind("["))]
        # An unknown or excluded key, or a repeated entry, is an error of the mapping or list that holds it.
        up = diagnostic.code in ("KVS202", "KVS206", "KVS210")
        assert path in places or (up and (parent in places or diagnostic.code == "KVS202")), str(diagnostic)


def ends_without_line_break(value: Any) -> bool:
    """In JSON Schema `$` is the end of the text; the package takes Python's, which is also before a line break."""
    if isinstance(value, (dict, list)):
        return all(map(ends_without_line_break, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, str) or not value.endswith("\n")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated().filter(finite).filter(ends_without_line_break))
def test_errors_are_those_of_jsonschema(data: Any) -> None:
    hold_against_jsonschema(to_node(data))


@pytest.mark.parametrize(
    "path", [p for p in (*VALID, *INVALID) if "include" not in p.read_text()], ids=lambda p: p.stem
)
def test_errors_of_files_are_those_of_jsonschema(path: Path) -> None:
    try:
        root = parse(path.read_text(), path.name)
    except SpecError:
        return  # not YAML: test_invalid_file has it
    if finite(root.plain()) and ends_without_line_break(root.plain()):
        hold_against_jsonschema(root)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_what_jsonschema_refuses_is_told(data: Any) -> None:
    """Values that JSON does not have included."""
    assert found_in(to_node(data)) or ORACLE.is_valid(data)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("faults[0].site=KV_WRITES", "`KV_WRITES` is not allowed here; one of: KV_WRITE, KV_READ, BOTH"),
        ("faults[0].site=[BOTH, x]", "`x` is not allowed here; one of: KV_WRITE, KV_READ, BOTH"),
        ("faults[0].site=3", "`3` is a number; KV_WRITE, KV_READ, BOTH or a list"),
        ("trials=many", "`many` is text; a whole number or a mapping"),
        ("trials=1.5", "`1.5` is a number; a whole number or a mapping"),
        (
            "trials={}",
            "one of the keys per_prompt, target, power is missing; exactly one of: per_prompt, target, power",
        ),
        ("trials=.inf", "`inf` is not finite; a whole number from 1 to 10000000"),
        ("trials=.nan", "`nan` is not a number; a whole number from 1 to 10000000"),
        ("faults[0].rate.per_bit=.nan", "`nan` is not a number; a number from 0 to 1"),
        ("faults[0].rate.per_bit=[0.5, -.inf]", "`-inf` is not finite; a number from 0 to 1"),
        ("faults[0].where={layers: 3}", "`3` is a number; all or a list"),
        ("faults[0].where={layers: [3, x]}", '`x` has the wrong form; an inclusive range such as "4-7", or "8-" for 8'),
        ("faults[0].where={layers: [[]]}", "this is a list; a whole number or text"),
        ("faults[0].where=[{cache: [Q]}]", "`Q` is not allowed here; one of: K, V"),
        ("faults[0].bits=expo", "`expo` is not allowed here; one of: all, sign, exponent, mantissa"),
        ("faults[0].bits=[true]", "`true` is a boolean; a whole number"),
        ("faults[0].page_tokens=4", "`page_tokens` does not go with the rest of the entry; `page_tokens` only with"),
        ("faults[0].rate={}", "one of the keys per_bit, per_element, per_row, per_token, per_page, fit is missing;"),
        ("faults[0].rate.per_row=1", "`per_row` does not go together with `per_bit`; exactly one of: per_bit,"),
        ("prompts={repeat: 2}", "one of the keys inline, file, generator, lm_eval is missing; at least one of: inline"),
        ("model={revision: ''}", "the key `id` is missing; `id`: `bundled:smollm2`, a hub id such as `gpt2`"),
        ("model.dtype=1", "`1` is a number; auto, float32, bfloat16, float16"),
        ("name=''", "the text is empty; 1 to 64 characters"),
        ("metrics=[outcome, outcome]", "`outcome` is listed twice; every entry once"),
        ("metrics=[1,1,1,1,1,1,1,1,1,1]", "the list has 10 entries; 1 to 9 entries"),
    ],
)
def test_words_for_people(tmp_path: Path, override: str, told: str) -> None:
    """Of alternatives, those of the one that was meant."""
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, MINIMAL), [override])
    first = caught.value.diagnostics[0]
    assert f"{first.message}; {first.expected}".startswith(told)
    assert len(caught.value.diagnostics) == 1 + (override == "model={revision: ''}")


def test_whole_numbers_may_have_a_point(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, MINIMAL), ["trials=3.0", "generation.max_tokens=1e2"]).trials.per_prompt == 3


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        ("metrics: [%s]" % ("*long, " * 90_000), 1),
        ("generation: {stop: [%s]}" % ("*long, " * 64), 64 + 63),
        ("model: {id: a, " + " ".join(f"k{i}: *long," for i in range(20_000)) + "}", 20_000),
        ("prompts: {inline: [%s]}" % ("[*long], " * 40_000), 40_000),
        ("seed: [%s]" % ("*long, " * 90_000), 1),
        ("trials: {target: [%s]}" % ("*long, " * 90_000), 1),
    ],
    ids=["metrics", "stop", "keys", "prompts", "seed", "trials"],
)
def test_what_aliases_repeat_is_not_written_out(tmp_path: Path, value: str, errors: int) -> None:
    """A text of 300,000 characters, up to 90,000 times."""
    key = value.partition(":")[0]
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(key)]
    path = write(tmp_path, "\n".join([f"x-long: &long {'a' * 300_000}", *lines, value]))
    start, before = time.process_time(), peak_bytes()
    assert len(refused(path)) == errors
    assert time.process_time() - start < 30
    assert peak_bytes() - before < 256 << 20


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_any_spec_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = json.dumps(data).replace("NaN", ".nan").replace("Infinity", ".inf")
    try:
        spec = load_spec(write(folder, text, "mutated.yaml"))
    except KvspecError as error:
        told = [diagnostic.to_json() for diagnostic in error.diagnostics]
    else:
        told = [spec.to_json()]
    assert json.dumps(told, allow_nan=False) != "[]"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="faults[]0.model=id{}:,1 -'\"", max_size=30))
def test_any_override_applies_or_is_refused(tmp_path_factory: pytest.TempPathFactory, override: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), MINIMAL, "minimal.yaml")
    with contextlib.suppress(KvspecError):
        assert load_spec(path, [override]) is not None


def test_documentation_has_every_code_and_field() -> None:
    text = (ROOT / "docs" / "spec.md").read_text()
    for code, title in CODES.items():
        assert f"| `{code}` | {title} |" in text, f"docs/spec.md lacks {code}, or words it differently"

    def names(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(names, schema)) if schema else set()
        if not isinstance(schema, dict):
            return set()
        return set(schema.get("properties", {})) | set().union(*map(names, schema.values()))

    assert {name for name in names(spec_schema()) if f"`{name}`" not in text} == set()
