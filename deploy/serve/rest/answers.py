"""Answers that are not tensors: JSON, and refusals in the protocol's form."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import RequestError, Unauthenticated, Unavailable


def json(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def refusal(error: RequestError) -> Response:
    """``{"error": text}`` with the status of its class, and when to come back where that is known."""
    response = json({"error": str(error)}, error.status)
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(error.retry_after)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = "Bearer"
    return response


def no_route(method: str, path: str, error: HTTPException) -> Response:
    """For a path or method that is not there."""
    text = f"{method} {path[:200]}: {error.detail}. GET /openapi.json lists what there is."
    response = json({"error": text}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def failed(request_id: str) -> Response:
    """For a bug: the client learns the request's id, the log the rest."""
    return json({"error": f"internal error; the server's log has it as request {request_id}."}, 500)
