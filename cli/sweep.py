"""``fimaq-tool sweep``: many runs from one plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fimaq.toolchain.errors import InputError

from .options import FILE, debug_option, device_option, example, json_option, option
from .output import emit, library_output, next_command
from .progress import progress

PLAN = """\b
A plan, whose lists multiply to six runs:
  calib = "imagenet/calib"
  val = "imagenet/val"
  [[run]]
  model = ["deit_tiny_patch16_224", "vit_tiny_patch16_224"]
  recipe = ["float", "fast-w8a8", "fast-w4a4"]"""


@click.command(no_args_is_help=True, epilog=example("fimaq-tool sweep plan.toml -o sweeps/tiny --bench", PLAN))
@click.argument("plan", metavar="PLAN.toml", type=FILE)
@option("-o", "--out", type=FILE, required=True, metavar="FOLDER", help="The folder of all runs, files and results.")
@option("--calib", metavar="DIR", help="Calibration images, before what the plan says.")
@option("--val", metavar="DIR", help="Images to evaluate on, before what the plan says.")
@option("--weights-folder", type=FILE, metavar="DIR", help="Holds <model>.safetensors; else weights from the hub.")
@device_option("Where to quantize.")
@option("--bench", is_flag=True, help="Time all files against each other at the end.")
@json_option
@debug_option
def command(plan: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Quantize, export and evaluate each run of a plan, one after another; `recipe = "float"` is the float model.

    Type the same command again to go on: runs that are done are left out, one that was cut off is resumed, those that
    failed are tried again. FOLDER gets results.jsonl, a table (results.md) and Pareto plots.
    """
    with library_output():
        from fimaq.toolchain.sweep.plan import load_plan

        loaded = load_plan(plan, calib=options["calib"], val=options["val"], weights=options["weights_folder"])
        from fimaq.toolchain.sweep.run import sweep

        result = sweep(loaded, out, device=options["device"], timed=options["bench"], progress=progress())
    emit(result, as_json, _text(result))
    if result["failed"]:
        raise InputError(
            f"{result['failed']} of {len(result['runs'])} runs failed; {result['table']} says why. Correct what it "
            "names and type the same command again: what is done is kept."
        )
    next_command("report", *_reported(result), "-o", f"{result['folder']}/report.html")


def _text(result: dict[str, Any]) -> str:
    table = Path(result["table"]).read_text(encoding="utf-8").rstrip()
    return "\n".join([table, "", *(str(plot) for plot in (result["table"], *result["plots"]))])


def _reported(result: dict[str, Any]) -> list[str]:
    folder = Path(result["folder"])
    runs = [str(folder / run["run"]) for run in result["runs"] if run["wbits"] is not None]
    return [*runs, *(str(folder / f"{run['run']}.json") for run in result["runs"])]
