"""Progress on stderr: bars on a terminal, one line per finished task elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import click

from fimaq.toolchain.distributed.launch import is_first
from fimaq.toolchain.progress import NullProgress

if TYPE_CHECKING:
    from fimaq.toolchain.progress import Progress, Task


def progress() -> Progress:
    """Bars where stderr is a terminal, else lines; nothing in a job's processes but the first."""
    if not is_first():
        return NullProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


@final
class BarProgress:
    """One tqdm bar per task; inner bars go away when done."""

    def __init__(self) -> None:
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """A bar of ``total`` steps."""
        from tqdm import tqdm

        with tqdm(total=total, desc=name, file=sys.stderr, leave=self._depth == 0, dynamic_ncols=True) as bar:
            self._depth += 1
            try:
                yield _Bar(bar)
            finally:
                self._depth -= 1


@final
class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, n: int = 1, **info: object) -> None:
        """Move the bar; ``info`` is shown behind it."""
        if info:
            self._bar.set_postfix(info, refresh=False)
        self._bar.update(n)


@final
class LineProgress:
    """One line on stderr when a task ends; tasks inside another are indented."""

    def __init__(self) -> None:
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """A task that is reported when it ends, with its time and the last ``info``."""
        task, start = _Line(), time.monotonic()
        self._depth += 1
        try:
            yield task
        finally:
            self._depth -= 1
            shown = "".join(f" {key}={_short(value)}" for key, value in task.info.items())
            seconds = time.monotonic() - start
            click.echo(f"{'  ' * self._depth}{name}: {task.done}/{total} in {seconds:.1f} s{shown}", err=True)


@final
class _Line:
    def __init__(self) -> None:
        self.done = 0
        self.info: dict[str, object] = {}

    def advance(self, n: int = 1, **info: object) -> None:
        """Count the steps and keep the last ``info``."""
        self.done += n
        self.info |= info


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
