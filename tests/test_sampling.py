"""Sampling and storage formats through `kvspec._native`, against golden cases and independent oracles."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvspec import _native
from tests.reference_sampler import Key, Reference, exact_thresholds
from tests.reference_sampler import philox as reference_philox

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sampling.json").read_text())
CASES = VECTORS["cases"]
COLUMNS = ("request", "layer", "kv", "head", "token", "elem", "bit")
DTYPES = ("uint32", "uint16", "uint8", "uint16", "uint32", "uint16", "uint8")
Site = tuple[int, ...]

word = st.integers(0, 2**32 - 1)
key_strategy = st.tuples(word, word)


def hexes(values: list[str]) -> tuple[int, ...]:
    return tuple(int(value, 16) for value in values)


def pair(values: list[str]) -> Key:
    low, high = hexes(values)
    return low, high


def sites(columns: dict[str, NDArray[Any]]) -> list[Site]:
    return list(zip(*(columns[name].tolist() for name in COLUMNS), strict=True))


def case_sampler(case: dict[str, Any]) -> _native.Sampler:
    shape = dict(case["layer_shape"])
    return _native.Sampler(head_size=shape.pop("dim"), **shape, **case["model"])


def by_name(case: dict[str, Any]) -> str:
    return str(case["name"])


# --- golden cases ---------------------------------------------------------------------------------------------


def test_philox() -> None:
    for answer in VECTORS["philox4x32_10"]:
        counter, key = hexes(answer["counter"]), pair(answer["key"])
        assert _native.philox(counter, key) == reference_philox(counter, key) == hexes(answer["out"])  # type: ignore[arg-type]


def test_keys() -> None:
    for keys in VECTORS["keys"]:
        seed, experiment = int(keys["seed"], 16), int(keys["experiment"], 16)
        write, master = _native.derive_keys(seed, experiment, keys["trial"], keys["fault"])
        assert (write, master) == (pair(keys["write_key"]), pair(keys["read_master"]))
        for step, key in keys["read_key_of_step"].items():
            assert _native.read_key(master, keys["request"], int(step)) == pair(key)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_golden_case(case: dict[str, Any]) -> None:
    sampler = case_sampler(case)
    assert sampler.level == case["level"]
    assert len(sampler.thresholds) == case["thresholds_len"]
    head = case["thresholds_head"]
    assert tuple(sampler.thresholds[: len(head)].tolist()) == hexes(head)

    layer, first = case["layer"], case["first_token"]
    where: Any = {
        "key": pair(case["key"]),
        "request": case["request"],
        "layers": (layer, layer + 1),
        "tokens": (first, first + case["tokens"]),
    }
    columns = sampler.enumerate(**where)
    assert [columns[name].dtype.name for name in COLUMNS] == list(DTYPES)
    expected = [(case["request"], layer, kv, h, first + t, elem, bit) for kv, h, t, elem, bit in case["flips"]]
    assert sites(columns) == expected
    assert sampler.count(**where) == len(expected)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_golden_case_by_steps(case: dict[str, Any]) -> None:
    masks: dict[Site, int] = {}
    for kv, head, token, elem, bit in case["flips"]:
        site = (kv, head, token + case["first_token"], elem)
        masks[site] = masks.get(site, 0) | 1 << bit
    table = make_table([case_sampler(case)], [pair(case["key"])], layers=case["layer"] + 1, request=case["request"])
    step = table.write_step(entry=u32([0]), row=u32([3]), start=u32([case["first_token"]]), count=u32([case["tokens"]]))
    columns = step.columns(case["layer"])
    found = zip(*(columns[name].tolist() for name in ("kv", "head", "token", "elem")), strict=True)
    assert dict(zip(found, columns["mask"].tolist(), strict=True)) == masks
    assert step.layer_len(case["layer"]) == len(masks)
    assert set(columns["row"].tolist()) <= {3}


# --- against the plain reference --------------------------------------------------------------------------------


def u32(values: Any) -> NDArray[np.uint32]:
    return np.asarray(values, np.uint32)


def make_table(
    samplers: list[_native.Sampler],
    keys: list[Key],
    *,
    layers: int,
    request: int = 0,
    prompt_len: int = 0,
    selector: _native.Selector | None = None,
) -> _native.TrialTable:
    """One entry per sampler."""
    n = len(samplers)
    return _native.TrialTable(
        layers=layers,
        samplers=samplers,
        selectors=[selector or _native.Selector()],
        sampler=u32(range(n)),
        selector=u32([0] * n),
        write_key=u32(keys).reshape(n, 2),
        request=u32([request] * n),
        prompt_len=u32([prompt_len] * n),
    )


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.sampled_from([1, 5, 8, 16, 32]))
    planes, first_plane = draw(st.sampled_from([(2, 0), (1, 0), (1, 1)]))
    rates = st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.sampled_from([0.0, 1.0, 1e-5, 0.1]))
    return {
        "head_size": draw(st.integers(1, 24)),
        "bits": bits,
        "heads": draw(st.integers(1, 4)),
        "planes": planes,
        "first_plane": first_plane,
        "rate": draw(rates),
        "per": draw(st.sampled_from(["bit", "element", "row"])),
        "mask": draw(st.integers(1, 2**bits - 1)),
        "burst_len": draw(st.one_of(st.just(1), st.integers(1, 40))),
        "page_tokens": draw(st.one_of(st.just(0), st.integers(1, 9))),
        "page_rate": draw(st.floats(0, 1)),
    }


def reference_of(model: dict[str, Any], sampler: _native.Sampler) -> Reference:
    fields = {name: value for name, value in model.items() if name != "page_rate"}
    return Reference(**fields, table=sampler.thresholds.tolist(), page_threshold=sampler.page_threshold)


first_tokens = st.one_of(st.integers(0, 40), st.integers(2**32 - 9, 2**32 - 4))


@settings(max_examples=300, deadline=None)
@given(models(), key_strategy, word, st.integers(0, 65533), first_tokens)
def test_equals_the_reference(model: dict[str, Any], key: Key, request: int, layer: int, token: int) -> None:
    sampler = _native.Sampler(**model)
    reference = reference_of(model, sampler)
    assert sampler.level == reference.level
    expected = sorted(
        (request, y, kv, head, t, elem, bit)
        for y in (layer, layer + 1)
        for t in range(token, token + 4)
        for kv, head, elem, bit in reference.flips(key, request, y, t)
    )
    where: Any = {"key": key, "request": request, "layers": (layer, layer + 2), "tokens": (token, token + 4)}
    assert sites(sampler.enumerate(**where)) == expected
    assert sampler.count(**where) == len(expected)


@settings(deadline=None)
@given(st.integers(1, 40), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 5e-324, 1e-20, 0.5, 1.0, 1 - 2**-53])))
def test_thresholds_equal_exact_arithmetic(units: int, probability: float) -> None:
    assert _native.thresholds(units, probability).tolist() == exact_thresholds(units, probability)


@settings(max_examples=60, deadline=None)
@given(models(), key_strategy, st.data())
def test_selectors_hide_and_never_move(model: dict[str, Any], key: Key, data: st.DataObject) -> None:
    def ranges(top: int) -> list[tuple[int, int]] | None:
        cut = st.tuples(st.integers(0, top), st.integers(0, top)).map(lambda ab: (min(ab), max(ab)))
        return data.draw(st.one_of(st.none(), st.lists(cut, max_size=3)))

    def shown(where: list[tuple[int, int]] | None, value: int) -> bool:
        return where is None or any(start <= value < end for start, end in where)

    layers, heads, tokens = ranges(3), ranges(4), ranges(30)
    planes = data.draw(st.tuples(st.booleans(), st.booleans()))
    phase = data.draw(st.sampled_from(["all", "prompt", "decode"]))
    prompt_len = data.draw(st.integers(0, 30))
    in_phase = {"all": range(30), "prompt": range(prompt_len), "decode": range(prompt_len, 30)}[phase]
    selector = _native.Selector(layers=layers, heads=heads, planes=planes, phase=phase, tokens=tokens)
    sampler = _native.Sampler(**model)
    where: Any = {"key": key, "request": 2, "layers": (0, 3), "tokens": (0, 30)}
    expected = [
        site
        for site in sites(sampler.enumerate(**where))
        if shown(layers, site[1])
        and planes[site[2]]
        and shown(heads, site[3])
        and shown(tokens, site[4])
        and site[4] in in_phase
    ]
    assert sites(sampler.enumerate(**where, prompt_len=prompt_len, selector=selector)) == expected
    assert sampler.count(**where, prompt_len=prompt_len, selector=selector) == len(expected)


@settings(max_examples=60, deadline=None)
@given(models(), key_strategy, st.lists(st.integers(0, 50), max_size=4))
def test_chunks_do_not_matter(model: dict[str, Any], key: Key, cuts: list[int]) -> None:
    sampler = _native.Sampler(**model)
    table = make_table([sampler], [key], layers=2, request=7)
    edges = sorted([0, *cuts, 50])
    start = u32(edges[:-1])
    step = table.write_step(entry=u32([0] * len(start)), row=start, start=start, count=u32(np.diff(edges)))
    found = []
    for layer in range(2):
        columns = step.columns(layer)
        names = ("kv", "head", "token", "elem", "mask")
        for kv, head, token, elem, mask in zip(*(columns[name].tolist() for name in names), strict=True):
            found += [(7, layer, kv, head, token, elem, bit) for bit in range(32) if mask >> bit & 1]
    whole = sampler.enumerate(key=key, request=7, layers=(0, 2), tokens=(0, 50))
    assert sorted(found) == sites(whole)
    parts = [
        site
        for first, last in pairwise(edges)
        for site in sites(sampler.enumerate(key=key, request=7, layers=(0, 2), tokens=(first, last)))
    ]
    assert sorted(parts) == sites(whole)


@pytest.mark.parametrize(
    ("per", "rate", "burst_len"),
    [
        ("bit", 1e-3, 1),
        ("bit", 0.004, 7),
        ("element", 0.02, 9),
        ("element", 0.9, 3),
        ("row", 0.3, 100),
        ("bit", 0.2, 5),
    ],
)
@pytest.mark.parametrize("page", [{}, {"page_tokens": 4, "page_rate": 0.25}])
def test_expected_flips(per: Any, rate: float, burst_len: int, page: dict[str, Any]) -> None:
    """The mean of many rows, within five standard errors estimated from independent requests."""
    sampler = _native.Sampler(
        head_size=64, bits=16, heads=2, rate=rate, per=per, mask=0x7F80, burst_len=burst_len, **page
    )
    assert sampler.eligible_bits_per_row == 64 * 8
    rows = 4 * 4 * 100  # planes x heads, layers, tokens
    counts = [
        sampler.count(key=(11, 22), request=request, layers=(0, 4), tokens=(0, 100)) / rows for request in range(60)
    ]
    error = np.std(counts, ddof=1) / len(counts) ** 0.5
    assert abs(np.mean(counts) - sampler.expected_flips_per_row) < 5 * error


# --- injection ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["bf16", "fp16"]), st.floats(0, 0.2), st.integers(0, 2**32 - 1))
def test_inject_equals_numpy(storage: str, rate: float, seed: int) -> None:
    """Rows, blocks and a shuffled layout against the same flips applied by fancy indexing."""
    rng = np.random.default_rng(seed)
    layers, heads, size, block, blocks, per_row = 2, 3, 8, 4, 12, 3
    samplers = [
        _native.Sampler(head_size=size, bits=16, heads=heads, rate=rate, mask=0xFFFF),
        _native.Sampler(head_size=size, bits=16, heads=heads, rate=rate, mask=0xFF00, burst_len=5),
    ]
    table = make_table(samplers, [(1, seed), (2, seed)], layers=layers, request=4)
    entry, row = u32([1, 0, 0]), u32([2, 0, 1])
    start, count = u32([3, 0, 11]), u32([6, 5, 1])
    step = table.write_step(entry=entry, row=row, start=start, count=count)

    stride = 2 * block * heads * size + 5
    offsets = rng.permutation(2 * block * heads * size).reshape(2, block, heads, size).astype(np.int64)
    block_table = rng.permutation(blocks)[: 3 * per_row].reshape(3, per_row).astype(np.int32)
    values = rng.standard_normal(blocks * stride).astype(np.float32)
    words = _native.decode(storage, _native.encode(storage, values)).view(np.uint32)
    codes = _native.encode(storage, words.view(np.float32))
    landed = np.zeros(3, np.uint64)
    for layer in range(layers):
        c: Any = step.columns(layer)
        address = block_table[c["row"], c["token"] // block].astype(np.int64) * stride
        address += offsets[c["kv"], c["token"] % block, c["head"], c["elem"]]
        index = np.argmax(row[None, :] == c["row"][:, None], axis=1)
        np.bitwise_xor.at(codes, address, c["mask"])
        np.add.at(landed, index, np.bitwise_count(c["mask"]).astype(np.uint64))
        step.inject(layer, words, block_table=block_table, offsets=offsets, block_stride=stride, format=storage)
    assert (step.landed == landed).all()
    assert (_native.encode(storage, words.view(np.float32)) == codes).all()


def test_inject_writes_nothing_if_a_site_is_outside() -> None:
    sampler = _native.Sampler(head_size=2, bits=16, heads=1, rate=1.0, mask=1)
    step = make_table([sampler], [(1, 2)], layers=1).write_step(
        entry=u32([0]), row=u32([0]), start=u32([0]), count=u32([4])
    )
    words = np.zeros(16, np.uint32)
    good: dict[str, Any] = {
        "block_table": np.array([[0, 1]], np.int32),
        "offsets": np.arange(8).reshape(2, 2, 1, 2),
        "block_stride": 8,
        "format": "bf16",
    }
    bad: list[tuple[dict[str, Any], str]] = [
        ({"block_table": np.array([[0, 2]], np.int32)}, "address 16 is outside a cache of 16 words"),
        ({"block_table": np.array([[0, -1]], np.int32)}, "block -1 is below 0"),
        ({"block_table": np.array([[0]], np.int32)}, "block of a token 1 is not below 1"),
        ({"block_table": np.zeros((0, 2), np.int32)}, "row 0 is not below 0"),
        ({"offsets": -np.arange(8).reshape(2, 2, 1, 2)}, "offset -1 is below 0"),
        ({"offsets": np.arange(4).reshape(2, 2, 1, 1)}, "elem 1 is not below 1"),
        ({"offsets": np.arange(8).reshape(2, 2, 1, 2)[:, ::-1]}, "offsets is not a C-contiguous array"),
        ({"block_stride": 2**63}, "address"),
        ({"format": "fp12"}, "format `fp12` is not one of bf16, fp16"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            step.inject(0, words, **{**good, **change})
        assert not words.any()
        assert not step.landed.any()
    with pytest.raises(ValueError, match="layer 1 is not below 1"):
        step.inject(1, words, **good)
    step.inject(0, words, **good)
    assert step.landed.tolist() == [16]
    assert (words == 1 << 16).all()


# --- arguments ----------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"head_size": 64, "bits": 16, "heads": 3, "rate": 0.5, "mask": 0xFFFF}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": float("nan")}, "rate NaN is not a number in"),
        ({"rate": 1.0000000000000002}, "rate 1.0000000000000002 is not"),
        ({"page_tokens": 4, "page_rate": -1.0}, "page_rate -1 is not a number"),
        ({"mask": 0}, "mask 0x0 is empty or wider than 16 bits"),
        ({"mask": 0x10000}, "mask 0x10000 is empty or wider than 16 bits"),
        ({"bits": 33}, "33 bits per element is outside 1 to 32"),
        ({"head_size": 4096}, "a row of 4096 elements of 16 bits is outside 1 to 32768 bits"),
        ({"heads": 0}, "0 heads is outside 1 to 32767"),
        ({"planes": 2, "first_plane": 1}, "2 planes from plane 1 is not a subset"),
        ({"burst_len": 0}, "burst length 0 is below 1"),
        ({"per": "token"}, "unit `token` is not one of bit, element, row"),
    ],
)
def test_bad_models_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.Sampler(**{**GOOD, **change})


def test_bad_arguments_are_refused() -> None:
    sampler = _native.Sampler(**GOOD)
    with pytest.raises(ValueError, match=r"tokens 5\.\.4 is not a range within"):
        sampler.count(key=(0, 0), request=0, layers=(0, 1), tokens=(5, 4))
    with pytest.raises(ValueError, match=r"layers 0\.\.65537 is not a range within 0\.\.65536"):
        sampler.count(key=(0, 0), request=0, layers=(0, 65537), tokens=(0, 1))
    with pytest.raises(ValueError, match="flips at once are more than the limit"):
        sampler.enumerate(key=(0, 0), request=0, layers=(0, 1), tokens=(0, 2**32))
    with pytest.raises(ValueError, match="phase `prefill` is not one of all, prompt, decode"):
        _native.Selector(phase="prefill")  # type: ignore[arg-type]
    table = make_table([sampler], [(1, 2)], layers=1)
    one = u32([0])
    with pytest.raises(ValueError, match="entry 1 is not below 1"):
        table.write_step(entry=u32([1]), row=one, start=one, count=one)
    with pytest.raises(ValueError, match="row has 0 entries instead of 1"):
        table.write_step(entry=one, row=one[:0], start=one, count=one)
    with pytest.raises(ValueError, match=r"is not a range within 0\.\.4294967296"):
        table.write_step(entry=one, row=one, start=u32([2**32 - 1]), count=u32([2]))
    with pytest.raises(OverflowError):
        _native.derive_keys(-1, 0, 0, 0)
