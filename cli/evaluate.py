"""``fimaq-tool evaluate``: how often a model is right, in ONNX Runtime, behind a server or in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimaq.toolchain.distributed.launch import Launch, read_launch
from fimaq.toolchain.errors import InputError, UsageError

from .options import FILE, count, debug_option, device_option, example, force_option, given, json_option, option
from .output import emit, library_output, next_command, note, size
from .progress import progress

if TYPE_CHECKING:
    from fimaq.toolchain.distributed.ranks import Ranks
    from fimaq.toolchain.evaluate import Predictor
    from fimaq.toolchain.evaluate.prefetch import Prepare

ONLY_FOR = {"provider": "ort", "threads": "ort", "device": "torch"}
"""Options that mean something with one backend only."""

ONLY_FOR_ENDPOINT = ("model", "wire", "key_file")
NOT_FOR_ENDPOINT = ("backend", "provider", "device", "threads")


@click.command(
    no_args_is_help=True, epilog=example("fimaq-tool evaluate deit-tiny-w4a4.onnx --data val/ -o deit-tiny-w4a4.json")
)
@click.argument("source", metavar="[MODEL.onnx|RUN]", type=FILE, required=False)
@option(
    "--data", required=True, metavar="DIR", help="Labelled images: class folders, a flat folder with --labels, hfds/..."
)
@option("-o", "--out", type=FILE, metavar="RESULT.json", help="Write the result, and RESULT.npz with each prediction.")
@option("--labels", type=FILE, help="For a flat folder: a file with an image name and a class per line.")
@option("--backend", type=click.Choice(["ort", "torch"]), default="ort", show_default=True, help="torch is for a RUN.")
@option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True, help="For ort.")
@device_option("For torch.")
@option("--batch-size", type=count(), default=32, show_default=True, help="Images at a time.")
@option("--endpoint", metavar="URL", help="Measure what this server answers; MODEL.onnx is then what it should serve.")
@option("--model", metavar="NAME", help="Of the model on the server, where it has several.")
@option(
    "--wire", type=click.Choice(["tensor", "image"]), default="tensor", show_default=True, help="What is sent to it."
)
@option("--key-file", type=FILE, help="File whose first line is the key the server wants.")
@option("--threads", type=count(), help="Threads of the model, for ort; all cores by default.")
@option("--workers", type=count(), help="Threads that decode images; one per core by default.")
@option("--limit", type=count(), help="Only that many images, spread evenly over the set.")
@option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded, and say which.")
@force_option
@json_option
@debug_option
def command(source: Path | None, data: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure top-1 and top-5 accuracy of an ONNX file that carries its preprocessing.

    With --backend torch it evaluates the fake-quantized torch model of a run folder instead, for comparison. With
    --endpoint it evaluates a running server, this tool's or any other that speaks the Open Inference Protocol; a
    server that does not tell its model's preprocessing needs MODEL.onnx beside it.
    """
    _check(source, options)
    with library_output():
        result = _run(source, data, out, options)
    emit(result, as_json, _text(result))
    if result["skipped"]:
        more = " ..." if len(result["skipped"]) > 5 else ""
        named = ", ".join(result["skipped"][:5])
        note(f"left out {len(result['skipped'])} image(s) that cannot be decoded: {named}{more}")
    if out is not None:
        next_command("gate", "--baseline", "FLOAT.json", "--candidate", out)
    elif source is not None:
        next_command("inspect", source)


def _check(source: Path | None, options: dict[str, Any]) -> None:
    """Refuse options that have no meaning together."""
    for name, backend in ONLY_FOR.items():
        if options["backend"] != backend and given(name):
            raise UsageError(f"--{name} is for --backend {backend}; got --backend {options['backend']}. Leave out one.")
    endpoint = options["endpoint"] is not None
    for name in NOT_FOR_ENDPOINT if endpoint else ONLY_FOR_ENDPOINT:
        if given(name):
            why = "has no meaning for a server. Leave it out." if endpoint else "is for a server. Give its --endpoint."
            raise UsageError(f"--{name.replace('_', '-')} {why}")
    if options["provider"] != "cpu" and read_launch().size > 1:
        raise UsageError(
            f"--provider {options['provider']} is for one process: all would compute on the same GPU. "
            "Leave out the launcher, or give --backend torch, where each has its own."
        )
    if source is None and not endpoint:
        raise UsageError("got no model; wanted MODEL.onnx, a RUN, or the --endpoint of a server.")


def _run(source: Path | None, data: str, out: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    from fimaq.toolchain.data import open_dataset
    from fimaq.toolchain.evaluate import evaluate
    from fimaq.toolchain.evaluate.prefetch import default_workers
    from fimaq.toolchain.evaluate.result import check_result_path

    if out is not None:
        check_result_path(out, options["force"])
    launch = read_launch()
    with _ranks(launch) as ranks, _predictor(source, options, launch) as (predictor, prepare):
        images = open_dataset(data, labels_file=options["labels"], classes=predictor.classes)
        found = evaluate(
            predictor,
            images,
            batch_size=options["batch_size"],
            workers=_part(options["workers"], default_workers(), launch),
            limit=options["limit"],
            on_corrupt="skip" if options["skip_corrupt"] else "error",
            progress=progress(),
            prepare=prepare,
            ranks=ranks,
        )
    if out is not None and launch.first:
        found.save(out, options["force"])
    return found.to_json()


def _part(asked: int | None, cores: int, launch: Launch) -> int | None:
    """Threads of one of the processes that share a machine, unless they were asked for."""
    return asked if asked is not None or launch.local_size == 1 else max(1, cores // launch.local_size)


@contextlib.contextmanager
def _ranks(launch: Launch) -> Iterator[Ranks | None]:
    """The processes of a job of several; None, without torch, for one by itself."""
    if launch.size == 1:
        yield None
        return
    import torch

    from fimaq.toolchain.distributed.ranks import joined

    with joined(launch, torch.device("cpu")) as ranks:  # only results travel
        yield ranks


@contextlib.contextmanager
def _predictor(
    source: Path | None, options: dict[str, Any], launch: Launch
) -> Iterator[tuple[Predictor, Prepare | None]]:
    """What computes the logits, and what is done to each image for it where that is not its own preprocessing."""
    from fimaq.toolchain.evaluate import OrtPredictor
    from fimaq.toolchain.runtime import usable_cores

    if options["endpoint"] is not None:
        from fimaq.toolchain.evaluate.endpoint import EndpointPredictor
        from fimaq.toolchain.evaluate.v2_client import Server

        local = None if source is None else OrtPredictor(source, threads=1)
        with Server(options["endpoint"], _key(options["key_file"])) as server:
            remote = EndpointPredictor(server, options["model"], wire=options["wire"], local=local)
            yield remote, remote.prepare
        return
    assert source is not None  # _check
    if options["backend"] == "torch":
        from fimaq.toolchain.evaluate.torch_backend import TorchPredictor

        yield TorchPredictor(source, _device(options["device"], launch)), None
        return
    if source.is_dir():
        raise InputError(
            f"{source} is a folder; wanted an ONNX file. For a run folder add --backend torch, or export it first: "
            f"fimaq-tool export {source} -o {source}.onnx."
        )
    yield OrtPredictor(source, options["provider"], _part(options["threads"], usable_cores(), launch)), None


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").split("\n", maxsplit=1)[0].strip()
    except (OSError, ValueError) as error:
        raise InputError(f"the key file {path} cannot be read ({error}). Correct --key-file.") from error


def _device(name: str, launch: Launch) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{launch.local_rank}" if name == "cuda" and launch.size > 1 else name


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
