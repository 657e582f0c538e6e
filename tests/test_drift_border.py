"""`kvspec.score` as a function, and the border to Rust: whatever comes in, an exception comes out, never a panic."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvspec
import kvspec.score
from kvspec import _native
from kvspec.score import drift

BEFORE = [
    "import kvspec",
    "import kvspec.score",
    "from kvspec.score import drift, score_run; import kvspec",
    "import kvspec; kvspec.score_run",
    "import kvspec.score as score, kvspec; assert score is kvspec.score",
]


@pytest.mark.parametrize("before", BEFORE)
def test_the_package_is_a_function_however_it_is_imported(before):
    code = f"{before}\nassert kvspec.score('abc', ['abd', 'abc'])['drift'].tolist() == [1, 0]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_call_loads_numpy_alone():
    code = """
import sys, kvspec
kvspec.score([[1, 2]], [[1, 3]])
heavy = {"pyarrow", "scipy", "torch", "vllm", "kvspec.records", "kvspec.plan", "kvspec.stats"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_package_passes_everything_on():
    golden, faulty, index = [[1, 2, 3], [4]], [[1, 2], [4, 5, 6], [9]], [0, 1, 1]
    metrics = [name for name in drift.METRICS if name not in drift.TEXT_ONLY]
    options = {"metrics": metrics, "threads": 2}
    left, right = kvspec.score(golden, faulty, index, **options), drift.score(golden, faulty, index, **options)
    assert list(left) == list(right) == metrics
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert kvspec.score(golden, faulty, index, limit=1)["edit_distance"].tolist() == [1, 2, 1]
    with pytest.raises(TypeError, match="nope"):
        kvspec.score(golden, faulty, nope=1)


def test_every_name_of_the_package_is_there():
    assert all(getattr(kvspec.score, name) is not None for name in kvspec.score.__all__)
    assert "score" in dir(kvspec)
    with pytest.raises(AttributeError, match="nope"):
        _ = kvspec.score.nope


def test_a_type_checker_sees_the_function():
    api = pytest.importorskip("mypy.api")
    code = """
import kvspec
from kvspec.score import Scores, score_run
from kvspec.score.drift import repetition
kvspec.score("a", ["b"], metrics=["drift"])["drift"].tolist()
kvspec.score("a", ["b"], nope=1)
"""
    report, _, status = api.run(["--no-error-summary", "--config-file=", "--ignore-missing-imports", "-c", code])
    assert status == 1
    assert report.splitlines()[0].startswith('<string>:6: error: Unexpected keyword argument "nope" for "score"')


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 6)
IDS = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=8).map(lambda ids: np.array(ids, np.uint32))
OFFSETS = st.lists(NUMBERS, max_size=5).map(lambda offsets: np.array(offsets, np.int64))
COUNTS = st.integers(2**25, 2**64 - 1) | st.integers(0, 9)
LIMITS = st.none() | st.integers(0, 2**32 - 1)
LOGPROBS = st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda row: np.array([row], np.float32))
TOP = st.lists(st.integers(0, 7), min_size=6, max_size=6).map(lambda row: np.array([row], np.uint32))
TEXTS = st.lists(st.text(st.characters(), max_size=6) | st.just("\ud800"), max_size=4)


@settings(max_examples=300)
@given(IDS, OFFSETS, IDS, OFFSETS, IDS, COUNTS, LIMITS, TEXTS, TEXTS, LOGPROBS, LOGPROBS, TOP, TOP)
def test_the_border_never_panics(g, go, f, fo, index, count, limit, golden, faulty, p, q, p_ids, q_ids):
    calls = [
        lambda: _native.score_tokens(g, go, f, fo, index, limit=limit, threads=count),
        lambda: _native.detail_tokens(g, go, f, fo, index, limit=limit, threads=count),
        lambda: _native.position_counts(g, go, f, fo, index),
        lambda: _native.periodic_tails(f, fo, count),
        lambda: _native.score_texts(golden, faulty, index, limit=limit, threads=count),
        lambda: _native.score_texts(golden, faulty, index, by_byte=True),
        lambda: _native.detail_texts(golden, faulty, index, limit=limit, threads=count),
        lambda: _native.first_divergence_histogram(fo, count),
        lambda: _native.survival(fo, f, count),
        lambda: _native.kl_full(p, q),
        lambda: _native.kl_topk(p_ids, p, q_ids, q),
        lambda: _native.topk_agreement(p_ids, q_ids),
    ]
    for call in calls:
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # a panic is another exception
            call()
