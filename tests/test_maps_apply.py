"""`_native.apply_map` against numpy on any layout, and everything that it must refuse before the first write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvspec import _native
from kvspec.maps import Columns
from tests.maps.made import made

SHAPE = (1, 3, 2, 2, 12, 16)
COORDINATES = ("request", "layer", "kv", "head", "token", "elem")
WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32}


def columns() -> Columns:
    found = made().columns
    assert found is not None
    return found


def expected(words: NDArray[Any], view: NDArray[Any], sites: Columns, op: str) -> NDArray[Any]:
    """numpy's answer: `view` is the cache seen as [request, layer, kv, head, token, elem] inside `words`."""
    at = tuple(sites[name] for name in COORDINATES)
    bits = (np.ones(1, words.dtype) << sites["bit"].astype(words.dtype)).astype(words.dtype)
    if op == "flip":
        np.bitwise_xor.at(view, at, bits)
    elif op == "set0":
        np.bitwise_and.at(view, at, ~bits)
    else:
        np.bitwise_or.at(view, at, bits)
    return words


@settings(max_examples=80, deadline=None)
@given(
    st.permutations(range(6)),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.sampled_from(["flip", "set0", "set1"]),
    st.sampled_from([8, 16, 32]),
    st.integers(0, 5),
)
def test_any_strides(order: list[int], backwards: list[bool], op: str, width: int, gap: int) -> None:
    sites = {name: column.copy() for name, column in columns().items()}
    keep = sites["bit"] < width
    sites = {name: column[keep] for name, column in sites.items()}
    # A cache whose axes lie in another order, some of them backwards, with a gap between the elements.
    stored = np.zeros((*(SHAPE[i] for i in order), 1 + gap), WORDS[width])
    stored[:] = np.random.default_rng(1).integers(0, 2**width, stored.shape, dtype=np.uint64).astype(WORDS[width])
    words = stored.reshape(-1)
    view = stored[..., 0].transpose(np.argsort(order))
    view = view[tuple(slice(None, None, -1 if back else 1) for back in backwards)]
    base = (view.__array_interface__["data"][0] - words.__array_interface__["data"][0]) // words.itemsize
    strides = [s // words.itemsize for s in view.strides]
    before = words.copy()
    _native.apply_map(words, sites, shape=SHAPE, strides=strides, base=base, op=op)
    got, words[:] = words.copy(), before
    want = expected(words, view, sites, op)
    assert np.array_equal(got, want)
    if op == "flip":
        _native.apply_map(words, sites, shape=SHAPE, strides=strides, base=base)
        assert np.array_equal(words, before)


def contiguous() -> tuple[NDArray[np.uint16], list[int]]:
    words = np.arange(np.prod(SHAPE), dtype=np.uint16)
    return words, [int(np.prod(SHAPE[i + 1 :])) for i in range(6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("elem"), "column elem is missing"),
        (lambda c: c.update(elem=c["elem"].astype(np.int64)), "column elem is not"),
        (lambda c: c.update(elem=c["elem"][:-1]), "elem has"),
        (lambda c: c.update(elem=np.repeat(c["elem"], 2)[::2]), "column elem is not contiguous"),
        (lambda c: c["layer"].__setitem__(-1, 3), "layer 3 is not below 3"),
        (lambda c: c["token"].__setitem__(-1, 2**32 - 1), "token 4294967295 is not below 12"),
        (lambda c: c["bit"].__setitem__(-1, 16), "bit 16 is not below 16"),
        (lambda c: c.update({n: np.append(a[:1], a[:-1]) for n, a in c.items()}), "site 1 of the fault map repeats"),
        (lambda c: c.update({n: a[::-1].copy() for n, a in c.items()}), "site 1 of the fault map repeats or precedes"),
    ],
)
def test_wrong_columns_change_nothing(change: Any, message: str) -> None:
    sites = {name: column.copy() for name, column in columns().items()}
    change(sites)
    words, strides = contiguous()
    before = words.copy()
    with pytest.raises(ValueError, match=message):
        _native.apply_map(words, sites, shape=SHAPE, strides=strides)
    assert np.array_equal(words, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 1},
        {"base": 2**63},
        {"strides": [-1] * 6},
        {"strides": [2**62] * 6},
        {"strides": [-(2**63)] * 6},
        {"shape": (1, 3, 2, 2, 12, 17)},
        {"shape": (2**63, 2**63, 2, 2, 12, 16)},
        {"shape": (0, 3, 2, 2, 12, 16)},
        {"op": "xor"},
    ],
)
def test_wrong_layouts_change_nothing(wrong: dict[str, Any]) -> None:
    words, strides = contiguous()
    before = words.copy()
    with pytest.raises(ValueError):
        _native.apply_map(words, columns(), **{"shape": SHAPE, "strides": strides} | wrong)
    assert np.array_equal(words, before)


def test_words_of_other_kinds_are_refused() -> None:
    words, strides = contiguous()
    for wrong in (words.astype(np.float32), words.astype(np.int16), words.reshape(2, -1), words[::2]):
        with pytest.raises((TypeError, ValueError)):
            _native.apply_map(wrong, columns(), shape=SHAPE, strides=strides)
    words.flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        _native.apply_map(words, columns(), shape=SHAPE, strides=strides)


def test_a_part_of_the_check_does_not_forget_the_rows_before() -> None:
    limits = {name: (0, size) for name, size in zip(COORDINATES, SHAPE, strict=True)}
    check = _native.MapCheck(**limits, step=None, bit=(0, 16))
    sites = columns()
    assert check.push({n: c[:10] for n, c in sites.items()}) is None
    assert check.push({n: c[:0] for n, c in sites.items()}) is None
    assert check.push({n: c[9:12] for n, c in sites.items()}) == (
        "duplicate",
        "",
        10,
        "row 10 repeats the site before it",
    )
    assert check.push({n: c[8:12] for n, c in sites.items()})[0] == "order"
    assert check.push({n: c[10:] for n, c in sites.items()}) is None
    assert check.rows == len(sites["bit"])
