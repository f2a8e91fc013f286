"""DeiT-Tiny on 1,300 ImageNet images, in float and at 8, 6, 4 and 3 bits: the verdicts a person would give."""

from pathlib import Path

import pytest

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gate"


@pytest.mark.parametrize(
    ("candidate", "verdicts"),
    [
        ("w8a8", ("pass", "pass")),
        ("w6a6", ("inconclusive", "pass")),
        ("w4a4", ("fail", "fail")),
        ("w3a3", ("fail", "fail")),
    ],
)
def test_verdicts_at_one_and_at_two_points(candidate, verdicts):
    config = GateConfig(baselines={"float": RESULTS / "deit-tiny-float.json"})
    for max_drop, verdict in zip((1.0, 2.0), verdicts, strict=True):
        rules = config.with_options(max_drop=max_drop)
        assert run_gate(RESULTS / f"deit-tiny-{candidate}.json", rules).verdict == verdict


def test_with_two_images_a_class_the_mean_can_be_judged_and_no_single_class_can():
    config = GateConfig(
        baselines={"float": RESULTS / "deit-tiny-float.json"},
        mean_class=DropConfig(2.0),
        worst_class=DropConfig(10.0, "lenient"),
    )
    assert run_gate(RESULTS / "deit-tiny-w8a8.json", config).verdict == "pass"
    assert [rule.verdict for rule in run_gate(RESULTS / "deit-tiny-w3a3.json", config).rules] == ["fail", "pass"]
