"""The numbers under the verdicts, against scipy, statsmodels and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats import contingency_tables, multitest, proportion

from fimaq.deploy.gate import statistics
from fimaq.deploy.gate.statistics import bootstrap, per_class

GRID = [
    (n, fixed, broken)
    for n in (1, 2, 7, 40, 300)
    for fixed, broken in itertools.product({0, 1, 3, n // 3, n - 1, n}, repeat=2)
    if fixed + broken <= n
]
"""Tables with none, few and only flips, in one direction and in both."""

CONFIDENCES = (0.8, 0.95)


def score_by_brute_force(n, fixed, broken, delta):
    """The score statistic with the nuisance found by maximising the likelihood numerically."""
    lowest, highest = max(0.0, -delta), (1 - delta) / 2

    def surprise(q):
        chances = np.maximum([q + delta, q, 1 - 2 * q - delta], 1e-300)
        return -float(np.dot([fixed, broken, n - fixed - broken], np.log(chances)))

    found = optimize.minimize_scalar(surprise, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-14})
    q = min((lowest, highest, float(found.x)), key=surprise)
    return ((fixed - broken) / n - delta) / math.sqrt((2 * q + delta - delta**2) / n)


def interval_by_brute_force(n, fixed, broken, confidence):
    z = stats.norm.ppf((1 + confidence) / 2)
    value = (fixed - broken) / n
    ends = []
    for outside, target in ((-1 + 1e-12, z), (1 - 1e-12, -z)):
        if abs(value - outside) < 1e-9:
            ends.append(outside)
            continue
        inside = value + math.copysign(1e-12, outside - value)
        crossing = optimize.brentq(
            lambda delta, target=target: score_by_brute_force(n, fixed, broken, delta) - target, outside, inside
        )
        ends.append(crossing)
    return ends


@pytest.mark.parametrize(("n", "fixed", "broken"), GRID)
def test_the_paired_interval_is_the_inverted_score_test(n, fixed, broken):
    for confidence in CONFIDENCES:
        found = statistics.paired_interval(fixed, broken, n, confidence)
        # The oracle's nuisance is known to about the root of the spacing of floats.
        np.testing.assert_allclose(found, interval_by_brute_force(n, fixed, broken, confidence), atol=1e-6)


@pytest.mark.parametrize("delta", [-0.7, -0.1, -0.01, 0.0, 0.02, 0.5])
def test_the_score_is_that_of_the_maximised_likelihood(delta):
    for n, fixed, broken in GRID:
        if delta == 0 and fixed + broken == 0:
            continue  # the likelihood's variance is 0
        wanted = score_by_brute_force(n, fixed, broken, delta)
        np.testing.assert_allclose(statistics.paired_score(fixed, broken, n, delta), wanted, rtol=1e-5, atol=1e-6)


def test_a_score_without_variance_is_zero_or_infinite():
    assert statistics.paired_score(0, 0, 10, 0.0) == 0
    assert statistics.paired_score(10, 0, 10, 1.0) == 0
    assert statistics.paired_score(0, 10, 10, -1.0) == 0
    assert statistics.paired_score(3, 0, 10, 1.0) == -math.inf
    assert statistics.paired_score(0, 3, 10, -1.0) == math.inf


def test_without_flips_the_interval_is_z2_over_n_plus_z2():
    z2 = stats.norm.ppf(0.95) ** 2
    low, high = statistics.paired_interval(0, 0, 1000, 0.9)
    np.testing.assert_allclose([low, high], [-z2 / (1000 + z2), z2 / (1000 + z2)], rtol=1e-12)


untimed = settings(max_examples=50, deadline=None)
tables = st.integers(1, 5000).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda fixed: st.tuples(st.just(n), st.just(fixed), st.integers(0, n - fixed)))
)


@untimed
@given(tables)
def test_swapping_the_models_flips_the_interval(table):
    n, fixed, broken = table
    low, high = statistics.paired_interval(fixed, broken, n, 0.9)
    other_low, other_high = statistics.paired_interval(broken, fixed, n, 0.9)
    np.testing.assert_allclose([low, high], [-other_high, -other_low], atol=1e-15)


@untimed
@given(tables)
def test_twice_the_images_narrow_the_interval(table):
    n, fixed, broken = table
    low, high = statistics.paired_interval(fixed, broken, n, 0.9)
    narrow_low, narrow_high = statistics.paired_interval(2 * fixed, 2 * broken, 2 * n, 0.9)
    assert narrow_high - narrow_low < high - low


@untimed
@given(tables)
def test_the_interval_holds_the_difference_and_stays_inside_its_range(table):
    n, fixed, broken = table
    low, high = statistics.paired_interval(fixed, broken, n, 0.9)
    assert -1 <= low <= (fixed - broken) / n <= high <= 1


@pytest.mark.parametrize(("fixed", "broken"), [*itertools.product((0, 1, 2, 9, 60, 700), repeat=2)])
def test_mcnemar_is_statsmodels(fixed, broken):
    wanted = contingency_tables.mcnemar([[5, fixed], [broken, 5]], exact=True).pvalue
    assert statistics.mcnemar(fixed, broken) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_many_flips_does_not_overflow():
    wanted = stats.binomtest(9_800, 20_000).pvalue
    assert statistics.mcnemar(9_800, 10_200) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 50), (17, 50), (50, 50), (39_999, 50_000)])
def test_the_interval_of_a_proportion_is_statsmodels_wilson(count, n):
    wanted = proportion.proportion_confint(count, n, alpha=0.1, method="wilson")
    np.testing.assert_allclose(statistics.proportion_interval(count, n, 0.9), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("one", "two"), [((0, 20), (20, 20)), ((20, 20), (20, 20)), ((7, 20), (9, 31)), ((1, 9), (0, 9))]
)
def test_the_unpaired_interval_is_statsmodels_newcombe(one, two):
    wanted = proportion.confint_proportions_2indep(*one, *two, method="newcomb", compare="diff", alpha=0.1)
    np.testing.assert_allclose(statistics.unpaired_interval(one, two, 0.9), wanted, atol=1e-12)


@pytest.mark.parametrize("p", [[0.3], [1.0, 0.0], [0.01, 0.01, 0.04, 0.9], np.geomspace(1e-9, 1, 40)[::-1]])
def test_holm_is_statsmodels(p):
    wanted = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(statistics.holm(np.array(p)), wanted, rtol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4])
def test_a_class_p_value_is_the_largest_tail_over_the_nuisance(margin):
    """Every outcome of up to six images, its probability by scipy's multinomial, on a fine grid of the nuisance."""
    chances = np.linspace(0, (1 - margin) / 2, 2001)
    for n in (1, 3, 6):
        outcomes = [(fixed, broken) for fixed in range(n + 1) for broken in range(n + 1 - fixed)]
        scores = [
            0.0 if margin == fixed == broken == 0 else score_by_brute_force(n, fixed, broken, -margin)
            for fixed, broken in outcomes
        ]
        cells = np.stack([chances, chances + margin, 1 - 2 * chances - margin], axis=1).clip(0)
        mass = [stats.multinomial.pmf([fixed, broken, n - fixed - broken], n, cells) for fixed, broken in outcomes]
        for (fixed, broken), score in zip(outcomes, scores, strict=True):
            tail = sum(np.where(other <= score + 1e-5, each, 0) for other, each in zip(scores, mass, strict=True))
            found = statistics.class_p_values(np.array([fixed]), np.array([broken]), np.array([n]), margin)
            # The coarser grid may miss the top of the tail by little.
            np.testing.assert_allclose(found, [tail.max() if score < 0 else 1.0], rtol=2e-3)


def test_many_images_of_a_class_are_judged_by_the_normal_tail(monkeypatch):
    counts = np.array([8]), np.array([35]), np.array([180])
    exact = statistics.class_p_values(*counts, 0.1)
    monkeypatch.setattr(per_class, "EXACT", 10)
    normal = statistics.class_p_values(*counts, 0.1)
    assert normal == pytest.approx(stats.norm.cdf(score_by_brute_force(180, 8, 35, -0.1)), rel=1e-4)
    assert exact == pytest.approx(normal, rel=0.3)


def skewed_mean(counts):
    """Mean of values 0, 1 and 12, of which so many were seen."""
    return (counts * np.array([0, 1, 12])).sum(axis=1) / counts.sum(axis=1)


def test_the_bootstrap_interval_is_scipys(monkeypatch):
    counts = np.array([60, 30, 10])
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40_000)
    found = statistics.bootstrap_interval(counts, skewed_mean, 0.9, seed=1)
    sample = (np.repeat([0, 1, 12], counts),)
    wanted = stats.bootstrap(sample, np.mean, confidence_level=0.9, n_resamples=40_000, method="BCa", rng=2)
    # Four times the standard error that 40,000 resamples leave at a quantile of 5 %.
    error = 4 * wanted.standard_error * math.sqrt(0.05 * 0.95 / 40_000) / stats.norm.pdf(stats.norm.ppf(0.05))
    np.testing.assert_allclose(found, wanted.confidence_interval, atol=error)
    percentile = stats.bootstrap(sample, np.mean, confidence_level=0.9, n_resamples=40_000, method="percentile", rng=2)
    assert abs(percentile.confidence_interval.high - wanted.confidence_interval.high) > 2 * error


def test_the_bootstrap_is_the_same_in_parts_and_on_every_call(monkeypatch):
    counts = np.array([60, 30, 10])
    whole = statistics.bootstrap_interval(counts, skewed_mean, 0.9, seed=1)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 100)
    assert statistics.bootstrap_interval(counts, skewed_mean, 0.9, seed=1) == whole


def test_a_bootstrap_whose_resamples_agree_is_a_point():
    assert statistics.bootstrap_interval(np.array([9]), lambda rows: np.full(len(rows), 2.0), 0.9, seed=0) == (2.0, 2.0)


@pytest.mark.parametrize(("fixed", "broken", "delta"), [(30, 40, -0.02), (0, 0, -0.001), (0, 9, 0.01), (50, 20, 0.02)])
def test_with_the_images_needed_the_interval_leaves_the_bound_out(fixed, broken, delta):
    n = 1000
    needed = statistics.paired_images_needed(fixed, broken, n, delta, 0.9)
    for images, decided in ((needed, True), (0.99 * needed, False)):
        low, high = statistics.paired_interval(fixed * images / n, broken * images / n, images, 0.9)
        assert (delta < low or high < delta) == decided


@pytest.mark.parametrize(("count", "bound"), [(700, 0.72), (0, 0.001), (1000, 0.999)])
def test_with_the_images_needed_wilsons_interval_leaves_the_bound_out(count, bound):
    needed = statistics.proportion_images_needed(count, 1000, bound, 0.9)
    for images, decided in ((needed, True), (0.99 * needed, False)):
        low, high = statistics.proportion_interval(count * images / 1000, images, 0.9)
        assert (bound < low or high < bound) == decided


def test_no_number_of_images_decides_what_lies_on_the_bound():
    assert statistics.paired_images_needed(20, 30, 1000, -0.01, 0.9) is None
    assert statistics.proportion_images_needed(700, 1000, 0.7, 0.9) is None
    assert statistics.proportion_images_needed(700, 1000, 1.0, 0.9) is None
