"""Storage formats through `kvspec._native`, against independent oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvspec import _native
from kvspec.spec.model import STORAGE_FORMATS

word = st.integers(0, 2**32 - 1)


def u32(values: object) -> NDArray[np.uint32]:
    return np.array(values, dtype=np.uint32)


ALL_CODES = np.arange(1 << 16, dtype=np.uint32)


def oracle_decode(storage: str, codes: NDArray[np.uint32]) -> NDArray[np.float32]:
    if storage == "bf16":
        return (codes << 16).view(np.float32)
    return codes.astype(np.uint16).view(np.float16).astype(np.float32)


def oracle_encode(storage: str, values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """For numbers; NaN has rules of its own."""
    if storage == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = values.view(np.uint32).astype(np.uint64)
    low = bits & 0xFFFF
    up = (low > 0x8000) | ((low == 0x8000) & (bits >> 16 & 1 == 1))
    return ((bits >> 16) + up).astype(np.uint32)


@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_every_code(storage: str) -> None:
    values = _native.decode(storage, ALL_CODES)
    expected = oracle_decode(storage, ALL_CODES)
    number = ~np.isnan(expected)
    assert (np.isnan(values) == ~number).all()
    assert (values.view(np.uint32)[number] == expected.view(np.uint32)[number]).all()
    assert (_native.encode(storage, values) == ALL_CODES).all()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["bf16", "fp16"]), st.lists(word, min_size=1, max_size=64))
def test_encode_rounds_to_nearest_even(storage: str, words: list[int]) -> None:
    near = (ALL_CODES[::97] << np.uint32(16)) + u32(words).reshape(-1, 1) % 3 - 1 + 0x8000
    for bits in (u32(words), near.reshape(-1)):
        values = bits.view(np.float32)
        number = ~np.isnan(values)
        codes = _native.encode(storage, values)
        assert (codes[number] == oracle_encode(storage, values[number])).all()
        back = _native.decode(storage, codes)
        assert np.isnan(back[~number]).all()
        assert (np.signbit(back) == np.signbit(values)).all()


@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_rounding_equals_torch(storage: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[storage]
    bits = np.random.default_rng(5).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    edges = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)) | u32([[0], [1], [0x7FFF], [0x8000], [0x8001]])
    halves = (np.arange(1 << 19, dtype=np.uint32) << np.uint32(13)) | u32([[0xFFF], [0x1000], [0x1001]])
    values = np.concatenate([bits, edges.reshape(-1), halves.reshape(-1)]).view(np.float32)
    rounded = torch.from_numpy(values).to(dtype).to(torch.float32).numpy()
    ours = _native.decode(storage, _native.encode(storage, values))
    number = ~np.isnan(values)
    assert (ours.view(np.uint32)[number] == rounded.view(np.uint32)[number]).all()
    assert (np.isnan(rounded) == ~number).all()
    assert (np.isnan(ours) == ~number).all()


MASKS = {
    "all": ("FFFF", "FFFF", "FF", "FF", "FF", "F"),
    "sign": ("8000", "8000", "80", "80", "80", None),
    "exponent": ("7F80", "7C00", "78", "7C", None, None),
    "mantissa": ("007F", "03FF", "07", "03", None, None),
    "BYTE_TOPBITS": ("C0C0", "C0C0", "C0", "C0", "C0", "C"),
    "FP16_EXPONENT": ("7F80", "7C00", "78", "7C", None, None),
    "INT4_NIBBLE": ("F0F0", "F0F0", "F0", "F0", "F0", "F"),
}
"""By storage format; `None` where the codes have no such bits (sampling.md, section 6)."""


@pytest.mark.parametrize("bits", MASKS)
def test_masks(bits: str) -> None:
    for storage, expected in zip(STORAGE_FORMATS, MASKS[bits], strict=True):
        if expected is None:
            with pytest.raises(ValueError, match=f"codes of {storage} have no {bits} bits"):
                _native.format_mask(storage, bits)
        else:
            assert _native.format_mask(storage, bits) == int(expected, 16)


def test_widths() -> None:
    assert [_native.format_bits(storage) for storage in STORAGE_FORMATS] == [16, 16, 8, 8, 8, 4]
    assert [_native.format_scaled(storage) for storage in STORAGE_FORMATS] == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="bits `parity` is not one of all"):
        _native.format_mask("bf16", "parity")


def test_scaled_formats_need_the_scales_of_their_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    for storage in ("int8_per_token_head", "int4_per_token_head"):
        held = rows.reshape(6, 8).copy()
        scales = _native.quantize(storage, held)
        held = held.reshape(2, 3, 8)
        codes = _native.encode(storage, held, scales.reshape(2, 3))
        assert codes.shape == rows.shape
        assert (_native.decode(storage, codes, scales.reshape(2, 3)) == held).all()
        # half a step, and a little for int4, whose zero point is an integer
        step = scales.reshape(2, 3, 1) * (0.5 if storage.startswith("int8") else 1.0)
        assert (np.abs(held - rows) <= step * 1.001).all()
        with pytest.raises(ValueError, match="needs the scales of its rows"):
            _native.encode(storage, held)
        with pytest.raises(ValueError, match="scales has 2 entries instead of 6"):
            _native.decode(storage, codes, scales[:2])


def test_shapes_are_kept() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    codes = _native.encode("bf16", values.transpose(2, 0, 1))
    assert codes.shape == (4, 2, 3)
    assert (_native.decode("bf16", codes) == values.transpose(2, 0, 1)).all()
