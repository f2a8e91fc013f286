"""A served model's places: who gets one, who is told to come back when, and the end."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from fimaq.deploy.serve import Limits, Settings, model
from fimaq.deploy.serve.errors import Malformed, ModelFailed, Unavailable
from fimaq.deploy.serve.repository import ModelFile
from fimaq.deploy.serve.statistics import Timing


@pytest.fixture
def clock(monkeypatch):
    """The model's clock, in seconds."""
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(model.time, "monotonic", lambda: time.now)
    return time


class Clipping:
    """A model whose logits are finite whatever it is given, as those of a quantized one are."""

    image = SimpleNamespace(kind="float")

    def __call__(self, images):
        return np.nan_to_num(images[:, 0, 0, :1]).clip(-1, 1)


def served(scenario, tmp_path, queue=2, instances=1):
    """Run ``scenario(model)`` with a model that takes half a second an image, by its statistics."""

    async def run():
        settings = Settings(tmp_path, limits=Limits(queue=queue), instances=instances)
        found = model.ServedModel(ModelFile("toy", "1", tmp_path, ()), Clipping(), settings)
        found.statistics.ran(4, [0], Timing(0, 2 * 10**9, 0))
        try:
            return scenario(found)
        finally:
            found.retire()
            await asyncio.to_thread(found.join)

    return asyncio.run(run())


def turned_away(found):
    with pytest.raises(Unavailable) as refusal, found.place():
        pass
    return refusal.value.retry_after


@pytest.mark.parametrize(("instances", "waits"), [(1, [1, 2, 2, 3, 3]), (2, [1, 1, 1, 2, 2])])
def test_who_is_turned_away_stands_behind_those_who_were_before(clock, tmp_path, instances, waits):
    def scenario(found):
        with found.place(), found.place():
            return [turned_away(found) for _ in range(5)]

    # Two are held and 0, 1, 2, 3, 4 were told to come back; half a second each, shared by the instances, rounded up.
    assert served(scenario, tmp_path, instances=instances) == waits


def test_who_has_come_back_does_not_stand_there_any_more(clock, tmp_path):
    def scenario(found):
        with found.place(), found.place():
            early = [turned_away(found) for _ in range(5)]
            clock.now += 10
            return early, turned_away(found)

    assert served(scenario, tmp_path) == ([1, 2, 2, 3, 3], 1)


def test_nobody_is_sent_away_for_longer_than_a_minute(clock, tmp_path):
    def scenario(found):
        with found.place(), found.place():
            return max(turned_away(found) for _ in range(500))

    assert served(scenario, tmp_path) == 60


def test_a_place_is_given_back_whatever_happens(tmp_path):
    def scenario(found):
        for error in (Malformed("no"), ValueError("no"), KeyboardInterrupt()):
            with pytest.raises(type(error)), found.place():
                raise error
        return found.held

    assert served(scenario, tmp_path) == 0


def test_a_retired_model_ends_when_the_last_place_is_given_back(tmp_path):
    def scenario(found):
        with found.place():
            with found.place():
                found.retire()
            alive = [thread.is_alive() for thread in found._batcher._threads]
        found.join()
        return alive, [thread.is_alive() for thread in found._batcher._threads]

    assert served(scenario, tmp_path) == ([True], [False])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_though_the_model_would_answer(tmp_path, value):
    def scenario(found):
        images = np.zeros((2, 3, 2, 2), np.float32)
        images[1, 2, 1, 1] = value
        with pytest.raises(Malformed, match="not finite"):
            found.submit(images)

    served(scenario, tmp_path)


def test_logits_that_are_not_finite_are_the_models_fault(tmp_path):
    def scenario(found):
        found.check(SimpleNamespace(logits=np.zeros((1, 2))))
        with pytest.raises(ModelFailed, match="not finite"):
            found.check(SimpleNamespace(logits=np.array([[0.0, np.nan]])))

    served(scenario, tmp_path)
