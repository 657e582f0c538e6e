"""Repetition, curves over positions and distances of distributions, against their definitions in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvspec.score import drift

TOKEN_ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20)), min_size=1
)


def naive_tail(row: list, longest_period: int) -> tuple[int, int]:
    best = (0, 0)
    for period in range(1, min(longest_period, len(row)) + 1):
        length = next(
            n
            for n in range(len(row), 0, -1)
            if all(row[i] == row[i - period] for i in range(len(row) - n + period, len(row)))
        )
        if length > best[0] and (period == 1 or length >= 2 * period):
            best = (length, period)
    return best


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 9))
def test_repetition_finds_the_longest_periodic_tail(head, unit, repeats):
    row = head + unit * repeats
    found = drift.repetition([row, [1]], longest_period=6, repeats=3, symbols=8)
    length, period = naive_tail(row, 6)
    assert (found["tail_length"][0], found["tail_period"][0]) == (length, period)
    assert found["collapsed"][0] == (period > 0 and length >= 8 and length >= 3 * period)


def test_repetition_of_the_guide():
    found = drift.repetition(["It was !!!!!!!!!!!!!!!!!!!!", "It was fine.", "\U0001f600" * 20, ""])
    assert found["collapsed"].tolist() == [True, False, True, False]
    assert found["tail_length"].tolist() == [20, 1, 20, 0]


@pytest.mark.parametrize("repeats", [16, 17, 2**62, 2**70])
def test_repeats_are_not_too_many_to_count(repeats):
    assert drift.repetition(["ab" * 16], repeats=repeats)["collapsed"].tolist() == [repeats <= 16]


def log_softmax(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    logits = rng.normal(0, 3, (rows, vocab))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def test_kl_divergence():
    rng = np.random.default_rng(5)
    p, q = log_softmax(rng, 20, 64), log_softmax(rng, 20, 64)
    want = (np.exp(p.astype(float)) * (p.astype(float) - q)).sum(1)
    np.testing.assert_allclose(drift.kl_divergence(p, q), want, rtol=1e-9)
    np.testing.assert_array_equal(drift.kl_divergence(p, p), 0.0)

    every = np.tile(np.arange(64), (20, 1))
    shuffled = rng.permuted(every, axis=1)
    whole = drift.kl_divergence(p, np.take_along_axis(q, shuffled, 1), golden_ids=every, faulty_ids=shuffled)
    np.testing.assert_allclose(whole, want, atol=1e-4)
    before = np.zeros(20)
    for k in (1, 4, 16, 64):  # more tokens known: the bound rises towards the divergence
        p_ids, q_ids = np.argsort(-p, 1)[:, :k], np.argsort(-q, 1)[:, :64]
        bound = drift.kl_divergence(
            np.take_along_axis(p, p_ids, 1), np.take_along_axis(q, q_ids, 1), golden_ids=p_ids, faulty_ids=q_ids
        )
        assert (bound >= before - 1e-5).all()
        assert (bound <= want + 1e-4).all()
        before = bound


def test_kl_divergence_of_impossible_tokens():
    inf = np.float32(np.inf)
    assert drift.kl_divergence([[0.0, -inf]], [[-inf, 0.0]]).tolist() == [np.inf]
    assert drift.kl_divergence([[-inf, 0.0]], [[-inf, 0.0]]).tolist() == [0.0]
    nan = np.float32(np.nan)
    for p, q in (([nan, 0.0], [-1.0, 0.0]), ([-inf, 0.0], [nan, 0.0])):
        assert np.isnan(drift.kl_divergence([p], [q])[0])
    for q_ids in ([[1, 2]], [[8, 9]]):  # the NaN is no less one among the tokens that are merged
        assert np.isnan(drift.kl_divergence([[nan, -0.1]], [[-0.1, -3]], golden_ids=[[1, 2]], faulty_ids=q_ids)[0])
        assert np.isnan(drift.kl_divergence([[-0.1, -3]], [[nan, -0.1]], golden_ids=[[1, 2]], faulty_ids=q_ids)[0])
    with pytest.raises(ValueError, match="shapes differ"):
        drift.kl_divergence([[0.0, 0.0]], [[0.0]])
    with pytest.raises(ValueError, match="both sides"):
        drift.kl_divergence([[0.0]], [[0.0]], golden_ids=[[1]])


@given(st.lists(st.tuples(*[st.sets(st.integers(0, 8), min_size=4, max_size=4)] * 2), min_size=1, max_size=5))
def test_topk_agreement(rows):
    golden, faulty = np.array([list(g) for g, _ in rows]), np.array([list(f) for _, f in rows])
    assert drift.topk_agreement(golden, faulty).tolist() == [len(g & f) / 4 for g, f in rows]


def test_topk_agreement_of_no_tokens():
    assert drift.topk_agreement(np.zeros((2, 0), int), np.zeros((2, 0), int)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: drift.divergence_histogram([1.5], 3), TypeError, "a first divergence is float64"),
        (lambda: drift.divergence_histogram(np.array([2**64 - 1], np.uint64), 3), ValueError, "63 bits"),
        (lambda: drift.survival([1.5], [2], 3), TypeError, "a first divergence is float64"),
        (lambda: drift.survival([-1], [-1], 3), ValueError, "a length is negative"),
        (lambda: drift.repetition(["a", None]), TypeError, r"`outputs\[1\]` is not a str"),
        (lambda: drift.repetition(["a", "b\ud800"]), ValueError, r"`outputs\[1\]` has a lone surrogate at character 1"),
    ],
)
def test_wrong_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


@given(st.lists(st.tuples(st.integers(-1, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_survival_and_histogram(rows):
    first, lengths = [f for f, _ in rows], [n for _, n in rows]
    histogram = drift.divergence_histogram(first, 8)
    assert histogram.tolist() == [first.count(t) for t in range(8)]
    curve = drift.survival(first, lengths, 8)
    alive = 1.0
    for t in range(8):
        assert curve[t] == pytest.approx(alive)
        at_risk = sum(f >= t or (f < 0 and n > t) for f, n in rows)
        alive *= 1 - first.count(t) / at_risk if at_risk else 1
    if -1 not in first:  # without censoring it is the plain share
        assert curve[8] == pytest.approx(sum(f >= 8 for f in first) / len(first))


@given(TOKEN_ROWS)
def test_position_counts(rows):
    golden, faulty = [g for g, _ in rows], [f for _, f in rows]
    compared, differing = drift.position_counts(golden, faulty, np.arange(len(rows)))
    for t in range(max(map(len, golden))):
        both = [(g[t], f[t]) for g, f in rows if len(g) > t and len(f) > t]
        assert (compared[t], differing[t]) == (len(both), sum(a != b for a, b in both))
