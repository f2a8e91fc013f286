"""Files that take pixels, behind a real server: answers that numpy knows, over every way in."""

import io

import grpc
import numpy as np
import pytest
from PIL import Image
from rpc_calls import call, logits, refused

from fimaq.deploy.serve.rpc.messages import message

INFER = "/v2/models/toy/infer"
CLOSE = 1e-5
"""float32 against float64 sums of 64 values of order one."""


def tensor(pixels, **changes):
    item = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return {**item, **changes}


def rpc_request(pixels, typed=False, datatype="UINT8"):
    request = message("inference.ModelInferRequest")(model_name="toy")
    item = request.inputs.add(name="image", datatype=datatype, shape=pixels.shape)
    if typed:
        item.contents.uint_contents.extend(pixels.ravel().tolist())
    else:
        request.raw_input_contents.append(pixels.tobytes())
    return request


def test_what_is_said_of_the_input(bytes_server):
    entry = {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
    _, metadata = bytes_server.json("GET", "/v2/models/toy")
    assert metadata["inputs"] == [entry]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]
    (told,) = call(bytes_server, "ModelMetadata", message("inference.ModelMetadataRequest")(name="toy")).inputs
    assert (told.name, told.datatype, list(told.shape)) == ("image", "UINT8", [-1, 8, 8, 3])
    _, config = bytes_server.json("GET", "/v2/models/toy/config")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [8, 8, 3]}]
    assert config["output"][0]["data_type"] == "TYPE_FP32"
    (told,) = call(bytes_server, "ModelConfig", message("inference.ModelConfigRequest")(name="toy")).config.input
    kind = told.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[told.data_type].name
    assert (kind, list(told.dims)) == ("TYPE_UINT8", [8, 8, 3])


@pytest.mark.parametrize("form", [lambda p: p.ravel().tolist(), np.ndarray.tolist, lambda p: p.astype(float).tolist()])
def test_json_tensors(bytes_server, toy, form):
    pixels = toy.pixels(3)
    status, answer = bytes_server.json("POST", INFER, {"inputs": [tensor(pixels, data=form(pixels))]})
    assert status == 200
    found = np.reshape(answer["outputs"][0]["data"], (3, 7))
    np.testing.assert_allclose(found, toy.logits(toy.normalized(pixels)), atol=CLOSE)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("padding", range(3))
def test_binary_tensors(bytes_server, toy, binary_request, bare, padding):
    pixels = toy.pixels(2)
    body, headers = binary_request(pixels, {"binary_data_output": True})
    length = int(headers["Inference-Header-Content-Length"])
    body, length = (body[length:], 0) if bare else (body[:length] + b" " * padding + body[length:], length + padding)
    status, got, content = bytes_server.ask("POST", INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert status == 200
    tail = content[int(got["Inference-Header-Content-Length"]) :]
    expected = toy.logits(toy.normalized(pixels))
    np.testing.assert_allclose(np.frombuffer(tail, "<f4").reshape(2, 7), expected, atol=CLOSE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_scaled_and_cut_as_for_any_file(bytes_server, toy, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8)).save(buffer, kind)
    headers = {"Content-Type": f"image/{kind.lower()}"}
    status, answer = bytes_server.json("POST", f"{INFER}?classification=0", buffer.getvalue(), headers)
    images = toy.preprocessing.apply(Image.open(buffer))[None]
    assert status == 200
    np.testing.assert_allclose([answer["outputs"][0]["data"]], toy.logits(images), atol=CLOSE)


@pytest.mark.parametrize("typed", [False, True])
def test_raw_and_typed_contents(bytes_server, toy, typed):
    pixels = toy.pixels(3)
    response = call(bytes_server, "ModelInfer", rpc_request(pixels, typed))
    assert response.outputs[0].datatype == "FP32"
    np.testing.assert_allclose(logits(response), toy.logits(toy.normalized(pixels)), atol=CLOSE)


NO_PIXEL = "data holds a number that is no pixel; wanted whole numbers from 0 to 255"


@pytest.mark.parametrize("value", [-1, 256, 0.5, 254.999, -1e-9, 2**32, 2**63, 1e300])
def test_numbers_that_are_no_pixels_are_refused(bytes_server, toy, value):
    pixels = toy.pixels(1)
    data = pixels.ravel().tolist()
    data[17] = value
    status, answer = bytes_server.json("POST", INFER, {"inputs": [tensor(pixels, data=data)]})
    assert status == 400
    assert NO_PIXEL in answer["error"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"datatype": "FP32"}, "got the inputs 'image' FP32; wanted one input 'image', UINT8 [1 to 32, 8, 8, 3]"),
        ({"datatype": "INT8"}, "wanted one input 'image', UINT8 [1 to 32, 8, 8, 3]"),
        ({"shape": [1, 3, 8, 8]}, "got shape [1, 3, 8, 8]; wanted one input 'image', UINT8"),
        ({"data": [True] * 192}, "192 values that are not all numbers"),
        ({"data": [1] * 191}, "data holds 191 numbers; wanted 192"),
    ],
)
def test_what_the_file_does_not_take_is_refused(bytes_server, toy, changes, part):
    status, answer = bytes_server.json("POST", INFER, {"inputs": [tensor(toy.pixels(1), **changes)]})
    assert status == 400
    assert part in answer["error"]


def test_four_bytes_a_number_are_refused(bytes_server, toy, binary_request):
    """What a client sends that takes the file for one of floats."""
    body, headers = binary_request(toy.pixels(1))
    length = int(headers["Inference-Header-Content-Length"])
    text = body[:length].replace(b'"binary_data_size": 192', b'"binary_data_size": 768')
    wide = toy.pixels(1).astype("<f4").tobytes()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, answer = bytes_server.json("POST", INFER, text + wide, headers)
    assert (status, "wanted 192 bytes for shape [1, 8, 8, 3]" in answer["error"]) == (400, True)
    headers = {"Inference-Header-Content-Length": "0"}
    status, answer = bytes_server.json("POST", INFER, wide[:-1], headers)
    assert (status, "images of 192 bytes each, uint8 [8, 8, 3]" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r.raw_input_contents.append(b""), "has 2 item(s)"),
        (lambda r: r.ClearField("raw_input_contents"), "uint_contents has 0 numbers; wanted 192"),
        (lambda r: r.inputs[0].contents.uint_contents.append(1), "beside typed contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP32"), "wanted one input 'image', UINT8"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(bytes_server, toy, change, part):
    request = rpc_request(toy.pixels(1))
    change(request)
    code, details = refused(bytes_server, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT.name
    assert part in details


def test_typed_contents_that_are_no_pixels_are_refused(bytes_server, toy):
    request = rpc_request(toy.pixels(1), typed=True)
    request.inputs[0].contents.uint_contents[5] = 256
    code, details = refused(bytes_server, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT.name
    assert "uint_contents holds 256, which is no pixel" in details
