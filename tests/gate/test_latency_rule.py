"""Latency: medians measured in turns, or a warning."""

import json
import math

import pytest

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig, LatencyConfig
from fimaq.toolchain.errors import InputError

FLOAT, CANDIDATE = "f", "c"
DROP = DropConfig(1.0)


def gate(paths, **config):
    baseline, candidate = paths
    return run_gate(candidate, GateConfig(baselines={"float": baseline}, **config))


def only(report):
    (rule,) = report.rules
    return rule


@pytest.fixture
def bench(tmp_path):
    """``bench(name, hardware, {sha256: {batch size: median}})`` writes what ``fimaq-tool bench -o`` does."""

    def write(name, hardware, medians):
        rows = [
            {"model": "m.onnx", "sha256": letter * 64, "batch_size": size, "median_ms": median}
            for letter, own in medians.items()
            for size, median in own.items()
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"hardware": hardware, "models": rows, "rounds": 30}))
        return path

    return write


@pytest.mark.parametrize(("largest", "verdict"), [(0.8, "pass"), (0.7, "fail")])
def test_latency_is_the_largest_ratio_of_medians_over_batch_sizes(write_pair, bench, largest, verdict):
    measured = bench("b", {"name": "cpu"}, {FLOAT: {1: 10.0, 8: 60.0, 16: 1.0}, CANDIDATE: {1: 5.0, 8: 45.0}})
    rule = only(gate(write_pair(1000, 0, 0), latency=LatencyConfig(largest, (measured,))))
    assert (rule.candidate, rule.verdict, rule.blocking) == (0.75, verdict, True)
    assert "at batch 8 is 45 ms" in rule.message
    assert "measured in turns" in rule.message


def test_latency_on_other_hardware_is_a_warning_that_cannot_fail(write_pair, bench):
    one, other = bench("a", {"name": "x"}, {FLOAT: {1: 1.0}}), bench("b", {"name": "y"}, {CANDIDATE: {1: 9.0}})
    report = gate(write_pair(1000, 0, 0), top1=DROP, latency=LatencyConfig(1.0, (one, other)))
    assert [(rule.verdict, rule.blocking) for rule in report.rules] == [("pass", True), ("fail", False)]
    assert report.verdict == "pass"
    assert "different hardware" in report.rules[1].message


def test_latency_measured_apart_on_the_same_hardware_counts(write_pair, bench):
    one, other = bench("a", {"name": "x"}, {FLOAT: {1: 1.0}}), bench("b", {"name": "x"}, {CANDIDATE: {1: 9.0}})
    assert gate(write_pair(1000, 0, 0), latency=LatencyConfig(1.0, (one, other))).verdict == "fail"


def test_latency_in_turns_is_preferred_to_latency_measured_apart(write_pair, bench):
    turns = bench("a", {"name": "x"}, {FLOAT: {1: 1.0}, CANDIDATE: {1: 2.0}})
    apart = bench("b", {"name": "x"}, {FLOAT: {1: 1.0}})
    rule = only(gate(write_pair(1000, 0, 0), latency=LatencyConfig(3.0, (apart, turns, apart))))
    assert (rule.candidate, rule.verdict) == (2.0, "pass")
    assert "measured in turns" in rule.message


@pytest.mark.parametrize(
    "medians", [{}, {FLOAT: {1: 1.0}}, {FLOAT: {1: 1.0}, CANDIDATE: {8: 1.0}}, {CANDIDATE: {1: 1.0}}]
)
def test_a_model_that_was_not_measured_is_refused(write_pair, bench, medians):
    with pytest.raises(InputError, match="not both measured at one batch size"):
        gate(write_pair(1000, 0, 0), latency=LatencyConfig(1.0, (bench("b", {"name": "x"}, medians),)))


def test_no_measurement_at_all_is_refused(write_pair):
    with pytest.raises(InputError, match="in any file"):
        gate(write_pair(1000, 0, 0), latency=LatencyConfig(1.0))


@pytest.mark.parametrize("median", [math.nan, math.inf, 0, -1, "3", None, True])
def test_a_latency_that_is_no_time_is_refused(write_pair, bench, median):
    measured = bench("b", {"name": "x"}, {FLOAT: {1: 1.0}, CANDIDATE: {1: median}})
    with pytest.raises(InputError, match="Measure again"):
        gate(write_pair(1000, 0, 0), latency=LatencyConfig(1.0, (measured,)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": [], "hardware": ""}', '{"models": [3], "hardware": "x"}'])
def test_what_is_no_measurement_is_refused(write_pair, tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=r"b\.json is not what `fimaq-tool bench -o` writes"):
        gate(write_pair(1000, 0, 0), latency=LatencyConfig(1.0, (tmp_path / "b.json",)))
