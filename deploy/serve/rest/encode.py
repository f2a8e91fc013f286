"""Logits to an answer's body: JSON, or JSON with the binary tensor behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from ..batching import Answer
from ..model import ServedModel
from ..protocol import DATATYPE, bytes_tensor, classify
from .decode import BINARY_SIZE, HEADER_LENGTH

OCTETS = "application/octet-stream"


def encode(model: ServedModel, answer: Answer, *, id: str | None, classes: int, binary: bool) -> Response:
    """The answer: the best ``classes`` by name, or all logits where that is 0."""
    output: dict[str, Any] = {"name": model.predictor.output_name}
    logits = np.ascontiguousarray(answer.logits, dtype=np.float32)
    tail = b""
    if classes:
        named = classify(logits, model.class_names, classes)
        output |= {"datatype": "BYTES", "shape": [len(named), len(named[0])]}
        tail = bytes_tensor(named) if binary else b""
        data: Any = [text for row in named for text in row]
    else:
        output |= {"datatype": DATATYPE, "shape": list(logits.shape)}
        tail = logits.tobytes() if binary else b""
        data = logits.ravel()
    output |= {"parameters": {BINARY_SIZE: len(tail)}} if binary else {"data": data}
    body = {"model_name": model.name, "model_version": model.version, "outputs": [output]}
    if id is not None:
        body = {"id": id, **body}
    text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"server-timing": f"queue;dur={answer.queue_ns / 1e6:.3f}, compute;dur={answer.compute_ns / 1e6:.3f}"}
    if binary:
        headers[HEADER_LENGTH] = str(len(text))
    return Response(text + tail, media_type=OCTETS if binary else "application/json", headers=headers)
