"""A client of the Open Inference Protocol over HTTP, as much of it as an evaluation needs."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Self, final
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from ..errors import EnvironmentProblem, InputError, UsageError

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_EXTENSION = "binary_tensor_data"

DATATYPES: Mapping[str, str] = {"float32": "FP32", "uint8": "UINT8"}
"""The protocol's names of the types that images and logits have, by numpy's."""

PATIENCE = 120.0
"""Seconds to keep coming back to a server that says it is busy."""


@final
class Server:
    """A server at ``url``, ``http://host:port`` with or without ``/v2``; ``key`` is sent as a bearer token.

    Each thread has a connection of its own, which is kept until the context ends. Raises UsageError for another kind
    of URL.
    """

    def __init__(self, url: str, key: str | None = None, seconds: float = 60.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"the endpoint is {url!r}; wanted http://HOST:PORT. Correct --endpoint.")
        path = parts.path.rstrip("/").removesuffix("/v2")
        self.url = f"{parts.scheme}://{parts.netloc}{path}"
        self._parts, self._path, self._seconds = parts, path, seconds
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._connections:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON at ``/v2`` + path."""
        return self._json("GET", path)

    def find(self, path: str) -> Any | None:
        """The JSON at ``/v2`` + path, None where the server does not have it."""
        try:
            return self._json("GET", path)
        except Refused as refused:
            if refused.status in (401, 403):
                raise
            return None

    def post(self, path: str, value: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON request."""
        return self._json("POST", path, json.dumps(value).encode())

    def infer_tensor(
        self, model: str, input_name: str, batch: npt.NDArray[Any], binary: bool
    ) -> npt.NDArray[np.float32]:
        """The one output, ``[b, classes]``, of the one input, float32 or uint8; ``binary`` uses that extension."""
        item: dict[str, Any] = {
            "name": input_name,
            "datatype": DATATYPES[batch.dtype.name],
            "shape": list(batch.shape),
        }
        data = np.ascontiguousarray(batch, dtype=batch.dtype.newbyteorder("<"))
        if not binary:
            body = json.dumps({"inputs": [{**item, "data": data.ravel().tolist()}]}).encode()
            return self._output("POST", f"{model}/infer", body, {"Content-Type": "application/json"})
        item["parameters"] = {"binary_data_size": data.nbytes}
        head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
        headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        return self._output("POST", f"{model}/infer", head + data.tobytes(), headers)

    def infer_image(self, model: str, data: bytes, media_type: str) -> npt.NDArray[np.float32]:
        """The logits ``[1, classes]`` of an encoded image; only this tool's servers take one."""
        query = "classification=0&binary_data_output=true"
        return self._output("POST", f"{model}/infer?{query}", data, {"Content-Type": media_type})

    def _output(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> npt.NDArray[np.float32]:
        answer, content = self._send(method, path, body, headers)
        length = answer.get(HEADER_LENGTH)
        try:
            head = json.loads(content if length is None else content[: int(length)])
            (output,) = head["outputs"]
            if output["datatype"] != "FP32":
                raise ValueError(f"its datatype is {output['datatype']}")
            if length is None:
                return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])
            return np.frombuffer(content, dtype="<f4", offset=int(length)).reshape(output["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.url}/v2{path} did not answer with one FP32 tensor ({error}). Give the URL of a server that "
                "speaks the Open Inference Protocol."
            ) from error

    def _json(self, method: str, path: str, body: bytes = b"") -> Any:
        _, content = self._send(method, path, body, {"Content-Type": "application/json"})
        try:
            return json.loads(content)
        except ValueError as error:
            raise InputError(
                f"{self.url}/v2{path} did not answer with JSON ({error}). Give the URL of a server that speaks the "
                "Open Inference Protocol."
            ) from error

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and content of the answer; a busy server is asked again. Raises Refused for any other refusal."""
        until = time.monotonic() + PATIENCE
        while True:
            answer, content = self._exchange(method, f"{self._path}/v2{path}", body, {**self._headers, **headers})
            if answer.status == 200:
                return answer.headers, content
            wait = _retry_after(answer.headers.get("Retry-After", ""))
            if answer.status != 503 or time.monotonic() + wait > until:
                raise Refused(f"{self.url}/v2{path}", answer.status, content)
            time.sleep(wait)

    def _exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; a second attempt where the server had closed the connection that was kept."""
        for attempt in ("kept", "new"):
            connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
            if connection is None or connection.sock is None:
                attempt = "new"
            if connection is None:
                connection = self._local.connection = self._connect()
            try:
                connection.request(method, target, body, dict(headers))
                answer = connection.getresponse()
                return answer, answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # it opens again by itself
                if attempt == "new" or isinstance(error, TimeoutError):
                    raise EnvironmentProblem(
                        f"{self.url} does not answer ({error or type(error).__name__}). "
                        "Start the server, or correct --endpoint."
                    ) from error
        raise AssertionError("the second attempt returns or raises")

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._seconds)
        self._connections.append(connection)
        return connection


@final
class Refused(InputError):
    """The server refused a request, with this HTTP status and what it said."""

    def __init__(self, url: str, status: int, content: bytes) -> None:
        try:
            said = str(json.loads(content)["error"])
        except (ValueError, KeyError, TypeError):
            said = "not as the Open Inference Protocol does. Give --endpoint http://HOST:PORT of one that speaks it."
        hint = " Give a key the server knows with --key-file." if status == 401 else ""
        super().__init__(f"{url} answers {status}: {said}{hint}")
        self.status = status


def _retry_after(told: str) -> float:
    """Seconds to wait; one where the header gives a date, as it may, or is not there."""
    return float(told) if told.isdecimal() else 1.0


def model_path(name: str) -> str:
    """A model's path below ``/v2``."""
    return f"/models/{quote(name, safe='')}"
