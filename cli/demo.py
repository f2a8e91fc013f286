"""``fimaq-tool demo``: the whole path on what is bundled, in a few minutes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, debug_option, device_option, example, force_option, json_option, option
from .output import emit, library_output, next_command, size, table
from .progress import progress

LABELS = {"float": "float", "rtn": "round to nearest, W3/A3", "fimaq": "FIMA-Q, W3/A3"}


@click.command(epilog=example("fimaq-tool demo -o fimaq-demo"))
@option("-o", "--out", type=FILE, default=Path("fimaq-demo"), show_default=True, help="The folder to fill.")
@device_option("Where to quantize.")
@force_option
@json_option
@debug_option
def command(out: Path, device: str, force: bool, as_json: bool) -> None:
    """Quantize two small bundled models to 3 bits, export them and evaluate them on held-out digits.

    Nothing is downloaded. Each model is compared as float, rounded to nearest and quantized with FIMA-Q, every one of
    them as an ONNX file in ONNX Runtime. The gate then judges FIMA-Q against float, as `fimaq-tool gate` does.
    """
    with library_output():
        from fimaq.toolchain.demo import FIRST, run_demo

        result = run_demo(out, device=device, force=force, progress=progress())
        result["gate"] = _gate(out / f"{FIRST}-float.json", out / f"{FIRST}-fimaq.json")
    emit(result, as_json, _text(result))
    next_command("inspect", out / "demo_vit-fimaq.onnx")


def _gate(baseline: Path, candidate: Path) -> dict[str, Any]:
    """What the gate finds with its default rule; it judges, but does not end the demo."""
    from fimaq.deploy.gate import GateConfig, run_gate

    return run_gate(candidate, GateConfig(baselines={"float": baseline})).to_json()


def _text(result: dict[str, Any]) -> str:
    rows = [
        (name, LABELS[label], found["top1"], "{:.1f} to {:.1f}".format(*found["top1_interval"]), size(found["bytes"]))
        for name, figures in result["models"].items()
        for label, found in figures.items()
    ]
    return "\n".join(
        [
            table(rows, ("model", "quantization", "top-1 %", "95 % interval", "file")),
            "",
            f"demo_vit in torch {result['fimaq_top1']:.2f} %, in ONNX Runtime {result['onnx_top1']:.2f} %: "
            f"the same prediction for {result['agreement']:.2f} % of the images",
            "W3/A3: 3-bit weights and activations in every layer, the image itself at 8 bits; stored in 4 bits",
            f"gate: {result['gate']['verdict']}; {result['gate']['rules'][0]['message']}",
            f"files in {result['folder']}",
        ]
    )
