"""Axes: ends and ticks are round, and hold every value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimaq.toolchain.report.axis import Axis, around, written

VALUES = st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=8)


@given(VALUES, st.booleans())
def test_an_axis_holds_its_values(values, zero):
    axis = around(values, 10, 110, zero=zero)
    assert all(10 - 1e-6 <= axis.at(value) <= 110 + 1e-6 for value in (*values, *([0.0] if zero else [])))


@given(VALUES, st.integers(2, 6))
def test_ticks_are_round_even_and_on_the_axis(values, most):
    axis = around(values, 0, 100)
    ticks = axis.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    assert all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick in ticks)
    if len(ticks) > 1:
        found = ticks[1] - ticks[0]
        power = 10.0 ** math.floor(math.log10(found * (1 + 1e-6)))
        step = power * min((1, 2, 5), key=lambda nice: abs(found / power - nice))
        assert found == pytest.approx(step, rel=1e-3)
        assert all(tick / step == pytest.approx(round(tick / step), abs=1e-6) for tick in ticks)


def test_known_axes():
    axis = around([3.2, 96.7], 0, 100)
    assert (axis.low, axis.high, axis.ticks()) == (0, 100, [0, 50, 100])
    assert around([1.94], 0, 1, zero=True).ticks() == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert Axis(0, 20_000, 0, 1).ticks(2) == [0, 10_000, 20_000]


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "0"), (0.002, "0.002"), (0.1 + 0.2, "0.3"), (20000, "20,000"), (-2.5, "-2.5")]
)
def test_numbers_are_written_plainly(value, words):
    assert written(value) == words
