"""Export: trace a model, lower it for a target, check the file, write it. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["export_float", "export_run"]


def export_run(
    run: Path,
    out: Path,
    *,
    target: str = "ort-cpu",
    opset: int | None = None,
    force: bool = False,
    images: int = 64,
    data: str | None = None,
) -> dict[str, Any]:
    """Write a run folder as a checked ONNX file (see ``export.run.export_run``)."""
    from . import run as implementation

    return implementation.export_run(run, out, target=target, opset=opset, force=force, images=images, data=data)


def export_float(
    model: str, out: Path, *, weights: Path | None = None, opset: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Write a float model as a checked ONNX file (see ``export.run.export_float``)."""
    from . import run as implementation

    return implementation.export_float(model, out, weights=weights, opset=opset, force=force)
