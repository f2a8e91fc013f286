"""``fimaq-tool bench``: how fast ONNX files are, against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import FILE, count, debug_option, example, force_option, json_option, option
from .output import emit, library_output, next_command, size, table
from .progress import progress


@click.command(
    no_args_is_help=True,
    epilog=example("fimaq-tool bench deit-tiny.onnx deit-tiny-w4a4.onnx --threads 1 --batch-size 1 --batch-size 8"),
)
@click.argument("files", metavar="A.onnx [B.onnx ...]", nargs=-1, required=True, type=FILE)
@option("--batch-size", type=count(), multiple=True, default=[1], show_default=True, help="Repeat it for several.")
@option("--threads", type=count(), help="Threads of a model; all cores by default.")
@option("--rounds", type=count(2), default=30, show_default=True, help="Calls of each file that count.")
@option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True)
@option("-o", "--out", type=FILE, metavar="BENCH.json", help="Write the JSON object, for `fimaq-tool gate`.")
@force_option
@json_option
@debug_option
def command(files: tuple[Path, ...], out: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Time ONNX files in ONNX Runtime, interleaved, and compare each with the first.

    Speed is the median over rounds of the first file's time divided by this one's, with quartiles: above 1 is faster.
    Close other programs first; where the quartiles are far apart, something else ran.
    """
    with library_output():
        from fimaq.toolchain.bench import bench
        from fimaq.toolchain.files import check_free, write_whole

        if out is not None:
            check_free(out, force)
        result = bench(
            files,
            options["batch_size"],
            provider=options["provider"],
            threads=options["threads"],
            rounds=options["rounds"],
            progress=progress(),
        )
        if out is not None:
            write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    emit(result, as_json, _text(result))
    next_command("inspect", files[-1])


def _text(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    rows = [
        (
            row["model"],
            row["batch_size"],
            row["median_ms"],
            "{:.2f} ({:.2f} to {:.2f})".format(row["ratio"], *row["ratio_quartiles"]),
            row["images_per_second"],
            size(row["bytes"]),
        )
        for row in result["models"]
    ]
    headers = ("model", "batch", "median ms", "speed (quartiles)", "images/s", "file")
    features = ", ".join(hardware["features"]) or "features unknown"
    measured = f"{result['rounds']} rounds, {hardware['provider']}, {hardware['threads']} thread(s)"
    return "\n".join([table(rows, headers), "", f"{measured}; {hardware['name']}: {features}"])
