"""Options as every command declares them: each can also be set by a ``FIMAQ_*`` variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .errors import DEBUG

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path; the library says what is wrong with it (exit 4), where click would call it a usage error."""

NO_VARIABLE = ("--out", "--force")
"""Not settable by variable: a forgotten one would overwrite something."""


def option(*names: str, **attributes: Any) -> Callable[[Function], Function]:
    """``click.option`` that also reads ``FIMAQ_<LONG NAME>``."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    if long not in NO_VARIABLE:
        attributes.setdefault("envvar", "FIMAQ_" + long.removeprefix("--").replace("-", "_").upper())
    return click.option(*names, **attributes)


def _remember_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


debug_option = option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_remember_debug, help="Show tracebacks."
)

json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")

force_option = option("--force", is_flag=True, help="Replace an existing output.")


def count(minimum: int = 1) -> click.IntRange:
    """An integer of ``minimum`` or more."""
    return click.IntRange(min=minimum)


def example(command: str, more: str = "") -> str:
    """The end of a command's help page: one worked example on a line of its own, then ``more``."""
    return f"\b\nExample:\n  {command}\n\n{more}"


def given(name: str) -> bool:
    """Whether the option was typed, as opposed to a variable set for all commands or a default."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
