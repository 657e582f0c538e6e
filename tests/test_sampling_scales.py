"""Faults of scales through `kvspec._native`: docs/sampling-scales.md against golden cases made in plain Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kvspec import _native
from kvspec.spec.model import STORAGE_FORMATS
from tests import scale_vectors
from tests.reference_sampler import Key

VECTORS = json.loads(scale_vectors.FILE.read_text())
CASES = VECTORS["cases"]


def pair(words: list[str]) -> Key:
    low, high = (int(word, 16) for word in words)
    return low, high


def sampler(case: dict[str, Any]) -> _native.Sampler:
    shape = dict(case["layer_shape"])
    return _native.Sampler(head_size=shape.pop("dim"), **shape, **case["model"])


def test_the_file_is_what_plain_python_gives() -> None:
    assert scale_vectors.FILE.read_text() == scale_vectors.text()


def test_keys() -> None:
    for keys in VECTORS["keys"]:
        identity = int(keys["seed"], 16), int(keys["experiment"], 16), keys["trial"], keys["fault"]
        write, master = _native.derive_keys(*identity, "scales")
        assert (write, master) == (pair(keys["write_key"]), pair(keys["read_master"]))
        for step, key in keys["read_key_of_step"].items():
            assert _native.read_key(master, keys["request"], int(step)) == pair(key)
        values = _native.derive_keys(*identity)
        assert values == _native.derive_keys(*identity, "values")
        assert len({*values, write, master}) == 4
    with pytest.raises(ValueError, match="target `scale` is not one of values, scales"):
        _native.derive_keys(0, 0, 0, 0, "scale")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_case(case: dict[str, Any]) -> None:
    found = sampler(case)
    assert (found.level, len(found.thresholds)) == (case["level"], case["thresholds_len"])
    first = case["first_token"]
    columns = found.enumerate(
        key=pair(case["key"]),
        request=case["request"],
        layers=(case["layer"], case["layer"] + 1),
        tokens=(first, first + case["tokens"]),
    )
    flips = zip(*(columns[n].tolist() for n in ("kv", "head", "token", "elem", "bit")), strict=True)
    assert [[kv, h, token - first, elem, bit] for kv, h, token, elem, bit in flips] == case["flips"]
    assert len(case["flips"]) > 2


def test_golden_cases_cover_what_scales_have() -> None:
    assert {case["level"] for case in CASES} == {"token", "head"}  # a row has 32 bits at most, so it is never dense
    assert {case["site"] for case in CASES} == {"KV_WRITE", "KV_READ"}
    assert {case["op"] for case in CASES} == {"flip", "set0", "set1"}
    bits = np.concatenate([np.array(case["flips"])[:, 4] for case in CASES])
    assert set(bits.tolist()) == set(range(32))


def test_only_scaled_formats_have_scales() -> None:
    for storage in STORAGE_FORMATS:
        if _native.format_scaled(storage):
            assert _native.format_bits(storage, "scales") == 32
            assert _native.format_mask(storage, "exponent", "scales") == 0x7F800000
            continue
        for refused in (lambda s=storage: _native.format_bits(s, "scales"),
                        lambda s=storage: _native.format_mask(s, "all", "scales")):  # fmt: skip
            with pytest.raises(ValueError, match=f"rows of {storage} have no scales"):
                refused()
    assert _native.format_mask("int8_per_token_head", "mantissa", "scales") == 0x007FFFFF
    assert _native.format_mask("int4_per_token_head", "mantissa", "scales") == 0x007FFFF0  # the rest is the zero point


def test_codes_are_kept_beside_the_values() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    for storage in ("int8_per_token_head", "int4_per_token_head"):
        held, codes = rows.copy(), np.zeros(rows.shape, np.uint8)
        scales = _native.quantize(storage, held, codes)
        assert (_native.encode(storage, held, scales) == codes).all()
        assert (_native.decode(storage, codes.astype(np.uint32), scales) == held).all()
        with pytest.raises(ValueError, match="codes has 40 entries instead of 48"):
            _native.quantize(storage, held, codes[:5])
    with pytest.raises(ValueError, match="codes"):
        _native.quantize("bf16", held, codes)
