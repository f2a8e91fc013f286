"""Waiting for an answer no longer than anyone wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fimaq.toolchain.errors import FimaqError

from .batching import Answer
from .errors import ClientGone, DeadlineExceeded, ModelFailed


async def answered(
    answer: asyncio.Future[Answer], deadline: float, disconnected: Coroutine[Any, Any, None] | None = None
) -> Answer:
    """The answer, if it comes before ``deadline`` (the loop's time) and before ``disconnected`` returns.

    Otherwise it is cancelled, so that the model does not work for nobody, and DeadlineExceeded or ClientGone is raised;
    ModelFailed for a model that cannot run.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_at(deadline, answer.cancel)
    gone = None if disconnected is None else loop.create_task(disconnected)
    if gone is not None:
        gone.add_done_callback(lambda _: answer.cancel())
    try:
        return await answer
    except FimaqError as error:
        raise ModelFailed(str(error)) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # it is this request that is ended, not its answer
            raise
        if gone is not None and gone.done():
            raise ClientGone("the client closed the connection.") from None
        raise DeadlineExceeded("the answer was not there in time. Send it again later, or allow more time.") from None
    finally:
        timer.cancel()
        if gone is not None:
            gone.cancel()
