"""Everything but inference: health, metadata, configuration, statistics, the repository."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from .. import describe
from ..errors import Forbidden, Malformed, NotFound, Unavailable
from ..metrics import CONTENT_TYPE
from ..model import ServedModel
from ..service import Service
from .answers import json
from .body import read_body

SMALL_BODY = 64 * 1024
"""Bytes of a repository request, which holds a few parameters at most."""


async def live(request: Request) -> Response:
    """The process answers."""
    return json({"live": True})


async def ready(request: Request) -> Response:
    """Whether inference requests are taken: not while loading, nor while draining."""
    is_ready = _service(request).ready
    return json({"ready": is_ready}, 200 if is_ready else 503)


async def server(request: Request) -> Response:
    """Name, version and extensions."""
    return json(describe.server_metadata())


async def model(request: Request) -> Response:
    """Inputs and outputs of a model."""
    found = _model(request)
    return json(describe.model_metadata(found, _service(request).registry.versions(found.name)))


async def model_ready(request: Request) -> Response:
    """Whether a model can be asked."""
    try:
        found = _model(request)
    except NotFound as error:
        raise NotFound(f"not ready: {error}") from error
    if _service(request).draining:
        raise Unavailable("the server is about to stop. Ask another one.")
    return json({"name": found.name, "ready": True})


async def config(request: Request) -> Response:
    """Triton's configuration of a model, with what is needed to evaluate it."""
    return json(describe.model_config(_model(request), _service(request).settings))


async def statistics(request: Request) -> Response:
    """Counters of one model, or of all."""
    models = [_model(request)] if "model" in request.path_params else list(_service(request).registry)
    return json(describe.statistics(models))


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(_service(request).metrics.text(), headers={"content-type": CONTENT_TYPE})


async def index(request: Request) -> Response:
    """What lies in the repository, and its state."""
    wanted = (await _parameters(request)).get("ready", False)
    if not isinstance(wanted, bool):
        raise Malformed("ready is neither true nor false.")
    return json(describe.index(_service(request).registry, wanted))


async def load(request: Request) -> Response:
    """Load or reload a model from the repository."""
    _require_admin(request)
    if (await _parameters(request)).get("parameters"):
        raise Malformed("a model is loaded from the repository as it is there; wanted no parameters.")
    await _service(request).registry.load(request.path_params["model"])
    return json({})


async def unload(request: Request) -> Response:
    """Stop serving a model."""
    _require_admin(request)
    await _parameters(request)
    await _service(request).registry.unload(request.path_params["model"])
    return json({})


def _service(request: Request) -> Service:
    service: Service = request.state.service
    return service


def _model(request: Request) -> ServedModel:
    return _service(request).registry.get(request.path_params["model"], request.path_params.get("version"))


def _require_admin(request: Request) -> None:
    if not _service(request).settings.admin:
        raise Forbidden("loading and unloading is not allowed here. Start the server with --admin to allow it.")


async def _parameters(request: Request) -> dict[str, Any]:
    """The JSON object in the body, empty where there is no body."""
    seconds = _service(request).settings.limits.seconds
    body = await read_body(request, SMALL_BODY, asyncio.get_running_loop().time() + seconds)
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the request is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise Malformed("the request is no JSON object.")
    return value
