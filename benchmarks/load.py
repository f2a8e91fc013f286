"""Clients of a server under test: closed loops, arrivals by the clock, and a core to run them on."""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import re
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from fimaq.toolchain.evaluate.v2_client import DATATYPES

Images = npt.NDArray[Any]
PATIENCE = 60.0
LENGTH, RETRY_AFTER = (re.compile(rb"(?i)\r\n%b: *(\d+)" % name) for name in (b"content-length", b"retry-after"))
VISITORS = 256
"""Requests at most at the same time, four times as many as the server holds."""


def tensor_request(images: Images) -> bytes:
    """A whole request of the Open Inference Protocol: one binary tensor, wanting a binary answer."""
    tensor = images.tobytes()
    item = {**_header(images), "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return _request("/v2/models/model/infer", head + tensor, headers)


def json_request(images: Images) -> bytes:
    """The same with the tensor and the answer in JSON, for servers that take no binary one."""
    body = json.dumps({"inputs": [{**_header(images), "data": images.ravel().tolist()}]}).encode()
    return _request("/v2/models/model/infer", body, {"Content-Type": "application/json"})


def upload_request(images: Images) -> bytes:
    """A whole request that uploads a tensor as a form's field, for servers with a protocol of their own."""
    tensor = images.tobytes()
    field = 'Content-Disposition: form-data; name="image"; filename="image"'
    body = f"--end\r\n{field}\r\n\r\n".encode() + tensor + b"\r\n--end--\r\n"
    return _request("/predict", body, {"Content-Type": "multipart/form-data; boundary=end"})


def _header(images: Images) -> dict[str, Any]:
    return {"name": "image", "datatype": DATATYPES[images.dtype.name], "shape": list(images.shape)}


def _request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body


def closed_loop(port: int, request: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Requests a second of clients that send the next when they have the answer; times in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def client() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            while (began := time.perf_counter()) < end:
                connection.sendall(request)
                status, _ = _answer(connection)
                if status != 200:
                    raise RuntimeError(f"a request was answered {status}")
                times.append(time.perf_counter() - began)

    began = time.perf_counter()
    _in_threads(client, clients)
    took = time.perf_counter() - began
    ordered = sorted(times)
    return {
        "rate": len(times) / took,
        "p50_ms": 1e3 * statistics.median(times),
        "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def open_loop(port: int, request: bytes, rate: float, seconds: float, keep: bool) -> dict[str, float]:
    """Requests come by the clock; what gets a 503 is sent again after the time that was told, within ``seconds``.

    Each comes on a new connection, or with ``keep`` on one of those of VISITORS, as from a proxy. A second of that
    time: requests ``offered``, those ``refused``, and ``goodput``, those answered; ``late_ms``: by how much the latest
    was sent after its time. Those that were not sent again are counted by their last answer.
    """
    due = [(number / rate, number) for number in range(int(rate * seconds))]
    turn = threading.Lock()
    ends: list[tuple[int, float, bool]] = []
    late = [0.0]
    began = time.perf_counter()

    def visitor() -> None:
        connection: socket.socket | None = None
        while True:
            with turn:  # one waits for what is next; the others are on their visits
                if not due:
                    break
                time.sleep(max(0.0, began + due[0][0] - time.perf_counter()))
                at, number = heapq.heappop(due)
            late.append(time.perf_counter() - began - at)
            status, wait, connection = _visit(port, request, connection)
            if connection is not None and not keep:
                connection.close()
                connection = None
            now = time.perf_counter() - began
            again = status == 503 and now + wait < seconds
            ends.append((status, now, again))
            if again:
                heapq.heappush(due, (now + wait, number))
        if connection is not None:
            connection.close()

    _in_threads(visitor, VISITORS)
    in_time = Counter(status for status, at, _ in ends if at < seconds)
    last = Counter(f"last answer {status}" for status, _, again in ends if not again)
    return {
        "offered": len(ends) / seconds,
        "refused": in_time[503] / seconds,
        "goodput": in_time[200] / seconds,
        "late_ms": 1e3 * max(late),
        **dict(sorted(last.items())),
    }


def patient_clients(port: int, request: bytes, clients: int, seconds: float) -> dict[str, float]:
    """A fixed number of clients that send the next when they have the answer, and who get a 503 wait as they are told.

    A second of that time: requests ``offered``, those ``refused``, and ``goodput``, those answered.
    """
    ends: list[tuple[int, float]] = []
    began = time.perf_counter()

    def client() -> None:
        now = 0.0
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            while now < seconds:
                connection.sendall(request)
                status, wait = _answer(connection)
                ends.append((status, time.perf_counter() - began))
                if status == 503:
                    time.sleep(min(wait, max(0.0, seconds - ends[-1][1])))
                now = time.perf_counter() - began

    _in_threads(client, clients)
    in_time = Counter(status for status, at in ends if at < seconds)
    last = Counter(f"answers {status}" for status, _ in ends)
    return {
        "offered": len(ends) / seconds,
        "refused": in_time[503] / seconds,
        "goodput": in_time[200] / seconds,
        **dict(sorted(last.items())),
    }


def on_core(core: int, work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """The result of ``work`` in a process of its own on one core."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        os.sched_setaffinity(0, {core})
        sender.send(work(*arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    sender.close()
    result: dict[str, float] = receiver.recv()
    process.join()
    return result


def answers(port: int, request: bytes) -> bool:
    """Whether a server is there and answers a request with success."""
    status, _, connection = _visit(port, request)
    if connection is not None:
        connection.close()
    return status == 200


def _visit(
    port: int, request: bytes, connection: socket.socket | None = None
) -> tuple[int, float, socket.socket | None]:
    """One request on a connection, or a new one: its status (0: none), the seconds to wait, and the connection."""
    try:
        connection = connection or socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        connection.sendall(request)
        return *_answer(connection), connection
    except OSError:
        if connection is not None:
            connection.close()
        return 0, 0.0, None


def _answer(connection: socket.socket) -> tuple[int, float]:
    """Status of the answer that comes on a socket, and the seconds it tells to wait; its body is read to the end.

    No more of HTTP than the servers here speak: a general client's time would be measured along with theirs.
    """
    came = b""
    while b"\r\n\r\n" not in came:
        came += _more(connection)
    head, _, body = came.partition(b"\r\n\r\n")
    wait = RETRY_AFTER.search(head)
    if (length := LENGTH.search(head)) is None:
        raise RuntimeError(f"an answer does not tell its length: {head!r}")
    missing = int(length[1]) - len(body)
    while missing > 0:
        missing -= len(_more(connection))
    return int(head[9:12]), float(wait[1]) if wait else 0.0


def _more(connection: socket.socket) -> bytes:
    if not (data := connection.recv(65536)):
        raise ConnectionError("the server closed the connection before its answer was complete")
    return data


def _in_threads(work: Callable[[], Any], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
