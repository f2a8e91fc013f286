"""From start to end: readiness, signals under load, and what a process leaves behind."""

import asyncio
import contextlib
import functools
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from rpc_calls import call

from fimaq.deploy.serve import Limits, Settings
from fimaq.deploy.serve.rpc.messages import SERVICE, message
from fimaq.deploy.serve.server import _web_config

INFER = "/v2/models/toy/infer"
LOAD = 8
"""Clients that ask without a pause."""


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def happened(server, event, version):
    return (event, str(version)) in [(line["event"], line.get("version")) for line in server.events()]


class Clients:
    """Threads that send requests until told to stop, each image another, and compare what they get."""

    def __init__(self, server, toy, binary_request):
        self.server, self.toy, self.binary_request = server, toy, binary_request
        self.answers, self.lost, self.wrong = [], [], []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(LOAD)]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        seed = 1000 * number
        while not self.stopped.is_set():
            with contextlib.closing(self.server.connect()) as connection:
                try:
                    connection.connect()
                except OSError:  # the server is gone
                    return
                kept = self._ask(connection, seed := seed + 1, first=True)
                while kept and not self.stopped.is_set():
                    kept = self._ask(connection, seed := seed + 1, first=False)

    def _ask(self, connection, seed, first):
        """One request; whether the connection can be used again."""
        images = self.toy.images(1, seed=seed)
        try:
            connection.request("POST", INFER, *self.binary_request(images))
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            if not first:  # a connection that was never accepted is no accepted request
                self.lost.append(error)
            return False
        self.answers.append(answer.status)
        if answer.status == 200:
            ratio = np.array(content["outputs"][0]["data"]) / self.toy.logits(images)[0]
            if not (np.allclose(ratio, 1, atol=1e-2) or np.allclose(ratio, 2, atol=1e-2)):
                self.wrong.append(seed)
        return answer.headers["Connection"] != "close"

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def clients(toy, binary_request):
    running = []

    def run(server):
        running.append(Clients(server, toy, binary_request))
        return running[-1]

    yield run
    for found in running:
        found.stop()


def test_sigterm_under_load_answers_all_that_was_accepted(start, toy_file, clients):
    server = start(toy_file, "--drain", 0.5)
    load = clients(server)
    wait_for(lambda: len(load.answers) > 50)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    load.stop()
    assert (load.lost, load.wrong) == ([], [])
    assert set(load.answers) == {200}
    asked = sum(event["event"] == "request" for event in server.events())
    assert asked == len(load.answers)


def test_while_draining_it_is_not_ready_and_still_answers(start, toy, toy_file, slow, binary_request):
    server = start(toy_file, "--drain", 30)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.ask("GET", "/v2/health/ready")[0] == 503)
    status, headers, _ = server.ask("POST", INFER, *binary_request(toy.images(1)))
    assert (status, headers["Connection"]) == (200, "close")
    assert server.json("GET", "/v2/models/toy/ready")[0] == 503
    assert server.json("GET", "/v2/health/live") == (200, {"live": True})
    server.process.send_signal(signal.SIGINT)  # a second signal ends it
    assert server.process.wait(timeout=60) == 0


def test_sigint_finishes_what_was_accepted(start, toy, toy_file, slow, binary_request):
    server = start(toy_file)
    connection = server.connect()
    connection.request("POST", INFER, *binary_request(toy.images(1, slow=slow)))
    wait_for(lambda: b'fimaq_requests_held{model="toy",version="1"} 1.0' in server.ask("GET", "/metrics")[2])
    server.process.send_signal(signal.SIGINT)
    assert connection.getresponse().status == 200
    connection.close()
    assert server.process.wait(timeout=60) == 0


def test_a_connection_that_is_kept_and_not_used_does_not_delay_the_end(start, toy_file):
    server = start(toy_file)
    with server.socket() as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).endswith(b'{"live":true}')
        server.process.send_signal(signal.SIGINT)
        assert connection.recv(1000) == b""
    assert server.process.wait(timeout=60) == 0


def test_reload_under_load_fails_no_request(start, toy, tmp_path, clients):
    folder = tmp_path / "repository"
    toy.write(folder / "toy" / "1" / "model.onnx")
    server = start(folder)
    load = clients(server)
    for version in range(2, 6):
        broken = version == 4
        toy.write(folder / "toy" / str(version) / "model.onnx", scale=2, metadata={} if broken else None)
        server.process.send_signal(signal.SIGHUP)
        event = "load failed" if broken else "loaded"
        wait_for(functools.partial(happened, server, event, version))
        seen = len(load.answers)
        wait_for(lambda seen=seen: len(load.answers) > seen + 20)
    load.stop()
    assert (load.lost, load.wrong) == ([], [])
    assert set(load.answers) == {200}
    assert [line["version"] for line in server.events() if line["event"] == "unloaded"] == ["1", "2", "3"]


def test_a_killed_server_can_be_started_again_on_its_port(start, toy, toy_file, clients, binary_request):
    server = start(toy_file)
    load = clients(server)
    wait_for(lambda: len(load.answers) > 20)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    load.stop()
    again = start(toy_file, port=server.port)
    assert again.ask("POST", INFER, *binary_request(toy.images(1)))[0] == 200


def test_the_process_never_loads_torch(server, toy, binary_request):
    server.ask("POST", INFER, *binary_request(toy.images(1)))
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "torch" not in mapped


def test_before_its_models_are_loaded_it_is_not_ready(toy_file):
    from fimaq.deploy.serve import Settings
    from fimaq.deploy.serve.rest.app import application
    from fimaq.deploy.serve.service import Service

    async def ask():
        service = Service(Settings(toy_file))
        transport = httpx.ASGITransport(application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/toy", "/v2/models/toy/ready")
            answers = [await client.get(path) for path in paths]
            answers.append(await client.post(INFER, content=b"{}"))
            await service.registry.start()
            answers.append(await client.get("/v2/health/ready"))
        await service.close()
        return answers

    *before, after = asyncio.run(ask())
    assert [answer.status_code for answer in before] == [200, 503, 503, 503, 503]
    assert before[-1].headers["retry-after"] == "1"
    assert after.status_code == 200


# Starts that fail


def serve(*words):
    command = [sys.executable, "-m", "fimaq.cli.main", "serve", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        (None, (), 4, "is not there; wanted an ONNX file or a folder of them"),
        (b"nothing", (), 4, "not a usable ONNX model"),
        ("toy", ("--keys", "absent"), 4, "keys absent cannot be read"),
        ("toy", ("--join", 64), 2, "join is 64 and the largest batch 32"),
        ("toy", ("--name", "a/b"), 2, "wanted letters, digits"),
        ("toy", ("--port", "taken"), 5, "cannot listen on 127.0.0.1 port"),
        ("toy", ("--port", 0, "--grpc-port", "taken"), 5, "cannot listen for gRPC on 127.0.0.1:"),
        ("toy", ("--port", 8077, "--grpc-port", 8077), 2, "port 8077 is given twice"),
        ("toy", ("--host", "203.0.113.1"), 5, "cannot listen on 203.0.113.1"),
    ],
)
def test_a_start_that_fails_says_why_and_ends(toy, tmp_path, content, options, code, message):
    path = tmp_path / "toy.onnx"
    if content == "toy":
        toy.write(path)
    elif content is not None:
        path.write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [taken.getsockname()[1] if word == "taken" else word for word in options]
        if "--port" not in options:
            words += ["--port", 0]
        done = serve(path, *words)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_two_servers_do_not_share_a_port_for_grpc(start, toy_file):
    address = start(toy_file, "--grpc-port", 0).said["grpc"]
    done = serve(toy_file, "--port", 0, "--grpc-port", address.rpartition(":")[2])
    assert done.returncode == 5
    assert done.stderr.startswith(f"Error: cannot listen for gRPC on {address}")


def test_a_repository_with_a_bad_model_does_not_start(toy, tmp_path):
    toy.write(tmp_path / "good.onnx")
    toy.write(tmp_path / "later.onnx", metadata={})
    done = serve(tmp_path, "--port", 0)
    assert done.returncode == 4
    assert "later.onnx does not carry fimaq.preprocessing" in done.stderr


def test_traces_that_are_asked_for_need_their_package(toy_file, tmp_path, monkeypatch):
    from fimaq.deploy.serve import tracing
    from fimaq.toolchain.errors import EnvironmentProblem

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(EnvironmentProblem, match="OpenTelemetry is not installed"):
        tracing.tracing()


def test_sigterm_finishes_the_calls_that_were_accepted(start, toy, toy_file, slow):
    server = start(toy_file, "--grpc-port", 0)
    request = message("inference.ModelInferRequest")(model_name="toy")
    request.inputs.add(name="image", datatype="FP32", shape=(1, 3, 8, 8))
    request.raw_input_contents.append(toy.images(1, slow=2 * slow).tobytes())
    with grpc.insecure_channel(server.said["grpc"]) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", request_serializer=lambda value: value.SerializeToString()
        )
        answer = infer.future(request)
        wait_for(lambda: b'fimaq_requests_held{model="toy",version="1"} 1.0' in server.ask("GET", "/metrics")[2])
        server.process.send_signal(signal.SIGTERM)
        assert answer.result()
    assert server.process.wait(timeout=60) == 0


def test_sigterm_ends_http_and_grpc_at_the_same_time(start, toy, toy_file, slow, binary_request):
    server = start(toy_file, "--grpc-port", 0)
    answers = []
    body, headers = binary_request(toy.images(1, slow=4 * slow))
    asking = threading.Thread(target=lambda: answers.append(server.json("POST", INFER, body, headers)[0]))
    asking.start()
    wait_for(lambda: b'fimaq_requests_held{model="toy",version="1"} 1.0' in server.ask("GET", "/metrics")[2])
    server.process.send_signal(signal.SIGTERM)

    def refused():
        try:
            call(server, "ServerLive", timeout=1)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE
        return False

    wait_for(refused)
    assert answers == []  # the request over HTTP is still being answered
    asking.join()
    assert answers == [200]
    assert server.process.wait(timeout=60) == 0


def test_the_end_waits_as_long_as_a_request_may_take(toy_file):
    settings = Settings(toy_file, limits=Limits(seconds=7))
    assert _web_config(None, settings).timeout_graceful_shutdown > 7
