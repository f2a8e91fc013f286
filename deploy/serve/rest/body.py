"""A request's body, counted and inflated as it arrives."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import final

import numpy as np
from starlette.requests import ClientDisconnect, Request

from ..errors import BodyTimeout, ClientGone, Malformed, TooLarge, UnsupportedMedia
from .exchange import RECEIVE_INTO

ALIGNMENT = 8
"""Bytes at a multiple of which a tensor must begin, so that it can be used where it lies."""

_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


async def read_body(request: Request, limit: int, deadline: float, aligned_at: int = 0) -> memoryview:
    """The body, decompressed, at most ``limit`` bytes before and after; byte ``aligned_at`` of it is aligned.

    Raises TooLarge as soon as that is known, BodyTimeout at ``deadline`` (the loop's time), UnsupportedMedia for an
    encoding other than gzip and deflate, Malformed for damaged ones, ClientGone where the connection ends.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    inflate = _inflate(request.headers.get("content-encoding", "identity").strip().lower())
    padding = -aligned_at % ALIGNMENT
    receive_into = request.scope.get("extensions", {}).get(RECEIVE_INTO)
    try:
        async with asyncio.timeout_at(deadline):
            if inflate is None and receive_into is not None:
                return await _received(receive_into, padding, int(declared or 0))
            return await _joined(request, inflate, padding, limit)
    except TimeoutError:
        raise BodyTimeout("the body did not arrive in time. Send it faster, or a smaller one.") from None
    except ClientDisconnect:
        raise ClientGone("the client closed the connection.") from None


async def _received(receive_into: Callable[[memoryview], Awaitable[None]], padding: int, length: int) -> memoryview:
    """A body of known length, received where it stays; the memory is new and not cleared first."""
    body = np.empty(padding + length, np.uint8).data[padding:]
    await receive_into(body)
    return body


async def _joined(request: Request, inflate: _Inflate | None, padding: int, limit: int) -> memoryview:
    """A body put together from its parts."""
    body = bytearray(padding)
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > limit:
            raise _too_large(limit)
        body += part if inflate is None else inflate.feed(part, limit - len(body) + padding)
    if inflate is not None:
        inflate.finish()
    return memoryview(body)[padding:]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body has more than {limit} bytes, which is --max-body. Send fewer images, or smaller ones.")


def _inflate(encoding: str) -> _Inflate | None:
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMedia(f"the content encoding is {encoding[:40]!r}; wanted gzip, deflate or none.")
    return _Inflate(encoding)


@final
class _Inflate:
    """A decompressor that never makes more than it is allowed to."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_ZLIB_OR_GZIP)

    def feed(self, chunk: bytes, room: int) -> bytes:
        """Decompress a chunk whole. Raises TooLarge for more than ``room`` bytes, Malformed for bytes after the end."""
        try:
            inflated = self._stream.decompress(chunk, room + 1)
        except zlib.error as error:
            raise Malformed(f"the body is no {self._encoding} data ({error}).") from error
        if len(inflated) > room:
            raise TooLarge(f"the {self._encoding} body is larger than allowed when decompressed. Send fewer images.")
        if self._stream.unused_data:  # at once: zlib would copy all of it with every chunk
            raise Malformed(f"more follows the body's {self._encoding} stream; wanted one stream.")
        return inflated

    def finish(self) -> None:
        """Raise Malformed where the stream did not end."""
        if not self._stream.eof:
            raise Malformed(f"the body is no complete {self._encoding} stream.")
