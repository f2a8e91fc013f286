"""The one operation that matters: images in, classes out."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ..errors import DeadlineExceeded, Malformed, UnsupportedMedia
from ..images import FORMATS, to_input
from ..model import ServedModel
from ..protocol import CLASSIFICATION, classes
from ..service import Service
from ..waiting import answered
from .body import read_body
from .decode import BINARY_OUTPUT, InferRequest, decode, header_length
from .encode import encode
from .exchange import LOST

FORM = "multipart/form-data"
"""What `curl -F` sends."""

NAMED = 5
"""Classes an answer to an image names unless told otherwise."""


async def infer(request: Request) -> Response:
    """Answer one inference request; a place in the model's queue is taken before the body is read."""
    service: Service = request.state.service
    limits = service.settings.limits
    loop = asyncio.get_running_loop()
    started = loop.time()
    model = service.registry.get(request.path_params["model"], request.path_params.get("version"))
    with model.place():
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media.startswith("image/") and media not in FORMATS:
            raise UnsupportedMedia(f"the content type is {media[:40]!r}; wanted {', '.join(FORMATS)}, or a tensor.")
        if media == FORM:
            raise UnsupportedMedia(f"the content type is {media}; send the image, or the JSON, as the whole body.")
        length = header_length(request.headers)
        body = await read_body(request, limits.body, started + limits.seconds, aligned_at=length or 0)
        if media in FORMATS:
            wished = await _image(request, bytes(body), model, service, started + limits.seconds)
        else:
            wished = decode(body, length, model, limits)
        lost = request.scope.get("extensions", {}).get(LOST)
        answer = await answered(model.submit(wished.images), started + wished.seconds, lost)
        model.check(answer)
    request.state.log |= {
        "model": model.name,
        "version": model.version,
        "images": len(wished.images),
        "queue_ms": round(answer.queue_ns / 1e6, 2),
        "compute_ms": round(answer.compute_ns / 1e6, 2),
    }
    return encode(model, answer, id=wished.id, classes=wished.classes, binary=wished.binary)


async def _image(request: Request, body: bytes, model: ServedModel, service: Service, deadline: float) -> InferRequest:
    """One encoded image as the whole body; what is wished for is in the query."""
    if unknown := sorted(request.query_params.keys() - {CLASSIFICATION, BINARY_OUTPUT}):
        raise Malformed(f"the query has {unknown[0][:40]!r}; wanted {CLASSIFICATION} or {BINARY_OUTPUT} only.")
    named = request.query_params.get(CLASSIFICATION, str(NAMED))
    binary = request.query_params.get(BINARY_OUTPUT, "false")
    if not named.isdecimal() or len(named) > 9 or binary not in ("true", "false"):
        raise Malformed(
            f"the query has {CLASSIFICATION}={named[:20]} and {BINARY_OUTPUT}={binary[:20]}; "
            "wanted a number of classes, 0 for the logits, and true or false."
        )
    limits = service.settings.limits
    decoding = asyncio.get_running_loop().run_in_executor(service.decoders, to_input, body, model.image, limits.pixels)
    try:
        async with asyncio.timeout_at(deadline):
            images = await decoding
    except TimeoutError:
        raise DeadlineExceeded("the image was not decoded in time. Send it again later, or a smaller one.") from None
    return InferRequest(images, id=None, classes=classes(int(named)), binary=binary == "true", seconds=limits.seconds)
