"""The gRPC server, on the same event loop as the HTTP one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Self, final

import grpc

from fimaq.toolchain.errors import EnvironmentProblem

from ..errors import BodyTimeout, Malformed, RequestError, Unavailable
from ..service import Service
from . import operations
from .infer import infer
from .messages import SERVICE, message, service

log = logging.getLogger(__name__)

Handler = Callable[[Service, Any], Awaitable[Any]]
Context = Any  # grpc.aio.ServicerContext: grpc has no types

HANDLERS: dict[str, Handler] = {
    "ServerLive": operations.server_live,
    "ServerReady": operations.server_ready,
    "ServerMetadata": operations.server_metadata,
    "ModelReady": operations.model_ready,
    "ModelMetadata": operations.model_metadata,
    "ModelInfer": infer,
    "ModelConfig": operations.model_config,
    "ModelStatistics": operations.model_statistics,
    "RepositoryIndex": operations.repository_index,
    "RepositoryModelLoad": operations.repository_model_load,
    "RepositoryModelUnload": operations.repository_model_unload,
}
"""Every method of the service, by its published name."""

PROBES = ("ServerLive", "ServerReady")
"""They need no key, and no line in the log each time."""
REQUEST_ID = "x-request-id"
ANSWER_ROOM = 2**20
"""Bytes of a message besides its tensors."""

CALLS_A_PLACE = 2
"""Calls a place in the queue; more are refused unread, since gRPC reads a message before anyone is asked."""


@final
class RpcServer:
    """A server that was started; ``address`` is where it listens."""

    def __init__(self, server: grpc.aio.Server, address: str) -> None:
        self._server, self.address = server, address

    @classmethod
    async def start(cls, service: Service) -> Self:
        """Listen on the settings' host and port. Raises EnvironmentProblem where that cannot be done."""
        settings = service.settings
        server = grpc.aio.server(
            maximum_concurrent_rpcs=CALLS_A_PLACE * settings.limits.queue,
            options=[
                ("grpc.max_receive_message_length", settings.limits.body + ANSWER_ROOM),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # else a second server takes half of the requests, silently
            ],
        )
        server.add_generic_rpc_handlers([_handlers(service)])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"cannot listen for gRPC on {host}:{settings.grpc_port}. Choose another --grpc-port."
            ) from error
        await server.start()
        return cls(server, f"{host}:{port}")

    async def stop_when(self, ending: asyncio.Event, seconds: float) -> None:
        """Then take no more calls, and wait that long for those that are being answered."""
        await ending.wait()
        await self._server.stop(seconds)


def _handlers(serving: Service) -> grpc.GenericRpcHandler:
    """Every method, with the messages its description names.

    One message comes and one goes; to gRPC they are streams of one, since only those are read when they are asked for.
    """
    methods = {}
    for method in service().methods:
        request, response = message(method.input_type.full_name), message(method.output_type.full_name)
        methods[method.name] = grpc.stream_unary_rpc_method_handler(
            _guarded(serving, method.name),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _guarded(serving: Service, name: str) -> Callable[[AsyncIterator[Any], Context], Awaitable[Any]]:
    """A handler behind the key, the clock, the log, the metrics and the trace; errors become gRPC's codes."""

    async def handle(messages: AsyncIterator[Any], context: Context) -> Any:
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        fields = {"request_id": headers.get(REQUEST_ID) or secrets.token_hex(8), "method": name}
        started, code = time.perf_counter(), "CANCELLED"
        with serving.tracing.request(headers) as span:
            try:
                if serving.keys is not None and name not in PROBES:
                    serving.keys.check(headers.get("authorization"))
                request = await _received(messages, serving.settings.limits.seconds)
                response = await HANDLERS[name](serving, request)
                code = "OK"
                return response
            except RequestError as error:
                code = error.code
                await _abort(context, error)
            except Exception:
                log.exception("internal error", extra={"fields": fields})
                code = RequestError.code
                known_as = f"internal error; the server's log has it as request {fields['request_id']}."
                await _abort(context, RequestError(known_as))
            finally:
                seconds = time.perf_counter() - started
                span.end(name, code, code == RequestError.code, fields)
                serving.metrics.answered("grpc", name, code, seconds)
                level = logging.DEBUG if name in PROBES else logging.INFO
                log.log(level, "request", extra={"fields": {**fields, "code": code, "ms": round(1e3 * seconds, 2)}})

    return handle


async def _received(messages: AsyncIterator[Any], seconds: float) -> Any:
    """The message of a call. Raises BodyTimeout where it does not come, Malformed where there is none."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages)
    except TimeoutError:
        raise BodyTimeout("the message did not arrive in time. Send it faster, or a smaller one.") from None
    except StopAsyncIteration:
        raise Malformed("the call holds no message; wanted one.") from None


async def _abort(context: Context, refusal: RequestError) -> NoReturn:
    retry = (("retry-after", str(refusal.retry_after)),) if isinstance(refusal, Unavailable) else ()
    await context.abort(grpc.StatusCode[refusal.code], str(refusal), retry)
    raise AssertionError("abort raises")
