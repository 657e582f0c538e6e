"""The formulas under the figures, against independent implementations and against known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kvspec.stats.bootstrap import MOST_CLUSTERS, cluster_bootstrap, clusters_differ, design_effect
from kvspec.stats.design import detectable_drop, mcnemar_power, paired_sample_size, plan_looks, sample_size
from kvspec.stats.dose import fit_dose_response
from kvspec.stats.exact import EXACT_UP_TO, Strata, cochran_armitage, fisher_greater, holm, mcnemar
from kvspec.stats.intervals import (
    Proportion,
    Ratio,
    clopper_pearson,
    difference_independent,
    difference_paired,
    ratio_independent,
    ratio_paired,
    wilson_interval,
)

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# Intervals


@settings(deadline=None)
@given(COUNTS)
def test_wilson_equals_scipy(pair: tuple[int, int]) -> None:
    k, n = pair
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    for k, n in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="not a proportion"):
            wilson_interval(k, n)
    assert Proportion.of(0, 0) == Proportion(0, 0, None, None)
    assert Proportion.of(0, 0).rate is None


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_fisher_equals_scipy(k1: int, m1: int, k2: int, m2: int) -> None:
    if k1 + m1 == 0 or k2 + m2 == 0:
        return
    expected = scipy.stats.fisher_exact([[k1, m1], [k2, m2]], alternative="greater").pvalue
    assert fisher_greater(k1, k1 + m1, k2, k2 + m2) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=2, max_size=6))
def test_trend_squared_is_the_score_chi_square(groups: list[tuple[int, int]]) -> None:
    """z^2 = N r^2 for the correlation r between score and answer: the textbook identity of the trend test."""
    k, n = [hit for hit, _ in groups], [hit + miss for hit, miss in groups]
    found = cochran_armitage(k, n)
    x = np.repeat(np.arange(len(n)), n)
    y = np.concatenate([np.r_[np.ones(a), np.zeros(b - a)] for a, b in zip(k, n, strict=True)])
    if y.min() == y.max():
        assert found is None
        return
    assert found is not None
    r = np.corrcoef(x, y)[0, 1]
    assert found[0] == pytest.approx(r * np.sqrt(len(x)), abs=1e-9)
    assert found[1] == pytest.approx(scipy.stats.norm.cdf(found[0]))


@settings(deadline=None)
@given(COUNTS)
def test_clopper_pearson_equals_scipy(pair: tuple[int, int]) -> None:
    k, n = pair
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.99, "exact")
    assert clopper_pearson(k, n, 0.99) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_newcombes_own_example() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 gives 0.0524 to 0.3339."""
    found = difference_independent(56, 70, 48, 80)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_paired_differences_by_hand() -> None:
    """Bonett & Price 2012: centre and half width over (b + 1)/(n + 2) and (c + 1)/(n + 2)."""
    found = difference_paired(10, 2, 100)
    a, b = 11 / 102, 3 / 102
    half = 1.959964 * np.sqrt((a + b - (a - b) ** 2) / 102)
    assert (found.value, found.low, found.high) == pytest.approx((0.08, a - b - half, a - b + half), abs=1e-6)
    same = difference_paired(0, 0, 10)
    assert same.low < same.value == 0.0 < same.high
    with pytest.raises(ValueError, match="discordant"):
        difference_paired(6, 5, 10)


def test_ratios_that_do_not_exist_are_not_invented() -> None:
    assert ratio_paired(0, 0, 0) is None
    assert ratio_independent(0, 5, 0, 7) is None
    never = ratio_paired(0, 5, 0)
    assert never is not None
    assert never.value is None
    assert never.high is None
    assert never.low > 1.0
    assert str(never).startswith("> ")
    nothing = ratio_paired(0, 0, 5)
    assert nothing is not None
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high is not None
    assert nothing.high < 1.0
    assert str(Ratio(2.0, 1.0, None)) == "2 [1, inf]"


@pytest.mark.parametrize(("p_both", "p1", "p2"), [(0.1, 0.2, 0.1), (0.02, 0.3, 0.02), (0.3, 0.05, 0.05)])
def test_paired_ratios_cover(p_both: float, p1: float, p2: float) -> None:
    truth = (p_both + p1) / (p_both + p2)
    draws = np.random.default_rng(1).multinomial(200, [p_both, p1, p2, 1 - p_both - p1 - p2], 4000)
    found = [ratio_paired(*map(int, row[:3])) for row in draws]
    covered = [r is not None and r.low <= truth and (r.high is None or truth <= r.high) for r in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_independent_ratios_cover() -> None:
    rng = np.random.default_rng(2)
    pairs = zip(rng.binomial(150, 0.3, 4000).tolist(), rng.binomial(80, 0.1, 4000).tolist(), strict=True)
    found = [ratio_independent(a, 150, b, 80) for a, b in pairs]
    covered = [r is not None and r.low <= 3 and (r.high is None or r.high >= 3) for r in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


# Tests


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_the_binomial_test(b: int, c: int) -> None:
    expected = scipy.stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_one_stratum_is_fishers_test(k1: int, m1: int, k2: int, m2: int) -> None:
    found = Strata.of([k1], [k1 + m1], [k2], [k2 + m2])
    if k1 + m1 == 0 or k2 + m2 == 0:
        assert found.less() == 1.0
        return
    less = scipy.stats.fisher_exact([[k1, m1], [k2, m2]], alternative="less").pvalue
    assert found.less() == pytest.approx(less, rel=1e-9)
    assert found.greater() == pytest.approx(fisher_greater(k1, k1 + m1, k2, k2 + m2), rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_pairs_are_mcnemars_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ([int(pair[i]) for pair in pairs] for i in (0, 1))
    ones = [1] * len(pairs)
    only_first = sum(a > b for a, b in pairs)
    only_second = sum(b > a for a, b in pairs)
    found = Strata.of(first, ones, second, ones)
    assert found.different() == pytest.approx(mcnemar(only_first, only_second), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=4))
def test_strata_equal_the_permutations(rows: list[tuple[int, int, int, int]]) -> None:
    """All ways to hand out the successes of each stratum to its trials, counted one by one."""
    k1, m1, k2, m2 = (np.array(column) for column in zip(*rows, strict=True))
    found = Strata.of(k1, k1 + m1, k2, k2 + m2)
    sums = {0: 1}
    observed = 0
    for a, b, c, d in rows:
        if a + b == 0 or c + d == 0:
            continue
        observed += a
        marks = [1] * (a + c) + [0] * (b + d)
        ways: dict[int, int] = {}
        for chosen in itertools.combinations(marks, a + b):
            ways[sum(chosen)] = ways.get(sum(chosen), 0) + 1
        joined: dict[int, int] = {}
        for (s, w), (t, v) in itertools.product(sums.items(), ways.items()):
            joined[s + t] = joined.get(s + t, 0) + w * v
        sums = joined
    less = sum(w for s, w in sums.items() if s <= observed) / sum(sums.values())
    assert found.less() == pytest.approx(less, rel=1e-9)


def test_many_strata_agree_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    n = np.full(400, 8)
    k1, k2 = rng.binomial(n, 0.45), rng.binomial(n, 0.5)
    exact = Strata.of(k1, n, k2, n).less()
    ten = Strata.of(np.tile(k1, 10), np.tile(n, 10), np.tile(k2, 10), np.tile(n, 10))
    assert 10 * (n - k2).sum() > EXACT_UP_TO > (n - k2).sum() - 1
    z = scipy.stats.norm.ppf(exact)
    assert ten.less() < 1e-20
    assert -3.5 < z < -2.0
    mean, spread = 0.0, 0.0
    for a, c in zip(k1, k2, strict=True):
        distribution = scipy.stats.hypergeom(16, a + c, 8)
        mean, spread = mean + distribution.mean(), spread + distribution.var()
    assert scipy.stats.norm.cdf((k1.sum() + 0.5 - mean) / np.sqrt(spread)) == pytest.approx(exact, rel=0.1)


def test_an_unclean_floor_with_few_controls_is_no_effect() -> None:
    """Four lucky controls against 400 trials at 90 %: pairing each control 100 times would call that an effect."""
    found = Strata.of([90] * 4, [100] * 4, [1] * 4, [1] * 4).less()
    assert found > 0.5
    assert mcnemar(0, 40) < 1e-11


def test_a_difference_is_stated_only_where_something_differs() -> None:
    """Strata of only successes or only failures tell nothing apart: 0 with an interval of no width would be a claim."""
    assert Strata.of([3, 0], [3, 4], [5, 0], [5, 2]).difference() is None
    assert Strata.of([3, 0], [3, 4], [5, 0], [5, 2]).different() == 1.0
    assert Strata.of([1], [2], [0], [0]).difference() is None
    some = Strata.of([3, 0], [3, 4], [5, 1], [5, 2]).difference()
    assert some is not None
    assert some.low < some.value < 0
    # All succeed here and all fail there: Sato's variance is 0, and nobody is that sure of four trials.
    for strata, value in ((Strata.of([2], [2], [0], [2]), 1.0), (Strata.of([2, 0], [2, 2], [2, 2], [2, 2]), -0.5)):
        whole = strata.difference()
        assert whole is not None
        assert whole.value == pytest.approx(value)
        assert whole.high - whole.low > 0.5
        assert whole.low <= whole.value <= whole.high


# Design


def test_sample_sizes_of_the_books() -> None:
    assert sample_size(0.95, 0.05) == 385
    # Connor 1987 gives 77 for discordant 0.1 against 0; the exact test takes one pair more.
    assert paired_sample_size(1.0, 0.9, 0.05, 0.8) == 78
    assert paired_sample_size(0.6, 0.5, 0.05, 0.8) == paired_sample_size(0.5, 0.6, 0.05, 0.8) == 408
    assert paired_sample_size(1.0, 0.0, 0.05, 0.8) == 6  # p = 2 / 2^6


@pytest.mark.parametrize(("first", "second", "n"), [(1.0, 0.9, 60), (0.9, 0.7, 40), (0.5, 0.8, 25)])
def test_the_power_is_that_of_the_test_itself(first: float, second: float, n: int) -> None:
    up, down = first * (1 - second), second * (1 - first)
    power = 0.0
    for b, c in itertools.product(range(n + 1), repeat=2):
        if b + c <= n and mcnemar(b, c) <= 0.05:
            power += scipy.stats.multinomial.pmf([b, c, n - b - c], n, [up, down, 1 - up - down])
    assert mcnemar_power(first, second, 0.05, n) == pytest.approx(power, abs=1e-9)


def test_looks_end_where_the_worst_cell_ends() -> None:
    looks = plan_looks(0.95, 0.05, 5, 10)
    assert looks.rounds == (6, 10, 19, 36, 68)
    assert looks.each == pytest.approx(0.99)
    last = looks.rounds[-1] * 10
    assert all(looks.narrow(k, last) for k in range(last + 1))
    assert looks.narrow(0, 60)
    assert looks.narrow(60, 60)
    assert not looks.narrow(30, 60)
    assert not looks.narrow(0, 0)


def test_many_prompts_make_fewer_looks() -> None:
    looks = plan_looks(0.95, 0.05, 5, 300)
    assert looks.rounds == (1, 2, 3)
    assert looks.each == pytest.approx(1 - 0.05 / 3)
    assert plan_looks(0.95, 0.05, 1, 1).rounds == (402,)


def test_what_clean_controls_can_show() -> None:
    # 1,000 trials against 30 clean controls, by simulation: the fall is seen four times in five.
    drop = detectable_drop(1000, (30, 30))
    assert drop is not None
    assert drop > 1 - 0.05 ** (1 / 30)
    k = np.random.default_rng(4).binomial(1000, 1 - drop, 4000)
    assert np.mean([fisher_greater(30, 30, int(x), 1000) < 0.05 for x in k]) == pytest.approx(0.8, abs=0.03)
    noisy = detectable_drop(1000, (27, 30))
    assert noisy is not None
    assert noisy > drop
    split = detectable_drop(1000, (30, 30), 0.05 / 20)
    assert split is not None
    assert split > drop
    assert detectable_drop(1000, (0, 0)) is None
    assert detectable_drop(0, (30, 30)) is None
    assert detectable_drop(2, (2, 2)) is None
    assert detectable_drop(1000, (0, 30)) is None


def test_stopping_early_keeps_the_coverage() -> None:
    """A small version of tools/statistics_proof.py: every p, stopped at the first narrow look."""
    looks, rng = plan_looks(0.95, 0.1, 4, 5), np.random.default_rng(4)
    for p in (0.02, 0.15, 0.5, 0.9):
        rounds = rng.binomial(5, p, (600, looks.rounds[-1])).cumsum(axis=1)
        covered = 0
        for row in rounds:
            k, n = next((int(row[r - 1]), 5 * r) for r in looks.rounds if looks.narrow(int(row[r - 1]), 5 * r))
            low, high = looks.interval(k, n)
            covered += low <= p <= high
        assert covered / 600 > 0.95


# Clusters


def test_clusters_widen_the_interval() -> None:
    n = np.full((3, 40), 20)
    k = np.array([[10] * 40, [0] * 20 + [20] * 20, [20] * 40])
    found = cluster_bootstrap(k, n)
    assert found.interval[0] == pytest.approx([0.5, 0.5])
    assert np.ptp(found.interval[1]) > 3 * np.ptp(wilson_interval(400, 800))
    assert found.interval[2] == pytest.approx([1.0, 1.0])
    # All trials of a prompt alike: each prompt is worth one trial, so the variance is 20 times as large.
    assert design_effect(found.variance[1:2]) == pytest.approx(20 * 40 / 39, rel=1e-6)
    assert design_effect(found.variance) == pytest.approx((20 * 40 / 39) / 2, rel=1e-6)
    assert cluster_bootstrap(k, n).interval.tolist() == found.interval.tolist()


def test_clusters_cover() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(2, 2, (800, 30))
    n = np.full(p.shape, 15)
    found = cluster_bootstrap(rng.binomial(n, p), n)
    covered = (found.interval[:, 0] <= 0.5) & (found.interval[:, 1] >= 0.5)
    assert covered.mean() == pytest.approx(0.95, abs=0.025)


def test_losses_of_clusters_are_compared_by_a_t_test_over_clusters() -> None:
    k = np.array([[1, 2, 10, 9, 4, 0, 10, 3], [8, 2, 9, 10, 5, 0, 3, 10]])
    n = np.full(k.shape, 10)
    weights = (2.0, 1.5)
    scipy_p = float(scipy.stats.ttest_rel(2.0 * k[0] / 10, 1.5 * k[1] / 10).pvalue)
    assert clusters_differ(k, n, weights) == pytest.approx(scipy_p, rel=1e-9)
    assert clusters_differ(k[::-1], n, weights[::-1]) == pytest.approx(scipy_p, rel=1e-9)
    more = np.concatenate([n, [[0, 5], [0, 0]]], axis=1)  # prompts that one cell did not ask
    assert clusters_differ(np.concatenate([k, [[0, 3], [0, 0]]], axis=1), more, weights) == pytest.approx(scipy_p)
    assert clusters_differ(k[:, :1], n[:, :1], weights) == 1.0


def test_few_clusters_that_are_alike_by_chance_prove_nothing() -> None:
    one = np.ones((2, 3), np.int64)
    assert clusters_differ(np.array([[1, 1, 1], [0, 0, 0]]), one, (1.0, 1.0)) > 0.05
    assert clusters_differ(one, one, (1.0, 1.0)) == 1.0
    assert clusters_differ(500 * one, 500 * one, (1.0, 1.1)) < 1e-2, "all broken in both, and one holds more"


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_losses_of_clusters_differ_by_chance_as_often_as_said(ratio: float) -> None:
    """Prompts of their own shares, and shares that differ between the cells by prompt but not on average: trials taken
    to be independent would be told apart more often."""
    rng = np.random.default_rng(6)
    prompts, n = 40, np.full((2, 40), 10)
    ours = naive = 0
    for _ in range(1_500):
        p = rng.beta(0.5, 1, (2, prompts))
        k = rng.binomial(10, p * np.array([[1.0], [ratio]]))
        ours += clusters_differ(k, n, (ratio, 1.0)) < 0.05
        a, b = (k.sum(axis=1) + 0.5) / (n.sum(axis=1) + 1)
        spread = np.sqrt((1 / a - 1) / 400 + (1 / b - 1) / 400)
        naive += abs(np.log(a * ratio / b)) / spread > 1.96
    assert ours / 1_500 == pytest.approx(0.05, abs=0.015)
    assert naive / 1_500 > 0.2


def test_one_prompt_has_no_cluster_interval() -> None:
    found = cluster_bootstrap(np.array([[3], [0]]), np.array([[5], [0]]))
    assert np.isnan(found.interval).all()
    assert design_effect(found.variance) == 1.0
    absent = cluster_bootstrap(np.array([[0, 0], [1, 2]]), np.array([[0, 0], [3, 3]]))
    assert np.isnan(absent.interval[0]).all()
    assert np.isfinite(absent.interval[1]).all()


def test_many_prompts_are_joined_into_groups() -> None:
    n = np.ones((1, 3 * MOST_CLUSTERS + 7), np.int64)
    k = np.arange(n.size).reshape(n.shape) % 2
    low, high = cluster_bootstrap(k, n).interval[0]
    assert low < 0.5 < high
    assert high - low == pytest.approx(np.ptp(wilson_interval(int(k.sum()), n.size)), rel=0.2)


# Dose and response

DOSES = np.logspace(-8, -4, 9)


def response(dose: np.ndarray, ec50: float, h: float, u: float = 1.0, c: float = 0.0) -> np.ndarray:
    return c + (u - c) / (1 + (dose / ec50) ** h)


def test_the_curve_is_recovered() -> None:
    n = 100_000
    k = np.round(n * response(DOSES, 3e-7, 1.5, 0.95, 0.1)).astype(int)
    found = fit_dose_response(DOSES.tolist(), k.tolist(), [n] * 9)
    assert found is not None
    assert (found.ec50, found.steepness, found.ceiling, found.floor) == pytest.approx((3e-7, 1.5, 0.95, 0.1), rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 3e-7 < found.high
    assert found.p_fit is not None
    assert found.p_fit > 0.99
    shares = [point.accuracy for point in found.curve]
    assert shares == sorted(shares, reverse=True)
    assert all(point.low <= point.accuracy <= point.high for point in found.curve)


def test_ec50_covers() -> None:
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(60):
        k = rng.binomial(60, response(DOSES, 3e-7, 1.2))
        found = fit_dose_response(DOSES.tolist(), k.tolist(), [60] * 9, (30, 30))
        assert found is not None
        covered.append((found.low or 0.0) <= 3e-7 <= (found.high or np.inf))
    assert np.mean(covered) >= 0.85


def test_prompts_that_differ_widen_ec50() -> None:
    """Ten prompts with an EC50 of their own each: 20 times the trials of a prompt do not tell more prompts."""
    shift = np.exp(np.linspace(-1.5, 1.5, 10))
    k = np.round(20 * response(DOSES[:, None], 3e-7 * shift, 2.0)).astype(int)
    n = np.full(k.shape, 20)
    totals = DOSES.tolist(), k.sum(axis=1).tolist(), n.sum(axis=1).tolist()
    plain, clustered = fit_dose_response(*totals), fit_dose_response(*totals, clusters=(k, n))
    assert plain is not None
    assert clustered is not None
    assert plain.ec50 == clustered.ec50
    assert plain.inflation == 1.0
    assert clustered.inflation > 4
    assert np.log(clustered.high / clustered.low) > 2 * np.log(plain.high / plain.low)  # type: ignore[operator]
    wide = [a.high - a.low >= b.high - b.low for a, b in zip(clustered.curve, plain.curve, strict=True)]
    assert all(wide)
    even = np.repeat(k.sum(axis=1, keepdims=True) // 10, 10, axis=1)
    alike = fit_dose_response(*totals, clusters=(even, n))
    assert alike is not None
    assert alike.inflation == 1.0


def test_doses_that_do_not_bound_ec50_leave_it_open() -> None:
    """Accuracy has only begun to fall: half of the effect may lie anywhere above."""
    found = fit_dose_response([1e-8, 1e-7, 1e-6], [100, 97, 85], [100] * 3)
    assert found is not None
    assert found.floor == 0.0
    assert (found.ec50, found.high) == (None, None)
    assert found.low is not None
    assert found.low > 1e-6
    for k in ([10, 10, 10], [0, 0, 0]):
        assert fit_dose_response([1e-8, 1e-7, 1e-6], k, [10] * 3) is None
    assert fit_dose_response([1e-8, 1e-7], [9, 1], [10] * 2) is None


def test_a_step_between_two_doses_is_bounded_by_them() -> None:
    found = fit_dose_response([1e-8, 1e-7, 1e-6, 1e-5], [100, 100, 0, 0], [100] * 4)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.step
    assert (found.low, found.high) == pytest.approx((1e-7, 1e-6))  # nothing is known between the two doses
    assert found.ec50 is None
    assert found.curve == ()


@pytest.mark.parametrize(
    ("k", "step", "low", "high"),
    [
        ((100, 90, 10, 0), False, None, None),
        ((100, 100, 50, 0), True, 1e-7, 1e-5),  # one dose in the middle of a fall tells no steepness
        ((100, 100, 100, 80), True, 1e-5, None),
        ((100, 0, 0, 0), True, 1e-8, 1e-7),
    ],
)
def test_a_slope_takes_two_doses_on_it(k: tuple[int, ...], step: bool, low: float | None, high: float | None) -> None:
    found = fit_dose_response([1e-8, 1e-7, 1e-6, 1e-5], k, [100] * 4, (100, 100))
    assert found is not None
    assert found.step == step
    assert (found.ec50 is None) == step == (not found.curve)
    if step:
        assert (found.low, found.high) == pytest.approx((low, high))


def test_bands_hold_where_doses_are_sparse() -> None:
    """Where a step is ruled out, the band of five doses a decade apart covers the curve between them."""
    rng = np.random.default_rng(8)
    doses, shown, covered = np.logspace(-7, -3, 5), 0, []
    for _ in range(60):
        middle = 10 ** rng.uniform(-5.5, -4.5)
        k = rng.binomial(100, response(doses, middle, 2.0))
        found = fit_dose_response(doses.tolist(), k.tolist(), [100] * 5, (40, 40))
        assert found is not None
        shown += not found.step
        covered += [p.low <= response(np.array(p.dose), middle, 2.0) <= p.high for p in found.curve]
    assert 10 < shown < 60
    assert np.mean(covered) >= 0.9
