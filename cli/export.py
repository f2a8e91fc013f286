"""``fimaq-tool export``: a run folder or a float model in, a checked ONNX file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fimaq.toolchain.errors import InputError, UsageError

from .options import FILE, count, debug_option, example, force_option, given, json_option, option
from .output import emit, library_output, next_command, size

FLOAT = "float"
"""The target that the result of a float model names."""


@click.command(
    no_args_is_help=True, epilog=example("fimaq-tool export runs/deit-tiny --target ort-cpu -o deit-tiny-w4a4.onnx")
)
@click.argument("source", metavar="RUN|MODEL")
@option("-o", "--out", type=FILE, required=True, metavar="MODEL.onnx", help="The file to write.")
@option("--target", default="ort-cpu", show_default=True, help="Of ort-cpu, portable, openvino, tensorrt, qnn.")
@option("--opset", type=count(), help="ONNX opset; the target's own by default.")
@option("--float", "as_float", is_flag=True, help="Export the float model of that name: the baseline.")
@option("--weights", type=FILE, help="With --float: a local state dict.")
@option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="With --float: what the file computes in. float16 is CUDA's fast path; images and logits stay float32.",
)
@option("--data", metavar="DIR", help="Images for a run's parity check; else its calibration images.")
@option(
    "--input",
    "image",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="uint8: the file takes pixels [batch, h, w, 3] and normalises them itself.",
)
@option("--allow-float", is_flag=True, help="Write a file for ort-cpu though some layers run on float kernels.")
@option("--images", type=count(), default=128, show_default=True, help="How many images to check parity on.")
@force_option
@json_option
@debug_option
def command(source: str, out: Path, target: str, as_float: bool, weights: Path | None, **options: Any) -> None:
    """Write RUN as an ONNX file for a target, or with --float the float model MODEL.

    The file is checked before it appears: by onnx, by a session, and against the torch model on real images.
    """
    if as_float and given("target"):
        raise UsageError("--target is for quantized runs; a float file has none. Leave out --target or --float.")
    if as_float and (given("data") or given("images")):
        raise UsageError("--data and --images are for runs; a float file is checked on random images. Leave them out.")
    if as_float and given("allow_float"):
        raise UsageError("--allow-float is for quantized runs; every layer of a float file is float. Leave it out.")
    if as_float and Path(source).is_dir():
        raise UsageError(f"{source} is a folder, and --float takes the name of a model. Leave out --float for a run.")
    if out.suffix.lower() != ".onnx" and not out.is_dir():
        raise UsageError(f"-o {out} does not end in .onnx. Give -o {out.with_suffix('.onnx')}.")
    if given("weights") and not as_float:
        raise UsageError("--weights is for --float; a run holds its own weights. Leave out --weights.")
    if given("dtype") and not as_float:
        raise UsageError("--dtype is for --float; a run's layers compute on integers. Leave out --dtype.")
    if not as_float and not Path(source).exists():
        by_name = f" For a float model by its name add --float: fimaq-tool export {source} --float -o {out}."
        raise InputError(
            f"there is no run folder {source}; wanted the -o folder of `fimaq-tool quantize`."
            f"{by_name if '/' not in source else ''}"
        )
    with library_output():
        if as_float:
            from fimaq.toolchain.export import export_float

            result = export_float(
                source,
                out,
                weights=weights,
                opset=options["opset"],
                force=options["force"],
                image=options["image"],
                dtype=options["dtype"],
            )
        else:
            from fimaq.toolchain.export import export_run

            result = export_run(
                Path(source),
                out,
                target=target,
                opset=options["opset"],
                force=options["force"],
                images=options["images"],
                data=options["data"],
                allow_float=options["allow_float"],
                image=options["image"],
            )
    emit(result, options["as_json"], _text(result))
    next_command("evaluate", out, "--data", "DIR", "-o", out.with_suffix(".json"))


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['onnx']}: {size(result['bytes'])}, target {result['target']}, opset {result['opset']}"]
    if "encodings" in result:
        lines.append(f"{result['encodings']}: its grids for Qualcomm's converters")
    if result["target"] != FLOAT:
        lines.append(_kernels(result["layers"], result["target"]))
    lines.append(_agreement(result["parity"], "images" if result["target"] != FLOAT else "random images"))
    return "\n".join(lines)


def _kernels(layers: dict[str, int], target: str) -> str:
    """How many layers run on integers: in ONNX Runtime, whatever the file is for."""
    counted = f"{layers['integer']} integer, {layers['float']} float"
    if target == "ort-cpu":
        return f"layers: {counted}"
    return f"layers in ONNX Runtime on this CPU: {counted}; the runtime it is for has kernels of its own"


def _agreement(parity: dict[str, Any], images: str) -> str:
    """The parity check in one sentence."""
    codes = ", and every weight code is the run's" if parity["codes_equal"] else ""
    return (
        f"checked on {parity['images']} {images}: torch and ONNX Runtime agree on the class of "
        f"{parity['top1_agreement']:.1f} % of them (torch and its own float64 copy: {parity['noise_floor']:.1f} %), "
        f"the logits' signal-to-noise ratio is {parity['snr_db']:.1f} dB{codes}"
    )
