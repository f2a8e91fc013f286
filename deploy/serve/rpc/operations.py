"""Everything but inference over gRPC; what is said comes from the same place as over HTTP."""

from __future__ import annotations

from typing import Any

from .. import describe
from ..errors import Forbidden, Malformed, NotFound
from ..model import ServedModel
from ..service import Service
from .messages import filled, parameters


async def server_live(service: Service, request: Any) -> Any:
    """The process answers."""
    return filled("inference.ServerLiveResponse", {"live": True})


async def server_ready(service: Service, request: Any) -> Any:
    """Whether inference requests are taken."""
    return filled("inference.ServerReadyResponse", {"ready": service.ready})


async def server_metadata(service: Service, request: Any) -> Any:
    """Name, version and extensions."""
    return filled("inference.ServerMetadataResponse", describe.server_metadata())


async def model_ready(service: Service, request: Any) -> Any:
    """Whether a model can be asked."""
    try:
        _model(service, request)
    except NotFound:
        return filled("inference.ModelReadyResponse", {"ready": False})
    return filled("inference.ModelReadyResponse", {"ready": service.ready})


async def model_metadata(service: Service, request: Any) -> Any:
    """Inputs and outputs of a model."""
    model = _model(service, request)
    return filled(
        "inference.ModelMetadataResponse", describe.model_metadata(model, service.registry.versions(model.name))
    )


async def model_config(service: Service, request: Any) -> Any:
    """Triton's configuration of a model."""
    config = describe.model_config(_model(service, request), service.settings)
    return filled("inference.ModelConfigResponse", {"config": config})


async def model_statistics(service: Service, request: Any) -> Any:
    """Counters of one model, or of all."""
    models = [_model(service, request)] if request.name else list(service.registry)
    return filled("inference.ModelStatisticsResponse", describe.statistics(models))


async def repository_index(service: Service, request: Any) -> Any:
    """What lies in the repository, and its state."""
    return filled("inference.RepositoryIndexResponse", {"models": describe.index(service.registry, request.ready)})


async def repository_model_load(service: Service, request: Any) -> Any:
    """Load or reload a model from the repository."""
    _require_admin(service)
    if parameters(request.parameters):
        raise Malformed("a model is loaded from the repository as it is there; wanted no parameters.")
    await service.registry.load(request.model_name)
    return filled("inference.RepositoryModelLoadResponse", {})


async def repository_model_unload(service: Service, request: Any) -> Any:
    """Stop serving a model."""
    _require_admin(service)
    await service.registry.unload(request.model_name)
    return filled("inference.RepositoryModelUnloadResponse", {})


def _model(service: Service, request: Any) -> ServedModel:
    return service.registry.get(request.name, request.version or None)


def _require_admin(service: Service) -> None:
    if not service.settings.admin:
        raise Forbidden("loading and unloading is not allowed here. Start the server with --admin to allow it.")
