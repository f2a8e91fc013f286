"""What the server and its models say about themselves, as the protocol and Triton's extensions name it."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import Any

import orjson

from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.evaluate.endpoint import BYTES, IMAGE_EXTENSION, PROVIDER, SHA256
from fimaq.toolchain.evaluate.ort import CLASSES, PREPROCESSING

from .model import ServedModel
from .protocol import DATATYPE
from .registry import Registry
from .settings import Settings

NAME = "fimaq-tool"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    IMAGE_EXTENSION,
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"

LAYERS = "fimaq.layers"
"""Of the file's metadata: each quantized layer with its bits."""

BITS = "fimaq.bits"
"""Of a model's configuration: its bits in words."""


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": NAME, "version": version("fimaq-tool"), "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Inputs and outputs; -1 is a side that may vary."""
    batch = -1
    classes = len(model.class_names)
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_tensor(model.predictor.input_name, model.datatype, [batch, *model.image.shape])],
        "outputs": [_tensor(model.predictor.output_name, DATATYPE, [batch, classes])],
    }


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def model_config(model: ServedModel, settings: Settings) -> dict[str, Any]:
    """Triton's model configuration, as far as it means something here."""
    predictor = model.predictor
    parameters = config_parameters(predictor, predictor.provider)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": settings.versions}},
        "max_batch_size": settings.limits.batch,
        "input": [_entry(predictor.input_name, model.datatype, list(model.image.shape))],
        "output": [_entry(predictor.output_name, DATATYPE, [len(model.class_names)])],
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_CPU" if predictor.provider == "cpu" else "KIND_GPU",
                "count": settings.instances,
            }
        ],
        "default_model_filename": predictor.model.rpartition("/")[2],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }


def _entry(name: str, datatype: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{datatype}", "dims": dims}


def config_parameters(predictor: OrtPredictor, provider: str) -> dict[str, str]:
    """What a configuration's parameters carry, so that the model can be evaluated through the wire without its file."""
    return {
        PREPROCESSING: predictor.preprocessing.to_json(),
        CLASSES: orjson.dumps(dict(predictor.classes)).decode(),
        SHA256: predictor.sha256,
        BYTES: str(predictor.bytes),
        BITS: bits(predictor.metadata.get(LAYERS)),
        PROVIDER: provider,
    }


def bits(layers: str | None) -> str:
    """``W4/A4``, or ``W4/A4 (49 layers), W4/A8 (1), A4 products (24)``; ``float`` where nothing is quantized.

    Products of attention have no weights; they are left out where they have the bits of the only kind of layer.
    """
    try:
        found = [(layer["weight_bits"], layer["activation_bits"]) for layer in orjson.loads(layers or "[]")]
    except (ValueError, TypeError, KeyError):
        return "unknown"
    weighted = Counter((weight, activation) for weight, activation in found if weight is not None)
    products = Counter(activation for weight, activation in found if weight is None)
    if len(weighted) == 1 and not products.keys() - {activation for _, activation in weighted}:
        ((weight, activation),) = weighted
        return f"W{weight}/A{activation}"
    kinds = [(f"W{weight}/A{activation}", count) for (weight, activation), count in weighted.most_common()]
    kinds += [(f"A{activation} products", count) for activation, count in products.most_common()]
    (most, count), *others = kinds or [("float", 0)]
    return ", ".join([f"{most} ({count} layers)", *(f"{kind} ({n})" for kind, n in others)]) if count else most


def statistics(models: list[ServedModel]) -> dict[str, Any]:
    """Triton's statistics of models."""
    return {
        "model_stats": [
            {"name": model.name, "version": model.version, **model.statistics.to_json()} for model in models
        ]
    }


def index(registry: Registry, ready_only: bool) -> list[dict[str, str]]:
    """Triton's repository index."""
    return [vars(entry).copy() for entry in registry.index() if entry.state == "READY" or not ready_only]
