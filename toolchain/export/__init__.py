"""Export: trace a model, lower it for a target, check the file, write it. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..image_input import InputKind
    from .metadata import FloatType

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
    allow_float: bool = False,
    image: InputKind = "float",
) -> dict[str, Any]:
    """Write a run folder as a checked ONNX file (see ``export.run.export_run``)."""
    from . import run as implementation

    return implementation.export_run(
        run,
        out,
        target=target,
        opset=opset,
        force=force,
        images=images,
        data=data,
        allow_float=allow_float,
        image=image,
    )


def export_float(
    model: str,
    out: Path,
    *,
    weights: Path | None = None,
    opset: int | None = None,
    force: bool = False,
    image: InputKind = "float",
    dtype: FloatType = "float32",
) -> dict[str, Any]:
    """Write a float model as a checked ONNX file (see ``export.run.export_float``)."""
    from . import run as implementation

    return implementation.export_float(model, out, weights=weights, opset=opset, force=force, image=image, dtype=dtype)
