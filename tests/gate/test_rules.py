"""Verdicts on results whose answers are known by construction."""

import json
import math

import numpy as np
import pytest

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig, FlipsConfig, FloorConfig, SizeConfig
from fimaq.toolchain.errors import InputError, UsageError

ABSENT = 9
DROP = DropConfig(1.0)


def gate(paths, **config):
    baseline, candidate = paths
    return run_gate(candidate, GateConfig(baselines={"float": baseline}, **config))


def only(report):
    (rule,) = report.rules
    return rule


@pytest.mark.parametrize(
    ("fixed", "broken", "policy", "verdict"),
    [
        (0, 0, "strict", "pass"),
        (30, 30, "strict", "inconclusive"),
        (30, 40, "strict", "inconclusive"),
        (10, 60, "strict", "fail"),
        (60, 10, "strict", "pass"),
        (30, 40, "point", "pass"),
        (30, 41, "point", "fail"),
        (30, 50, "lenient", "pass"),
        (10, 60, "lenient", "fail"),
    ],
)
def test_the_policies_on_a_thousand_images_and_one_point(write_pair, fixed, broken, policy, verdict):
    assert gate(write_pair(1000, fixed, broken), policy=policy).verdict == verdict


def test_top1_reports_the_paired_interval_in_points(write_pair):
    rule = only(gate(write_pair(1000, 30, 60)))
    assert (rule.baseline, rule.candidate, rule.delta) == pytest.approx((74.2, 71.2, -3.0))
    # Brute-force inversion of the score test, as in test_statistics.
    assert rule.interval == pytest.approx((-4.60235, -1.46191), abs=1e-4)
    assert (rule.margin, rule.unit, rule.reference, rule.verdict) == (1.0, "points", "float", "fail")


def test_top5_counts_the_label_among_five(write):
    ranks = np.zeros(1000, dtype=int)
    paths = write("float", ranks), write("candidate", np.where(np.arange(1000) < 60, 4, ranks))
    assert only(gate(paths, top5=DROP)).verdict == "pass"
    paths = write("float", ranks), write("candidate", np.where(np.arange(1000) < 60, ABSENT, ranks))
    rule = only(gate(paths, top5=DROP))
    assert (rule.verdict, rule.delta) == ("fail", -6.0)


def test_flips_and_mcnemar_are_of_the_first_baseline(write, pair):
    baseline, candidate = pair(1000, 3, 10)
    baselines = {"float": write("float", baseline), "release": write("release", candidate)}
    report = run_gate(write("candidate", candidate), GateConfig(baselines=baselines))
    assert (report.flips.fixed, report.flips.broken, report.flips.changed) == (3, 10, 13)
    assert report.mcnemar_p == pytest.approx(2 * sum(math.comb(13, k) for k in range(4)) / 2**13)
    assert report.baselines[1].mcnemar_p == 1.0


def test_each_baseline_has_its_own_limit_and_the_worst_verdict_wins(write, pair):
    baseline, candidate = pair(1000, 0, 40)
    baselines = {"float": write("float", baseline), "release": write("release", candidate)}
    path = write("candidate", candidate)
    report = run_gate(path, GateConfig(baselines=baselines, top1=DropConfig({"float": 6.0, "release": 0.5})))
    assert [(rule.reference, rule.verdict) for rule in report.rules] == [("float", "pass"), ("release", "pass")]
    report = run_gate(path, GateConfig(baselines=baselines, top1=DropConfig({"float": 1.0, "release": 0.5})))
    assert report.verdict == "fail"
    report = run_gate(path, GateConfig(baselines=baselines, top1=DropConfig({"float": 4.0, "release": 0.5})))
    assert report.verdict == "inconclusive"


def test_an_inconclusive_rule_says_how_many_images_would_decide(write_pair):
    n, fixed, broken = 1000, 30, 35
    needed = gate(write_pair(n, fixed, broken)).images_needed
    for images, verdict in ((1.05 * needed, "pass"), (0.9 * needed, "inconclusive")):
        more = round(fixed * images / n), round(broken * images / n)
        assert gate(write_pair(round(images), *more)).verdict == verdict
    assert gate(write_pair(n, 20, 30)).images_needed is None
    assert "no realistic number" in only(gate(write_pair(n, 20, 30))).message


def test_images_are_not_enough_where_one_rule_never_decides(write_pair):
    report = gate(write_pair(1000, 20, 30), top1=DROP, flips=FlipsConfig(5.5))
    assert [rule.images_needed is None for rule in report.rules] == [True, False]
    assert report.images_needed is None


def test_a_rule_may_have_its_own_policy(write_pair):
    paths = write_pair(1000, 30, 40)
    assert gate(paths, top1=DropConfig(1.0, "point")).verdict == "pass"
    assert gate(paths, policy="lenient", top1=DropConfig(1.0, "strict")).verdict == "inconclusive"


def test_flips_are_a_share_with_wilsons_interval(write_pair):
    paths = write_pair(1000, 30, 20)
    rule = only(gate(paths, flips=FlipsConfig(8.0)))
    assert (rule.candidate, rule.delta, rule.verdict) == (5.0, None, "pass")
    assert rule.interval == pytest.approx((3.9832, 6.2596), abs=1e-3)
    assert only(gate(paths, flips=FlipsConfig(5.5))).verdict == "inconclusive"
    assert only(gate(paths, flips=FlipsConfig(3.0))).verdict == "fail"


def test_a_floor_needs_no_baseline(write_pair):
    _, candidate = write_pair(1000, 0, 0)
    for floor, verdict in ((70.0, "pass"), (75.0, "inconclusive"), (80.0, "fail")):
        report = run_gate(candidate, GateConfig(floor=FloorConfig(top1=floor)))
        assert (only(report).name, only(report).candidate, report.verdict) == ("min_top1", 75.0, verdict)
        assert (report.flips, report.mcnemar_p, report.baselines) == (None, None, ())


def test_size_is_held_against_the_ratio_and_the_bytes(write_pair):
    paths = write_pair(1000, 0, 0, bytes=500)
    assert [rule.verdict for rule in gate(paths, size=SizeConfig(0.5, 500)).rules] == ["pass", "pass"]
    ratio, limit = gate(paths, size=SizeConfig(0.4, 499)).rules
    assert (ratio.verdict, ratio.baseline, ratio.candidate, ratio.margin, ratio.delta) == (
        "fail",
        1000,
        500,
        400.0,
        -500,
    )
    assert (limit.verdict, limit.reference, limit.margin) == ("fail", "", 499)


@pytest.mark.parametrize("rule", ["flips", "worst_class", "mean_class"])
def test_a_rule_on_single_images_refuses_a_baseline_without_them(write_pair, rule):
    baseline, candidate = write_pair(1000, 10, 10)
    baseline.with_suffix(".npz").unlink()
    limit = FlipsConfig(5.0) if rule == "flips" else DropConfig(5.0)
    with pytest.raises(InputError, match=f"rule {rule} needs per-image predictions"):
        gate((baseline, candidate), **{rule: limit})


def test_unpaired_intervals_are_wider_and_say_how_many_images(write_pair):
    baseline, candidate = write_pair(1000, 30, 40)
    paired = only(gate((baseline, candidate)))
    baseline.with_suffix(".npz").unlink()
    unpaired = only(gate((baseline, candidate), top1=DropConfig(2.0)))
    assert unpaired.interval[0] < paired.interval[0] < paired.interval[1] < unpaired.interval[1]
    # The width goes with the root of the images: 1 point from the bound instead of the lower half's width.
    half = unpaired.delta - unpaired.interval[0]
    assert unpaired.images_needed == pytest.approx(1000 * (half / 1.0) ** 2, rel=1e-6, abs=1)


def test_nothing_to_compare_is_not_a_pass(write_pair):
    _, candidate = write_pair(1000, 0, 0)
    with pytest.raises(UsageError, match="no rule has anything to compare"):
        run_gate(candidate, GateConfig())


def test_the_json_has_the_keys_of_the_contract(write_pair):
    report = gate(write_pair(1000, 30, 40)).to_json()
    assert {"verdict", "rules", "n", "flips", "mcnemar_p", "images_needed"} <= set(report)
    assert {"name", "baseline", "candidate", "delta", "interval", "margin", "verdict"} <= set(report["rules"][0])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
