"""Collective operations of a job's processes, on torch.distributed: NCCL between CUDA devices, gloo between CPUs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import EnvironmentProblem, FimaqError
from .launch import SINGLE, Launch
from .share import Share, even_share

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another that is alive but does not come; a dead one is noticed at once."""

LOST = (
    "another process of this job ended or does not answer ({}). Its own message says why. `quantize` goes on after its "
    "last finished block with --resume, with any number of processes."
)

P = ParamSpec("P")
T = TypeVar("T")


def _noticing_loss(function: Callable[P, T]) -> Callable[P, T]:
    """An operation that others do not take part in any more raises EnvironmentProblem."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except FimaqError:
            raise
        except RuntimeError as error:  # every error of torch.distributed is one
            raise EnvironmentProblem(LOST.format(str(error).strip().splitlines()[0].split(". ")[0])) from error

    return run


@final
@dataclass(frozen=True)
class Ranks:
    """The processes of a job as one of them sees them. All must call the same methods in the same order.

    ``Ranks()`` is a process by itself, for which every method does nothing. All raise EnvironmentProblem when another
    process is lost.
    """

    launch: Launch = SINGLE

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.launch.first

    @property
    def size(self) -> int:
        """Processes in the job."""
        return self.launch.size

    def share(self, n: int) -> Share:
        """This process's own of ``n`` rows."""
        return even_share(self.launch.rank, self.size, n)

    @_noticing_loss
    def fill(self, rows: Tensor) -> None:
        """Each process has written its share of ``rows`` ``[n, ...]``; afterwards each has all of them."""
        for rank in range(self.size if self.size > 1 else 0):
            dist.broadcast(rows[even_share(rank, self.size, len(rows)).rows], src=rank)

    def joined(self, part: Tensor) -> Tensor:
        """The parts of all processes ``[b_r, ...]``, which are shares of their sum, as one tensor ``[b, ...]``."""
        if self.size == 1:
            return part
        total = int(self.total(torch.tensor(len(part), device=part.device)))
        rows = part.new_empty(total, *part.shape[1:])
        rows[self.share(total).rows] = part
        self.fill(rows)
        return rows

    @_noticing_loss
    def total(self, part: Tensor) -> Tensor:
        """Sum over processes, the same bits on each."""
        if self.size == 1:
            return part
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over processes: one operation for all of them."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sums = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, whole in zip(gradients, sums.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(whole.view_as(gradient))

    @_noticing_loss
    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` by those of the first process."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0)

    @_noticing_loss
    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; it is pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def require_same(self, value: object, what: str) -> None:
        """Raise EnvironmentProblem unless all processes give an equal value; ``what`` names it, in the plural."""
        if any(other != value for other in self.gather(value)):
            raise EnvironmentProblem(
                f"the processes of this job have different {what}; wanted the same everywhere. Give all of them the "
                "same files and libraries, on machines of one kind."
            )

    def together(self, action: Callable[[], T]) -> T:
        """What ``action`` gives here, once all have run theirs; the first error of any is raised by all."""
        if self.size == 1:
            return action()
        result, error = _attempt(action)
        for found in self.gather(error):
            if found is not None:
                raise error or found
        assert result is not None
        return result[0]

    def by_first(self, action: Callable[[], T]) -> T:
        """Run ``action`` in the first process; its result (pickled) or error is everyone's."""
        if self.size == 1:
            return action()
        outcome = self.gather(_attempt(action) if self.first else (None, None))[0]
        if outcome[1] is not None:
            raise outcome[1]
        assert outcome[0] is not None
        return outcome[0][0]


ALONE = Ranks()


def _attempt(action: Callable[[], T]) -> tuple[tuple[T] | None, FimaqError | None]:
    """Result or error; a bug is raised here, and ends the others as a lost process does."""
    try:
        return (action(),), None
    except FimaqError as error:
        return None, error


@contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes of ``launch``; inside, SIGTERM (how launchers end a job) is an error with a message.

    After an error inside nobody waits for anybody: the process is expected to end.
    """
    if launch.size == 1:
        yield ALONE
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    earlier = signal.signal(signal.SIGTERM, _terminated)
    try:
        _noticing_loss(dist.init_process_group)(backend, timeout=TIMEOUT)
        yield Ranks(launch)
        dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise EnvironmentProblem(LOST.format("the launcher stopped this one"))
