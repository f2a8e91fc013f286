"""Evaluation through the wire: the same answers, image for image, as from the file."""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import json_format, text_format
from PIL import Image

from fimaq.cli.main import cli
from fimaq.deploy.package import Triton, package
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.evaluate import EvalResult, OrtPredictor
from fimaq.toolchain.evaluate.endpoint import EndpointPredictor
from fimaq.toolchain.evaluate.v2_client import Server

KEY = "a key of more than sixteen characters"
SAME = ("sample_ids", "labels", "top5", "top5_logits")


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """Forty images in class folders, in every format that is read, one of them no web format."""
    folder = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(1)
    for index in range(40):
        suffix = ("png", "jpg", "webp", "bmp")[index % 4]
        path = folder / toy.names[index % 7] / f"{index:02d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (11, 17, 3), dtype=np.uint8)).save(path)
    return folder


def evaluate(*words, env=None):
    return CliRunner().invoke(cli, ["evaluate", *map(str, words)], env=env)


def result(path, *words):
    """The result an evaluation saves."""
    done = evaluate(*words, "-o", path, "--json")
    assert done.exit_code == 0, done.stderr
    return EvalResult.load(path)


@pytest.mark.parametrize("wire", ["tensor", "image"])
@pytest.mark.parametrize("with_file", [True, False])
def test_the_same_answer_for_every_image(server, toy_file, folder, tmp_path, wire, with_file):
    here = result(tmp_path / "here.json", toy_file, "--data", folder)
    source = [toy_file] if with_file else []
    there = result(tmp_path / "there.json", *source, "--endpoint", server.url, "--wire", wire, "--data", folder)
    for name in SAME:
        np.testing.assert_array_equal(getattr(there.predictions, name), getattr(here.predictions, name))
    for name in ("sha256", "bytes", "preprocessing_sha256", "dataset", "n", "top1", "top5"):
        assert getattr(there, name) == getattr(here, name)
    assert there.model == f"{server.url}/v2/models/toy"
    assert there.environment["wire"] == wire


@pytest.mark.parametrize("wire", ["tensor", "image"])
@pytest.mark.parametrize("with_file", [True, False])
def test_a_file_that_takes_pixels_answers_as_the_one_for_floats(
    bytes_server, toy_file, bytes_file, folder, tmp_path, wire, with_file
):
    floats = result(tmp_path / "floats.json", toy_file, "--data", folder)
    here = result(tmp_path / "here.json", bytes_file, "--data", folder)
    source = [bytes_file] if with_file else []
    words = ("--endpoint", bytes_server.url, "--wire", wire, "--data", folder)
    there = result(tmp_path / "there.json", *source, *words)
    for name in SAME:
        np.testing.assert_array_equal(getattr(there.predictions, name), getattr(here.predictions, name))
        np.testing.assert_array_equal(getattr(there.predictions, name), getattr(floats.predictions, name))
    assert (there.sha256, there.preprocessing_sha256) == (here.sha256, floats.preprocessing_sha256)


@pytest.mark.parametrize("binary", [False, True])
def test_pixels_are_sent_as_bytes(server, bytes_server, toy, monkeypatch, binary):
    """A quarter of the bytes of floats, from the sizes of two batches of either kind, whose headers are as long."""
    sent, exchange = [], Server._exchange

    def counted(self, method, target, body, headers):
        sent.append(len(body))
        return exchange(self, method, target, body, headers)

    monkeypatch.setattr(Server, "_exchange", counted)
    for running, make in ((server, toy.images), (bytes_server, toy.pixels)):
        with Server(running.url) as there:
            for count in (6, 9):
                there.infer_tensor("/models/toy", "image", make(count), binary)
    floats, pixels = sent[1] - sent[0], sent[3] - sent[2]
    assert (floats, pixels) == (2304, 576) if binary else floats > 4 * pixels


def test_a_batch_is_cut_to_what_the_server_takes(start, toy_file, folder, tmp_path):
    server = start(toy_file, "--max-batch", 3)
    found = result(tmp_path / "r.json", "--endpoint", server.url, "--data", folder, "--batch-size", 10)
    assert found.n == 40
    assert max(batch["batch_size"] for batch in server.statistics()["batch_stats"]) == 3


def test_a_key_is_sent(start, toy_file, folder, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    server = start(toy_file, "--keys", tmp_path / "keys")
    without = evaluate("--endpoint", server.url, "--data", folder)
    assert without.exit_code == 4
    assert "Give a key the server knows with --key-file" in without.stderr
    assert evaluate("--endpoint", server.url, "--data", folder, "--key-file", tmp_path / "keys").exit_code == 0


def test_images_that_cannot_be_decoded_are_left_out_when_asked(server, toy, folder, tmp_path):
    (tmp_path / "val" / toy.names[0]).mkdir(parents=True)
    (tmp_path / "val" / toy.names[0] / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    good = folder / toy.names[0]
    for path in good.iterdir():
        (tmp_path / "val" / toy.names[0] / path.name).write_bytes(path.read_bytes())
    words = ("--endpoint", server.url, "--wire", "image", "--data", tmp_path / "val")
    refused = evaluate(*words)
    assert refused.exit_code == 4
    assert "bad.png" in refused.stderr
    found = result(tmp_path / "r.json", *words, "--skip-corrupt")
    assert found.skipped == (f"{toy.names[0]}/bad.png",)
    assert found.n == len(list(good.iterdir()))


def test_a_file_that_is_not_the_one_that_is_served_is_refused(server, toy, folder, tmp_path):
    other = toy.write(tmp_path / "other.onnx", scale=2)
    done = evaluate(other, "--endpoint", server.url, "--data", folder)
    assert done.exit_code == 4
    assert "Give the file that is served, or none" in done.stderr


def test_one_of_several_models_must_be_named(start, toy, folder, tmp_path):
    for name in ("one", "two"):
        toy.write(tmp_path / "models" / f"{name}.onnx")
    server = start(tmp_path / "models")
    done = evaluate("--endpoint", server.url, "--data", folder)
    assert done.exit_code == 4
    assert "serves 2 models (one, two); wanted one. Name it: --model" in done.stderr
    assert evaluate("--endpoint", server.url, "--model", "two", "--data", folder).exit_code == 0
    assert evaluate("--endpoint", server.url, "--model", "three", "--data", folder).exit_code == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "d"], "wanted MODEL.onnx, a RUN, or the --endpoint of a server"),
        (["m.onnx", "--wire", "image", "--data", "d"], "--wire is for a server"),
        (["m.onnx", "--model", "x", "--data", "d"], "--model is for a server"),
        (["m.onnx", "--key-file", "k", "--data", "d"], "--key-file is for a server"),
        (["--endpoint", "http://x", "--threads", "2", "--data", "d"], "--threads has no meaning for a server"),
        (["--endpoint", "http://x", "--backend", "torch", "--data", "d"], "--backend has no meaning for a server"),
        (["--endpoint", "ftp://x", "--data", "d"], "wanted http://HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(words, message):
    done = evaluate(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_a_server_that_is_not_there(folder):
    done = evaluate("--endpoint", "http://127.0.0.1:9", "--data", folder)
    assert done.exit_code == 5
    assert "http://127.0.0.1:9 does not answer" in done.stderr


# Servers of others: the standard's JSON and nothing else


INPUTS = {
    "float": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
    "uint8": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
}


class Plain(BaseHTTPRequestHandler):
    """A server that knows no extension; it is busy now and then, and closes connections it had kept."""

    protocol_version = "HTTP/1.1"
    toy, busy, metadata, config, answers, extensions = None, 0, None, None, True, ()
    wait = "0"

    def do_GET(self):
        known = {
            "/v2": {"name": "plain", "version": "7", "extensions": list(self.extensions)},
            "/v2/models/toy": self.metadata,
            "/v2/models/toy/config": self.config,
        }
        found = known.get(self.path)
        self.reply(404 if found is None else 200, found or {"error": "no such thing"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"].startswith("image/"):
            self.reply(500, {"error": "no tensor"})
            return
        request = json.loads(body)
        if type(self).busy:
            type(self).busy -= 1
            self.reply(503, {"error": "busy"}, {"Retry-After": self.wait})
            return
        (tensor,) = request["inputs"]
        if self.metadata["inputs"][0]["shape"][0] not in (-1, tensor["shape"][0]):
            self.reply(400, {"error": "unexpected shape"})
            return
        images = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        logits = self.toy.logits(self.toy.normalized(images) if tensor["datatype"] == "UINT8" else images)
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        self.reply(200, {"model_name": "toy", "outputs": [output] if self.answers else []})
        self.close_connection = True

    def reply(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def plain(toy):
    """``plain(**attributes)`` starts such a server and gives its address."""
    running = []

    def run(**attributes):
        metadata = {
            "name": "toy",
            "versions": ["3"],
            "platform": "other",
            "inputs": INPUTS["float"],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}],
        }
        metadata |= attributes.pop("metadata", {})
        handler = type("Handler", (Plain,), {"toy": toy, "metadata": metadata, **attributes})
        listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        running.append((listening, thread))
        return f"http://127.0.0.1:{listening.server_port}"

    yield run
    for listening, thread in running:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_a_server_of_others_is_evaluated_with_the_file_beside_it(plain, toy_file, folder, tmp_path):
    here = result(tmp_path / "here.json", toy_file, "--data", folder)
    words = ("--endpoint", plain(), "--model", "toy", "--data", folder)
    there = result(tmp_path / "there.json", toy_file, *words)
    np.testing.assert_array_equal(there.predictions.top5, here.predictions.top5)
    assert (there.provider, there.environment["server"]) == ("other", "plain 7")


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_a_packaged_model_on_triton_needs_no_file_beside_it(plain, toy, folder, tmp_path, triton_model_config, kind):
    """Its configuration, through Triton's own parser, tells all: the JSON is what Triton answers for ``/config``."""
    file = toy.write(tmp_path / "toy.onnx", kind=kind)
    package(file, tmp_path / "models", Triton(max_batch=3))
    written = (tmp_path / "models" / "toy" / "config.pbtxt").read_text()
    config = json_format.MessageToDict(
        text_format.Parse(written, triton_model_config()), preserving_proto_field_name=True
    )
    url = plain(config=config, metadata={"inputs": INPUTS[kind]})
    here = result(tmp_path / "here.json", file, "--data", folder)
    there = result(tmp_path / "there.json", "--endpoint", url, "--model", "toy", "--data", folder)
    np.testing.assert_array_equal(there.predictions.top5, here.predictions.top5)
    for name in ("sha256", "bytes", "preprocessing_sha256", "provider", "n", "top1"):
        assert getattr(there, name) == getattr(here, name)


def test_a_busy_server_is_asked_again(plain, toy_file, folder, tmp_path):
    found = result(tmp_path / "r.json", toy_file, "--endpoint", plain(busy=3), "--model", "toy", "--data", folder)
    assert found.n == 40


def test_a_busy_server_may_tell_a_date(plain, toy_file, folder, tmp_path):
    url = plain(busy=1, wait="Thu, 01 Jan 2026 00:00:00 GMT")
    assert result(tmp_path / "r.json", toy_file, "--endpoint", url, "--model", "toy", "--data", folder).n == 40


def test_a_model_with_a_fixed_batch_gets_whole_batches(plain, toy_file, folder, tmp_path):
    url = plain(
        metadata={"inputs": [{"name": "image", "datatype": "FP32", "shape": [3, 3, 8, 8]}]},
        config={"max_batch_size": 0},
    )
    here = result(tmp_path / "here.json", toy_file, "--data", folder)
    there = result(tmp_path / "there.json", toy_file, "--endpoint", url, "--model", "toy", "--data", folder)
    np.testing.assert_array_equal(there.predictions.top5, here.predictions.top5)


def test_a_server_that_takes_no_images_is_not_sent_any(plain, toy_file, folder):
    done = evaluate(toy_file, "--endpoint", plain(), "--model", "toy", "--wire", "image", "--data", folder)
    assert done.exit_code == 4
    assert "takes no encoded images. Use --wire tensor" in done.stderr


def test_a_server_that_fails_is_not_taken_for_corrupt_images(plain, toy_file, folder, monkeypatch):
    monkeypatch.setattr(Plain, "extensions", ["image_bodies"])
    words = ("--endpoint", plain(), "--model", "toy", "--wire", "image", "--skip-corrupt", "--data", folder)
    done = evaluate(toy_file, *words)
    assert done.exit_code == 5
    assert "answers 500: no tensor" in done.stderr


def test_a_server_without_models_is_told_to_load_one(start, toy, folder, tmp_path):
    toy.write(tmp_path / "models" / "one.onnx")
    server = start(tmp_path / "models", "--admin")
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/v2/repository/models/one/unload", b"{}"))
    done = evaluate("--endpoint", server.url, "--data", folder)
    assert done.exit_code == 4
    assert "serves no model. Load one: POST /v2/repository/models/NAME/load" in done.stderr


def test_a_server_that_tells_nothing_needs_the_file(plain, folder):
    done = evaluate("--endpoint", plain(), "--model", "toy", "--data", folder)
    assert done.exit_code == 4
    assert "does not tell fimaq.preprocessing, fimaq.sha256, fimaq.bytes" in done.stderr


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"answers": False}, "did not answer with one FP32 tensor"),
        ({"metadata": {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}]}}, "wanted one FP32"),
        ({"metadata": {"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 9, 9]}]}}, "wanted one FP32"),
    ],
)
def test_servers_whose_answers_cannot_be_used(plain, toy_file, folder, attributes, message):
    done = evaluate(toy_file, "--endpoint", plain(**attributes), "--model", "toy", "--data", folder)
    assert done.exit_code == 4
    assert message in done.stderr


def test_the_file_beside_a_server_says_which_form_it_takes(plain, bytes_file, folder):
    done = evaluate(bytes_file, "--endpoint", plain(), "--model", "toy", "--data", folder)
    assert done.exit_code == 4
    assert "wanted one UINT8 [batch, 8, 8, 3]. Give" in done.stderr


def test_a_server_that_takes_another_form_is_told_both(plain, toy, folder):
    told = {"fimaq.preprocessing": toy.preprocessing.to_json(), "fimaq.sha256": "0", "fimaq.bytes": "1"}
    told["fimaq.classes"] = json.dumps({"wnids": None, "names": toy.names})
    config = {"parameters": {key: {"string_value": value} for key, value in told.items()}}
    inputs = [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}]
    done = evaluate("--endpoint", plain(config=config, metadata={"inputs": inputs}), "--model", "toy", "--data", folder)
    assert done.exit_code == 4
    assert "wanted one FP32 [batch, 3, 8, 8] or UINT8 [batch, 8, 8, 3]." in done.stderr


def test_the_url_may_end_as_people_write_it(server):
    address = server.url.removeprefix("http://")
    urls = {Server(url).url for url in (server.url, f"{server.url}/", f"{server.url}/v2", f"{server.url}/v2/", address)}
    assert urls == {server.url}
    with pytest.raises(UsageError, match="wanted http://HOST:PORT"):
        Server("http://")


def test_a_predictor_by_itself(server, toy, toy_file):
    with Server(server.url) as there:
        predictor = EndpointPredictor(there, local=OrtPredictor(toy_file, threads=1))
        np.testing.assert_allclose(predictor(toy.images(5)), toy.logits(toy.images(5)), atol=1e-5)
        assert predictor.prepare is None
        with pytest.raises(InputError, match="answers 404"):
            EndpointPredictor(there, "none")


@pytest.mark.slow
@pytest.mark.imagenet
def test_photographs_get_the_same_answers_as_tensors_and_as_files(start, fimaq_data, tmp_path):
    from fimaq.toolchain.export import export_float

    weights = fimaq_data / "weights" / "deit_tiny_patch16_224.safetensors"
    model = tmp_path / "deit.onnx"
    export_float("deit_tiny_patch16_224", model, weights=weights, opset=None, force=False)
    server = start(model)
    words = ("--data", fimaq_data / "imagenet_mini" / "val", "--limit", 60)
    here = result(tmp_path / "here.json", model, *words, "--threads", 1)
    for wire in ("tensor", "image"):
        there = result(tmp_path / f"{wire}.json", "--endpoint", server.url, "--wire", wire, *words)
        for name in SAME:
            np.testing.assert_array_equal(getattr(there.predictions, name), getattr(here.predictions, name))


def test_a_server_of_something_else_is_told_in_one_line(folder):
    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "Nothing <b>here</b>")

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        done = evaluate("--endpoint", f"http://127.0.0.1:{foreign.server_port}", "--data", folder)
        foreign.shutdown()
    assert done.exit_code == 4
    (line,) = done.stderr.strip().splitlines()
    assert "answers 404: not as the Open Inference Protocol does. Give --endpoint http://HOST:PORT" in line


def test_an_image_above_the_servers_limit_is_not_left_out_as_a_corrupt_one(start, toy, toy_file, tmp_path):
    (tmp_path / "val" / toy.names[0]).mkdir(parents=True)
    Image.new("RGB", (1100, 1000)).save(tmp_path / "val" / toy.names[0] / "large.png")
    server = start(toy_file, "--max-pixels", 1)
    words = ("--endpoint", server.url, "--wire", "image", "--data", tmp_path / "val", "--skip-corrupt")
    done = evaluate(*words)
    assert done.exit_code == 5
    assert "answers 413: the image has 1100x1000 pixels" in done.stderr
