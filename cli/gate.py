"""``fimaq-tool gate``: is a new model good enough, given what is known about it?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimaq.toolchain.errors import FimaqError, GateFailed, GateInconclusive, UsageError

from .options import FILE, debug_option, example, force_option, json_option, option, typed
from .output import emit, library_output, next_command

if TYPE_CHECKING:
    from fimaq.deploy.gate import GateConfig, GateReport

CONFIG = Path("gate.toml")
UNNAMED = "baseline"
"""What a baseline is called that is given as a bare path."""

config_option = option(
    "--config", type=FILE, metavar="gate.toml", help="The rules; by default gate.toml, where this folder has one."
)


@click.group(
    invoke_without_command=True,
    no_args_is_help=True,
    epilog=example(
        "fimaq-tool gate --baseline deit-tiny.json --candidate deit-tiny-w8a8.json --max-drop 1",
        "Exit codes: 0 pass, 1 fail, 3 inconclusive, 4 a result that cannot be used.",
    ),
)
@option("--candidate", type=FILE, metavar="B.json", help="The result of the model to judge.")
@option("--baseline", "baselines", multiple=True, metavar="[NAME=]A.json", help="What it is compared with; repeatable.")
@config_option
@option("--max-drop", type=float, metavar="PP", help="Percentage points that top-1 may drop; 1 without any rule.")
@option("--policy", type=click.Choice(["strict", "point", "lenient"]), help="What an uncertain difference means.")
@option("--confidence", type=float, help="Of the two-sided intervals; 0.9 by default.")
@option("--latency", type=FILE, multiple=True, metavar="BENCH.json", help="What `fimaq-tool bench -o` wrote.")
@option("--require-paired", is_flag=True, help="Refuse a baseline without its RESULT.npz.")
@option("--junit", type=FILE, metavar="F", help="Write JUnit XML.")
@option("--sarif", type=FILE, metavar="F", help="Write SARIF.")
@option("--markdown", type=FILE, metavar="F", help="Write a table for people.")
@force_option
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, /, candidate: Path | None, as_json: bool, force: bool, **options: Any) -> None:
    """Judge a model by its result against one or more baselines, on the same images.

    Results are those of `fimaq-tool evaluate -o`. A difference has an interval, so there are three verdicts: pass,
    fail, and inconclusive, with the images that would decide.
    """
    if ctx.invoked_subcommand is not None:
        if words := typed(without=""):
            raise UsageError(
                f"{words[0]} stands before {ctx.invoked_subcommand}, which does not see it. Put it behind."
            )
        return
    if candidate is None:
        parameter = next(p for p in command.params if p.name == "candidate")
        raise click.MissingParameter(param=parameter, message="Wanted --candidate RESULT.json.")
    files = {name: options[name] for name in ("junit", "sarif", "markdown") if options[name] is not None}
    with library_output():
        from fimaq.deploy.gate.outputs import text

        report = _run(candidate, files, force, options)
    emit(report.to_json(), as_json, text(report))
    _next(report, candidate)
    if report.verdict != "pass":
        raise _verdict(report)


@command.command(short_help="Write a gate.toml.", epilog=example("fimaq-tool gate init -o gate.toml"))
@option("-o", "--out", type=FILE, default=CONFIG, show_default=True, help="The file to write.")
@force_option
@json_option
@debug_option
def init(out: Path, force: bool, as_json: bool) -> None:
    """Write a gate.toml with every rule in it, explained; all but one are commented out."""
    from fimaq.deploy.gate.config import TEMPLATE
    from fimaq.toolchain.files import check_free, write_whole

    check_free(out, force)
    write_whole(out, TEMPLATE.read_bytes())
    emit({"config": out}, as_json, f"{out} holds the rules; it expects results in {out.parent / 'baselines'}")
    next_command("gate", "--candidate", "RESULT.json", "--config", out)


@command.command(
    short_help="Make a candidate the new baseline.",
    epilog=example('fimaq-tool gate update --candidate new.json --reason "W4/A4 instead of W8/A8"'),
)
@option("--candidate", type=FILE, required=True, metavar="B.json", help="The result that becomes the baseline.")
@option("--reason", required=True, help="Why, for the history.")
@option("--name", default="release", show_default=True, help="Which of gate.toml's baselines.")
@config_option
@option("--force", is_flag=True, help="Also where the gate does not pass, and in continuous integration.")
@json_option
@debug_option
def update(candidate: Path, config: Path | None, as_json: bool, **options: Any) -> None:
    """Make a candidate that passes the gate the new baseline, with its predictions, and keep the history.

    The files are those named in gate.toml. Commit them.
    """
    with library_output():
        from fimaq.deploy.gate.update import update as replace_baseline

        done = replace_baseline(candidate, _config(config), **options)
    verdict = done["verdict"] or "nothing to compare with yet"
    emit(done, as_json, f"{done['baseline']} is now {done['model']}, top-1 {done['top1']:.2f} % (gate: {verdict})")
    next_command("gate", "--candidate", "NEXT.json")


def _config(path: Path | None) -> GateConfig:
    """The file that is given, or the one in this folder, or the defaults."""
    from fimaq.deploy.gate import GateConfig, load_config

    if path is None and not CONFIG.exists():
        return GateConfig()
    return load_config(path or CONFIG)


def _run(candidate: Path, files: dict[str, Path], force: bool, options: dict[str, Any]) -> GateReport:
    from fimaq.deploy.gate import outputs, run_gate
    from fimaq.toolchain.files import check_free, write_whole

    for name, path in files.items():
        check_free(path, force, f"--{name}")
    config = _config(options["config"]).with_options(
        baselines=_named(options["baselines"]),
        **{name: options[name] for name in ("max_drop", "policy", "confidence", "require_paired", "latency")},
    )
    report = run_gate(candidate, config, configured=options["config"] is not None or CONFIG.exists())
    for name, path in files.items():
        write_whole(path, getattr(outputs, name)(report).encode())
    outputs.github.publish(report)
    return report


def _named(baselines: tuple[str, ...]) -> dict[str, Path]:
    """``NAME=FILE`` and bare files by name."""
    found: dict[str, Path] = {}
    for given in baselines:
        match = re.fullmatch(r"([\w-]+)=(.+)", given)
        name, path = match.groups() if match else (UNNAMED, given)
        if name in found:
            raise UsageError(f"two baselines are called {name!r}: {found[name]} and {path}. Give --baseline NAME=FILE.")
        found[name] = Path(path)
    return found


def _verdict(report: GateReport) -> FimaqError:
    """What ends the command, after its text said what to do next: the class owns the exit code."""
    rules = ", ".join(rule.title for rule in report.rules if rule.blocking and rule.verdict == report.verdict)
    if report.verdict == "fail":
        return GateFailed(f"the gate failed: {rules}.")
    return GateInconclusive(f"the gate cannot decide: {rules}.")


def _next(report: GateReport, candidate: Path) -> None:
    from fimaq.deploy.gate.outputs.advice import more_images_decide, updatable

    if report.verdict == "pass" and updatable(report):
        next_command("gate", "update", "--candidate", candidate, "--reason", "WHY")
    elif report.verdict == "pass":
        next_command("serve", report.candidate.model)
    elif report.verdict == "inconclusive" and more_images_decide(report):
        next_command("evaluate", report.candidate.model, "--data", "MORE_IMAGES", "-o", "RESULT.json")
    else:
        next_command("inspect", report.candidate.model)
