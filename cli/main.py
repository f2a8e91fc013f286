"""The ``fimaq-tool`` command: imports a subcommand when it is called, so that ``--help`` costs next to nothing."""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any, final

import click

from fimaq.toolchain.distributed.launch import ADDRESS
from fimaq.toolchain.recipe_fields import nearest

from .errors import JSON, report
from .options import debug_option, example

COMMANDS = {
    "quantize": "Quantize a timm vision transformer into a run folder.",
    "export": "Write a run (or a float model) as a checked ONNX file.",
    "evaluate": "Measure the accuracy of an ONNX file or a run.",
    "gate": "Judge a model by its accuracy against a baseline.",
    "bench": "Time ONNX files against each other in ONNX Runtime.",
    "serve": "Serve an ONNX file, or a repository of them, over HTTP and gRPC.",
    "inspect": "Show each layer's bits, and what the runtime makes of them.",
    "sweep": "Quantize, export and evaluate every run of a plan.",
    "report": "Show runs and results as one HTML page.",
    "package": "Write an ONNX file as what Triton, KServe or Docker take.",
    "demo": "Walk the whole path on a bundled model and data.",
    "env": "Show versions, providers and CPU features, for a bug report.",
}
"""Name -> help line, in the order of the help page; the command itself is ``command`` in the module of its name."""


@final
class LazyGroup(click.Group):
    """A group whose commands are imported when called, and which owns the exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order a person would use them."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed; a near miss is answered with the name that was meant."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", package=__package__)
        command: click.Command = module.command
        command.name = cmd_name
        command.short_help = COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note --json before anything is parsed, so that options that cannot be parsed are answered in JSON too."""
        ctx.meta[JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.ClickException as error:
            report(error, ctx.meta)
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (turned into a message and an exit code)
            raise click.exceptions.Exit(report(error, ctx.meta, ctx.invoked_subcommand)) from None


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "fimaq-tool demo",
        "Every option can be set as FIMAQ_<OPTION>, as in FIMAQ_DEVICE=cuda; one on the command line wins. "
        "Exit codes: 0 done, 1 gate failed, 2 usage, 3 gate inconclusive, 4 input unusable, 5 environment, "
        "70 internal error, 130 interrupted. With --json an error is an object on stdout: "
        '{"error": {"type", "message", "exit_code"}}.',
    ),
)
@click.version_option(package_name="fimaq-tool", prog_name="fimaq-tool")
@debug_option
def cli() -> None:
    """Take a timm vision transformer from PyTorch to a low-bit ONNX file."""


def main() -> None:
    """Entry point."""
    if ADDRESS not in os.environ:  # a launcher's processes wait for each other in code that no handler interrupts
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli(prog_name="fimaq-tool")
    except KeyboardInterrupt as error:  # before or after a command runs
        raise SystemExit(report(error, {})) from None


if __name__ == "__main__":
    main()
