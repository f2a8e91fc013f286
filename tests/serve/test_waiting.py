"""Waiting for an answer: what ends it, and that the answer is taken back then."""

import asyncio

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


async def never():
    await asyncio.Event().wait()


@pytest.mark.parametrize("disconnected", [None, never])
def test_an_answer_in_time(disconnected):
    async def scenario(loop, answer):
        loop.call_later(SOON, answer.set_result, "logits")
        return await answered(answer, loop.time() + LATE, disconnected and disconnected())

    assert wait(scenario) == (False, "logits")


@pytest.mark.parametrize("disconnected", [None, never])
def test_a_deadline(disconnected):
    async def scenario(loop, answer):
        return await answered(answer, loop.time() + SOON, disconnected and disconnected())

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, DeadlineExceeded)


def test_a_deadline_that_is_over_already():
    async def scenario(loop, answer):
        return await answered(answer, loop.time() - 1)

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, DeadlineExceeded)


def test_a_client_that_goes():
    async def scenario(loop, answer):
        return await answered(answer, loop.time() + LATE, asyncio.sleep(SOON))

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome)) == (True, ClientGone)


def test_a_model_that_cannot_run():
    async def scenario(loop, answer):
        answer.set_exception(InputError("it fails when run"))
        return await answered(answer, loop.time() + LATE, never())

    taken_back, outcome = wait(scenario)
    assert (taken_back, type(outcome), str(outcome)) == (False, ModelFailed, "it fails when run")


def test_a_request_that_is_ended_from_outside_is_ended():
    async def scenario(loop, answer):
        task = loop.create_task(answered(answer, loop.time() + LATE, never()))
        await asyncio.sleep(SOON)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert wait(scenario) == (True, True)
