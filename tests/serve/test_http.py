"""HTTP itself, byte by byte on sockets: what comes in any pieces, in any order, and what is none."""

import asyncio
import contextlib
import functools
import http.client
import json
import socket
import time

import httpx
import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

INFER = "/v2/models/toy/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body, *headers, path=INFER, length=True):
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body, size, *headers, path=INFER):
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    return post(chunks, "Transfer-Encoding: chunked", *headers, path=path, length=False)


class Reader:
    """Answers one after the other from one socket, read by Python's own client."""

    def __init__(self, connection):
        self._file = connection.makefile("rb")

    def makefile(self, mode):
        return self

    def __getattr__(self, name):
        return getattr(self._file, name)

    def close(self):
        """http.client closes its file after each answer; the next one comes on the same."""

    def flush(self):
        pass

    def answer(self, method="POST"):
        answer = http.client.HTTPResponse(self, method=method)
        answer.begin()
        return answer.status, answer.headers, answer.read()

    def logits(self):
        status, _, content = self.answer()
        assert status == 200, content
        return np.array(json.loads(content)["outputs"][0]["data"])

    def ended(self):
        return self._file.read() == b""


@pytest.fixture
def connection(server):
    with server.socket() as connected:
        yield connected


@pytest.fixture
def images(toy):
    return [toy.images(count, seed=count) for count in (1, 2, 3)]


@pytest.fixture
def stream(images, binary_request):
    """Requests of every kind, and no pause between them."""
    requests = []
    for number, batch in enumerate(images):
        body, headers = binary_request(batch)
        lines = [f"{name}: {value}" for name, value in headers.items()]
        requests += [chunked(body, 700, *lines) if number == 1 else post(body, *lines), LIVE]
    return b"".join(requests)


def expect(reader, toy, images):
    for batch in images:
        np.testing.assert_allclose(reader.logits(), toy.logits(batch).ravel(), atol=1e-4)
        assert reader.answer("GET")[2] == b'{"live":true}'


def test_requests_that_come_at_once_are_answered_in_order(connection, toy, images, stream):
    connection.sendall(stream)
    expect(Reader(connection), toy, images)


@pytest.mark.parametrize("seed", range(8))
def test_it_does_not_matter_in_which_pieces_requests_come(connection, toy, images, stream, seed):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(stream), 60)).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        connection.sendall(stream[start:stop])
        time.sleep(0.001)
    expect(Reader(connection), toy, images)


def test_a_body_is_asked_for_where_the_client_waits_to_be_asked(connection, toy, images, binary_request):
    body, headers = binary_request(images[0])
    lines = [f"{name}: {value}" for name, value in headers.items()]
    request = post(body, "Expect: 100-continue", *lines)
    connection.sendall(request[: -len(body)])
    assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body + LIVE)
    expect(Reader(connection), toy, images[:1])


def test_a_body_that_is_not_wanted_is_not_asked_for(connection):
    connection.sendall(post(b"", "Expect: 100-continue", f"Content-Length: {40 * 2**20}", length=False))
    reader = Reader(connection)
    status, headers, _ = reader.answer()
    assert (status, headers["Connection"]) == (413, "close")
    connection.settimeout(5)  # at once: what would come next could be the body or another request
    assert reader.ended()


def test_head_has_the_headers_of_get_and_no_body(connection):
    reader = Reader(connection)
    connection.sendall(LIVE.replace(b"GET", b"HEAD") + LIVE)
    status, headers, content = reader.answer("HEAD")
    assert (status, headers["Content-Length"], content) == (200, "13", b"")
    assert reader.answer("GET")[2] == b'{"live":true}'


@pytest.mark.parametrize(
    "request_bytes",
    [
        LIVE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        LIVE.replace(b"Host", b"Connection: Close\r\nHost"),
        LIVE.replace(b"Host", b"Connection: close\r\nConnection: keep-alive\r\nHost"),
    ],
)
def test_a_connection_that_is_to_end_ends(connection, request_bytes):
    connection.sendall(request_bytes)
    reader = Reader(connection)
    status, headers, _ = reader.answer("GET")
    assert (status, headers["Connection"]) == (200, "close")
    assert reader.ended()


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"\x16\x03\x01\x02\x00 TLS\r\n\r\n", 400, "what came is no HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "what came is no HTTP request"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431, "what came is no HTTP request"),
        (post(b"", "Transfer-Encoding: gzip", length=False), 501, "what came is no HTTP request"),
        (post(b"{}", "Content-Length: 3"), 400, "what came is no HTTP request"),
        (post(b"no chunk\r\n\r\n", "Transfer-Encoding: chunked", length=False), 400, "chunks cannot be read"),
    ],
)
def test_what_is_no_http_is_refused_and_ends_the_connection(connection, sent, status, message):
    connection.sendall(sent)
    reader = Reader(connection)
    got, headers, content = reader.answer()
    assert (got, headers["Connection"]) == (status, "close")
    assert message in json.loads(content)["error"]
    with contextlib.suppress(ConnectionResetError):  # more was sent than was read
        assert reader.ended()


def test_chunks_and_a_length_are_read_as_chunks_and_end_the_connection(connection):
    """As RFC 9112 6.1 has it; read by the length, the rest would be a request that a proxy never saw."""
    connection.sendall(chunked(b"{}", 10, "Content-Length: 4") + LIVE)
    reader = Reader(connection)
    status, headers, content = reader.answer()
    assert (status, headers["Connection"]) == (400, "close")
    assert b"no list of inputs" in content
    with contextlib.suppress(ConnectionResetError):  # more was sent than was read
        assert reader.ended()


def test_who_sends_everything_before_the_last_answer_of_a_connection_can_read_it(connection):
    """Python's urllib asks for the end with every request; a reset would take the answer away."""
    connection.sendall(post(bytes(16 * 2**20), "Connection: close", path="/nowhere"))
    reader = Reader(connection)
    assert reader.answer()[0] == 404
    connection.settimeout(10)
    assert reader.ended()


@pytest.mark.parametrize("headers", [(), ("Content-Encoding: gzip",)])
def test_the_rest_of_a_body_that_came_too_late_is_no_request(start, toy_file, headers):
    server = start(toy_file, "--timeout", 0.2)
    request = post(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 100, *headers)
    with server.socket() as connection:
        connection.settimeout(10)
        connection.sendall(request[:-1500])
        reader = Reader(connection)
        status, answered, _ = reader.answer()
        assert (status, answered["Connection"]) == (408, None)
        connection.sendall(request[-1500:] + LIVE + LIVE)
        assert [reader.answer("GET")[2] for _ in range(2)] == [b'{"live":true}'] * 2


def test_a_path_cannot_put_lines_into_an_answer(connection):
    connection.sendall(b"GET /v2/models/a%0d%0aX-Mine:%20y/ready/ HTTP/1.1\r\nHost: x\r\n\r\n" + LIVE)
    reader = Reader(connection)
    status, headers, _ = reader.answer("GET")
    assert (status, headers["X-Mine"]) == (404, None)
    assert reader.answer("GET")[0] == 200


def test_a_client_that_does_not_read_is_waited_for(server, connection):
    """Answers of 20 MB are neither lost nor piled up in memory."""
    size = len(server.ask("GET", "/openapi.json")[2])
    count, before = 20_000_000 // size, server.resident()
    connection.sendall(LIVE.replace(b"/v2/health/live", b"/openapi.json") * count)
    time.sleep(0.3)
    assert server.resident() - before < 4e6
    reader = Reader(connection)
    assert [len(reader.answer("GET")[2]) for _ in range(count)] == [size] * count


def test_what_comes_while_an_answer_is_waited_for_is_left_where_it_is(server, connection, toy, slow, binary_request):
    body, headers = binary_request(toy.images(1, slow=3 * slow))
    connection.sendall(post(body, *(f"{name}: {value}" for name, value in headers.items())))
    before = server.resident()
    connection.setblocking(False)
    more, end = memoryview(LIVE * 700_000), time.monotonic() + 0.3  # 30 MB
    while more and time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            more = more[connection.send(more) :]
    assert server.resident() - before < 4e6
    connection.settimeout(60)
    assert Reader(connection).answer()[0] == 200


def test_requests_that_come_faster_than_they_are_answered_are_left_where_they_are(server, connection, toy):
    tensor = toy.images(1).astype("<f4").tobytes()
    more = memoryview(post(tensor, "Inference-Header-Content-Length: 0") * 20_000)  # 16 MB
    before, answered = server.resident(), server.statistics()["inference_count"]
    connection.setblocking(False)
    while server.statistics()["inference_count"] < answered + 100:
        with contextlib.suppress(BlockingIOError):
            more = more[connection.send(more) :]
        time.sleep(0.01)
    assert server.resident() - before < 6e6


# In this process


async def echo(scope, receive, send):
    """Answers with the body, as far as it came; /refuse does not read it."""
    body = b""
    while scope["path"] != "/refuse":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


HANG_UP = None


def talk(*conversations, app=echo):
    """What the server says in conversations that go on at the same time, until it ends them; asyncio's own loop.

    A client that is to HANG_UP reads nothing more; a number is seconds in which it sends nothing.
    """

    async def one(port, pieces):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            if piece is HANG_UP:
                writer.transport.abort()
                return None
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            writer.write(piece)
            await asyncio.sleep(0.02)
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return said

    async def run():
        from fimaq.deploy.serve.rest.connection import Connection

        config = uvicorn.Config(app, lifespan="off", proxy_headers=False, http=Connection, log_config=None)
        config.load()
        state = ServerState()
        listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, {}), "127.0.0.1", 0
        )
        port = listening.sockets[0].getsockname()[1]
        said = await asyncio.gather(*(one(port, pieces) for pieces in conversations))
        listening.close()
        for _ in range(100):
            if not state.connections | state.tasks:
                return said
            await asyncio.sleep(0.01)
        raise AssertionError("a connection is left")

    return asyncio.run(run())


def test_asgi_gives_a_body_in_parts():
    body = np.random.default_rng(0).bytes(300_000)
    last = "Connection: close"
    whole, parts = post(body, last), chunked(body, 100_000, last)
    for said in talk([whole], [whole[:500], whole[500:]], [parts], [parts[:500], parts[500:]]):
        assert said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert said.partition(b"\r\n\r\n")[2] == body


def test_who_sends_nothing_more_is_not_waited_for_long(monkeypatch):
    from fimaq.deploy.serve.rest import connection

    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.2)
    silent, head, refused = talk([], [b"GET / HTT"], [post(b"half", "Content-Length: 9", path="/refuse", length=False)])
    assert (silent, head) == (b"", b"")
    assert refused.endswith(b"content-length: 0\r\n\r\n")


def test_who_reads_nothing_is_not_waited_for_long(monkeypatch):
    from fimaq.deploy.serve.rest import connection

    async def much(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.2)
    (said,) = talk([LIVE, 0.5], app=much)
    assert len(said) < 50_000_000


@pytest.mark.parametrize("form", [post, functools.partial(chunked, size=1000)])
def test_more_of_a_refused_body_than_is_dropped_ends_the_connection(monkeypatch, form):
    from fimaq.deploy.serve.rest import exchange

    monkeypatch.setattr(exchange, "DROPPED", 3000)
    few, many = (form(bytes(size), path="/refuse") for size in (2000, 6000))
    last = LIVE.replace(b"Host", b"Connection: close\r\nHost")
    unfinished = post(bytes(3500), "Content-Length: 6000", path="/refuse", length=False)
    said = talk([few + last], [many + last], [unfinished])
    assert [answers.count(b"HTTP/1.1 ") for answers in said] == [2, 1, 1]


def test_a_request_is_over_when_the_client_hangs_up_on_its_answer():
    reached = []

    async def app(scope, receive, send):
        headers = [(b"content-length", str(2**25).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        reached.append("answering")
        await send({"type": "http.response.body", "body": bytes(2**25)})  # more than sockets hold
        reached.append("over")

    assert talk([LIVE, HANG_UP], app=app) == [None]
    assert reached == ["answering", "over"]


def test_asgi_tells_when_the_client_goes_and_not_before():
    heard = []

    async def app(scope, receive, send):
        heard.append(await receive())
        try:
            await asyncio.wait_for(receive(), 0.01)
        except TimeoutError:
            heard.append("nothing yet")
        heard.append(await receive())

    talk([post(b"{}"), b"", b"", HANG_UP], app=app)
    body = {"type": "http.request", "body": b"{}", "more_body": False}
    assert heard == [body, "nothing yet", {"type": "http.disconnect"}]


class Wire(asyncio.Transport):
    """A connection without sockets, so that the test says what happens before what."""

    def __init__(self, app):
        from fimaq.deploy.serve.rest.connection import Connection

        super().__init__()
        config = uvicorn.Config(app, lifespan="off", http=Connection, log_config=None)
        config.load()
        self.protocol, self.said = Connection(config, ServerState(), {}), b""
        self.closed, self.reading = False, True
        self.protocol.connection_made(self)

    def hear(self, data):
        self.protocol.get_buffer(-1)[: len(data)] = data
        self.protocol.buffer_updated(len(data))

    def write(self, data):
        self.said += data

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


@pytest.mark.parametrize("answering", [False, True])
def test_what_has_come_before_the_end_is_answered(answering):
    async def run():
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            begun.set()
            await go_on.wait()
            await echo(scope, receive, send)

        wire = Wire(app)
        await asyncio.sleep(0)  # it waits for a request
        wire.hear(LIVE)
        if answering:
            await begun.wait()
        wire.protocol.shutdown()
        assert not wire.closed
        go_on.set()
        async with asyncio.timeout(5):
            while not wire.closed:
                await asyncio.sleep(0)
        return wire.said

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_waits_is_listened_to():
    """Else it would not be noticed that it goes."""
    from fimaq.deploy.serve.rest.connection import HEAD

    async def run():
        listened = asyncio.get_running_loop().create_future()

        async def app(scope, receive, send):
            while (await receive())["more_body"]:
                pass
            listened.set_result(wire.reading)

        wire = Wire(app)
        await asyncio.sleep(0)  # it waits for a request
        request = chunked(bytes(16_000), 16_000)
        wire.hear(request.replace(b"Host: x", b"Host: " + b"x" * (HEAD - len(request) + 1)))
        assert not wire.reading  # as much has come as is taken before anyone asks for it
        return await listened

    assert asyncio.run(run())


def test_an_answer_with_a_line_in_a_header_is_not_sent(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]})
        await send({"type": "http.response.body", "body": b""})

    assert talk([LIVE], app=app) == [b""]
    assert "a header holds a line's end" in caplog.text


def test_a_bug_is_answered_with_the_id_under_which_the_log_has_it(toy_file, caplog):
    from fimaq.deploy.serve import Settings
    from fimaq.deploy.serve.rest.app import application
    from fimaq.deploy.serve.service import Service

    async def ask():
        service = Service(Settings(toy_file))
        service.metrics.text = lambda: 1 / 0
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application(service)), base_url="http://x"
        ) as client:
            answer = await client.get("/metrics", headers={"X-Request-Id": "mine"})
        await service.close()
        return answer

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error; the server's log has it as request mine."}
    (record,) = [record for record in caplog.records if record.exc_info]
    assert (record.fields, record.exc_info[0]) == ({"request_id": "mine"}, ZeroDivisionError)
