"""Waiting for an answer: what ends it, and that the answer is taken back then."""

import asyncio
import gc
import weakref

import pytest

from fimaq.deploy.serve.errors import ClientGone, DeadlineExceeded, ModelFailed
from fimaq.deploy.serve.waiting import answered
from fimaq.toolchain.errors import InputError

SOON, LATE = 0.02, 3600.0


def wait(scenario):
    """Run ``scenario(loop, answer)``; says whether the answer was taken back, and what came of it."""

    async def run():
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        try:
            outcome = await asyncio.wait_for(scenario(loop, answer), 10)
        except Exception as error:  # noqa: BLE001  (the outcome is what the tests look at)
            outcome = error
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1  # nothing goes on listening to the client
        return answer.cancelled(), outcome

    return asyncio.run(run())


@pytest.mark.parametrize("watched", [False, True])
def test_an_answer_in_time(watched):
    async def scenario(loop, answer):
        lost = loop.create_future() if watched else None
        loop.call_later(SOON, answer.set_result, "logits")
        logits = await answered(answer, loop.time() + LATE, lost)
        if lost is not None:  # who goes later disturbs nobody
            lost.set_result(None)
        return logits

    assert wait(scenario) == (False, "logits")


@pytest.mark.parametrize("watched", [False, True])
def test_a_deadline(watched):
    async def scenario(loop, answer):
        return await answered(answer, loop.time() + SOON, loop.create_future() if watched else None)

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, DeadlineExceeded)


def test_a_deadline_that_is_over_already():
    async def scenario(loop, answer):
        return await answered(answer, loop.time() - 1)

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, DeadlineExceeded)


def test_a_client_that_goes():
    async def scenario(loop, answer):
        lost = loop.create_future()
        loop.call_later(SOON, lost.set_result, None)
        return await answered(answer, loop.time() + LATE, lost)

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, ClientGone)


def test_a_client_that_went_before():
    async def scenario(loop, answer):
        lost = loop.create_future()
        lost.set_result(None)
        return await answered(answer, loop.time() + LATE, lost)

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, ClientGone)


def test_nothing_of_an_answer_stays_with_its_connection():
    """Which may be kept for many more: each would hold the images and logits of all before it."""

    async def scenario(loop, _):
        lost, answer = loop.create_future(), loop.create_future()
        answer.set_result("logits")
        await answered(answer, loop.time() + LATE, lost)
        kept = weakref.ref(answer)
        del answer
        gc.collect()
        return kept() is None

    assert wait(scenario) == (False, True)


def test_a_model_that_cannot_run():
    async def scenario(loop, answer):
        answer.set_exception(InputError("it fails when run"))
        return await answered(answer, loop.time() + LATE, loop.create_future())

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome), str(outcome)) == (False, ModelFailed, "it fails when run")


def test_a_request_that_is_ended_from_outside_is_ended():
    async def scenario(loop, answer):
        task = loop.create_task(answered(answer, loop.time() + LATE, loop.create_future()))
        await asyncio.sleep(SOON)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert wait(scenario) == (True, True)
