"""The routes, and what stands around them."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ..service import Service
from . import operations
from .context import RequestContext
from .infer import infer
from .page import page

OPENAPI = Path(__file__).with_name("openapi.json")


def application(service: Service) -> ASGIApp:
    """The ASGI application of a service."""
    return RequestContext(Router(routes(), redirect_slashes=False), service)  # where to, a client's Host would say


def routes() -> list[Route]:
    """Every path that is answered; they are tried in this order, so the one that is asked most comes first."""
    return [
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
        Route("/", page),
        Route("/openapi.json", openapi),
        Route("/metrics", operations.metrics),
        Route("/v2", operations.server),
        Route("/v2/", operations.server),
        Route("/v2/health/live", operations.live),
        Route("/v2/health/ready", operations.ready),
        Route("/v2/models/stats", operations.statistics),
        Route("/v2/repository/index", operations.index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", operations.load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", operations.unload, methods=["POST"]),
        *_model_routes("/v2/models/{model}"),
        *_model_routes("/v2/models/{model}/versions/{version}"),
    ]


def _model_routes(path: str) -> list[Route]:
    return [
        Route(path, operations.model),
        Route(f"{path}/ready", operations.model_ready),
        Route(f"{path}/config", operations.config),
        Route(f"{path}/stats", operations.statistics),
    ]


async def openapi(request: Request) -> Response:
    """What there is, for machines."""
    return Response(OPENAPI.read_bytes(), media_type="application/json")
