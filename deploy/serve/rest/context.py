"""What every request goes through: an id, the key, the clock, and then the log, the metrics and the trace."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from typing import Any, final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Forbidden, RequestError
from ..service import Service
from .answers import failed, no_route, refusal
from .exchange import CLOSE

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

NO_KEY_NEEDED = ("/v2/health/live", "/v2/health/ready", "/")
"""Probes have no key, and the page asks for it."""

PROBES = "/v2/health/"
"""Asked every other second, and not worth a line each time."""

ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]

_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


@final
class RequestContext:
    """Wraps the application: refuses who may not come in, turns errors into answers, and sees every answer go out.

    A handler finds the service in ``request.state.service`` and adds to the log's line through ``request.state.log``.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._own_id, self._count = secrets.token_hex(4), itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _GOOD_ID.fullmatch(given) else f"{self._own_id}{next(self._count):08x}"
        fields: dict[str, Any] = {}
        scope["app"] = self._app  # with it, Starlette raises HTTPException where there is no such path or method
        scope["state"] = {"service": self._service, "log": fields}
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*ALWAYS, (REQUEST_ID.encode(), request_id.encode())]
                message["headers"] = [*message["headers"], *own, *([CLOSE] if self._service.draining else [])]
            await send(message)

        with self._service.tracing.request(headers) as span:
            try:
                self._admit(scope["path"], headers)
                await self._app(scope, receive, sending)
            except RequestError as error:
                await refusal(error)(scope, receive, sending)
            except HTTPException as error:
                await no_route(scope["method"], scope["path"], error)(scope, receive, sending)
            except Exception:
                log.exception("internal error", extra={"fields": {"request_id": request_id}})
                if not status:
                    await failed(request_id)(scope, receive, sending)
            seconds = time.perf_counter() - started
            operation = getattr(scope.get("endpoint"), "__name__", "none")
            span.end(operation, str(status), status >= 500, fields)
        self._service.metrics.answered("http", operation, str(status), seconds)
        level = logging.DEBUG if scope["path"].startswith(PROBES) else logging.INFO
        if log.isEnabledFor(level):
            line = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            log.log(level, "request", extra={"fields": {**line, "ms": round(1e3 * seconds, 2), **fields}})

    def _admit(self, path: str, headers: Headers) -> None:
        if headers.get("sec-fetch-site") == "cross-site" and path != "/":
            raise Forbidden("the request was made by another site's page; wanted one of this server's own.")
        if self._service.keys is not None and path not in NO_KEY_NEEDED:
            self._service.keys.check(headers.get("authorization"))
