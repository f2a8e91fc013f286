"""Inference over gRPC: the same rules as over HTTP, other bytes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np

from ..batching import Images
from ..errors import Malformed
from ..model import ServedModel
from ..protocol import DATATYPE, TensorHeader, bytes_tensor, check_input, check_outputs, classify, seconds
from ..service import Service
from ..waiting import answered
from .messages import message, parameters

TYPED = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
"""Fields of typed contents by datatype; those of UINT8 are uint32."""


async def infer(service: Service, request: Any) -> Any:
    """Answer a ModelInferRequest with a ModelInferResponse, logits or class names as raw contents.

    A call whose own deadline is over, or whose client has gone, is cancelled by gRPC.
    """
    limits = service.settings.limits
    started = asyncio.get_running_loop().time()
    model = service.registry.get(request.model_name, request.model_version or None)
    with model.place():
        headers = [TensorHeader(item.name, item.datatype, item.shape) for item in request.inputs]
        images = _images(request, check_input(model, headers, limits.batch), model)
        wished = [(output.name, parameters(output.parameters)) for output in request.outputs]
        classes = check_outputs(model, wished)
        allowed = seconds(parameters(request.parameters), limits.seconds)
        answer = await answered(model.submit(images), started + allowed)
        model.check(answer)
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


def _images(request: Any, shape: tuple[int, ...], model: ServedModel) -> Images:
    """Raw or typed contents as the model's numbers, of ``shape``."""
    dtype, field = model.image.dtype, TYPED[model.datatype]
    wanted = math.prod(shape)
    size = dtype.itemsize * wanted
    typed = getattr(request.inputs[0].contents, field)
    raw = request.raw_input_contents
    if raw and (len(raw) != 1 or len(raw[0]) != size or len(typed)):
        also = " beside typed contents" if len(typed) else ""
        raise Malformed(
            f"raw_input_contents has {len(raw)} item(s), the first of {len(raw[0])} bytes{also}; "
            f"wanted one of {size} bytes for shape {list(shape)}."
        )
    if not raw and len(typed) != wanted:
        raise Malformed(
            f"{field} has {len(typed)} numbers; wanted {wanted} for shape {list(shape)}, or raw_input_contents."
        )
    if raw:
        return np.frombuffer(raw[0], dtype=dtype.newbyteorder("<")).reshape(shape)
    if model.image.kind == "uint8" and max(typed) > np.iinfo(dtype).max:
        raise Malformed(f"{field} holds {max(typed)}, which is no pixel; wanted whole numbers from 0 to 255.")
    return np.fromiter(typed, dtype=dtype, count=wanted).reshape(shape)
