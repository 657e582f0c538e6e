"""Golden diffing against two independent implementations: plain Python definitions, and rapidfuzz."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Hamming, Indel, LCSseq, Levenshtein, Postfix, Prefix

from kvspec import _native
from kvspec.score import drift
from kvspec.score.drift import METRICS, TEXT_ONLY, Ragged, score

TOKEN_METRICS = tuple(name for name in METRICS if name not in TEXT_ONLY)

# One alphabet per plane, so that texts of one plane, of two and of all seventeen come up.
PLANES = [
    st.characters(min_codepoint=plane << 16, max_codepoint=(plane << 16) | 0xFFFF, exclude_categories=["Cs"])
    for plane in range(17)
]
ANY = st.characters(exclude_categories=["Cs"])
ALPHABETS = st.sampled_from([st.sampled_from("ab"), st.characters(max_codepoint=127), *PLANES, ANY])


def edited(sequence: list, edits: list[tuple[int, int, object]]) -> list:
    """A copy with some items replaced, inserted and deleted."""
    out = list(sequence)
    for where, kind, item in edits:
        at = where % (len(out) + 1)
        if kind == 0:
            out.insert(at, item)
        elif at < len(out):
            out[at : at + 1] = [item] if kind == 1 else []
    return out


@st.composite
def pairs(draw: st.DrawFn, items: st.SearchStrategy, longest: int = 40) -> tuple[list, list]:
    """A sequence, and the same, an edited, a cut or another one."""
    golden = draw(st.lists(items, max_size=longest))
    kind = draw(st.sampled_from(["same", "edited", "prefix", "other", "half"]))
    other = draw(st.lists(items, max_size=longest)) if kind in ("other", "half") else []
    edits = draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2), items), max_size=6))
    faulty = {
        "same": golden,
        "edited": edited(golden, edits),
        "prefix": golden[: len(golden) // 2],
        "other": other,
        "half": golden[: len(golden) // 2] + other,
    }[kind]
    return (golden, faulty) if draw(st.booleans()) else (faulty, golden)


def text_pairs() -> st.SearchStrategy[tuple[str, str]]:
    return ALPHABETS.flatmap(pairs).map(lambda pair: ("".join(pair[0]), "".join(pair[1])))


TOKEN_PAIRS = st.sampled_from([3, 200, 50_257, 2**20, 2**32]).flatmap(lambda vocab: pairs(st.integers(0, vocab - 1)))


def naive_first(golden, faulty) -> int:
    first = next((i for i, (a, b) in enumerate(zip(golden, faulty, strict=False)) if a != b), None)
    if first is not None:
        return first
    return -1 if len(golden) == len(faulty) else min(len(golden), len(faulty))


def naive(golden, faulty) -> dict[str, object]:
    """The definitions, written down."""
    mismatches = sum(a != b for a, b in zip(golden, faulty, strict=False))
    rows, lcs = list(range(len(faulty) + 1)), [0] * (len(faulty) + 1)
    for i, a in enumerate(golden):
        above, rows = rows, [i + 1]
        lcs_above, lcs = lcs, [0]
        for j, b in enumerate(faulty):
            rows.append(min(above[j] + (a != b), above[j + 1] + 1, rows[j] + 1))
            lcs.append(lcs_above[j] + 1 if a == b else max(lcs_above[j + 1], lcs[j]))
    total = len(golden) + len(faulty)
    return {
        "exact": golden == faulty,
        "first_divergence": naive_first(golden, faulty),
        "drift": mismatches + abs(len(golden) - len(faulty)),
        "edit_distance": rows[-1],
        "edit_rate": rows[-1] / max(len(golden), len(faulty), 1),
        "mismatches": mismatches,
        "common_prefix": next((i for i in range(len(golden)) if golden[: i + 1] != faulty[: i + 1]), len(golden)),
        "common_suffix": next(
            (i for i in range(len(golden)) if golden[len(golden) - i - 1 :] != faulty[max(len(faulty) - i - 1, 0) :]),
            len(golden),
        ),
        "lcs": lcs[-1],
        "indel_distance": total - 2 * lcs[-1],
        "indel_ratio": 2 * lcs[-1] / total if total else 1.0,
        "golden_length": len(golden),
        "length": len(faulty),
    }


def check(golden: list, faulty: list, columns: dict[str, np.ndarray]) -> None:
    """Compares columns with both other implementations. `golden` and `faulty` are the pairs row by row."""
    assert set(columns) | set(TEXT_ONLY) == set(METRICS)
    for row, (g, f) in enumerate(zip(golden, faulty, strict=True)):
        got = {name: column[row].item() for name, column in columns.items()}
        if isinstance(g, str):
            assert got.pop("first_divergence_bytes") == naive_first(g.encode(), f.encode())
        assert got == naive(g, f)
        assert got["edit_distance"] == Levenshtein.distance(g, f)
        assert got["edit_rate"] == Levenshtein.normalized_distance(g, f)
        assert got["drift"] == Hamming.distance(g, f)
        assert got["lcs"] == LCSseq.similarity(g, f)
        assert got["indel_distance"] == Indel.distance(g, f)
        assert got["indel_ratio"] == pytest.approx(Indel.normalized_similarity(g, f))
        assert got["common_prefix"] == Prefix.similarity(g, f)
        assert got["common_suffix"] == Postfix.similarity(g, f)


@given(st.lists(text_pairs(), max_size=12))
def test_texts_agree_with_both_oracles(rows):
    golden, faulty = [g for g, _ in rows], [f for _, f in rows]
    check(golden, faulty, score(golden, faulty, np.arange(len(rows)), metrics=METRICS))


@given(st.lists(TOKEN_PAIRS, max_size=12))
def test_tokens_agree_with_both_oracles(rows):
    golden, faulty = [g for g, _ in rows], [f for _, f in rows]
    check(golden, faulty, score(golden, faulty, np.arange(len(rows)), metrics=TOKEN_METRICS))


@settings(max_examples=40, deadline=None)
@given(st.lists(pairs(st.sampled_from("abcdefgh"), longest=1500), min_size=1, max_size=4), st.sampled_from([1, 3]))
def test_long_texts_agree_with_rapidfuzz(rows, repeats):
    """Past 512 symbols another kernel takes over."""
    golden, faulty = ["".join(g) * repeats for g, _ in rows], ["".join(f) * repeats for _, f in rows]
    columns = score(golden, faulty, np.arange(len(rows)))
    assert columns["edit_distance"].tolist() == [
        Levenshtein.distance(g, f) for g, f in zip(golden, faulty, strict=True)
    ]


@given(st.lists(text_pairs(), min_size=1, max_size=12), st.integers(0, 100))
def test_a_limit_caps_the_distance_and_changes_nothing_else(rows, limit):
    golden, faulty = [g for g, _ in rows], [f for _, f in rows]
    metrics = ["edit_distance", "indel_distance", "drift"]
    capped = score(golden, faulty, np.arange(len(rows)), metrics=metrics, limit=limit)
    want = [Levenshtein.distance(g, f, score_cutoff=limit) for g, f in rows]
    assert capped["edit_distance"].tolist() == want
    assert capped["indel_distance"].tolist() == [Indel.distance(g, f, score_cutoff=limit) for g, f in rows]
    assert capped["drift"].tolist() == [Hamming.distance(g, f) for g, f in rows]


@given(st.lists(TOKEN_PAIRS, min_size=1, max_size=20), st.integers(2, 5))
def test_threads_do_not_change_the_result(rows, threads):
    golden, faulty = [g for g, _ in rows], [f for _, f in rows]
    one = score(golden, faulty, np.arange(len(rows)), metrics=TOKEN_METRICS, threads=1)
    many = score(golden, faulty, np.arange(len(rows)), metrics=TOKEN_METRICS, threads=threads)
    assert all(np.array_equal(one[name], many[name]) for name in TOKEN_METRICS)


def test_threads_do_not_change_the_result_of_a_large_batch():
    rng = np.random.default_rng(7)
    golden = Ragged(rng.integers(0, 4, 400_000, dtype=np.uint32), np.arange(0, 400_001, 50))
    lengths = rng.integers(0, 90, 30_000)
    faulty = Ragged(rng.integers(0, 4, lengths.sum(), dtype=np.uint32), np.concatenate([[0], np.cumsum(lengths)]))
    index = rng.integers(0, 8000, 30_000)
    one, two, seven = (score(golden, faulty, index, metrics=TOKEN_METRICS, threads=n) for n in (1, 2, 7))
    assert all(
        np.array_equal(one[name], two[name]) and np.array_equal(one[name], seven[name]) for name in TOKEN_METRICS
    )
    for row in rng.integers(0, 30_000, 50):
        start, stop = faulty.offsets[row : row + 2]
        g = golden.values[50 * index[row] : 50 * index[row] + 50].tolist()
        check([g], [faulty.values[start:stop].tolist()], {name: one[name][row : row + 1] for name in TOKEN_METRICS})


def test_a_million_symbols():
    rng = np.random.default_rng(11)
    golden = rng.integers(97, 123, 1_000_000, dtype=np.uint8)
    faulty = np.delete(golden, rng.integers(0, 1_000_000, 40))
    faulty[rng.integers(0, len(faulty), 60)] = 33
    g, f = golden.tobytes().decode(), faulty.tobytes().decode()
    columns = score([g, "", g, g], [f, g, g, g[:-3]])
    assert columns["edit_distance"].tolist() == [Levenshtein.distance(g, f, score_hint=128), 1_000_000, 0, 3]
    assert columns["drift"].tolist() == [Hamming.distance(g, f), 1_000_000, 0, 3]
    assert columns["first_divergence"].tolist() == [Prefix.similarity(g, f), 0, -1, 999_997]


@pytest.mark.parametrize("side", ["golden", "faulty"])
@pytest.mark.parametrize("text", ["\ud800", "abc\udfff", "\U0001f600\udc00"])
def test_a_lone_surrogate_is_refused(side, text):
    golden, faulty = (["fine", text], ["x", "y"]) if side == "golden" else (["x", "y"], ["fine", text])
    name = "golden" if side == "golden" else "texts"
    with pytest.raises(ValueError, match=rf"`{name}\[1\]` has a lone surrogate at character {len(text) - 1}"):
        score(golden, faulty)


class Boaster(str):
    """Claims a length that it does not have."""

    def __len__(self) -> int:
        return 4


def test_a_text_is_not_believed_about_its_length():
    # As many bytes as it claims code points, so it would pass for ASCII.
    columns = score([Boaster("\u00e9\u03b1")], [Boaster("\u03b1\u00e9")])
    assert columns["drift"].tolist() == [2]


def test_a_single_golden_serves_all():
    columns = score("the cat sat", ["the cat sat", "the bat sat!", ""])
    assert columns["drift"].tolist() == [0, 2, 11]
    assert columns["exact"].tolist() == [True, False, False]


def test_no_outputs_are_no_rows():
    for golden in ("the cat sat", ["a"], [[1]], []):
        columns = score(golden, [], metrics=METRICS if golden != [[1]] else TOKEN_METRICS)
        assert all(len(column) == 0 for column in columns.values())


def as_forms(rows: list[list[int]]) -> dict[str, object]:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    flat = [token for row in rows for token in row]
    return {
        "lists": rows,
        "arrays of int64": [np.array(row, np.int64) for row in rows],
        "arrays of int32": [np.array(row, np.int32) for row in rows],
        "arrays of uint32": [np.array(row, np.uint32) for row in rows],
        "arrays of uint16": [np.array(row, np.uint16) for row in rows],
        "arrays of any": [np.array(row, kind) for row, kind in zip(rows, ("i4", "u4", "i8", "i2"), strict=True)],
        "strided arrays": [np.repeat(np.array(row, np.int32), 2)[::2] for row in rows],
        "a tuple of arrays": tuple(np.array(row, np.int32) for row in rows),
        "arrow list": pa.array(rows, pa.list_(pa.int32())),
        "arrow large list": pa.array(rows, pa.large_list(pa.uint32())),
        "arrow slice": pa.array([[9], *rows, [9]], pa.list_(pa.int64()))[1:-1],
        "arrow chunks": pa.chunked_array(
            [pa.array(rows[:2], pa.list_(pa.int32())), pa.array(rows[2:], pa.list_(pa.int32()))]
        ),
        "ragged": Ragged(np.array(flat, np.uint32), offsets),
        "tuple": (np.array(flat, np.int32), offsets),
        "tuple with a list": (np.array(flat, np.int32), offsets.tolist()),
        "tuple of arrow arrays": (pa.array(flat), pa.array(offsets)),
        "tuple of a window": (np.array([-1, -1, *flat, 2**40]), offsets + 2),
        "tuple off its alignment": (
            np.frombuffer(b"-" + np.array(flat, np.uint32).tobytes(), "u1")[1:].view("u4"),
            offsets,
        ),
        "other byte order": (np.array(flat, ">i4"), offsets.astype(">i4")),
        "arrays, empty ones of float": [np.array(row, np.int32 if row else float) for row in rows],
        "arrays of signed and unsigned": [
            np.array(row, kind) for row, kind in zip(rows, ("i8", "u8", "u8", "i8"), strict=True)
        ],
        "arrow slice between nulls": pa.array([[None], *rows, [-1], [None]], pa.list_(pa.int64()))[1:-2],
    }


ROWS = [[1, 2, 3], [], [7, 7, 7, 7], [5]]


@pytest.mark.parametrize("form", as_forms(ROWS))
def test_every_form_of_token_ids_reads_the_same(form):
    values, offsets = drift.ragged(as_forms(ROWS)[form])
    assert [values[a:b].tolist() for a, b in pairwise(offsets)] == ROWS


def test_matrices_and_fixed_size_lists():
    matrix = np.arange(6).reshape(2, 3)
    fixed = pa.array(matrix.tolist(), pa.list_(pa.int32(), 3))
    for form in (matrix, fixed, fixed[1:]):
        values, offsets = drift.ragged(form)
        assert [values[a:b].tolist() for a, b in pairwise(offsets)] == np.asarray(
            form.tolist() if isinstance(form, np.ndarray) else form.to_pylist()
        ).tolist()


def test_arrow_buffers_are_not_copied():
    array = pa.array(ROWS, pa.large_list(pa.int32()))
    values, offsets = drift.ragged(array)
    assert values.__array_interface__["data"][0] == array.values.buffers()[1].address
    assert offsets.__array_interface__["data"][0] == array.offsets.buffers()[1].address


def test_a_slice_costs_no_more_than_itself():
    array = pa.array(ROWS * 100, pa.list_(pa.int32()))[4:8]
    values, offsets = drift.ragged(array)
    assert (len(values), offsets[0]) == (8, 0)
    assert values.__array_interface__["data"][0] == array.values.buffers()[1].address + 8 * 4
    values, offsets = drift.ragged((np.arange(100, dtype=np.uint32), np.array([90, 95, 97])))
    assert (values.tolist(), offsets.tolist()) == ([*range(90, 97)], [0, 5, 7])


def test_a_metric_can_be_named_alone():
    assert list(score("a", ["b"], metrics="drift")) == ["drift"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: score([[1]], [[1]], metrics=["nope"]), ValueError, "unknown metrics"),
        (lambda: score([[1]], [[1]], threads=-1), ValueError, "threads"),
        (lambda: score([[1]], [[1]], [-1]), ValueError, "a golden index is negative"),
        (lambda: score([[1]], [[1]], [0.0]), TypeError, "a golden index is float64"),
        (lambda: score([[1.5]], [[1]]), TypeError, "'float' object cannot be interpreted as an integer"),
        (lambda: score([[1], "12"], [[1], [1, 2]]), TypeError, "'str' object cannot be interpreted as an integer"),
        (lambda: score([[2**64]], [[1]]), ValueError, "32 bits"),
        (lambda: score([1, 2], [[1, 2]]), TypeError, "a single output is a list of one"),
        (lambda: score((np.zeros(2, np.uint32), np.array([0, 1.5])), [[1]]), TypeError, "an offset is float64"),
        (lambda: score("a", np.array(["a"])), TypeError, "golden is a str, faulty a ndarray"),
        (lambda: score(pa.table({"a": [[1]]}), [[1]]), TypeError, "cannot be read from Table"),
        (lambda: score(pa.array([[1.5]]), [[1]]), TypeError, "a token id is double"),
        (lambda: score(pa.array([[True]]), [[1]]), TypeError, "a token id is bool"),
        (lambda: score([[1]], [[1]], metrics=["edit_rate"], limit=3), ValueError, "leave `limit` out"),
        (lambda: score([[1]], [[1]], metrics=["lcs"], limit=3), ValueError, "leave `limit` out"),
        (lambda: score([[1]], [[1]], metrics=["first_divergence_bytes"]), TypeError, "need texts"),
        (lambda: score([[1]], [[1]], limit=2**32), ValueError, "limit"),
        (lambda: score([[1], [2]], [[1], [2], [3]]), ValueError, "need a `golden_index`"),
        (lambda: score([[1]], [[1]], [1]), ValueError, "trial 0 has golden index 1, but there are 1"),
        (lambda: score([[1]], [[1]], [0, 0]), ValueError, "2 golden indices for 1 trials"),
        (lambda: score(["a"], [[1]]), TypeError, "must both be texts"),
        (lambda: score(["a"], ["a", 3]), TypeError, r"`texts\[1\]` is not a str"),
        (lambda: score([[-1]], [[1]]), ValueError, "negative"),
        (lambda: score([[2**32]], [[1]]), ValueError, "32 bits"),
        (lambda: score([np.array([1]), np.array([-1])], [[1], [1]]), ValueError, "negative"),
        (lambda: score([np.array([-1], np.int32)], [[1]]), ValueError, "negative"),
        (lambda: score([np.array([2**32])], [[1]]), ValueError, "32 bits"),
        (lambda: score([np.array([[1]])], [[1]]), TypeError, "more than one dimension"),
        (lambda: score([np.array([0.5])], [[1]]), TypeError, "not an integer"),
        (lambda: score(3, [[1]]), TypeError, "int"),
        (lambda: score(pa.array([[1], None]), pa.array([[1], [2]])), ValueError, "null"),
        (lambda: score(pa.array([[1, None]]), pa.array([[1]])), ValueError, "null"),
        (lambda: score(pa.array([1]), pa.array([[1]])), TypeError, "Arrow type"),
        (lambda: score((np.zeros(2, np.uint32), np.array([0, 3])), [[1]]), ValueError, "offset 3 points behind the 2"),
        (lambda: score((np.zeros(2, np.uint32), np.array([2, 1])), [[1]]), ValueError, "offsets of row 0"),
        (lambda: score((np.zeros(2, np.uint32), np.array([-1, 1])), [[1]]), ValueError, "offsets of row 0"),
        (lambda: score((np.zeros(2, np.uint32), np.array([], np.int64)), [[1]]), ValueError, "offsets are empty"),
    ],
)
def test_wrong_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_gil_is_free_while_texts_are_compared():
    rng = np.random.default_rng(3)
    golden, faulty = (rng.integers(97, 123, 60_000, dtype=np.uint8).tobytes().decode() for _ in range(2))
    done = threading.Event()
    worker = threading.Thread(target=lambda: (score([golden] * 4, [faulty] * 4, threads=1), done.set()))
    worker.start()
    ticks = 0
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    worker.join()
    assert ticks > 5


def test_the_native_call_needs_contiguous_arrays():
    offsets = np.array([0, 0, 1, 1])[::2]
    with pytest.raises(ValueError, match="`golden_offsets` is not contiguous"):
        _native.score_tokens(
            np.zeros(1, np.uint32), offsets, np.zeros(1, np.uint32), np.array([0, 1]), np.zeros(1, np.uint32)
        )
