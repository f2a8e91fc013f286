"""Clients that others wrote, against a real server; each runs in an environment of its own (``make clients``)."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent / "clients"
PYTHON = Path(__file__).parents[2] / "build" / "clients" / "bin" / "python"


@pytest.fixture(scope="module")
def client():
    """``client(script, *words)`` runs a script in the clients' environment and gives the object it prints."""
    if not PYTHON.exists():
        pytest.skip("no clients of others are installed: make clients")

    def run(script, *words):
        command = [str(PYTHON), "-W", "ignore", str(HERE / script), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def images(toy):
    return toy.images(2)


@pytest.fixture(scope="module")
def images_file(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, images)
    return path


@pytest.fixture(scope="module", params=["http", "grpc"])
def seen(request, server, client, images_file):
    """What tritonclient saw over either protocol."""
    address = server.said["grpc"] if request.param == "grpc" else server.url.removeprefix("http://")
    return client("triton.py", request.param, address, images_file)


def numbers(value):
    """gRPC's JSON has 64-bit numbers as strings."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d+", value) else value


def test_tritonclient_finds_everything_ready(seen):
    assert [seen[key] for key in ("live", "ready", "model_ready", "version_ready")] == [True] * 4
    assert seen["other_ready"] is False


def test_tritonclient_reads_the_metadata(seen):
    assert seen["server"]["name"] == "fimaq-tool"
    model = numbers(seen["model"])
    assert (model["name"], model["platform"]) == ("toy", "onnxruntime_onnx")
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]


def test_tritonclient_reads_the_configuration(seen, toy):
    config = numbers(seen["config"].get("config", seen["config"]))
    assert (config["max_batch_size"], config["backend"]) == (32, "onnxruntime")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
    assert config["parameters"]["fimaq.preprocessing"]["string_value"] == toy.preprocessing.to_json()


def test_tritonclient_reads_the_index_and_the_statistics(seen):
    entries = seen["index"]["models"] if isinstance(seen["index"], dict) else seen["index"]
    assert [(entry["name"], entry["state"]) for entry in entries] == [("toy", "READY")]
    (found,) = numbers(seen["statistics"])["model_stats"]
    assert found["inference_stats"]["success"]["count"] >= 4
    assert found["execution_count"] == sum(batch["compute_infer"]["count"] for batch in found["batch_stats"])


def test_tritonclient_gets_the_logits(seen, toy, images):
    for key in {"logits", "json", "gzip", "deflate"} & seen.keys():
        np.testing.assert_allclose(seen[key], toy.logits(images), atol=1e-5)


def test_tritonclient_gets_classes_and_its_id_back(seen, toy, images):
    best = np.argsort(-toy.logits(images), axis=1)[:, :2]
    assert [[text.split(":", 2)[2] for text in row] for row in seen["classes"]] == [
        [toy.names[index] for index in row] for row in best
    ]
    assert seen["id"]["id"] == "mine"
    assert "id" not in seen["version"]
    assert seen["version"]["model_version"] == "1"


def test_tritonclient_is_told_what_is_wrong(seen):
    assert seen["other"]["message"].startswith("model 'other' is not served here")
    assert seen["other"]["status"] in ("404", "StatusCode.NOT_FOUND")
    for name in ("load", "unload"):
        assert "--admin" in seen[name]["message"]
        assert seen[name]["status"] in ("403", "StatusCode.PERMISSION_DENIED")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_sends_pixels(bytes_server, client, toy, tmp_path, protocol):
    pixels = toy.pixels(2)
    np.save(tmp_path / "pixels.npy", pixels)
    address = bytes_server.said["grpc"] if protocol == "grpc" else bytes_server.url.removeprefix("http://")
    found = client("triton.py", protocol, address, tmp_path / "pixels.npy")
    for key in {"logits", "json", "gzip"} & found.keys():
        np.testing.assert_allclose(found[key], toy.logits(toy.normalized(pixels)), atol=1e-5)


def test_kserves_client(server, client, toy, images, images_file):
    seen = client("kserve_rest.py", server.url, images_file)
    assert [seen[key] for key in ("live", "ready", "model_ready", "id")] == [True, True, True, "mine"]
    for name in ("json", "binary"):
        np.testing.assert_allclose(seen[name], toy.logits(images), atol=1e-5)


def test_curl_with_an_image(server, toy, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "red.png")
    command = ["curl", "-sS", "-H", "Content-Type: image/png", "--data-binary", f"@{tmp_path / 'red.png'}"]
    done = subprocess.run([*command, f"{server.url}/v2/models/toy/infer"], capture_output=True, check=True)
    (output,) = json.loads(done.stdout)["outputs"]
    red = np.array([1.0, -1.0, -1.0]) @ toy.weights.astype(np.float64)
    assert output["data"][0].split(":", 2)[2] == toy.names[red.argmax()]


def test_our_messages_have_the_numbers_and_types_of_tritons(client):
    from fimaq.deploy.serve.rpc import messages

    theirs = client("messages.py")
    ours = {
        name: {field.name: [field.number, field.type, bool(field.is_repeated)] for field in fields}
        for name, fields in ((message.full_name, message.fields) for message in every_message(messages))
    }
    assert len(ours) > 40
    assert {name: {key: theirs["messages"][name].get(key) for key in fields} for name, fields in ours.items()} == ours
    assert {method.name for method in messages.service().methods} <= set(theirs["methods"])


def every_message(messages):
    from google.protobuf import descriptor_pb2

    def below(prefix, message):
        name = f"{prefix}.{message.name}"
        yield messages.message(name).DESCRIPTOR
        for nested in message.nested_type:
            yield from below(name, nested)

    for file in descriptor_pb2.FileDescriptorSet.FromString(messages.COMPILED.read_bytes()).file:
        for message in file.message_type:
            yield from below(file.package, message)


def test_the_compiled_description_is_that_of_the_source(tmp_path):
    from grpc_tools import protoc

    from fimaq.deploy.serve.rpc import messages

    folder = messages.COMPILED.parent
    compiled = tmp_path / "out.binpb"
    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={compiled}", "inference.proto"]) == 0
    assert compiled.read_bytes() == messages.COMPILED.read_bytes()
