"""Natural batching: what has queued while the model was busy is run next, and nothing ever waits to be joined."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from .statistics import Statistics, Timing

Array = npt.NDArray[np.float32]

Images = npt.NDArray[Any]
"""Of one request, in the form its model takes: float32 ``[b, 3, h, w]`` or uint8 ``[b, h, w, 3]``."""


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """Logits ``[b, classes]`` of one request, and the nanoseconds it waited and its run took."""

    logits: Array
    queue_ns: int
    compute_ns: int


@final
@dataclass(frozen=True, eq=False)
class _Job:
    images: Images
    answer: asyncio.Future[Answer]
    queued: int


@final
class Batcher:
    """Threads that run a model on what is waiting for it, in the order it came.

    ``run`` maps images to logits ``[b, classes]``. Requests are joined up to ``join`` images; a larger
    request runs by itself, whole. A request whose future was cancelled is dropped when its turn comes. Made and used
    on the event loop; ``statistics`` is touched there only.
    """

    def __init__(
        self, run: Callable[[Images], Array], *, join: int, instances: int, statistics: Statistics, name: str
    ) -> None:
        self._run, self._join, self._statistics = run, join, statistics
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(instances)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, images: Images) -> asyncio.Future[Answer]:
        """Queue images; cancel the future to take them back."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        with self._changed:
            self._jobs.append(_Job(images, answer, time.perf_counter_ns()))
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Finish what is queued, then end the threads; nothing may be submitted any more. Does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the threads have ended; blocks."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            taken = time.perf_counter_ns()
            try:
                images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
                gathered = time.perf_counter_ns()
                outcome: Array | Exception = self._run(images)
            except Exception as error:  # noqa: BLE001  (a request's error must not end the thread that serves the others)
                gathered, outcome = taken, error
            computed = time.perf_counter_ns()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the answer any more
                self._loop.call_soon_threadsafe(self._deliver, jobs, outcome, taken, gathered, computed)

    def _take(self) -> list[_Job]:
        """The next jobs to run together; none once closed and empty."""
        with self._changed:
            while True:
                jobs: list[_Job] = []
                images = 0
                while self._jobs and (not jobs or images + len(self._jobs[0].images) <= self._join):
                    job = self._jobs.popleft()
                    if not job.answer.cancelled():
                        jobs.append(job)
                        images += len(job.images)
                if jobs or self._closed:
                    return jobs
                self._changed.wait()

    def _deliver(self, jobs: list[_Job], outcome: Array | Exception, taken: int, gathered: int, computed: int) -> None:
        """Hand every request its rows, on the event loop."""
        start = 0
        for job in jobs:
            stop = start + len(job.images)
            if not job.answer.done():
                if isinstance(outcome, Exception):
                    job.answer.set_exception(outcome)
                else:
                    job.answer.set_result(Answer(outcome[start:stop], taken - job.queued, computed - taken))
            start = stop
        if not isinstance(outcome, Exception):
            timing = Timing(gathered - taken, computed - gathered, time.perf_counter_ns() - computed)
            self._statistics.ran(start, [taken - job.queued for job in jobs], timing)
