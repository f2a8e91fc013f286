"""``fimaq-tool evaluate``: how often a model is right, in ONNX Runtime or, for comparison, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimaq.toolchain.errors import InputError, UsageError

from .options import FILE, count, debug_option, example, force_option, given, json_option, option
from .output import emit, library_output, next_command, note, size
from .progress import progress

if TYPE_CHECKING:
    from fimaq.toolchain.evaluate import Predictor

ONLY_FOR = {"provider": "ort", "threads": "ort", "device": "torch"}
"""Options that mean something with one backend only."""


@click.command(
    no_args_is_help=True, epilog=example("fimaq-tool evaluate deit-tiny-w4a4.onnx --data val/ -o deit-tiny-w4a4.json")
)
@click.argument("source", metavar="MODEL.onnx|RUN", type=FILE)
@option(
    "--data", required=True, metavar="DIR", help="Labelled images: class folders, a flat folder with --labels, hfds/..."
)
@option("-o", "--out", type=FILE, metavar="RESULT.json", help="Write the result, and RESULT.npz with each prediction.")
@option("--labels", type=FILE, help="For a flat folder: a file with an image name and a class per line.")
@option("--backend", type=click.Choice(["ort", "torch"]), default="ort", show_default=True, help="torch is for a RUN.")
@option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True, help="For ort.")
@option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="For torch.")
@option("--batch-size", type=count(), default=32, show_default=True, help="Images at a time.")
@option("--threads", type=count(), help="Threads of the model, for ort; all cores by default.")
@option("--workers", type=count(), help="Threads that decode images; one per core by default.")
@option("--limit", type=count(), help="Only that many images, spread evenly over the set.")
@option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded, and say which.")
@force_option
@json_option
@debug_option
def command(source: Path, data: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure top-1 and top-5 accuracy of an ONNX file that carries its preprocessing.

    With --backend torch it evaluates the fake-quantized torch model of a run folder instead, for comparison.
    """
    for name, backend in ONLY_FOR.items():
        if options["backend"] != backend and given(name):
            raise UsageError(f"--{name} is for --backend {backend}; got --backend {options['backend']}. Leave out one.")
    with library_output():
        result = _run(source, data, out, options)
    emit(result, as_json, _text(result))
    if result["skipped"]:
        more = " ..." if len(result["skipped"]) > 5 else ""
        named = ", ".join(result["skipped"][:5])
        note(f"left out {len(result['skipped'])} image(s) that cannot be decoded: {named}{more}")
    next_command("inspect", source)


def _run(source: Path, data: str, out: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    from fimaq.toolchain.data import open_dataset
    from fimaq.toolchain.evaluate import evaluate
    from fimaq.toolchain.evaluate.result import check_result_path

    if out is not None:
        check_result_path(out, options["force"])
    predictor = _predictor(source, options)
    images = open_dataset(data, labels_file=options["labels"], classes=predictor.classes)
    found = evaluate(
        predictor,
        images,
        batch_size=options["batch_size"],
        workers=options["workers"],
        limit=options["limit"],
        on_corrupt="skip" if options["skip_corrupt"] else "error",
        progress=progress(),
    )
    if out is not None:
        found.save(out, options["force"])
    return found.to_json()


def _predictor(source: Path, options: dict[str, Any]) -> Predictor:
    if options["backend"] == "torch":
        from fimaq.toolchain.evaluate.torch_backend import TorchPredictor

        return TorchPredictor(source, _device(options["device"]))
    from fimaq.toolchain.evaluate import OrtPredictor

    if source.is_dir():
        raise InputError(
            f"{source} is a folder; wanted an ONNX file. For a run folder add --backend torch, or export it first: "
            f"fimaq-tool export {source} -o {source}.onnx."
        )
    return OrtPredictor(source, options["provider"], options["threads"])


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _text(result: dict[str, Any]) -> str:
    low, high = result["top1_interval"]
    return "\n".join(
        [
            f"{result['model']}: {size(result['bytes'])}, {result['provider']}",
            f"top-1 {result['top1']:.2f} % (95 % interval {low:.2f} to {high:.2f}), top-5 {result['top5']:.2f} %, "
            f"{result['n']} images",
            f"labels from {result['label_source']}",
            f"{result['images_per_second']:.1f} images/s with decoding",
        ]
    )
