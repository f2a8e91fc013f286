"""Options as every command declares them: each can also be set by a ``FIMAQ_*`` variable."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, final

import click

from .errors import DEBUG, JSON

Function = TypeVar("Function", bound=Callable[..., Any])


@final
class _File(click.Path):
    """A path; what is wrong with it the library says (exit 4), where click would call it a usage error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an empty one would be the current folder."""
        if value == "":
            self.fail("the path is empty; wanted a name. Is a shell variable unset?", param, ctx)
        return super().convert(value, param, ctx)


FILE = _File(path_type=Path, readable=False)


NO_VARIABLE = ("--out", "--force")
"""Not settable by variable: a forgotten one would overwrite something."""


def option(*names: str, **attributes: Any) -> Callable[[Function], Function]:
    """``click.option`` that also reads ``FIMAQ_<LONG NAME>``."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    if long not in NO_VARIABLE:
        attributes.setdefault("envvar", "FIMAQ_" + long.removeprefix("--").replace("-", "_").upper())
    return click.option(*names, **attributes)


def _noted(key: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    """A callback that keeps a flag in the context's ``meta``, where ``errors.report`` looks for it."""

    def note(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        if value:
            ctx.meta[key] = True
        return value

    return note


debug_option = option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_noted(DEBUG), help="Show tracebacks."
)

json_option = option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_noted(JSON),
    help="Print one JSON object on stdout, of an error too, and nothing else.",
)

force_option = option("--force", is_flag=True, help="Replace an existing output.")


def _device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A device's name; whether it is there only torch knows."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is no device; wanted auto, cpu, cuda or cuda:<index>.")
    return value


def device_option(purpose: str) -> Callable[[Function], Function]:
    """``--device``, with what it is for."""
    metavar = "auto|cpu|cuda[:i]"
    return option("--device", default="auto", show_default=True, metavar=metavar, callback=_device, help=purpose)


def count(minimum: int = 1) -> click.IntRange:
    """An integer of ``minimum`` or more."""
    return click.IntRange(min=minimum)


def example(command: str, more: str = "") -> str:
    """The end of a command's help page: one worked example on a line of its own, then ``more``."""
    return f"\b\nExample:\n  {command}\n\n{more}"


def given(name: str) -> bool:
    """Whether the option was typed, as opposed to a variable set for all commands or a default."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def typed(without: str = "") -> list[str]:
    """The options that were typed, as words to type them again in that order, all but the one called ``without``."""
    ctx = click.get_current_context()
    declared = {parameter.name: parameter for parameter in ctx.command.params}
    words: list[str] = []
    for name, value in ctx.params.items():
        parameter = declared[name]
        if isinstance(parameter, click.Option) and given(name) and name != without:
            for one in value if parameter.multiple else [value]:
                words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(one)]
    return words
