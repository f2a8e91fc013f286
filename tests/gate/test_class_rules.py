"""Rules on classes: their mean, and the worst of them."""

import math

import numpy as np
import pytest
from scipy import stats

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig

ABSENT = 9
DROP = DropConfig(1.0)


def gate(paths, **config):
    baseline, candidate = paths
    return run_gate(candidate, GateConfig(baselines={"float": baseline}, **config))


def only(report):
    (rule,) = report.rules
    return rule


def unequal(counts, wrong_before, wrong_after):
    """Ranks and labels of classes with so many images, of which so many are wrong, the same ones first."""
    labels = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(n) for n in counts])
    before, after = (
        np.where(place < np.repeat(wrong, counts), ABSENT, 0)
        for wrong in (np.array(wrong_before), np.array(wrong_after))
    )
    return labels, before, after


def test_mean_class_weighs_classes_alike(write):
    labels, before, after = unequal([900, 50, 50], [0, 0, 0], [0, 25, 0])
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    rule = only(gate(paths, mean_class=DropConfig(5.0)))
    assert (rule.baseline, rule.candidate, rule.delta) == pytest.approx((100.0, 100 * 2.5 / 3, -50 / 3))
    assert rule.verdict == "fail"


def test_the_interval_of_mean_class_is_scipys_bootstrap_over_images(write):
    labels, before, after = unequal([500, 80, 20], [100, 5, 9], [110, 20, 4])
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    change = (before != 0).astype(int) - (after != 0)

    def mean(change, labels, axis):
        each = [np.where(labels == k, change, 0).sum(axis) / (labels == k).sum(axis) for k in range(3)]
        return 100 * np.mean(each, axis=0)

    wanted = stats.bootstrap(
        (change, labels), mean, paired=True, vectorized=True, n_resamples=2000, confidence_level=0.9, rng=1
    ).confidence_interval
    found = only(gate(paths, mean_class=DropConfig(5.0))).interval
    # Two bootstraps of 2,000 resamples, and ours is never narrower than the score interval.
    np.testing.assert_allclose(found, wanted, atol=0.1 * (wanted.high - wanted.low))


def test_flips_in_small_classes_make_the_mean_less_sure(write):
    """Twenty images of one class all flip, ten each way: a standard error of half of sqrt(1 / 20)."""
    labels = np.repeat([0, 1], [1000, 20])
    before, after = (np.concatenate([np.zeros(1000, int), small]) for small in ([0, ABSENT] * 10, [ABSENT, 0] * 10))
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    low, high = only(gate(paths, mean_class=DropConfig(5.0))).interval
    np.testing.assert_allclose([low, high], [-100 * 1.645 * 0.1118, 100 * 1.645 * 0.1118], rtol=0.1)


def test_mean_class_of_equal_classes_is_top1(write_pair):
    paths = write_pair(2000, 20, 60)
    top1, mean = gate(paths, top1=DROP, mean_class=DROP).rules
    assert mean.delta == pytest.approx(top1.delta)
    np.testing.assert_allclose(mean.interval, top1.interval, atol=0.1)


def test_a_mean_that_saw_no_flip_is_as_unsure_as_top1(write_pair):
    top1, mean = gate(write_pair(1000, 0, 0), top1=DROP, mean_class=DROP).rules
    np.testing.assert_allclose(mean.interval, top1.interval)


def test_worst_class_finds_the_class_that_broke(write):
    labels, before, after = unequal([100] * 10, [10] * 10, [10, 10, 10, 60] + [10] * 6)
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    rule = only(gate(paths, worst_class=DropConfig(10.0)))
    assert (rule.verdict, rule.baseline, rule.candidate, rule.delta) == ("fail", 90.0, 40.0, -50.0)
    assert "class 3 has 40 of 100 images right, 90 with float" in rule.message
    assert "beyond the limit: 1 (3)" in rule.message


def test_worst_class_is_corrected_for_looking_at_all(write):
    """A drop that is far beyond chance in one class is not, as the worst of 200."""
    for classes, verdict in ((1, "fail"), (200, "pass")):
        labels, before, after = unequal([20] * classes, [0] * classes, [8] + [0] * (classes - 1))
        paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
        assert only(gate(paths, worst_class=DropConfig(10.0, "lenient"))).verdict == verdict


@pytest.mark.parametrize(("broken", "verdict"), [(5, "pass"), (6, "fail")])
def test_worst_class_calls_at_one_side_of_the_confidence(write, broken, verdict):
    """One class of 20 images and a limit of 10 points: p is 0.075 for five broken images, 0.037 for six."""
    labels, before, after = unequal([20], [0], [broken])
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    assert only(gate(paths, worst_class=DropConfig(10.0, "lenient"))).verdict == verdict


def test_worst_class_by_point_is_the_largest_drop(write):
    labels, before, after = unequal([20, 20], [0, 0], [3, 1])
    paths = write("float", before, labels=labels), write("candidate", after, labels=labels)
    assert only(gate(paths, worst_class=DropConfig(10.0, "point"))).verdict == "fail"
    assert only(gate(paths, worst_class=DropConfig(15.0, "point"))).verdict == "pass"


def test_worst_class_in_strict_is_unsure_of_small_classes(write_pair):
    rule = only(gate(write_pair(200, 0, 0), worst_class=DropConfig(10.0)))
    assert rule.verdict == "inconclusive"
    assert "10 classes may have dropped further" in rule.message
    # No flips in a class: its interval ends at -z^2 / (n + z^2).
    assert rule.images_needed == 10 * math.ceil(1.6448536**2 * 0.9 / 0.1)
