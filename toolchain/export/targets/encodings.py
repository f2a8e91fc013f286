"""The grids of a finished file as AIMET encodings, which Qualcomm's converters take as quantization overrides.

Version 0.6.1 of the format, as in AIMET's documentation, "Encoding Format Specification": for each tensor by its name,
one entry, or for a weight one for each output channel. ``offset`` is the negative of the zero point of unsigned codes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx

from .lint import Reader

VERSION = "0.6.1"


def encodings(model: onnx.ModelProto) -> bytes:
    """JSON with ``activation_encodings`` and ``param_encodings``.

    An activation is named after the tensor that QuantizeLinear reads, a parameter after the codes in the file.
    """
    graph = Reader(model)
    activations = {node.input[0]: _entries(graph, node) for node in graph.of_type("QuantizeLinear")}
    constants = [node for node in graph.of_type("DequantizeLinear") if graph.is_weight(node)]
    parameters = {node.input[0]: _entries(graph, node) for node in constants}
    weights = [entries[0] for name, entries in parameters.items() if name.endswith(".weight.codes")]
    content = {
        "version": VERSION,
        "activation_encodings": activations,
        "param_encodings": parameters,
        "quantizer_args": {
            "activation_bitwidth": max(entries[0]["bitwidth"] for entries in activations.values()),
            "dtype": "int",
            "is_symmetric": "True",
            "param_bitwidth": max(entry["bitwidth"] for entry in weights),
            "per_channel_quantization": "True",
            "quant_scheme": "post_training_tf",
        },
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _entries(graph: Reader, node: onnx.NodeProto) -> list[dict[str, Any]]:
    scale, zero_point = graph.array(node.input[1]), graph.array(node.input[2])
    assert scale is not None and zero_point is not None
    kind = zero_point.dtype.name
    bits, signed = int("".join(filter(str.isdigit, kind))), kind.startswith("int")
    pairs = zip(scale.reshape(-1).tolist(), zero_point.astype(np.int64).reshape(-1).tolist(), strict=True)
    return [_entry(step, zero + (2 ** (bits - 1) if signed else 0), bits, signed) for step, zero in pairs]


def _entry(step: float, zero: int, bits: int, signed: bool) -> dict[str, Any]:
    return {
        "bitwidth": bits,
        "dtype": "int",
        "is_symmetric": str(signed),
        "max": step * (2**bits - 1 - zero),
        "min": -step * zero,
        "offset": -zero,
        "scale": step,
    }
