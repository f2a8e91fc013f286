"""Requests that are refused, with the answer each protocol gives. They end a request, never the server."""

from __future__ import annotations

from typing import final

LONGEST = 600
"""Characters of a message, which may quote what was sent; gRPC's clients drop an answer whose message is too long."""


class RequestError(Exception):
    """Base of every refusal: an HTTP status, the gRPC code of the same meaning, and a message the client may read."""

    status = 500
    code = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


@final
class Malformed(RequestError):
    """What was sent cannot be meant."""

    status, code = 400, "INVALID_ARGUMENT"


@final
class Unauthenticated(RequestError):
    """No key, or one that is not known."""

    status, code = 401, "UNAUTHENTICATED"


@final
class Forbidden(RequestError):
    """A request nobody may make of this server."""

    status, code = 403, "PERMISSION_DENIED"


@final
class NotFound(RequestError):
    """No such model, version or path."""

    status, code = 404, "NOT_FOUND"


@final
class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    status, code = 408, "DEADLINE_EXCEEDED"


@final
class TooLarge(RequestError):
    """A body above the limit."""

    status, code = 413, "RESOURCE_EXHAUSTED"


@final
class UnsupportedMedia(RequestError):
    """A content type or encoding that is not read here."""

    status, code = 415, "INVALID_ARGUMENT"


@final
class ClientGone(RequestError):
    """Nobody waits for the answer any more; the status is for the log only."""

    status, code = 499, "CANCELLED"


@final
class ModelFailed(RequestError):
    """The model raised an error or gave no finite numbers for a good input."""

    status, code = 500, "INTERNAL"


@final
class Unavailable(RequestError):
    """Not now: loading, draining, or more requests than the queue holds. ``retry_after`` is in seconds."""

    status, code = 503, "UNAVAILABLE"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@final
class DeadlineExceeded(RequestError):
    """The answer would come too late."""

    status, code = 504, "DEADLINE_EXCEEDED"
