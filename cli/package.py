"""``fimaq-tool package``: an ONNX file in, what Triton, KServe or Docker take out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fimaq.toolchain.errors import EnvironmentProblem, UsageError

from .options import FILE, count, debug_option, example, force_option, given, json_option, option
from .output import emit, library_output, next_command, size

ONLY_FOR = {
    "max_batch": ("triton",),
    "instances": ("triton",),
    "threads": ("triton",),
    "provider": ("triton",),
    "storage_uri": ("kserve",),
    "min_replicas": ("kserve",),
    "max_replicas": ("kserve",),
    "cpu": ("kserve",),
    "memory": ("kserve",),
    "image": ("kserve", "docker"),
}
"""Options that mean something for some targets only: fields of the target of the same name."""


@click.command(
    no_args_is_help=True, epilog=example("fimaq-tool package deit-tiny-w4a4.onnx --target triton -o deit-tiny-triton")
)
@click.argument("source", metavar="MODEL.onnx", type=FILE)
@option("--target", required=True, type=click.Choice(["triton", "kserve", "docker"]), help="What the package is for.")
@option("-o", "--out", type=FILE, required=True, metavar="DIR", help="The folder to write.")
@option("--name", help="The model's name in requests; after the file by default.")
@option("--max-batch", type=count(), help="Triton: images run together; 32 by default.")
@option("--instances", type=count(), help="Triton: copies of the model side by side; 1 by default.")
@option("--threads", type=count(), help="Triton: threads of each copy; every core by default.")
@option("--provider", type=click.Choice(["cpu", "cuda"]), help="Triton: what runs the model; cpu by default.")
@option("--image", help="KServe, Docker: the server's image, from the serve stage of the Dockerfile.")
@option("--storage-uri", metavar="URI", help="KServe: where models/ will lie; pvc://models/NAME by default.")
@option("--min-replicas", type=count(), help="KServe: servers at least; 1 by default.")
@option("--max-replicas", type=count(), help="KServe: servers at most; 3 by default.")
@option("--cpu", metavar="CORES", help="KServe: cores of a server; 1 by default.")
@option("--memory", metavar="AMOUNT", help="KServe: memory of a server; by the file's size by default.")
@force_option
@json_option
@debug_option
def command(source: Path, target: str, out: Path, name: str | None, **options: Any) -> None:
    """Write MODEL.onnx as a Triton model repository, KServe resources or a Docker build context.

    The file is opened and run first, as `serve` does; for Triton also with the session options Triton has.
    """
    for key, targets in ONLY_FOR.items():
        if target not in targets and given(key):
            typed, wanted = f"--{key.replace('_', '-')}", " or ".join(f"--target {item}" for item in targets)
            raise UsageError(f"{typed} is for {wanted}; got --target {target}. Leave out one.")
    chosen = {key: options[key] for key, targets in ONLY_FOR.items() if target in targets and options[key] is not None}
    try:
        from fimaq.deploy.package import TARGETS, package
    except ImportError as error:
        raise EnvironmentProblem(
            f"what serving needs is not installed ({error}), and a model is packaged as it is served. "
            "In the checkout: pip install '.[serve]'"
        ) from error
    with library_output():
        result = package(source, out, TARGETS[target](**chosen), name=name, force=options["force"])
    emit(result, options["as_json"], _text(result))
    next_command("serve", out if target == "triton" else out / "models")


def _text(result: dict[str, Any]) -> str:
    files = [f"  {file}" for file in result["files"]]
    heading = f"{result['package']}: {result['name']} for {result['target']}, {size(result['model']['bytes'])}"
    return "\n".join([heading, *files, f"how to use it: {Path(result['package']) / 'README.md'}"])
