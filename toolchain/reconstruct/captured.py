"""A reconstruction step recorded once as a CUDA graph and launched as one, instead of as hundreds of small kernels.

What a graph launches is fixed: kernels, addresses, and every number that was a Python one when it was recorded. So the
batch goes into tensors that stay, rates and exponent are tensors (``BlockOptimizer``), and a step is recorded anew
whenever the loss has become another function: after a probe, and where the rounding regularizer sets in. A recorded
step is used only once it has done what the same step does without; else the block goes on without, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, final

import torch
from torch import Tensor

from ..distributed.ranks import Ranks
from .batch import Batch
from .objective import Objective
from .optimizer import BlockOptimizer

Step = Callable[[Batch], Tensor]
"""Moves what is learned by one step down the loss of a batch, and returns that loss, detached."""

TOLERANCE = 0.02
"""Of what an eager step changes, how far the recorded one may end from it (2-norms; the same kernels give 0)."""


class Graph(Protocol):
    """Records what a function launches, and launches it again."""

    def record(self, body: Callable[[], Tensor]) -> Tensor:
        """Record without running; the tensor returned holds ``body``'s result after each ``replay``."""

    def replay(self) -> None:
        """Run what was recorded, with the values that its tensors and its generator have now."""


@final
class CudaGraph:
    """A ``torch.cuda.CUDAGraph`` that draws from ``generator``; not to be made on the default stream."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)

    def record(self, body: Callable[[], Tensor]) -> Tensor:
        """See ``Graph``. Raises RuntimeError where something in ``body`` cannot be recorded."""
        stream = torch.cuda.current_stream(self._generator.device)
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                return body()
        except RuntimeError:
            # The generator still takes itself for one that is being recorded; the state of a new one does not.
            self._generator.graphsafe_set_state(torch.Generator(self._generator.device).graphsafe_get_state())
            raise

    def replay(self) -> None:
        """See ``Graph``."""
        self._graph.replay()


def make_graph(ranks: Ranks, device: torch.device) -> Callable[[torch.Generator], Graph] | None:
    """What records steps on ``device``; None where they run as they are: on a CPU, and in a job of many processes."""
    return CudaGraph if device.type == "cuda" and ranks.size == 1 else None


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, work on a stream that can be recorded; what is queued before and after waits its turn."""
    if device.type != "cuda":
        yield
        return
    outer, inner = torch.cuda.current_stream(device), _stream(device)
    inner.wait_stream(outer)
    with torch.cuda.stream(inner):
        yield
    outer.wait_stream(inner)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all blocks: memory that was freed on a stream is taken again on the same one only."""
    return torch.cuda.Stream(device)


@final
class CapturedStep:
    """``step`` (see ``Step``), recorded where that pays; ``report`` gets the reason where it cannot be."""

    def __init__(
        self,
        step: Step,
        objective: Objective,
        optimizer: BlockOptimizer,
        generator: torch.Generator,
        make: Callable[[torch.Generator], Graph],
        report: Callable[[str], None],
    ) -> None:
        self._step, self._objective, self._optimizer = step, objective, optimizer
        self._generator, self._make, self._report = generator, make, report
        self._graph: Graph | None = None
        self._batch: Batch | None = None
        self._loss: Tensor | None = None
        self._regularized = False
        self._begun, self._refused = False, False

    def __call__(self, batch: Batch) -> Tensor:
        """One step; the tensor returned holds the loss until the next one."""
        if self._refused or not self._begun or not self._objective.settled:
            self._forget()
            self._begun = True  # the first step makes Adam's state
            return self._step(batch)
        if self._batch is None:
            self._batch = batch.clone()
        self._batch.copy_(batch)
        if self._graph is None or self._regularized != self._optimizer.regularizes:
            return self._recorded(self._batch)
        self._graph.replay()
        assert self._loss is not None
        return self._loss

    def _recorded(self, batch: Batch) -> Tensor:
        """This step, done eagerly and then by a new recording; whose result stays depends on whether they agree."""
        self._forget()
        state = self._optimizer.state()
        place = self._generator.get_state()
        before = [value.clone() for value in state]
        loss = self._step(batch).clone()
        after = [value.clone() for value in state]
        moved = [float((new - old).norm()) for new, old in zip(after, before, strict=True)]
        _restore(state, before)
        del before
        try:
            graph = self._make(self._generator)
            self._generator.manual_seed(0)  # one that was recorded instead of read would show
            self._loss = graph.record(lambda: self._step(batch))
            self._generator.set_state(place)
            graph.replay()
            apart = [float((new - old).norm()) for new, old in zip(state, after, strict=True)]
            if all(far <= TOLERANCE * way for far, way in zip(apart, moved, strict=True)):
                self._graph, self._regularized = graph, self._optimizer.regularizes
                return self._loss
            worst = max(far / way if way else far for far, way in zip(apart, moved, strict=True))
            reason = f"it ended {worst:.2g} of a step from where it should"
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
        self._refused = True
        self._report(f"steps are launched kernel by kernel; recorded as a CUDA graph: {reason}")
        _restore(state, after)
        return loss

    def _forget(self) -> None:
        """Let the recording go, which must not run any more."""
        if self._loss is not None:
            self._loss.item()
        self._graph = self._loss = None


def _restore(state: list[Tensor], values: list[Tensor]) -> None:
    """Put ``values`` where ``state`` is."""
    with torch.no_grad():
        for target, value in zip(state, values, strict=True):
            target.copy_(value)
