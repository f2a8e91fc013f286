"""What a run or an ONNX file holds: each layer's bits, and which kernel ONNX Runtime picks for it. No torch."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .artifact import TENSORS, Artifact
from .errors import InputError
from .external import stored_bytes
from .runtime import onnxruntime_module, open_session, session_config

if TYPE_CHECKING:
    import onnx

Kernel = Literal["integer", "float", "unknown"]

LAYER_KEYS = ("name", "op", "weight_bits", "activation_bits", "granularity")
LAYERS_KEY = "fimaq.layers"

INTEGER_PRODUCTS = {
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "QLinearConv",
    "NhwcQLinearConv",
}
FLOAT_PRODUCTS = {
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "MatMulNBits",
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "Attention",
    "MultiHeadAttention",
}
SILENT = 4
"""ONNX Runtime warns that an optimised model suits this machine only, which is what is wanted."""

OUTPUT = "/output"
"""End of the name the exporter gives a layer's result."""


def inspect_run(run: Path) -> dict[str, Any]:
    """Layers and size of a run folder, which is read and checked whole; kernels are decided at export (None)."""
    artifact = Artifact.load(run)
    layers = [{**{key: layer.get(key) for key in LAYER_KEYS}, "kernel": None} for layer in artifact.manifest["layers"]]
    return {
        "model": artifact.manifest["model"].get("name"),
        "sha256": artifact.manifest["sha256"],
        "layers": layers,
        "bytes": (run / TENSORS).stat().st_size,
        "optimized_ops": None,
    }


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Layers, size and the operators ONNX Runtime runs on a CPU after optimising the graph.

    A file of another tool has no layers listed. Raises InputError for a file that is missing or does not load.
    """
    metadata, graph = _optimized(path)
    listed = _layers(metadata.get(LAYERS_KEY), path)
    products = _products(graph.node, [layer["name"] for layer in listed])
    layers = [
        {**{key: layer.get(key) for key in LAYER_KEYS}, **_kernel(products.get(layer["name"], []))} for layer in listed
    ]
    return {
        "model": _provenance(metadata.get("fimaq.provenance")).get("model"),
        "layers": layers,
        "bytes": stored_bytes(path, metadata),
        "optimized_ops": dict(Counter(node.op_type for node in graph.node).most_common()),
    }


def _optimized(path: Path) -> tuple[dict[str, str], onnx.GraphProto]:
    """The metadata, and the graph as the runtime runs it (with names, without weights of external files)."""
    import onnx

    session = open_session(path, "cpu")  # says what is wrong with the file, if anything is
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    for key, value in session_config().items():
        options.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(written)
        # Otherwise an optimised model of more than 2 GiB cannot be written.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(written, load_external_data=False).graph
    return dict(session.get_modelmeta().custom_metadata_map), graph


def _layers(text: str | None, path: Path) -> list[dict[str, Any]]:
    if text is None:
        return []
    try:
        layers = json.loads(text)
        return [layer for layer in layers if isinstance(layer["name"], str)]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: its metadata {LAYERS_KEY} is not a list of layers ({error}). Export the run again."
        ) from error


def _provenance(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _products(nodes: Iterable[onnx.NodeProto], layers: Sequence[str]) -> dict[str, list[str]]:
    """Layer -> operator types of the products that compute it (several where a layer was split by heads)."""
    products: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type in INTEGER_PRODUCTS | FLOAT_PRODUCTS:
            # A fused node keeps its parts' constants and results; an input called .../output is another layer's.
            names = [node.name, *(name for name in node.input if not name.endswith(OUTPUT)), *node.output]
            owner = next((layer for name in names if (layer := _owner(name, layers))), None)
            if owner is not None:
                products.setdefault(owner, []).append(node.op_type)
    return products


def _owner(name: str, layers: Sequence[str]) -> str | None:
    """The longest layer name that ``name`` begins with, as in ``blocks.0.attn.qkv/weight/Cast``."""
    return max((layer for layer in layers if name.startswith((f"{layer}/", f"{layer}."))), key=len, default=None)


def _kernel(operators: list[str]) -> dict[str, str | None]:
    if not operators:
        return {"kernel": "unknown", "operator": None}
    kernel: Kernel = "integer" if INTEGER_PRODUCTS.issuperset(operators) else "float"
    return {"kernel": kernel, "operator": ", ".join(sorted(set(operators)))}
