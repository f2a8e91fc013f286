"""Decode and preprocess in threads, ahead of the model and in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from ..data import ImageSet
from ..errors import InputError
from ..image_input import ImageInput

Prepare = Callable[[ImageSet, int], npt.NDArray[Any]]
"""From a sample to the array that a predictor is given; called from several threads at once."""

Prepared = npt.NDArray[Any] | InputError


def default_workers() -> int:
    """One thread for each processor this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def preprocessed(form: ImageInput) -> Prepare:
    """Decode a sample and bring it into the form the model takes."""

    def prepare(images: ImageSet, index: int) -> npt.NDArray[Any]:
        image = images.load(index)
        try:
            return form.apply(image)
        except InputError as error:
            raise InputError(f"{images.sample_ids[index]} in {images.source}: {error}") from error

    return prepare


def prefetch(images: ImageSet, prepare: Prepare, workers: int, window: int) -> Iterator[tuple[int, Prepared]]:
    """Yield each index with its array, or with the InputError that says why there is none, in order.

    At most ``window`` images are in memory, whatever the size of the set. Pillow and numpy let go of the interpreter
    while they work, so ``workers`` threads keep as many cores busy also while the caller runs a model.
    """

    def attempt(index: int) -> Prepared:
        try:
            return prepare(images, index)
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        todo = iter(range(len(images)))
        pending: deque[tuple[int, Future[Prepared]]] = deque()
        for index in todo:
            pending.append((index, pool.submit(attempt, index)))
            if len(pending) >= window:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
