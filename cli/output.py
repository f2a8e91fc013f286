"""What a command prints: its result on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fimaq.toolchain.distributed.launch import is_first

from .errors import EMITTED


@contextlib.contextmanager
def library_output() -> Iterator[None]:
    """While the library works, what it or its dependencies print goes to stderr: stdout is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def emit(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print the result: one JSON object, or the text for people; of a job's processes the first one does."""
    if is_first():
        click.echo(json.dumps(result, allow_nan=False, default=_path) if as_json else text)
    click.get_current_context().meta[EMITTED] = True


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a result holds {value!r}, which is not JSON")


def note(message: str) -> None:
    """A line for the person watching, on stderr; of a job's processes the first one writes it."""
    if is_first():
        click.echo(message, err=True)


def next_command(*words: str | Path) -> None:
    """On a terminal, say what a person would type next."""
    if sys.stderr.isatty():
        note(f"next: {shlex.join(['fimaq-tool', *map(str, words)])}")


def table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> str:
    """Rows as aligned text; numbers to the right."""
    from tabulate import tabulate

    return str(tabulate(list(rows), headers=headers, floatfmt=".2f"))


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
