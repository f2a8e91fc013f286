"""One version of one model while it is served: who uses it, what is computed for them, and its end."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np

from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.evaluate.v2_client import DATATYPES
from fimaq.toolchain.image_input import ImageInput

from .batching import Answer, Batcher, Images
from .errors import Malformed, ModelFailed, RequestError, Unavailable
from .repository import ModelFile
from .settings import Settings
from .statistics import Statistics

LONGEST_RETRY = 60


@final
class ServedModel:
    """A loaded file that answers requests; made on the event loop and used there.

    A request holds a place (``place()``) from before its body is read until it is answered. A model that is retired
    answers those who hold one, and then lets go of its threads.
    """

    def __init__(self, file: ModelFile, predictor: OrtPredictor, settings: Settings) -> None:
        self.file, self.predictor = file, predictor
        self.name, self.version = file.name, file.version
        self.statistics = Statistics()
        self.held = 0
        self._settings = settings
        self._returning: deque[float] = deque()
        self._retired = False
        self._batcher = Batcher(
            predictor,
            join=settings.join_up_to,
            instances=settings.instances,
            statistics=self.statistics,
            name=f"{self.name}-{self.version}",
        )

    @property
    def image(self) -> ImageInput:
        """The form of one image."""
        return self.predictor.image

    @property
    def datatype(self) -> str:
        """The protocol's name of the images' type."""
        return DATATYPES[self.image.dtype.name]

    @property
    def class_names(self) -> list[str]:
        """A name for each logit."""
        names: list[str] = self.predictor.classes["names"]
        return names

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the queue's places. Raises Unavailable when all are taken."""
        limit = self._settings.limits.queue
        if self.held >= limit:
            raise Unavailable(
                f"model {self.name} holds {self.held} requests, as many as its queue takes. Send it again later.",
                self._turn_away(),
            )
        self.held += 1
        started = time.perf_counter_ns()
        try:
            yield
        except RequestError:
            self.statistics.fail.add(time.perf_counter_ns() - started)
            raise
        else:
            self.statistics.success.add(time.perf_counter_ns() - started)
        finally:
            self.held -= 1
            self._close_if_unused()

    def submit(self, images: Images) -> asyncio.Future[Answer]:
        """Queue images; to be called while holding a place. Raises Malformed for floats that are not finite.

        A quantized model would clip them and answer as if nothing were wrong.
        """
        if self.image.kind == "float" and not np.isfinite(images).all():
            raise Malformed("the image holds values that are not finite; wanted numbers.")
        return self._batcher.submit(images)

    def retire(self) -> None:
        """Take no more requests, and end when the last one is answered."""
        self._retired = True
        self._close_if_unused()

    def join(self) -> None:
        """Wait until a retired model has ended; blocks."""
        self._batcher.join()

    def check(self, answer: Answer) -> None:
        """Raise ModelFailed where the logits are not finite."""
        if not np.isfinite(answer.logits).all():
            raise ModelFailed(f"model {self.name} gave logits that are not finite. Quantize or export it again.")

    def _turn_away(self) -> int:
        """Whole seconds after which it should be the turn of whoever is turned away now.

        Those who were told to come back are counted as if they stood in a queue, so that not all return at once.
        """
        now = time.monotonic()
        while self._returning and self._returning[0] <= now:
            self._returning.popleft()
        ahead = self.held + len(self._returning)
        seconds = math.ceil(ahead * self.statistics.seconds_an_image / self._settings.instances)
        wait = min(LONGEST_RETRY, max(1, seconds))
        self._returning.append(now + wait)
        return wait

    def _close_if_unused(self) -> None:
        if self._retired and self.held == 0:
            self._batcher.close()
