"""Inference over gRPC: the same rules as over HTTP, other bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from ..batching import Array
from ..errors import Malformed
from ..protocol import DATATYPE, TensorHeader, bytes_tensor, check_input, check_outputs, classify, seconds
from ..service import Service
from ..waiting import answered
from .messages import message, parameters


async def infer(service: Service, request: Any) -> Any:
    """Answer a ModelInferRequest with a ModelInferResponse, logits or class names as raw contents.

    A call whose own deadline is over, or whose client has gone, is cancelled by gRPC.
    """
    limits = service.settings.limits
    started = asyncio.get_running_loop().time()
    model = service.registry.get(request.model_name, request.model_version or None)
    with model.place():
        headers = [TensorHeader(item.name, item.datatype, item.shape) for item in request.inputs]
        images = _images(request, check_input(model, headers, limits.batch))
        wished = [(output.name, parameters(output.parameters)) for output in request.outputs]
        classes = check_outputs(model, wished)
        allowed = seconds(parameters(request.parameters), limits.seconds)
        answer = await answered(model.submit(images), started + allowed)
        model.check(images, answer)
    response = message("inference.ModelInferResponse")(
        model_name=model.name, model_version=model.version, id=request.id
    )
    output = response.outputs.add(name=model.predictor.output_name, datatype="BYTES" if classes else DATATYPE)
    if classes:
        named = classify(answer.logits, model.class_names, classes)
        output.shape.extend([len(named), len(named[0])])
        response.raw_output_contents.append(bytes_tensor(named))
    else:
        output.shape.extend(answer.logits.shape)
        response.raw_output_contents.append(np.ascontiguousarray(answer.logits, dtype="<f4").tobytes())
    return response


def _images(request: Any, shape: tuple[int, ...]) -> Array:
    """Raw or typed contents as float32 of ``shape``."""
    wanted = int(np.prod(shape))
    typed = request.inputs[0].contents.fp32_contents
    raw = request.raw_input_contents
    if raw and (len(raw) != 1 or len(raw[0]) != 4 * wanted or len(typed)):
        also = " beside typed contents" if len(typed) else ""
        raise Malformed(
            f"raw_input_contents has {len(raw)} item(s), the first of {len(raw[0])} bytes{also}; "
            f"wanted one of {4 * wanted} bytes for shape {list(shape)}."
        )
    if not raw and len(typed) != wanted:
        raise Malformed(
            f"fp32_contents has {len(typed)} numbers; wanted {wanted} for shape {list(shape)}, or raw_input_contents."
        )
    images = np.frombuffer(raw[0], dtype="<f4") if raw else np.fromiter(typed, dtype=np.float32, count=wanted)
    return images.reshape(shape)
