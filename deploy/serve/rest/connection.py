"""A client's connection: bytes are received where they are wanted, and requests answered one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, final

import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.server import ServerState

from .exchange import Exchange

log = logging.getLogger(__name__)

KEEP_ALIVE = 60.0
"""Seconds for a head to come, what is left of a refused body, or a part of an answer to be taken; longer than most
clients keep a connection that is idle, so that they are the ones to close it."""

HEAD = 16 * 1024
"""Bytes received at a time while nobody has given a place for them: a request's head, and what comes with it."""

NOTHING = memoryview(bytearray())
SCRATCH = memoryview(bytearray(256 * 1024))
"""Where bytes go that nobody gave a place for. All connections share it: what is kept is copied out at once."""


@final
class Connection(asyncio.BufferedProtocol):
    """What uvicorn makes of a connection, in place of its own classes, which hand a body on in parts to be joined.

    One task reads, answers and reads again; nothing else may read. ``lost`` is done when the client has gone, which is
    noticed unless it sends as much as HEAD while it waits for an answer. ``missing`` is how many of the bytes that were
    asked for last have not come: none, unless that was cancelled or the client has gone.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app, self._server = config.loaded_app, server_state
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._early = bytearray()
        self._target, self._unwanted, self.missing = NOTHING, 0, 0
        self._arrival: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle, self._last = True, False

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to answer."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer, self.own = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        self._server.connections.add(self)  # type: ignore[arg-type]  # its set is of uvicorn's own classes
        task = self._loop.create_task(self._serve())
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what has come."""
        return self._target or SCRATCH[: self._unwanted or HEAD]

    def buffer_updated(self, nbytes: int) -> None:
        """It is there. Reading stops where more has come than anyone asked for."""
        if self._target:
            self._target = self._target[nbytes:]
        elif self._unwanted:
            self._unwanted -= nbytes
        else:
            self._early += SCRATCH[:nbytes]
            if len(self._early) >= HEAD:
                self._transport.pause_reading()
        if not (self._target or self._unwanted):
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or the connection was closed here."""
        self._server.connections.discard(self)
        self.lost.set_result(None)
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does."""
        self._writable.set()

    # What uvicorn calls

    def shutdown(self) -> None:
        """Close when the request that is being answered is answered."""
        self._last = True
        if self._idle and not self._early:
            self._transport.close()

    # What an exchange calls

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer."""
        return self._server.default_headers

    async def read(self) -> bytes:
        """What has come, a byte at least; nothing once the client has gone."""
        if not self._early and not self.lost.done():
            await self._arrived()
        data, self._early = bytes(self._early), bytearray()
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read too much, before more is received."""
        self._early += data
        self._resume()

    async def fill(self, view: memoryview) -> None:
        """Receive as many bytes as ``view`` has, into it. Raises ClientDisconnect where the client goes before that."""
        early = min(len(view), len(self._early))
        view[:early] = self._early[:early]
        del self._early[:early]
        self._target = view[early:]
        await self._received()

    async def drop(self, count: int) -> None:
        """Receive ``count`` bytes and forget them. Raises ClientDisconnect as ``fill`` does."""
        early = min(count, len(self._early))
        del self._early[:early]
        self._unwanted = count - early
        await self._received()

    async def write(self, data: bytes) -> None:
        """Send, and wait a while for a client that does not read; nothing happens once it has gone."""
        if not self._transport.is_closing():
            self._transport.write(data)
            if not self._writable.is_set():
                with self.patience():
                    await self._writable.wait()

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Cut the connection where it takes longer than KEEP_ALIVE; to close it waits for who does not read."""
        timer = self._loop.call_later(KEEP_ALIVE, self._transport.abort)
        try:
            yield
        finally:
            timer.cancel()

    async def _serve(self) -> None:
        try:
            while not self._last:
                self._idle = True
                exchange = Exchange(self)
                with self.patience():
                    scope = await exchange.head()
                self._idle = False
                if scope is None:
                    break
                await self._app(scope, exchange.receive, exchange.send)
                if not await exchange.finish():
                    break
        except Exception:
            log.exception("internal error")
        finally:
            self._transport.close()

    async def _received(self) -> None:
        """What was asked for is there."""
        try:
            while self._target or self._unwanted:
                if self.lost.done():
                    raise ClientDisconnect
                await self._arrived()
        finally:
            self.missing = len(self._target) + self._unwanted
            self._target, self._unwanted = NOTHING, 0
            self._resume()

    async def _arrived(self) -> None:
        self._arrival = self._loop.create_future()
        self._resume()
        try:
            await self._arrival
        finally:
            self._arrival = None

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _resume(self) -> None:
        if len(self._early) < HEAD and not self._transport.is_closing():
            self._transport.resume_reading()
