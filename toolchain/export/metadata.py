"""What every exported file says about itself (``metadata_props``); evaluation, serving and the gate read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, final

import onnx_ir as ir

from ..preprocess import Preprocessing
from ..runtime import EXACT_PAIRS, SESSION_CONFIG

FORMAT = "1"

FloatType = Literal["float32", "float16"]
"""What a float file computes in."""


@final
@dataclass(frozen=True)
class Description:
    """The metadata of one file; ``recipe`` and ``run_sha256`` are None and ``layers`` empty for a float model.

    ``dtype`` is what is computed in where no integers are.
    """

    model: str
    weights_sha256: str
    target: str
    preprocessing: Preprocessing
    classes: Mapping[str, Any]
    recipe: Mapping[str, Any] | None = None
    layers: Sequence[Mapping[str, Any]] = ()
    run_sha256: str | None = None
    dtype: FloatType = "float32"

    def props(self) -> dict[str, str]:
        """``fimaq.*`` keys and their values; equal models have equal metadata, so no time stamp is among them."""
        provenance = {
            "tool_version": version("fimaq-tool"),
            "run_sha256": self.run_sha256,
            "target": self.target,
            "weights_sha256": self.weights_sha256,
            "model": self.model,
            "dtype": self.dtype,
        }
        return {
            "fimaq.format": FORMAT,
            "fimaq.preprocessing": self.preprocessing.to_json(),
            "fimaq.classes": _json(self.classes),
            "fimaq.recipe": _json(self.recipe),
            "fimaq.layers": _json(list(self.layers)),
            "fimaq.provenance": _json(provenance),
            "fimaq.session": _json({"always": SESSION_CONFIG, "x86 without VNNI": EXACT_PAIRS}),
        }

    def write_to(self, model: ir.Model) -> None:
        """Put the metadata on a model, and this tool's name."""
        model.metadata_props.clear()
        model.metadata_props.update(self.props())
        model.producer_name, model.producer_version = "fimaq-tool", version("fimaq-tool")
        model.graph.name = self.model


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
