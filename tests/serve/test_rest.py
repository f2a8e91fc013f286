"""The protocol over HTTP, as a client meets it: a real server, answers that numpy knows."""

import asyncio
import gzip
import hashlib
import json
import re
import zlib

import numpy as np
import pytest

from fimaq.deploy.serve.protocol import seconds

INFER = "/v2/models/toy/infer"
CLOSE = 1e-5
"""float32 against float64 sums of 64 values of order one."""


def tensor(images, **more):
    return {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist(), **more}


def binary_answer(headers, content):
    """The JSON and the bytes behind it."""
    length = int(headers["Inference-Header-Content-Length"])
    return json.loads(content[:length]), content[length:]


# What the server says about itself


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(server, path):
    status, about = server.json("GET", path)
    assert status == 200
    assert set(about) == {"name", "version", "extensions"}
    assert {"binary_tensor_data", "classification", "statistics", "model_configuration"} <= set(about["extensions"])


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/toy/ready", {"name": "toy", "ready": True}),
        ("/v2/models/toy/versions/1/ready", {"name": "toy", "ready": True}),
    ],
)
def test_health(server, path, answer):
    assert server.json("GET", path) == (200, answer)


@pytest.mark.parametrize("path", ["/v2/models/toy", "/v2/models/toy/versions/1"])
def test_model_metadata(server, path):
    assert server.json("GET", path) == (
        200,
        {
            "name": "toy",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}],
        },
    )


def test_the_configuration_tells_what_an_evaluation_needs(server, toy, toy_file):
    status, config = server.json("GET", "/v2/models/toy/config")
    told = {name: value["string_value"] for name, value in config["parameters"].items()}
    assert status == 200
    assert config["max_batch_size"] == 32
    assert told["fimaq.preprocessing"] == toy.preprocessing.to_json()
    assert json.loads(told["fimaq.classes"]) == {"wnids": None, "names": toy.names}
    assert told["fimaq.sha256"] == hashlib.sha256(toy_file.read_bytes()).hexdigest()
    assert told["fimaq.bytes"] == str(toy_file.stat().st_size)
    assert told["fimaq.bits"] == "W4/A8"


def test_the_index_lists_the_model(server):
    entry = {"name": "toy", "version": "1", "state": "READY", "reason": ""}
    assert server.json("POST", "/v2/repository/index") == (200, [entry])


# Tensors


@pytest.mark.parametrize("path", [INFER, "/v2/models/toy/versions/1/infer"])
@pytest.mark.parametrize("nested", [False, True])
def test_json_tensors(server, toy, path, nested):
    images = toy.images(3)
    item = tensor(images)
    if nested:
        item["data"] = images.tolist()
    status, answer = server.json("POST", path, {"id": "a7", "inputs": [item]})
    assert status == 200
    (output,) = answer.pop("outputs")
    assert answer == {"id": "a7", "model_name": "toy", "model_version": "1"}
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 7])
    np.testing.assert_allclose(np.reshape(output["data"], (3, 7)), toy.logits(images), atol=CLOSE)


def test_no_id_is_invented(server, toy):
    assert "id" not in server.json("POST", INFER, {"inputs": [tensor(toy.images(1))]})[1]


@pytest.mark.parametrize("more", [{"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "logits"}]}])
def test_binary_tensors_in_and_out(server, toy, binary_request, more):
    images = toy.images(2)
    if "outputs" in more:
        more = {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    body, headers = binary_request(images, **more)
    status, got, content = server.ask("POST", INFER, body, headers)
    head, tail = binary_answer(got, content)
    assert status == 200
    assert head["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 7], "parameters": {"binary_data_size": 56}}
    ]
    np.testing.assert_allclose(np.frombuffer(tail, "<f4").reshape(2, 7), toy.logits(images), atol=CLOSE)


@pytest.mark.parametrize("padding", range(8))
def test_a_binary_tensor_may_begin_at_any_byte(server, toy, binary_request, padding):
    images = toy.images(1)
    body, headers = binary_request(images)
    length = int(headers["Inference-Header-Content-Length"])
    body = body[:length] + b" " * padding + body[length:]
    status, answer = server.json("POST", INFER, body, {"Inference-Header-Content-Length": str(length + padding)})
    assert status == 200
    np.testing.assert_allclose([answer["outputs"][0]["data"]], toy.logits(images), atol=CLOSE)


@pytest.mark.parametrize("received_into", [False, True])
@pytest.mark.parametrize("length", range(12))
def test_a_binary_tensor_is_used_where_it_lies(length, received_into):
    from starlette.requests import Request

    from fimaq.deploy.serve.rest.body import read_body
    from fimaq.deploy.serve.rest.exchange import RECEIVE_INTO

    async def receive():
        return {"type": "http.request", "body": bytes(length + 768), "more_body": False}

    async def receive_into(view):
        view[:] = bytes(length + 768)

    async def read():
        scope = {"type": "http", "headers": [(b"content-length", str(length + 768).encode())]}
        scope |= {"extensions": {RECEIVE_INTO: receive_into}} if received_into else {}
        return await read_body(Request(scope, receive), 2**20, 1e12, aligned_at=length)

    body = asyncio.run(read())
    assert len(body) == length + 768
    assert np.frombuffer(body[length:], "<f4").flags.aligned


def test_one_bare_tensor(server, toy):
    images = toy.images(2)
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    status, got, content = server.ask("POST", INFER, images.tobytes(), headers)
    head, tail = binary_answer(got, content)
    assert (status, head["outputs"][0]["shape"]) == (200, [2, 7])
    np.testing.assert_allclose(np.frombuffer(tail, "<f4").reshape(2, 7), toy.logits(images), atol=CLOSE)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(server, toy, binary_request, encoding, compress):
    images = toy.images(2)
    body, headers = binary_request(images)
    status, answer = server.json("POST", INFER, compress(body), {**headers, "Content-Encoding": encoding})
    assert status == 200
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 7)), toy.logits(images), atol=CLOSE)


def test_a_chunked_body(server, toy, binary_request):
    body, headers = binary_request(toy.images(1))
    connection = server.connect()
    pieces = (body[start : start + 100] for start in range(0, len(body), 100))
    connection.request("POST", INFER, pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


# Classes


def classes_of(logits, names, count):
    order = np.argsort(-logits)[:count]
    return [(f"{logits[i]:.3f}", str(i), names[i]) for i in order]


def parsed(text):
    value, index, name = text.split(":", 2)
    return f"{float(value):.3f}", index, name


@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_classification_in_json(server, toy, count):
    images = toy.images(2)
    outputs = [{"name": "logits", "parameters": {"classification": count}}]
    status, answer = server.json("POST", INFER, {"inputs": [tensor(images)], "outputs": outputs})
    (output,) = answer["outputs"]
    kept = min(count, 7)
    assert (status, output["datatype"], output["shape"]) == (200, "BYTES", [2, kept])
    rows = np.reshape([parsed(text) for text in output["data"]], (2, kept, 3)).tolist()
    expected = [classes_of(row, toy.names, count) for row in toy.logits(images)]
    assert rows == [[list(item) for item in row] for row in expected]


def test_classification_in_binary(server, toy, binary_request):
    images = toy.images(1)
    wished = [{"name": "logits", "parameters": {"classification": 2, "binary_data": True}}]
    body, headers = binary_request(images, outputs=wished)
    _, got, content = server.ask("POST", INFER, body, headers)
    head, tail = binary_answer(got, content)
    assert head["outputs"][0]["parameters"]["binary_data_size"] == len(tail)
    texts = []
    while tail:
        size = int.from_bytes(tail[:4], "little")
        texts.append(tail[4 : 4 + size].decode())
        tail = tail[4 + size :]
    assert [parsed(text) for text in texts] == classes_of(toy.logits(images)[0], toy.names, 2)


# What is refused

GOOD = np.zeros((1, 3, 8, 8), np.float32)


def changed(**changes):
    return {"inputs": [tensor(GOOD) | changes]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"inputs": [{"name": "image", "data": [NaN]}]}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ({}, "no list of inputs"),
        ({"inputs": []}, "got the inputs none; wanted one input 'image'"),
        ({"inputs": [7]}, "an input is no JSON object"),
        ({"inputs": [tensor(GOOD), tensor(GOOD)]}, "wanted one input"),
        (changed(name="picture"), "got the inputs 'picture' FP32"),
        (changed(name=7), "name is no string"),
        (changed(datatype="FP16"), "wanted one input 'image', FP32 [1 to 32, 3, 8, 8]"),
        (changed(shape=[1, 3, 8]), "got shape [1, 3, 8]"),
        (changed(shape=[3, 1, 8, 8]), "got shape [3, 1, 8, 8]"),
        (changed(shape=[0, 3, 8, 8]), "got shape [0, 3, 8, 8]"),
        (changed(shape=[33, 3, 8, 8]), "got shape [33, 3, 8, 8]"),
        (changed(shape=[-1, 3, 8, 8]), "got shape [-1, 3, 8, 8]"),
        (changed(shape=[True, 3, 8, 8]), "no list of whole numbers"),
        (changed(shape="1388"), "no list of whole numbers"),
        (changed(data=[1.0]), "data holds 1 numbers; wanted 192"),
        (changed(data=["1"] * 192), "values that are not all numbers"),
        (changed(data=[None] * 192), "values that are not all numbers"),
        (changed(data=[True] * 192), "values that are not all numbers"),
        (changed(data=[[1.0], [1.0, 2.0]]), "data is no array"),
        (changed(data=[1e300] * 192), "a number that float32 cannot hold"),
        (changed(data=7), "no list of numbers as data"),
        (changed(parameters=7), "parameters is no JSON object"),
        (changed(parameters={"binary_data_size": 768}), "and data"),
        (changed(parameters={"shared_memory_region": "r"}), "shared memory is not offered"),
        ({**changed(), "outputs": [{"name": "scores"}]}, "asked for the outputs 'scores'"),
        ({**changed(), "outputs": [{"name": "logits"}] * 2}, "wanted 'logits'"),
        (
            {**changed(), "outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
            "classification is '-1'",
        ),
        ({**changed(), "outputs": [{"name": "logits", "parameters": {"classification": True}}]}, "'True'"),
        ({**changed(), "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "binary_data is '1'"),
        ({**changed(), "parameters": {"timeout": "soon"}}, "timeout is 'soon'"),
        ({**changed(), "id": 7}, "id is no string"),
    ],
)
def test_what_cannot_be_meant_is_a_400_that_says_why(server, body, message):
    status, answer = server.json("POST", INFER, body)
    assert status == 400
    assert set(answer) == {"error"}
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (changed(parameters={"binary_data_size": "DEEP"}), "the input has binary_data_size a list"),
        ({**changed(), "parameters": {"timeout": "DEEP"}}, "timeout is a list"),
        ({**changed(), "parameters": {"binary_data_output": "DEEP"}}, "binary_data_output is a list"),
        (
            {**changed(), "outputs": [{"name": "logits", "parameters": {"classification": "DEEP"}}]},
            "classification is a",
        ),
        (
            {**changed(), "outputs": [{"name": "logits", "parameters": {"binary_data": "DEEP"}}]},
            "binary_data is a list",
        ),
        (changed(data="DEEP"), "data holds 0 numbers"),
        (changed(shape="DEEP"), "no list of whole numbers"),
        (changed(name="DEEP"), "name is no string"),
        ({**changed(), "id": "DEEP"}, "id is no string"),
    ],
)
def test_lists_too_deep_to_be_written_out_are_no_error_of_the_servers(server, where, message):
    body = json.dumps(where).replace('"DEEP"', 1000 * "[" + 1000 * "]").encode()
    status, answer = server.json("POST", INFER, body)
    assert (status, message in answer["error"]) == (400, True), answer


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [
        ("x", 768, "wanted the length of the JSON"),
        ("-1", 768, "wanted the length of the JSON"),
        ("99999", 768, "wanted at most as many"),
        ("0", 767, "wanted 1 to 32 images of 768 bytes each"),
        (None, 700, "wanted 768 bytes for shape [1, 3, 8, 8]"),
        (None, 800, "wanted 768 bytes for shape [1, 3, 8, 8]"),
    ],
)
def test_binary_sizes_that_lie(server, binary_request, length, size, message):
    body, headers = binary_request(GOOD)
    head = body[: int(headers["Inference-Header-Content-Length"])]
    sent = (b"" if length == "0" else head) + bytes(size)
    given = headers if length is None else {"Inference-Header-Content-Length": length}
    status, answer = server.json("POST", INFER, sent, given)
    assert status == 400
    assert message in answer["error"]


def test_an_image_that_is_not_finite_is_the_clients_fault(server, binary_request):
    body, headers = binary_request(np.full_like(GOOD, np.nan))
    status, answer = server.json("POST", INFER, body, headers)
    assert (status, "not finite" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/toy/versions/2", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models/..%2Ftoy/infer", 404),
        ("GET", "/v2/models/toy/infer", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v2/health/live/", 404),  # no redirect, whose address a client's Host would be in
        ("POST", "/v2/repository/models/toy/load", 403),
        ("POST", "/v2/repository/models/toy/unload", 403),
    ],
)
def test_every_refusal_is_json_with_an_error(server, method, path, status):
    got, answer = server.json(method, path, b"{}" if method == "POST" else None)
    assert got == status
    assert list(answer) == ["error"]


def test_another_sites_page_may_not_ask(server):
    assert server.json("GET", "/v2", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403


# Ids, times, counters


def test_a_request_id_is_kept_or_made_and_logged(server, toy):
    body = json.dumps({"inputs": [tensor(toy.images(1))]}).encode()
    given = server.ask("POST", INFER, body, {"X-Request-Id": "mine-1"})[1]["X-Request-Id"]
    made = server.ask("POST", INFER, body)[1]["X-Request-Id"]
    bad = server.ask("POST", INFER, body, {"X-Request-Id": "x" * 129})[1]["X-Request-Id"]
    assert given == "mine-1"
    assert re.fullmatch("[0-9a-f]{16}", made)
    assert re.fullmatch("[0-9a-f]{16}", bad)
    (line,) = [event for event in server.events() if event.get("request_id") == "mine-1"]
    assert (line["status"], line["model"], line["images"], line["path"]) == (200, "toy", 1, INFER)


def test_the_answer_tells_the_time_in_the_model(server, toy):
    body = json.dumps({"inputs": [tensor(toy.images(1, slow=100.0))]}).encode()
    timing = server.ask("POST", INFER, body)[1]["Server-Timing"]
    found = re.fullmatch(r"queue;dur=([\d.]+), compute;dur=([\d.]+)", timing)
    assert float(found[2]) > 1.0  # a hundred products of 256 x 256 matrices take more than a millisecond


def test_statistics_count_requests_and_images(server, toy):
    before = server.statistics()
    for count in (1, 4):
        server.json("POST", INFER, {"inputs": [tensor(toy.images(count))]})
    server.json("POST", INFER, {"inputs": []})
    after = server.statistics()
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["execution_count"] - before["execution_count"] == 2
    for name, more in (("success", 2), ("fail", 1), ("compute_infer", 2)):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == more
    assert 4 in [batch["batch_size"] for batch in after["batch_stats"]]


def test_metrics_are_prometheus_text_and_agree_with_the_statistics(server, toy):
    from prometheus_client.parser import text_string_to_metric_families

    server.json("POST", INFER, {"inputs": [tensor(toy.images(1))]})
    _, headers, content = server.ask("GET", "/metrics")
    samples = [sample for family in text_string_to_metric_families(content.decode()) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples}
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert values["fimaq_images_total"] == server.statistics()["inference_count"]
    assert values["fimaq_ready"] == 1
    (info,) = [sample.labels for sample in samples if sample.name == "fimaq_model_info"]
    assert (info["model"], info["bits"]) == ("toy", "W4/A8")
    answered = [s for s in samples if s.name == "fimaq_requests_total" and s.labels["operation"] == "infer"]
    assert {s.labels["status"] for s in answered} >= {"200"}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "float"),
        ([(4, 4), (4, 4)], "W4/A4"),
        ([(4, 4), (None, 4)], "W4/A4"),
        ([(4, 8), (4, 4), (4, 4), (None, 4)], "W4/A4 (2 layers), W4/A8 (1), A4 products (1)"),
        ([(8, 8), (None, 4), (None, 4)], "W8/A8 (1 layers), A4 products (2)"),
    ],
)
def test_the_bits_of_every_layer_and_product_are_told(layers, words):
    from fimaq.deploy.serve.describe import bits

    assert bits(json.dumps([{"weight_bits": weight, "activation_bits": bits} for weight, bits in layers])) == words


def test_what_curl_sends_as_a_form_is_told_what_to_send(server):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, answer = server.json("POST", "/v2/models/toy/infer", b"\xff\xd8\xff\xe0 a photograph", form)
    assert status == 400
    assert "curl -H 'Content-Type: image/jpeg' --data-binary @FILE" in answer["error"]


def test_logits_that_are_not_finite_are_the_models_fault(server, toy, binary_request):
    status, answer = server.json("POST", INFER, *binary_request(np.full_like(toy.images(1), -3e38)))
    assert (status, "logits that are not finite" in answer["error"]) == (500, True)


def test_nobody_may_wait_longer_than_the_server_allows():
    assert seconds({"timeout": 5_000_000}, 2.0) == 2.0
    assert seconds({"timeout": 500_000}, 2.0) == 0.5
