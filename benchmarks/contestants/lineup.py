"""Who takes part: which file, in which runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Runtime = Literal["ONNX Runtime", "OpenVINO"]


@dataclass(frozen=True)
class Contestant:
    """A file in a runtime. ``precision`` is OpenVINO's for what is left in float; None is OpenVINO's own choice."""

    title: str
    file: str
    runtime: Runtime
    precision: Literal["f32"] | None = None

    @property
    def key(self) -> str:
        """How results name it, the same on every machine."""
        return "/".join((self.file, self.runtime, *(["f32"] if self.precision else [])))


RECIPES: dict[str, tuple[str, dict[str, int]]] = {
    "w8a8": ("fast-w8a8", {"iters": 0}),
    "w4a8": ("fast-w8a8", {"iters": 0, "wbits": 4}),
    "w4a4": ("fast-w4a4", {"iters": 0}),
    "w3a3": ("fast-w3a3", {"iters": 0}),
    # Calibration gives all tokens one scale; two steps move each token's and head's to a value of its own.
    "paper-w4a4": (
        "paper-w4a4",
        {"iters": 2, "batch_size": 4, "recon_samples": 16, "fisher_samples": 16},
    ),
}
"""Of each run: its recipe and what overrides it. Speed does not depend on how far reconstruction went."""

FLOAT = Contestant("float", "float", "ONNX Runtime")
"""What the others are compared with."""

CONTESTANTS = (
    FLOAT,
    Contestant("quantize_static", "static", "ONNX Runtime"),
    Contestant("quantize_static, products only", "static-products", "ONNX Runtime"),
    Contestant("W8/A8", "w8a8", "ONNX Runtime"),
    Contestant("W4/A8", "w4a8", "ONNX Runtime"),
    Contestant("W4/A4", "w4a4", "ONNX Runtime"),
    Contestant("W3/A3", "w3a3", "ONNX Runtime"),
    Contestant("paper W4/A4", "paper-w4a4", "ONNX Runtime"),
    Contestant("float", "float", "OpenVINO", "f32"),
    Contestant("float", "float", "OpenVINO"),
    Contestant("W8/A8, --target openvino", "openvino-w8a8", "OpenVINO", "f32"),
    Contestant("W8/A8, --target openvino", "openvino-w8a8", "OpenVINO"),
    Contestant("W4/A4, --target openvino", "openvino-w4a4", "OpenVINO", "f32"),
    Contestant("W4/A4, --target openvino", "openvino-w4a4", "OpenVINO"),
)
