"""The protocol over gRPC: what tritonclient does not try. The messages are compared with its own in test_clients.py."""

import asyncio
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from rpc_calls import call, logits, refused

from fimaq.deploy.serve import Limits, Settings
from fimaq.deploy.serve.rpc.messages import SERVICE, message
from fimaq.deploy.serve.rpc.server import HANDLERS, PROBES, RpcServer

KEY = "a key of more than sixteen characters"


def infer_request(images, name="toy", typed=False, **changes):
    request = message("inference.ModelInferRequest")(model_name=name, **changes)
    tensor = request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    if typed:
        tensor.contents.fp32_contents.extend(images.ravel().tolist())
    else:
        request.raw_input_contents.append(images.tobytes())
    return request


@pytest.mark.parametrize("typed", [False, True])
def test_raw_and_typed_contents(server, toy, typed):
    images = toy.images(3)
    response = call(server, "ModelInfer", infer_request(images, typed=typed, id="mine"))
    assert (response.model_name, response.model_version, response.id) == ("toy", "1", "mine")
    np.testing.assert_allclose(logits(response), toy.logits(images), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        (lambda r: setattr(r, "model_name", "other"), "NOT_FOUND", "'other' is not served"),
        (lambda r: setattr(r, "model_version", "9"), "NOT_FOUND", "version '9'"),
        (lambda r: r.ClearField("inputs"), "INVALID_ARGUMENT", "got the inputs none"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "INVALID_ARGUMENT", "wanted one input"),
        (lambda r: r.inputs[0].shape.append(1), "INVALID_ARGUMENT", "got shape [1, 3, 8, 8, 1]"),
        (lambda r: r.raw_input_contents.append(b""), "INVALID_ARGUMENT", "has 2 item(s)"),
        (lambda r: r.ClearField("raw_input_contents"), "INVALID_ARGUMENT", "fp32_contents has 0 numbers"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "INVALID_ARGUMENT", "beside typed contents"),
        (lambda r: r.outputs.add(name="scores"), "INVALID_ARGUMENT", "asked for the outputs 'scores'"),
        (lambda r: r.parameters["timeout"].CopyFrom(parameter(string_param="x")), "INVALID_ARGUMENT", "timeout"),
    ],
)
def test_what_cannot_be_meant_is_refused(server, toy, change, code, part):
    request = infer_request(toy.images(1))
    change(request)
    got, details = refused(server, request)
    assert got == code
    assert part in details


def test_a_refusal_that_quotes_what_was_sent_is_short_enough_to_arrive(server, toy):
    got, details = refused(server, infer_request(toy.images(1), name="a" * 100_000))
    assert (got, details[:10]) == ("NOT_FOUND", "model 'aaa")


def parameter(**value):
    return message("inference.InferParameter")(**value)


def test_a_call_may_want_its_answer_sooner(server, toy, slow):
    request = infer_request(toy.images(1, slow=slow))
    request.parameters["timeout"].CopyFrom(parameter(int64_param=1000))
    assert refused(server, request) == (
        "DEADLINE_EXCEEDED",
        "the answer was not there in time. Send it again later, or allow more time.",
    )


def test_the_model_does_not_work_for_a_call_that_is_over(server, toy, slow):
    call(server, "ModelInfer", infer_request(toy.images(1)))  # after whatever the model still works on
    before = server.statistics()["inference_count"]
    with grpc.insecure_channel(server.said["grpc"]) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", request_serializer=lambda request: request.SerializeToString()
        )
        working = infer.future(infer_request(toy.images(1, slow=slow)))
        while b'fimaq_requests_held{model="toy",version="1"} 1.0' not in server.ask("GET", "/metrics")[2]:
            assert not working.done()
        with pytest.raises(grpc.RpcError) as refusal:
            infer(infer_request(toy.images(5)), timeout=0.1, metadata=(("x-request-id", "hasty"),))
        working.result()
    assert refusal.value.code().name == "DEADLINE_EXCEEDED"
    assert call(server, "ModelInfer", infer_request(toy.images(1))).model_name == "toy"
    assert server.statistics()["inference_count"] - before == 2
    (line,) = [event for event in server.events() if event.get("request_id") == "hasty"]
    assert line["code"] == "CANCELLED"


@pytest.mark.parametrize("typed", [False, True])
def test_an_image_that_is_not_finite_is_the_clients_fault(server, toy, typed):
    images = toy.images(1)
    images[0, 1, 2, 3] = np.inf
    code, words = refused(server, infer_request(images, typed=typed))
    assert (code, "not finite" in words) == ("INVALID_ARGUMENT", True)


def test_a_message_that_is_too_large(server):
    request = message("inference.ModelInferRequest")(model_name="toy")
    request.raw_input_contents.append(bytes(34 * 2**20))
    assert refused(server, request)[0] == "RESOURCE_EXHAUSTED"


def test_only_who_has_a_key_comes_in(start, toy, toy_file, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    server = start(toy_file, "--grpc-port", 0, "--keys", tmp_path / "keys")
    assert call(server, "ServerLive").live
    assert call(server, "ServerReady").ready
    assert refused(server, infer_request(toy.images(1)))[0] == "UNAUTHENTICATED"
    for method in HANDLERS.keys() - {*PROBES}:
        assert refused(server, None, method)[0] == "UNAUTHENTICATED"
    key = (("authorization", f"Bearer {KEY}"),)
    assert call(server, "ServerMetadata", metadata=key).name == "fimaq-tool"
    assert call(server, "ModelInfer", infer_request(toy.images(1)), metadata=key).model_name == "toy"


def test_load_and_unload_with_admin(start, toy, tmp_path):
    toy.write(tmp_path / "repository" / "toy.onnx")
    server = start(tmp_path / "repository", "--grpc-port", 0, "--admin")
    unload = message("inference.RepositoryModelUnloadRequest")(model_name="toy")
    load = message("inference.RepositoryModelLoadRequest")(model_name="toy")
    call(server, "RepositoryModelUnload", unload)
    ready = message("inference.ModelReadyRequest")(name="toy")
    assert not call(server, "ModelReady", ready).ready
    call(server, "RepositoryModelLoad", load)
    assert call(server, "ModelReady", ready).ready
    load.parameters["config"].CopyFrom(message("inference.ModelRepositoryParameter")(string_param="{}"))
    assert refused(server, load, "RepositoryModelLoad")[0] == "INVALID_ARGUMENT"


def test_calls_are_logged_and_counted(server, toy):
    call(server, "ModelInfer", infer_request(toy.images(1)), metadata=(("x-request-id", "rpc-7"),))
    (line,) = [event for event in server.events() if event.get("request_id") == "rpc-7"]
    assert (line["method"], line["code"]) == ("ModelInfer", "OK")
    wanted = 'fimaq_requests_total{operation="ModelInfer",protocol="grpc",status="OK"}'
    assert wanted in server.ask("GET", "/metrics")[2].decode()


def test_more_calls_than_the_queue_has_room_for_are_refused_unread(toy_file, monkeypatch):
    told = {}

    def server(**options):
        told.update(options)
        raise RuntimeError("that is all")

    monkeypatch.setattr(grpc.aio, "server", server)
    service = SimpleNamespace(settings=Settings(toy_file, grpc_port=0, limits=Limits(queue=5)))
    with pytest.raises(RuntimeError, match="that is all"):
        asyncio.run(RpcServer.start(service))
    assert told["maximum_concurrent_rpcs"] == 10


def test_logits_that_are_not_finite_are_the_models_fault(server, toy):
    code, words = refused(server, infer_request(np.full_like(toy.images(1), -3e38)))
    assert (code, "logits that are not finite" in words) == ("INTERNAL", True)


def waiting(server):
    """A call whose message never comes."""

    def nothing():
        over.wait()
        yield

    over = threading.Event()
    channel = grpc.insecure_channel(server.said["grpc"])
    call = channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing())
    call.add_done_callback(lambda _: over.set())
    return channel, call


def test_a_message_that_does_not_come_is_not_waited_for_longer_than_a_request_may_take(start, toy_file):
    server = start(toy_file, "--grpc-port", 0, "--queue", 1, "--timeout", 0.5)
    calls = [waiting(server) for _ in range(2)]
    refusals = [pending.exception(timeout=20) for _, pending in calls]
    assert [(refusal.code().name, refusal.details()[:29]) for refusal in refusals] == 2 * [
        ("DEADLINE_EXCEEDED", "the message did not arrive in")
    ]
    assert call(server, "ServerLive").live
    for channel, _ in calls:
        channel.close()


def test_who_has_no_key_need_not_send_a_message_to_be_refused(start, toy_file, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    server = start(toy_file, "--grpc-port", 0, "--keys", tmp_path / "keys")
    channel, call = waiting(server)
    assert call.exception(timeout=20).code().name == "UNAUTHENTICATED"
    channel.close()


def test_a_call_without_a_message_is_refused(server):
    with grpc.insecure_channel(server.said["grpc"]) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.stream_unary(f"/{SERVICE}/ServerMetadata")(iter(()), timeout=20)
    assert refusal.value.code().name == "INVALID_ARGUMENT"
    assert refusal.value.details() == "the call holds no message; wanted one."
