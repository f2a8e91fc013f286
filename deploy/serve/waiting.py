"""Waiting for an answer no longer than anyone wants it."""

from __future__ import annotations

import asyncio

from fimaq.toolchain.errors import FimaqError

from .batching import Answer
from .errors import ClientGone, DeadlineExceeded, ModelFailed


async def answered(answer: asyncio.Future[Answer], deadline: float, lost: asyncio.Future[None] | None = None) -> Answer:
    """The answer, if it comes before ``deadline`` (the loop's time) and before the client is ``lost``.

    Otherwise it is cancelled, so that the model does not work for nobody, and DeadlineExceeded or ClientGone is raised;
    ModelFailed for a model that cannot run.
    """

    def take_back(_: asyncio.Future[None]) -> None:
        answer.cancel()

    timer = asyncio.get_running_loop().call_at(deadline, answer.cancel)
    if lost is not None:
        lost.add_done_callback(take_back)
    try:
        return await answer
    except FimaqError as error:
        raise ModelFailed(str(error)) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # it is this request that is ended, not its answer
            raise
        if lost is not None and lost.done():
            raise ClientGone("the client closed the connection.") from None
        raise DeadlineExceeded("the answer was not there in time. Send it again later, or allow more time.") from None
    finally:
        timer.cancel()
        if lost is not None:
            lost.remove_done_callback(take_back)
