"""How long-running functions say how far they are, without knowing who listens: a Protocol and a silent listener."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, final


class Task(Protocol):
    """One piece of work with a known number of steps."""

    def advance(self, n: int = 1, **info: object) -> None:
        """``n`` more steps are done; ``info`` is what to show beside them, as in ``loss=0.12``."""


class Progress(Protocol):
    """Someone who is told about tasks; tasks may nest."""

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        """Begin a task of ``total`` steps; it ends when the context does, by return or by error."""


@final
class NullProgress:
    """Tells no one; the default of every library function that reports progress."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """A task whose steps are not shown."""
        yield _NullTask()


@final
class _NullTask:
    def advance(self, n: int = 1, **info: object) -> None:
        """Ignore the steps."""


@final
@dataclass(frozen=True)
class Titled:
    """Tells another with a title before each task's name: which of several runs it belongs to."""

    told: Progress
    title: str

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        """The task, as ``<title>: <name>``."""
        return self.told.task(f"{self.title}: {name}", total)
