"""``fimaq-tool inspect``: what a run or an ONNX file holds, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fimaq.toolchain.errors import InputError

from .options import FILE, debug_option, example, json_option
from .output import emit, library_output, next_command, size, table


@click.command(no_args_is_help=True, epilog=example("fimaq-tool inspect deit-tiny-w4a4.onnx"))
@click.argument("source", metavar="RUN|MODEL.onnx", type=FILE)
@json_option
@debug_option
def command(source: Path, as_json: bool) -> None:
    """Show the layers of a run folder or an ONNX file with their bits and scales.

    Of an ONNX file it also shows which operator ONNX Runtime computes each layer with after optimising the graph for
    this machine's CPU, integer or float, and how many of each operator run.
    """
    if not source.exists():
        raise InputError(
            f"{source} is not there; wanted a run folder or an ONNX file. `fimaq-tool quantize` writes the one and "
            "`fimaq-tool export RUN` the other; of a float model, `fimaq-tool export MODEL --float`."
        )
    with library_output():
        from fimaq.toolchain.inspection import inspect_onnx, inspect_run

        result = inspect_run(source) if source.is_dir() else inspect_onnx(source)
    emit(result, as_json, _text(source, result))
    if source.is_dir():
        next_command("export", source, "-o", source.with_name(source.name + ".onnx"))
    else:
        next_command("evaluate", source, "--data", "DIR", "-o", source.with_suffix(".json"))


def _text(source: Path, result: dict[str, Any]) -> str:
    keys = ["name", "op", "weight_bits", "activation_bits", "granularity"]
    ops = result["optimized_ops"]
    keys += [] if ops is None else ["kernel", "operator"]
    rows = [["-" if layer[key] is None else layer[key] for key in keys] for layer in result["layers"]]
    lines = [table(rows, [key.replace("_", " ") for key in keys]), ""] if rows else []
    lines.append(f"{source}: {size(result['bytes'])}, {len(rows)} quantized layers")
    if ops is not None:
        lines.append("operators: " + ", ".join(f"{name} {n}" for name, n in ops.items()))
    return "\n".join(lines)
