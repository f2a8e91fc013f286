"""Which kernel ONNX Runtime runs each layer on. No torch."""

from __future__ import annotations

from pathlib import Path

from ...inspection import Kernel, inspect_onnx


def layer_kernels(path: Path) -> dict[str, Kernel]:
    """Layer name -> ``integer`` or ``float``, as found in the graph ONNX Runtime makes of the file on this CPU."""
    return {layer["name"]: layer["kernel"] for layer in inspect_onnx(path)["layers"]}
