"""One request and its answer: HTTP/1.1 by h11 on one side, ASGI on the other."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, final
from urllib.parse import unquote

import h11
import orjson
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from ..errors import Malformed

if TYPE_CHECKING:
    from .connection import Connection

RECEIVE_INTO, LOST = "fimaq.receive_into", "fimaq.lost"
"""ASGI extensions. The first is there for a body whose length is known: awaited with a memoryview, it receives as many
bytes as that has into it, or raises Starlette's ClientDisconnect. The second is a future, done when the client has
gone."""

Headers = list[tuple[bytes, bytes]]

CLOSE = (b"connection", b"close")

PART = 64 * 1024
"""Bytes of a message at most, where a body of known length is read by ASGI's own means."""

DROPPED = 64 * 2**20
"""Bytes at most of a body nobody read that are received all the same, so that the client gets to read why."""


@final
class Exchange:
    """h11 reads the head and takes a chunked body apart; a body of known length it never sees.

    For the task of a connection: ``head``, then an application with ``receive`` and ``send``, then ``finish``.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._h11 = h11.Connection(h11.SERVER)
        self._left: int | None = None  # bytes of the body that were not received; None while only h11 can tell
        self._head_only = self._uninvited = self._end_told = self._answered = False
        self._last = True
        self._start: Message = {}

    async def head(self) -> Scope | None:
        """The request as ASGI describes it; None where there is none. What is no HTTP is answered here."""
        try:
            event = await self._event()
        except ClientDisconnect:
            return None
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return None
        assert isinstance(event, h11.Request)
        return self._scope(event)

    async def receive(self) -> Message:
        """ASGI: the next part of the body; after the last one, that the client has gone."""
        try:
            part = await self._part()
        except ClientDisconnect:
            return {"type": "http.disconnect"}
        self._end_told = self._left == 0
        return {"type": "http.request", "body": part, "more_body": not self._end_told}

    async def receive_into(self, view: memoryview) -> None:
        """The extension RECEIVE_INTO; ``view`` has at most as many bytes as are left."""
        assert self._left is not None
        await self._invite()
        try:
            await self._connection.fill(view)
        finally:  # given up in the middle, the rest of it is still a body and no request
            self._left -= len(view) - self._connection.missing

    async def send(self, message: Message) -> None:
        """ASGI: an answer of known length; its head goes out together with the first part of its body.

        Nothing is sent to a client that has gone: what the application answers then has a status for the log only.
        """
        if self._connection.lost.done():
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        data: bytes = b"" if self._head_only else message.get("body", b"")
        if not self._answered:
            self._answered = True
            data = self._answer_head(self._start["status"], list(self._start["headers"])) + data
        await self._connection.write(data)

    async def finish(self) -> bool:
        """Drop what is left of the body; whether another request may follow on the connection.

        It is dropped before a connection is closed, too: a reset would take the answer from who still sends.
        """
        if self._uninvited or not self._answered:
            return False
        if self._left == 0:
            return not self._last
        with self._connection.patience():
            return await self._drop_body() and not self._last

    def _scope(self, request: h11.Request) -> Scope:
        headers = list(request.headers)
        named = dict(headers)
        extensions: dict[str, Any] = {LOST: self._connection.lost}
        if b"transfer-encoding" not in named:
            self._left = int(named.get(b"content-length", b"0"))
            extensions[RECEIVE_INTO] = self.receive_into
            self._connection.unread(self._h11.trailing_data[0])
        self._head_only = request.method == b"HEAD"
        self._uninvited = self._h11.they_are_waiting_for_100_continue
        self._last = (
            request.http_version != b"1.1"
            or any(name == b"connection" and b"close" in value.lower() for name, value in headers)
            or {b"transfer-encoding", b"content-length"} <= named.keys()  # RFC 9112 6.1: smuggling looks like that
        )
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "server": self._connection.own,
            "client": self._connection.peer,
            "scheme": "http",
            "method": request.method.decode("ascii"),
            "root_path": "",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "extensions": extensions,
        }

    async def _drop_body(self) -> bool:
        """Whether the end of the body came, or as much of a longer one as is dropped."""
        try:
            dropped = 0
            while self._left is None and dropped < DROPPED:
                dropped += len(await self._part())
            if self._left is None:
                return False
            await self._connection.drop(min(self._left, DROPPED))
        except (ClientDisconnect, Malformed):
            return False
        return True

    async def _part(self) -> bytes:
        """The next bytes of the body, none at its end. Raises Malformed for chunks that are none."""
        if self._left is None:
            await self._invite()
            try:
                event = await self._event()
            except h11.RemoteProtocolError as error:
                self._last = True
                raise Malformed(f"the body's chunks cannot be read ({error}).") from error
            if isinstance(event, h11.Data):
                return bytes(event.data)
            self._left = 0
            self._connection.unread(self._h11.trailing_data[0])
        if self._left:
            part = bytearray(min(self._left, PART))
            await self.receive_into(memoryview(part))
            return bytes(part)
        if self._end_told:
            await asyncio.shield(self._connection.lost)
            raise ClientDisconnect
        return b""

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            data = await self._connection.read()
            if not data:
                raise ClientDisconnect
            self._h11.receive_data(data)
        return event

    async def _invite(self) -> None:
        """Ask for the body, if the client waits to be asked."""
        if self._uninvited:
            self._uninvited = False
            await self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        body = orjson.dumps({"error": f"what came is no HTTP request ({error})."})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._connection.write(self._answer_head(error.error_status_hint, headers) + body)

    def _answer_head(self, status: int, headers: Headers) -> bytes:
        """The answer's first lines; they say whether it is the connection's last. No value may hold a line's end."""
        if self._uninvited or (self._left or 0) > DROPPED:
            self._last = True
        if CLOSE in headers:
            self._last = True
        elif self._last:
            headers.append(CLOSE)
        lines = [b"%b: %b" % header for header in (*self._connection.default_headers, *headers)]
        head = b"\r\n".join([_STATUS_LINES[status], *lines, b"", b""])
        if head.count(b"\n") != len(lines) + 2:
            raise ValueError(f"a header holds a line's end: {headers}")
        return head


_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
