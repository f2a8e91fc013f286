"""From exception to message and exit code: what happens when a command fails."""

from __future__ import annotations

import errno
import traceback

import click

from fimaq.toolchain.errors import EnvironmentProblem, FimaqError

EXIT_INTERNAL = 70
"""A bug in this tool (EX_SOFTWARE): 1 would read as a failed gate."""
EXIT_INTERRUPTED = 130

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
"""Errors of the operating system that are not a bug of ours: no space, no permission."""

DEBUG = "fimaq.debug"
"""Key in the context's shared ``meta``: whether to show tracebacks."""


def report(error: BaseException, debug: bool) -> int:
    """Say on stderr what went wrong, with ``debug`` after its traceback; the exit code to end with."""
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True)
    message, exit_code = _told(error)
    if exit_code == EXIT_INTERNAL and not debug:
        message += " Run it again with --debug and report what it prints, with `fimaq-tool env`."
    click.echo(f"Error: {message}", err=True)
    return exit_code


def _told(error: BaseException) -> tuple[str, int]:
    if isinstance(error, FimaqError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no output was written. `quantize` goes on after its last finished block with --resume.", (
            EXIT_INTERRUPTED
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):  # torch's, without importing torch
        return f"out of memory ({reason}). Lower --batch-size or use another --device.", EnvironmentProblem.exit_code
    if isinstance(error, OSError) and error.errno in MACHINE:
        return f"{reason}. Free some space, or use a place you may write to.", EnvironmentProblem.exit_code
    return f"internal error, a bug in fimaq-tool: {type(error).__name__}: {reason}", EXIT_INTERNAL
