"""What must not matter does not, and what must matter does: shuffled, swapped and repeated images."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig, FlipsConfig, FloorConfig

ABSENT = 9
DROP = DropConfig(1.0)


def gate(paths, **config):
    baseline, candidate = paths
    return run_gate(candidate, GateConfig(baselines={"float": baseline}, **config))


EVERYTHING = {
    "top1": DROP,
    "top5": DROP,
    "mean_class": DROP,
    "worst_class": DropConfig(20.0),
    "flips": FlipsConfig(10.0),
    "floor": FloorConfig(50.0, 80.0),
}


ranks = st.integers(20, 120).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0, 0, 0, 2, ABSENT]), min_size=n, max_size=n)] * 2)
)


without_reset = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@without_reset
@given(ranks=ranks, seed=st.integers(0, 99))
def test_shuffling_the_images_changes_nothing(write, ranks, seed):
    order = np.random.default_rng(seed).permutation(len(ranks[0]))
    labels = np.arange(len(order)) % 10
    names = np.array([f"{index}.png" for index in range(len(order))])
    reports = [
        gate(
            [write(name, np.array(own)[place], labels=labels[place], names=names[place]) for name, own in both],
            **EVERYTHING,
        )
        for both in [list(zip(("float", "candidate"), ranks, strict=True))]
        for place in (np.arange(len(order)), order)
    ]
    assert reports[0].to_json() == reports[1].to_json()


@without_reset
@given(ranks=ranks)
def test_swapping_baseline_and_candidate_flips_the_sign(write, ranks):
    paths = [write(name, own) for name, own in zip(("float", "candidate"), ranks, strict=True)]
    there, back = (gate(each, top1=DROP, top5=DROP) for each in (paths, paths[::-1]))
    for one, other in zip(there.rules, back.rules, strict=True):
        assert one.delta == -other.delta
        np.testing.assert_allclose(one.interval, [-other.interval[1], -other.interval[0]], atol=1e-12)
    assert (there.flips.fixed, there.flips.broken) == (back.flips.broken, back.flips.fixed)
    assert there.mcnemar_p == back.mcnemar_p


@without_reset
@given(ranks=ranks)
@example(ranks=([0] * 20, [0] * 20))
def test_every_image_twice_narrows_the_interval(write, ranks):
    once = [write(name, own) for name, own in zip(("float", "candidate"), ranks, strict=True)]
    labels = np.tile(np.arange(len(ranks[0])) % 10, 2)
    twice = [write(name, own * 2, labels=labels) for name, own in zip(("float2", "candidate2"), ranks, strict=True)]
    rules = "top1", "top5", "flips", "floor"
    for one, two in zip(
        *(gate(each, **{name: EVERYTHING[name] for name in rules}).rules for each in (once, twice)), strict=True
    ):
        assert two.candidate == pytest.approx(one.candidate)
        assert two.interval[1] - two.interval[0] < one.interval[1] - one.interval[0]
