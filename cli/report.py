"""``fimaq-tool report``: runs and results as one page for a browser."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, debug_option, example, force_option, json_option, option
from .output import emit, library_output, next_command, size


@click.command(
    no_args_is_help=True,
    epilog=example("fimaq-tool report runs/deit-tiny deit-tiny-float.json deit-tiny-w4a4.json -o deit-tiny.html"),
)
@click.argument("sources", metavar="RUN... [RESULT.json...]", nargs=-1, required=True, type=FILE)
@option("-o", "--out", type=FILE, required=True, metavar="REPORT.html", help="The page to write.")
@force_option
@json_option
@debug_option
def command(sources: tuple[Path, ...], out: Path, force: bool, as_json: bool) -> None:
    """Show runs and results: losses, errors by block and layer, histograms, bits, time, memory and accuracy.

    The page is one file without scripts that can be mailed, printed and read on a phone.
    """
    with library_output():
        from fimaq.toolchain.report import write_report

        result = write_report(sources, out, force=force)
    shown = f"{len(result['runs'])} run(s), {len(result['results'])} result(s)"
    emit(result, as_json, f"{out}: {shown}, {size(result['bytes'])}; open it in a browser")
    if result["results"]:
        baseline = result["results"][0] if len(result["results"]) > 1 else "FLOAT.json"
        next_command("gate", "--baseline", baseline, "--candidate", result["results"][-1])
    else:
        next_command("export", result["runs"][0], "-o", f"{result['runs'][0]}.onnx")
