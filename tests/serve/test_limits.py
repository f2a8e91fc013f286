"""What a server does with too much, too late, too many and strangers."""

import asyncio
import gzip
import http.client
import logging
import signal
import socket
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from rpc_calls import call
from starlette.requests import Request

from fimaq.deploy.serve.errors import Malformed
from fimaq.deploy.serve.rest.decode import _from_json
from fimaq.toolchain.image_input import ImageInput

INFER = "/v2/models/toy/infer"
MIB = 2**20
KEY = "a key of more than sixteen characters"


def wait_for(condition):
    """Until the condition holds; the test's own time limit is the process's patience."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def held(server):
    """Requests the model holds now."""
    text = server.ask("GET", "/metrics")[2].decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("fimaq_requests_held{"))


def request_bytes(body, headers=(), length=None):
    lines = [f"POST {INFER} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def answer_on(connection):
    """Status, headers and content of the answer that comes on a socket."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.headers, answer.read()


def status_on(connection):
    return answer_on(connection)[0]


# Bodies


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server):
    with server.socket() as connection:
        connection.sendall(request_bytes(b"", length=33 * MIB))
        assert status_on(connection) == 413


def test_a_body_that_turns_out_too_large_is_cut_off(server):
    with server.socket() as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
        for _ in range(33):
            connection.sendall(chunk)
        assert status_on(connection) == 413


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_not_inflated(server, encoding):
    before = server.resident()
    bomb = {"gzip": gzip, "deflate": zlib}[encoding].compress(bytes(100 * MIB))
    assert len(bomb) < MIB
    status, answer = server.json("POST", INFER, bomb, {"Content-Encoding": encoding})
    assert (status, "when decompressed" in answer["error"]) == (413, True)
    assert server.resident() - before < 64 * MIB


def test_no_more_is_inflated_than_there_is_room_for():
    from fimaq.deploy.serve.errors import TooLarge
    from fimaq.deploy.serve.rest.body import _inflate

    bomb = gzip.compress(bytes(100 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            _inflate("gzip").feed(bomb, MIB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_what_follows_a_stream_is_not_collected():
    """zlib keeps it, and copies all of it each time that more comes."""
    from fimaq.deploy.serve.rest.body import _inflate

    stream = _inflate("gzip")
    stream.feed(gzip.compress(b"{}"), MIB)
    with pytest.raises(Malformed, match="more follows"):
        stream.feed(b"m", MIB)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (b"{}", "gzip", 400, "is no gzip data"),
        (gzip.compress(b"{}" * 100)[:-9], "gzip", 400, "no complete gzip stream"),
        (gzip.compress(b"{}") + b"more", "gzip", 400, "more follows the body's gzip stream"),
        (b"{}", "br", 415, "wanted gzip, deflate or none"),
    ],
)
def test_encodings_that_are_damaged_or_unknown(server, body, encoding, status, message):
    got, answer = server.json("POST", INFER, body, {"Content-Encoding": encoding})
    assert got == status
    assert message in answer["error"]


def test_headers_without_end_are_cut_off(server):
    before = server.resident()
    with server.socket() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"".join(b"X-%d: %b\r\n" % (number, b"a" * 50_000) for number in range(2000)))
    assert server.resident() - before < 16 * MIB


# Too many, too late


@pytest.fixture
def narrow(start, toy_file):
    """A server whose model holds two requests."""
    return start(toy_file, "--queue", 2)


def occupy(server, toy, binary_request, images=1, slow=1e9):
    """A connection whose request keeps the model working."""
    connection = server.socket()
    body, headers = binary_request(toy.images(images, slow=slow))
    connection.sendall(request_bytes(body, [f"{name}: {value}" for name, value in headers.items()]))
    return connection


def test_a_full_queue_answers_503_and_when_to_come_back_before_the_body_is_sent(narrow, toy, slow, binary_request):
    with occupy(narrow, toy, binary_request, slow=slow) as one, occupy(narrow, toy, binary_request, slow=slow) as two:
        wait_for(lambda: held(narrow) == 2)
        with narrow.socket() as third:
            third.sendall(request_bytes(b"", length=MIB))
            status, headers, content = answer_on(third)
            assert status == 503
            assert b"holds 2 requests" in content
            assert int(headers["Retry-After"]) >= 1
            # The connection is as good as before: the body is dropped, and the next request answered.
            third.sendall(bytes(MIB) + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status_on(third) == 200
        assert (status_on(one), status_on(two)) == (200, 200)


def test_who_sends_everything_before_reading_is_told_too(narrow, toy, slow, binary_request):
    """The body is more than fits between two sockets, so it must be received; a reset would take the answer away."""
    working = [occupy(narrow, toy, binary_request, slow=3 * slow) for _ in range(2)]
    wait_for(lambda: held(narrow) == 2)
    before = narrow.resident()
    with narrow.socket() as third:
        third.sendall(request_bytes(bytes(16 * MIB + 1)))
        assert status_on(third) == 503
        third.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_on(third) == 200
    assert narrow.resident() - before < 4 * MIB
    for connection in working:
        assert status_on(connection) == 200
        connection.close()


def test_who_hangs_up_while_waiting_is_not_computed_and_leaves_the_queue(narrow, toy, slow, binary_request):
    with occupy(narrow, toy, binary_request, slow=slow) as working:
        wait_for(lambda: held(narrow) == 1)
        waiting = occupy(narrow, toy, binary_request, images=3)
        wait_for(lambda: held(narrow) == 2)
        waiting.close()
        wait_for(lambda: held(narrow) == 1)
        assert status_on(working) == 200
    assert narrow.statistics()["inference_count"] == 1
    assert [event["status"] for event in narrow.events() if event.get("path") == INFER] == [499, 200]


def test_who_hangs_up_in_the_middle_of_a_body_leaves_the_queue(narrow):
    connection = narrow.socket()
    connection.sendall(request_bytes(b"half", length=1000))
    wait_for(lambda: held(narrow) == 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # with a reset
    wait_for(lambda: held(narrow) == 0)
    assert [event["status"] for event in narrow.events() if event.get("path") == INFER] == [499]


def test_an_answer_that_would_be_late_is_a_504(start, toy, toy_file, slow, binary_request):
    server = start(toy_file, "--timeout", 0.2)
    with occupy(server, toy, binary_request, slow=5 * slow) as working:
        assert status_on(working) == 504
    body, _ = binary_request(toy.images(1))
    with server.socket() as unfinished:
        unfinished.sendall(request_bytes(body[:-1], length=len(body)))
        assert status_on(unfinished) == 408


def test_a_request_may_want_its_answer_sooner(narrow, toy, slow, binary_request):
    body, headers = binary_request(toy.images(1, slow=slow), parameters={"timeout": 1000})
    status, answer = narrow.json("POST", INFER, body, headers)
    assert status == 504
    assert "not there in time" in answer["error"]


def test_a_larger_batch_than_allowed(start, toy, toy_file, binary_request):
    server = start(toy_file, "--max-batch", 2)
    asked = {count: server.ask("POST", INFER, *binary_request(toy.images(count)))[0] for count in (2, 3)}
    assert asked == {2: 200, 3: 400}


# Strangers


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# for the tests\n\nanother key, which is long enough\n{KEY}\n")
    return path


def test_only_who_has_a_key_comes_in(start, toy_file, key_file):
    server = start(toy_file, "--keys", key_file)

    def status(path, authorization=None):
        headers = {} if authorization is None else {"Authorization": authorization}
        return server.ask("GET", path, headers=headers)[0]

    assert [status(path) for path in ("/v2/health/live", "/v2/health/ready", "/")] == [200, 200, 200]
    assert [status(path) for path in ("/v2", "/v2/models/toy", "/metrics", "/openapi.json")] == [401] * 4
    assert server.ask("GET", "/v2")[1]["WWW-Authenticate"] == "Bearer"
    assert status("/v2", f"Bearer {KEY}") == 200
    assert status("/v2", f"bearer {KEY}") == 200
    for wrong in (KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ", "Bearer # for the tests"):
        assert status("/v2", wrong) == 401
    assert KEY not in server.log.read_text()


def test_keys_are_read_again_with_the_repository(start, toy_file, tmp_path):
    file, new = tmp_path / "keys", "the key of the month after it"
    file.write_text(f"{KEY}\n")
    server = start(toy_file, "--keys", file)

    def allowed(key):
        return server.ask("GET", "/v2", headers={"Authorization": f"Bearer {key}"})[0] == 200

    file.write_text(f"{new}\n")
    assert (allowed(KEY), allowed(new)) == (True, False)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: allowed(new))
    assert not allowed(KEY)
    file.write_text("short\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(event["event"] == "keys not reloaded" for event in server.events()))
    assert allowed(new)


def test_a_key_file_that_may_not_be_read(tmp_path, monkeypatch):
    from fimaq.deploy.serve.keys import Keys
    from fimaq.toolchain.errors import InputError

    def refuse(path, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"keys cannot be read by user .*Give that user access"):
        Keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key; wanted at least one"),
        (b"# only a comment, though a long one\n", "holds no key"),
        (b"long enough for a key\nshort\n", "holds a key of 5 characters; wanted .* each of 16 characters or more"),
        (b"\xff\xfe\n", "cannot be read"),
        ("Schlüssel von ausreichender Länge\n".encode(), "no header can carry; wanted ASCII"),
        (None, "cannot be read"),
    ],
)
def test_keys_that_are_none_are_refused(tmp_path, content, message):
    from fimaq.deploy.serve.keys import Keys
    from fimaq.toolchain.errors import InputError

    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Keys(path)


def test_every_key_is_compared_in_constant_time(key_file, monkeypatch):
    from fimaq.deploy.serve import keys

    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda one, other: compared.append(len(one)) or one == other)
    keys.Keys(key_file).check("Bearer another key, which is long enough")
    assert compared == [32, 32]


def test_what_can_be_reached_by_others_without_a_key_is_said(start, toy_file):
    server = start(toy_file, "--host", "0.0.0.0")
    (event,) = [event for event in server.events() if event["event"] == "open to others"]
    assert event["level"] == "warning"
    assert "no key is asked for" in event["reason"]


def test_probes_are_no_lines_in_the_log(start, toy_file):
    server = start(toy_file, "--grpc-port", 0)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2"):
        assert server.ask("GET", path)[0] == 200
    assert call(server, "ServerReady").ready
    assert call(server, "ServerMetadata").name == "fimaq-tool"
    asked = [event.get("path") or event["method"] for event in server.events() if event["event"] == "request"]
    assert asked == ["/v2", "ServerMetadata"]


def test_by_default_only_this_machine_can_reach_it(server):
    assert server.url.startswith("http://127.0.0.1:")


def test_a_long_string_among_numbers_costs_no_memory(toy):
    """numpy would give every element the room of the longest."""
    data = ["a" * 200_000] + [""] * 1_000
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="values that are not all numbers"):
            _from_json({"data": data}, (1, 3, 8, 8), ImageInput(toy.preprocessing, "float"))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_path_makes_no_lines_of_its_own_in_a_log_that_people_read():
    from fimaq.deploy.serve.logs import TextFormatter

    record = logging.LogRecord("x", logging.INFO, "", 0, "request", None, None)
    record.fields = {"path": "/a\n12:00:00 info: forged \x1b[2J", "status": 404}
    (line,) = TextFormatter().format(record).splitlines()
    assert line.endswith(r"path='/a\n12:00:00 info: forged \x1b[2J' status=404")


def test_a_key_file_may_begin_as_windows_begins_text(tmp_path):
    from fimaq.deploy.serve.keys import Keys

    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf0123456789abcdef\r\n\r\n")
    Keys(path).check("Bearer 0123456789abcdef")


def test_what_is_inflated_is_counted_over_all_parts():
    from fimaq.deploy.serve.errors import TooLarge
    from fimaq.deploy.serve.rest.body import read_body

    stream = zlib.compressobj()
    parts = [stream.compress(bytes(600)) + stream.flush(zlib.Z_SYNC_FLUSH) for _ in range(2)] + [stream.flush()]

    async def read(limit):
        waiting = iter(parts)

        async def receive():
            return {"type": "http.request", "body": next(waiting), "more_body": True}

        request = Request({"type": "http", "headers": [(b"content-encoding", b"deflate")]}, receive)
        return await read_body(request, limit, asyncio.get_running_loop().time() + 10)

    with pytest.raises(TooLarge, match="when decompressed"):
        asyncio.run(read(1000))
