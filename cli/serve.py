"""``fimaq-tool serve``: an ONNX file, or a repository of them, behind a port."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, count, debug_option, example, json_option, option
from .output import emit, next_command

if TYPE_CHECKING:
    from fimaq.deploy.serve import Listening

MIB = 2**20
MEGAPIXELS = 2**20


@click.command(
    no_args_is_help=True, epilog=example("fimaq-tool serve deit-tiny-w4a4.onnx --port 8080 --grpc-port 8081")
)
@click.argument("source", metavar="MODEL.onnx|REPOSITORY", type=FILE)
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="For HTTP; 0 for any free one.")
@option("--grpc-port", type=click.IntRange(0, 65535), help="For gRPC, which is off without it.")
@option("--name", help="Of the model of a single file; its file's name by default.")
@option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True)
@option("--threads", type=count(), help="Threads of one run; by default the cores a container's quota leaves.")
@option("--instances", type=count(), default=1, show_default=True, help="Runs of a model at the same time.")
@option("--max-batch", type=count(), default=32, show_default=True, help="Images in one request.")
@option("--join", type=count(), help="Images up to which waiting requests run together; 1 on a CPU, else --max-batch.")
@option("--queue", type=count(), default=64, show_default=True, help="Requests a model holds; more are told to wait.")
@option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Seconds a request."
)
@option("--max-body", type=count(), default=32, show_default=True, help="MiB of a request's body.")
@option(
    "--max-pixels", type=click.IntRange(1, 85), default=64, show_default=True, help="Megapixels (2^20) of an image."
)
@option("--versions", type=count(), default=1, show_default=True, help="Newest versions of each model to load.")
@option("--admin", is_flag=True, help="Allow loading and unloading models by request.")
@option("--keys", type=FILE, help="File with a key a line; requests then need Authorization: Bearer KEY.")
@option("--drain", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds to go on after SIGTERM.")
@option("--log-format", type=click.Choice(["json", "text"]), help="text on a terminal, else json.")
@option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@json_option
@debug_option
def command(source: Path, as_json: bool, **options: Any) -> None:
    """Serve over the Open Inference Protocol (V2): HTTP with JSON, binary tensors and images, and gRPC.

    A REPOSITORY is a folder of <model>/<version>/model.onnx or of <model>.onnx files. SIGHUP reloads it; SIGTERM
    finishes what was accepted and ends. With --json the one object on stdout is printed when requests are taken.
    """
    from fimaq.toolchain.errors import EnvironmentProblem

    try:
        from fimaq.deploy.serve import Limits, Settings, serve
        from fimaq.deploy.serve.logs import set_up
    except ImportError as error:
        raise EnvironmentProblem(
            f"what serving needs is not installed ({error}). In the checkout: pip install '.[serve]'"
        ) from error
    log_format, log_level = options.pop("log_format"), options.pop("log_level")
    limits = Limits(
        batch=options.pop("max_batch"),
        queue=options.pop("queue"),
        seconds=options.pop("timeout"),
        body=options.pop("max_body") * MIB,
        pixels=options.pop("max_pixels") * MEGAPIXELS,
    )
    settings = Settings(source, limits=limits, **options)
    set_up(log_format or ("text" if sys.stderr.isatty() else "json"), log_level)
    serve(settings, lambda listening: _announce(listening, as_json))


def _announce(listening: Listening, as_json: bool) -> None:
    rpc = f", gRPC on {listening.grpc}" if listening.grpc else ""
    emit(
        {"url": listening.url, "grpc": listening.grpc, "models": list(listening.models)},
        as_json,
        f"serving {', '.join(listening.models)} on {listening.url}{rpc}",
    )
    sys.stdout.flush()
    next_command("evaluate", "--endpoint", listening.url, "--data", "DIR")
