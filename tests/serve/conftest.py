"""A toy model whose answers numpy knows, and real servers that serve it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fimaq.toolchain.preprocess import Preprocessing

SIDE, NAMES = 8, ["ant", "bee", "cat", "dog", "eel", "fox", "gnu: a kind of antelope"]
PREPROCESSING = Preprocessing(SIDE, SIDE, 1.0, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WEIGHTS = np.random.default_rng(5).standard_normal((3, len(NAMES))).astype(np.float32)
SLOW = 1000.0
"""As an image's first value: the model works some hundred milliseconds on it."""


@dataclass(frozen=True)
class Toy:
    """logits = mean over the pixels times ``weights``."""

    names: list[str]
    preprocessing: Preprocessing
    weights: np.ndarray

    def images(self, count, seed=0, slow=0.0):
        """Random images, the first value of each ``slow``."""
        images = np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
        images[:, 0, 0, 0] = slow
        return images

    def logits(self, images):
        """What the model should answer, in float64."""
        return images.astype(np.float64).mean(axis=(2, 3)) @ self.weights.astype(np.float64)

    def pixels(self, count, seed=0):
        """Random images for a model that takes them as they are decoded."""
        return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)

    def normalized(self, pixels):
        """What such a model makes of them, in float64."""
        return ((pixels / 255 - self.preprocessing.mean) / self.preprocessing.std).transpose(0, 3, 1, 2)

    def write(self, path, scale=1.0, metadata=None, kind="float"):
        """Write the model, its weights times ``scale``; with the kind ``uint8`` it normalises its images itself."""
        path.parent.mkdir(parents=True, exist_ok=True)
        model = _model(self.weights * np.float32(scale), metadata)
        if kind == "uint8":
            _take_pixels(model.graph)
        onnx.save(model, path)
        return path


def _model(weights, metadata):
    """The toy model; it turns a loop as often as the first value of the first image says."""
    constants = {
        "weights": weights,
        "begin": np.zeros(4, np.int64),
        "end": np.ones(4, np.int64),
        "scalar": np.array([], np.int64),
        "floor": np.float32(0),
        "always": np.array(True),
        "square": np.eye(256, dtype=np.float32),
        "nothing": np.float32(0),
        "lowest": np.finfo(np.float32).min,
    }
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "square"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [256, 256]),
        ],
    )
    nodes = [
        helper.make_node("Slice", ["image", "begin", "end"], ["first"]),
        helper.make_node("Reshape", ["first", "scalar"], ["value"]),
        helper.make_node("Max", ["value", "floor"], ["turns_float"]),
        helper.make_node("Cast", ["turns_float"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "always", "square"], ["worked"], body=body),
        helper.make_node("ReduceMean", ["worked"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "nothing"], ["zero"]),
        # Changes nothing, but gives ReduceMean, whose sums depend on where its input lies, memory of the runtime's own.
        helper.make_node("Max", ["image", "lowest"], ["aligned"]),
        helper.make_node("ReduceMean", ["aligned"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    layers = [{"name": "head", "weight_bits": 4, "activation_bits": 8}]
    carried = {
        "fimaq.format": "1",
        "fimaq.preprocessing": PREPROCESSING.to_json(),
        "fimaq.classes": json.dumps({"wnids": None, "names": NAMES}),
        "fimaq.layers": json.dumps(layers),
    }
    helper.set_model_props(model, carried if metadata is None else metadata)
    return model


def _take_pixels(graph):
    """Put ``(pixel / 255 - mean) / std`` in front, in float32 and in that order, so that results are the same bits."""
    for node in graph.node:
        node.input[:] = ["normal" if name == "image" else name for name in node.input]
    for name, value in (("white", 255), ("centre", PREPROCESSING.mean[0]), ("width", PREPROCESSING.std[0])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    steps = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "white"], ["shares"]),
        helper.make_node("Sub", ["shares", "centre"], ["centred"]),
        helper.make_node("Div", ["centred", "width"], ["normal"]),
    ]
    for step in reversed(steps):
        graph.node.insert(0, step)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3]))


class Server:
    """A ``fimaq-tool serve`` process that takes requests."""

    def __init__(self, words, log, env=None):
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fimaq.cli.main", "serve", *map(str, words), "--json"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
                text=True,
            )
        self.said = json.loads(self.process.stdout.readline() or "{}")
        assert self.said, log.read_text()
        self.url = self.said["url"]
        self.port = int(self.url.rpartition(":")[2])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def socket(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and content of one answer, over a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=None):
        """Status and value of one answer; ``body`` may be a value, too."""
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        status, _, content = self.ask(method, path, sent, headers)
        return status, json.loads(content)

    def statistics(self, model="toy"):
        return self.json("GET", f"/v2/models/{model}/stats")[1]["model_stats"][0]

    def events(self):
        """The lines of the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def resident(self):
        """Bytes of memory in use."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, how=signal.SIGTERM):
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="session")
def toy():
    return Toy(NAMES, PREPROCESSING, WEIGHTS)


@pytest.fixture(scope="session")
def slow():
    return SLOW


@pytest.fixture(scope="session")
def toy_file(toy, tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp("models") / "toy.onnx")


@pytest.fixture(scope="session")
def bytes_file(toy, tmp_path_factory):
    """The toy, for images as they are decoded."""
    return toy.write(tmp_path_factory.mktemp("bytes") / "toy.onnx", kind="uint8")


@pytest.fixture
def start(tmp_path):
    """``start(source, *options)`` starts a server, which ends with the test and must have had no error of its own."""
    started = []

    def run(source, *options, port=0, env=None):
        defaults = ("--port", port, "--threads", 1, "--drain", 0)
        server = Server([source, *defaults, *options], tmp_path / f"serve{len(started)}.log", env)
        started.append(server)
        return server

    yield run
    for server in started:
        server.stop()
    for server in started:
        assert "Traceback" not in server.log.read_text()


@contextmanager
def serving(file, log):
    """A server that must end well and have had no error of its own."""
    server = Server([file, "--port", 0, "--grpc-port", 0, "--threads", 1, "--drain", 0], log)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def server(toy_file, tmp_path_factory):
    """One server for tests that only ask it."""
    with serving(toy_file, tmp_path_factory.mktemp("log") / "serve.log") as server:
        yield server


@pytest.fixture(scope="module")
def bytes_server(bytes_file, tmp_path_factory):
    """One server of the file that takes pixels."""
    with serving(bytes_file, tmp_path_factory.mktemp("log") / "bytes.log") as server:
        yield server


@pytest.fixture(scope="session")
def binary_request():
    """``binary_request(images, **parameters)`` gives the body and headers of a request with a binary tensor."""

    def make(images, parameters=None, outputs=None):
        pixels = images.dtype == np.uint8
        data = np.ascontiguousarray(images, None if pixels else "<f4").tobytes()
        tensor = {"name": "image", "datatype": "UINT8" if pixels else "FP32", "shape": list(images.shape)}
        head = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}
        head |= {"parameters": parameters} if parameters else {}
        head |= {"outputs": outputs} if outputs else {}
        text = json.dumps(head).encode()
        return text + data, {"Inference-Header-Content-Length": str(len(text))}

    return make
