"""From exception to message and exit code: what happens when a command fails."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Mapping
from typing import Any

import click

from fimaq.toolchain.distributed.launch import is_first
from fimaq.toolchain.errors import EnvironmentProblem, FimaqError, GateFailed, GateInconclusive, UsageError

EXIT_INTERNAL = 70
"""A bug in this tool (EX_SOFTWARE): 1 would read as a failed gate."""
EXIT_INTERRUPTED = 130

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the operating system that are not a bug of ours."""

DEBUG, JSON, EMITTED = "fimaq.debug", "fimaq.json", "fimaq.emitted"
"""Keys in the context's shared ``meta``: show tracebacks; stdout is for one JSON object; that object is out."""


INTERRUPTED = {
    "quantize": "the same command with --resume goes on after the last finished block.",
    "sweep": "type the same command again to go on.",
    "demo": "the same command with --force starts anew.",
}
"""What is left of a command that was stopped; nothing of the others."""


def report(error: BaseException, meta: Mapping[str, Any], command: str | None = None) -> int:
    """Say what went wrong in ``command`` on stderr, and with --json on stdout; the exit code to end with."""
    message, exit_code = _told(error, command)
    if exit_code == EXIT_INTERNAL and not meta.get(DEBUG):
        message += " Run it again with --debug and report what it prints, with `fimaq-tool env`."
    if meta.get(JSON) and not meta.get(EMITTED) and is_first():
        kind = UsageError.__name__ if isinstance(error, click.UsageError) else type(error).__name__
        click.echo(json.dumps({"error": {"type": kind, "message": message, "exit_code": exit_code}}))
    if isinstance(error, click.ClickException):  # click shows it, with the command's usage
        return exit_code
    if meta.get(DEBUG):
        click.echo("".join(traceback.format_exception(error)), err=True)
    verdict = isinstance(error, GateFailed | GateInconclusive)  # an answer, not an error
    click.echo(message if verdict else f"Error: {message}", err=True)
    return exit_code


def _told(error: BaseException, command: str | None) -> tuple[str, int]:
    if isinstance(error, FimaqError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {INTERRUPTED.get(command or '', 'no output was written.')}", EXIT_INTERRUPTED
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):  # torch's, without importing torch
        return f"out of memory ({reason}). Lower --batch-size or use another --device.", EnvironmentProblem.exit_code
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("fimaq"):  # as in a serving image
        return (
            f"the package {error.name} is not installed here. In the checkout: pip install .",
            EnvironmentProblem.exit_code,
        )
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in reason:  # tempfile's
        return f"{error.strerror}. Free some space or set TMPDIR.", EnvironmentProblem.exit_code
    if isinstance(error, OSError) and error.errno in (*NO_ACCESS, *NO_ROOM):
        reason = ": ".join(str(part) for part in (error.strerror, error.filename) if part)
        step = "Give your user access to it, or use another place" if error.errno in NO_ACCESS else "Free some space"
        return f"{reason}. {step}.", EnvironmentProblem.exit_code
    return f"internal error, a bug in fimaq-tool: {type(error).__name__}: {reason}", EXIT_INTERNAL
