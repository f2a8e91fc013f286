"""The server's life: listen, load, serve, reload, drain, end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import uvicorn

from fimaq.toolchain.allocator import keep_freed_buffers
from fimaq.toolchain.errors import EnvironmentProblem

from .rest.app import application
from .rest.connection import Connection
from .service import Service
from .settings import Settings

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Listening:
    """Where a server that is ready listens, and what it serves."""

    url: str
    grpc: str | None
    models: tuple[str, ...]


def serve(settings: Settings, announce: Callable[[Listening], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` is called once, when requests are taken.

    SIGTERM drains: the server is not ready, goes on answering for ``settings.drain`` seconds, then finishes what it
    holds and returns. SIGINT leaves the wait out; a second signal of either kind leaves the requests, too. SIGHUP
    reads the keys and the repository again.

    Raises EnvironmentProblem where it cannot listen, and the FimaqError of a model that cannot be served.
    """
    keep_freed_buffers()
    if settings.keys is None and not _is_loopback(settings.host):
        fields = {"host": settings.host, "reason": "others can reach it, and no key is asked for: --keys FILE"}
        log.warning("open to others", extra={"fields": fields})
    with asyncio.Runner(loop_factory=_web_config(None, settings).get_loop_factory()) as runner:
        runner.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: Callable[[Listening], None]) -> None:
    service = Service(settings)
    listener = _listen(settings.host, settings.port)
    web = uvicorn.Server(_web_config(application(service), settings))
    ending, rpc, rpc_ended = asyncio.Event(), None, None
    try:
        serving = asyncio.create_task(web.serve([listener]))
        await asyncio.sleep(0)  # uvicorn takes the signals as it starts; from here on they are ours
        _handle_signals(service, web, ending)
        if settings.grpc_port is not None:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says is no line of our log
            from .rpc.server import RpcServer

            rpc = await RpcServer.start(service)
            rpc_ended = asyncio.create_task(rpc.stop_when(ending, settings.limits.seconds))
        loading = asyncio.create_task(service.registry.start())
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and loading.exception() is None:
            announce(_listening(service, listener, rpc.address if rpc else None))
            await serving
        else:
            web.should_exit = True
            await serving
            if loading.done():
                loading.result()  # raises what was wrong with a model
            loading.cancel()
    finally:
        ending.set()
        if rpc_ended is not None:
            await rpc_ended
        await service.close()


def _web_config(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # None where only the choice of event loop is asked for
        lifespan="off",
        ws="none",
        http=Connection,  # type: ignore[arg-type]  # a BufferedProtocol, which event loops take as well
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.limits.seconds) + 1,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot listen on {host} port {port} ({error.strerror or error}). Choose others with --host and --port."
        ) from error


def _listening(service: Service, listener: socket.socket, grpc: str | None) -> Listening:
    host, port = listener.getsockname()[:2]
    models = tuple(f"{model.name} version {model.version}" for model in service.registry)
    return Listening(f"http://{f'[{host}]' if ':' in host else host}:{port}", grpc, models)


def _handle_signals(service: Service, web: uvicorn.Server, ending: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop(delay: float) -> None:
        if service.draining:
            web.should_exit = web.force_exit = True
            return
        log.info("draining", extra={"fields": {"seconds": delay}})
        service.draining = True
        loop.call_later(delay, end)

    def end() -> None:
        web.should_exit = True
        ending.set()

    def reload() -> None:
        task = loop.create_task(service.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGTERM, stop, service.settings.drain)
    loop.add_signal_handler(signal.SIGINT, stop, 0.0)
    loop.add_signal_handler(signal.SIGHUP, reload)
