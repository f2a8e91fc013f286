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
from torch.torch_version import TorchVersion

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
        """Run what was recorded, with the values that its tensors and generators have now."""


@final
class CudaGraph:
    """A ``torch.cuda.CUDAGraph``; not to be made on the default stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def record(self, body: Callable[[], Tensor]) -> Tensor:
        """See ``Graph``. Raises RuntimeError where something in ``body`` cannot be recorded."""
        stream = torch.cuda.current_stream(self._device)
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            return body()

    def replay(self) -> None:
        """See ``Graph``."""
        self._graph.replay()


def make_graph(ranks: Ranks, device: torch.device) -> Callable[[torch.device], Graph] | None:
    """What records steps on ``device``; None where they run as they are.

    That is on a CPU, in a job of many processes, and before torch 2.14: older ones record only generators that were
    registered, and a recording that fails leaves their allocator and generators as if it still went on.
    """
    new = TorchVersion(torch.__version__) >= "2.14"
    return CudaGraph if device.type == "cuda" and ranks.size == 1 and new else None


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, work on a stream that can be recorded; what is queued before and after waits its turn."""
    if device.type != "cuda":
        yield
        return
    outer, inner = torch.cuda.current_stream(device), _stream(device)
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield
    finally:
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
        make: Callable[[torch.device], Graph],
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
            self._batch = batch
        else:
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
        loss = self._step(batch)
        after = [value.clone() for value in state]
        moved = [float((new - old).norm()) for new, old in zip(after, before, strict=True)]
        _restore(state, before)
        del before
        try:
            graph = self._make(self._generator.device)
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
            reason = _first_line(error)
        self._refused = True
        self._report(f"steps are launched kernel by kernel; recorded as a CUDA graph: {reason}")
        _restore(state, after)
        return loss

    def _forget(self) -> None:
        """Let the recording go, which must not run any more."""
        if self._loss is not None:
            self._loss.item()
        self._graph = self._loss = None


def _first_line(error: BaseException) -> str:
    """What went wrong first: that a recording failed is raised over why it did."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _restore(state: list[Tensor], values: list[Tensor]) -> None:
    """Put ``values`` where ``state`` is."""
    with torch.no_grad():
        for target, value in zip(state, values, strict=True):
            target.copy_(value)
